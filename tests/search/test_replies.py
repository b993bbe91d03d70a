"""All lines of a player against every reply, against a recursion that walks each of them.

Mutations seen to fail: lines of a position that is reached twice counted once; the other player's wins as the player's;
a move of the player's that ends the game left out; positions counted by lines; who moves first exchanged.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from hpc_rl.envs.games import tictactoe
from hpc_rl.search.levels import TooManyPositions, legal_moves, solved
from hpc_rl.search.replies import Answers, all_replies
from hpc_rl.types import Array, RulesState

RULES = tictactoe(np).rules
NO_U = np.zeros((1, 0))


def lowest(state: RulesState) -> Array:
    return legal_moves(RULES, state).argmax(1)


def best(state: RulesState) -> Array:
    return PERFECT.move_values(state).argmax(1)


PERFECT = solved(RULES)


def walked(state: RulesState, answers: Answers, turn: bool, seen: set[tuple[int, int]]) -> Counter[int]:
    """Ends of all lines from here by their result for the player, whose ``turn`` it is or not."""
    actions = answers(state) if turn else np.flatnonzero(legal_moves(RULES, state)[0])
    if turn:
        seen.add((int(state["mine"][0]), int(state["theirs"][0])))
    ends: Counter[int] = Counter()
    for action in actions:
        after, reward, discount, _ = RULES.move(state, np.array([action]), NO_U)
        ends += (
            walked(after, answers, not turn, seen) if discount[0] else Counter([int(reward[0]) * (1 if turn else -1)])
        )
    return ends


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("answers", [lowest, best])
def test_equals_the_walk(answers: Answers, first: bool) -> None:
    replies, seen = all_replies(RULES, answers, first, 10_000), set[tuple[int, int]]()
    ends = walked(RULES.begin(NO_U), answers, first, seen)
    assert (replies.won, replies.drawn, replies.lost) == (ends[1], ends[0], ends[-1])
    assert replies.positions == len(seen)
    assert (replies.lost == 0) == (answers is best)


def test_what_cannot_be_enumerated() -> None:
    with pytest.raises(TooManyPositions, match="more than 5 positions to ask the player about"):
        all_replies(RULES, lowest, True, 5)
    with pytest.raises(ValueError, match="toy/tictactoe: the policy's move is not legal"):
        all_replies(RULES, lambda state: np.zeros(len(state["mine"]), np.int64), True, 100)
