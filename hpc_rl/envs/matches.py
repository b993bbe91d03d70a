"""A match: a game of two players as an environment of one, whose other player answers inside ``move``.

A state is that of the game itself, when the learner is to move, so that a policy that searches sees the game of two
players. Rewards are the learner's, r − r′ of its own move and of the answer, and discounts are 1 until the game ends.
Arguments of the environment make a match of any game of two that is made of Rules::

    opponent = "alphabeta:4"     a player of envs/opponents.py
    side = "both"                who moves first after the opening: the learner ("first"), the other, or by chance
    opening_plies = [2, 6]       so many random moves before (a number, or the least and the most)
    opening_depth = 8            openings in which this many moves force a win are drawn again, up to 20 times

No move of an opening ends the game. Where the other player would move first and win at once, the learner moves first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hpc_rl.envs.base import BadEnvironment
from hpc_rl.envs.opponents import Player, check_name, seen
from hpc_rl.formulas.counter_hash import mixed, seed_of, uniforms
from hpc_rl.search.levels import at, legal_moves
from hpc_rl.search.roots import drawn
from hpc_rl.types import Array, Rules, RulesState

TERMS = ("opponent", "side", "opening_plies", "opening_depth")
_SIDES = {"first": 0.0, "second": 1.0, "both": 0.5}  # how likely the other player moves first
_TRIES = 20  # openings that are decided before one is taken as it is
MOST_PLIES = 200

Result = tuple[RulesState, Array, Array, Array]


@dataclass(frozen=True)
class Terms:
    """How a match is played."""

    opponent: str | Player
    side: str = "both"
    plies: tuple[int, int] = (0, 0)
    depth: int = 0


def terms_of(id: str, arguments: Mapping[str, Any]) -> tuple[dict[str, Any], Terms | None]:
    """(the game's own arguments, the terms of the match; None where there is no opponent). Raises BadEnvironment."""
    own = {name: value for name, value in arguments.items() if name not in TERMS}
    named = {name: arguments[name] for name in TERMS if name in arguments}
    if not named:
        return own, None
    if "opponent" not in named:
        raise BadEnvironment(f'{id}: {next(iter(named))} needs an opponent; add opponent = "random"')
    opponent, side = named["opponent"], named.get("side", "both")
    if isinstance(opponent, str):
        check_name(id, opponent)
    elif not callable(opponent):
        raise BadEnvironment(f'{id}: opponent = {opponent!r} is no name of a player; give a text as "alphabeta:4"')
    if side not in _SIDES:
        raise BadEnvironment(f"{id}: side = {side!r} is refused; it is first, second or both")
    plies, depth = named.get("opening_plies", 0), named.get("opening_depth", 0)
    low, high = plies if isinstance(plies, list | tuple) and len(plies) == 2 else (plies, plies)
    if not all(_counts(x) for x in (low, high)) or not 0 <= low <= high <= MOST_PLIES:
        raise BadEnvironment(
            f"{id}: opening_plies = {plies!r} is refused; it is a number of moves, or the least and the most"
        )
    if not _counts(depth) or not 0 <= depth <= 20:
        raise BadEnvironment(f"{id}: opening_depth = {depth!r} is refused; it is a number of moves from 0 to 20")
    return own, Terms(opponent, side, (low, high), depth)


def two_players(rules: Rules) -> bool:
    """The other player moves next after a first move: what makes a game one of two.

    Raises:
        BadEnvironment: the first move fails.
    """
    if rules.spec.actions.kind != "discrete":
        return False
    try:
        state = rules.begin(np.full((1, rules.begin_uniforms), 0.5))
        action = legal_moves(rules, state).argmax(-1)
        discount = rules.move(state, action, np.full((1, rules.move_uniforms), 0.5))[2]
        return bool(np.all(np.asarray(discount) < 0))  # one number for all games is as good as an array
    except Exception as error:
        told = " ".join(f"{type(error).__name__}: {error}".split())
        raise BadEnvironment(f"{rules.spec.id}: the first move fails: {told}; mend its Rules") from error


def match(rules: Rules, player: Player, terms: Terms) -> Rules:
    """The match as Rules, for NumPy. Raises BadEnvironment where the player makes an illegal move."""

    def begin(u: Array) -> RulesState:
        own, seed = u[:, : rules.begin_uniforms], seed_of(u[:, rules.begin_uniforms])
        state = opening(rules, rules.begin(own), seed, terms)
        other_first = uniforms(np, mixed(seed, 1), 1)[:, 0] < _SIDES[terms.side]
        answered, _, discount, truncated = answer(rules, player, state, other_first, mixed(seed, 2))
        over = (discount == 0) | truncated
        return {name: _chosen(over, state[name], x) for name, x in answered.items()}

    def move(state: RulesState, action: Array, u: Array) -> Result:
        following, reward, discount, truncated = rules.move(state, action, u[:, : rules.move_uniforms])
        waits = (discount < 0) & ~truncated
        seed = seed_of(u[:, rules.move_uniforms])
        answered, paid, factor, cut = answer(rules, player, following, waits, seed)
        # the answer's view is that of who waits for it: of the other player where ``discount`` is −1
        return answered, reward + discount * paid, discount * factor, truncated | cut

    return replace(
        rules, begin=begin, move=move, begin_uniforms=rules.begin_uniforms + 1, move_uniforms=rules.move_uniforms + 1
    )


def answer(rules: Rules, player: Player, state: RulesState, waits: Array, seed: Array) -> Result:
    """Let the other player move in the games that wait [n] until it is the learner's turn.

    Returns the state, and reward, discount and truncated as of one move, in the view of who moved first; of games that
    do not wait, 0, 1 and False.
    """
    n = len(waits)
    reward, discount, truncated, turn = np.zeros(n), np.ones(n), np.zeros(n, bool), 0
    waiting = np.flatnonzero(waits)
    while len(waiting):
        u = uniforms(np, mixed(seed[waiting], turn), 1 + rules.move_uniforms)
        there = at(state, waiting)
        action = np.asarray(player(there, u[:, 0]))
        _refuse_illegal(rules, there, action)
        following, paid, factor, cut = rules.move(there, action, u[:, 1:])
        state = {name: _placed(x, waiting, following[name]) for name, x in state.items()}
        reward[waiting] += discount[waiting] * paid
        discount[waiting] *= factor
        truncated[waiting] |= cut
        waiting = waiting[(np.asarray(factor) > 0) & ~np.asarray(cut)]
        turn += 1
    return state, reward, discount, truncated


def opening(rules: Rules, state: RulesState, seed: Array, terms: Terms) -> RulesState:
    """n games after the random moves of their openings."""
    chosen = random_moves(rules, state, mixed(seed, 0), terms.plies)
    if not terms.depth or not terms.plies[1]:
        return chosen
    for attempt in range(1, _TRIES):
        decided = seen(rules, chosen, terms.depth).max(-1) != 0
        if not decided.any():
            break
        rows = np.flatnonzero(decided)
        again = random_moves(rules, at(state, rows), mixed(seed[rows], 100 + attempt), terms.plies)
        chosen = {name: _placed(x, rows, again[name]) for name, x in chosen.items()}
    return chosen


def random_moves(rules: Rules, state: RulesState, seed: Array, plies: tuple[int, int]) -> RulesState:
    """n games after between ``plies`` random moves, both included; a move that would end a game is not made."""
    low, high = plies
    counts = low + np.floor(uniforms(np, seed, 1)[:, 0] * (high - low + 1))
    for ply in range(high):
        u = uniforms(np, mixed(seed, 1 + ply), 1 + rules.move_uniforms)
        action = drawn(legal_moves(rules, state).astype(float), u[:, 0])
        following, _, discount, truncated = rules.move(state, action, u[:, 1:])
        stays = (ply >= counts) | (discount == 0) | truncated
        state = {name: _chosen(stays, x, following[name]) for name, x in state.items()}
    return state


def _refuse_illegal(rules: Rules, state: RulesState, action: Array) -> None:
    legal = legal_moves(rules, state)
    wrong = ~legal[np.arange(len(action)), action]
    if wrong.any():
        first = int(wrong.argmax())
        moves = ", ".join(map(str, np.flatnonzero(legal[first])))
        raise BadEnvironment(
            f"{rules.spec.id}: the opponent's action {action[first]} is not legal there; {moves} would be. "
            "Name an opponent whose policy looks at `Rules.legal`"
        )


def _counts(x: Any) -> bool:
    return isinstance(x, int) and not isinstance(x, bool)


def _chosen(where: Array, left: Array, right: Array) -> Array:
    return np.where(where.reshape(-1, *(1,) * (left.ndim - 1)), left, right)


def _placed(x: Array, rows: Array, new: Array) -> Array:
    whole = x.copy()
    whole[rows] = new
    return whole
