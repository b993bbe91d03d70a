"""A match pays the learner what a game that is played move by move pays it, and leaves the game's state as it is.

Mutations seen to fail: the answer's reward not turned round; the answer given where the game is over; discount −1 kept;
sides exchanged; an opening that ends the game; one ply of an opening too many; openings that are decided kept; the
opponent's numbers from its neighbours; a game that the other player has won before the learner moves; a player that
may not move twice; a player that makes the worst move;
ties of ":middle" drawn, or broken away from the middle.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpc_rl.envs.base import BadEnvironment
from hpc_rl.envs.games import connect_four, tictactoe
from hpc_rl.envs.make import describe, describe_sets, make, rules
from hpc_rl.envs.matches import Terms, answer, match, terms_of, two_players
from hpc_rl.envs.opponents import player_of
from hpc_rl.envs.rules import RulesEnvironment
from hpc_rl.search.levels import at, move_values
from hpc_rl.testing import check_environment
from hpc_rl.types import Array, Rules, RulesState

NO_U = np.zeros((1, 0))
GAME = tictactoe(np).rules


def lowest(state: RulesState, u: Array) -> Array:
    """A player that takes the first legal action."""
    assert GAME.legal is not None
    return np.asarray(GAME.legal(state)).argmax(-1)


def played(environment: RulesEnvironment, seed: int, moves: int) -> list[dict[str, Any]]:
    """Random legal moves of every column; a row each."""
    legal = environment._rules.legal
    assert legal is not None
    rng = np.random.default_rng(seed)
    environment.reset(np.arange(environment.columns) + seed)
    rows = []
    for _ in range(moves):
        before = environment.rules_state
        mask = np.asarray(legal(before))
        action = np.where(mask.any(1)[:, None], mask, 1) * rng.random(mask.shape)
        environment.send(action.argmax(1))
        steps = environment.recv()
        rows.append({"before": before, "after": environment.rules_state, "action": action.argmax(1), **vars(steps)})
    return rows


def stones(state: RulesState) -> list[int]:
    return [int(x).bit_count() for x in state["mine"] | state["theirs"]]


@pytest.mark.parametrize("side", ["first", "second"])
def test_a_match_is_the_game_played_move_by_move(side: str) -> None:
    environment = RulesEnvironment(match(GAME, lowest, Terms("", side)), 4)
    results = []
    for row in played(environment, 1, 60):
        for k in np.flatnonzero(~row["first"]):
            state, moves = at(row["before"], np.array([k])), (row["action"][[k]], None)
            assert stones(state)[0] % 2 == (side == "second")
            reward, sign, discount = 0.0, 1.0, -1.0
            for action in moves:
                state, paid, discounts, _ = GAME.move(state, lowest(state, NO_U) if action is None else action, NO_U)
                reward, sign, discount = reward + sign * float(paid[0]), -sign, float(discounts[0])
                if not discount:
                    break
            assert (row["reward"][k], row["discount"][k]) == (reward, 1.0 if discount else 0.0)
            assert at(row["after"], np.array([k])) == state and set(row["after"]) == {"mine", "theirs"}
            results += [reward] if not discount else []
    assert set(results) == {-1.0, 0.0, 1.0} or side == "first"
    assert {-1.0, 1.0} <= set(results)


def test_sides_are_drawn_by_the_episode() -> None:
    environment = make("toy/connect_four", {"opponent": "random"}, 200)
    environment.reset(np.arange(200))
    assert environment.rules_state is not None
    counts = np.bincount(stones(environment.rules_state))
    assert len(counts) == 2 and counts.min() > 70


def test_openings_have_their_length_and_end_no_game() -> None:
    environment = make("toy/connect_four", {"opponent": "random", "side": "first", "opening_plies": [2, 6]}, 300)
    environment.reset(np.arange(300))
    assert environment.rules_state is not None
    counts = np.bincount(stones(environment.rules_state), minlength=7)
    assert counts[:2].sum() == 0 and counts[2:].min() > 30 and len(counts) == 7
    full = make("toy/tictactoe", {"opponent": "random", "side": "second", "opening_plies": 9}, 100)
    full.reset(np.arange(100))
    assert full.rules_state is not None
    for name in ("mine", "theirs"):
        assert not any(won(int(x)) for x in full.rules_state[name])
    assert max(stones(full.rules_state)) == 8  # one place is left, since the last move would have ended the game


def won(stones: int) -> bool:
    """The twin of a line in tic-tac-toe, by bits 4 · column + row."""
    place = [[stones >> (4 * c + r) & 1 for c in range(3)] for r in range(3)]
    lines = [*place, *zip(*place, strict=True), [place[i][i] for i in range(3)], [place[i][2 - i] for i in range(3)]]
    return any(all(line) for line in lines)


def test_openings_that_are_decided_are_drawn_again() -> None:
    arguments = {"opponent": "random", "side": "first", "opening_plies": 8}
    decided = []
    for depth in (0, 3):
        environment = make("toy/connect_four", {**arguments, "opening_depth": depth}, 60)
        environment.reset(np.arange(60))
        assert environment.rules_state is not None
        values = move_values(connect_four(np).rules, environment.rules_state, 3).max(1)
        decided.append(int((values != 0).sum()))
    assert decided[0] > 5 and decided[1] == 0


@pytest.mark.parametrize("opponent", ["random", "alphabeta:2", "uct:20"])
def test_a_game_does_not_depend_on_its_neighbours(opponent: str) -> None:
    rules = connect_four(np, rows=4, columns=4).rules
    both = match(rules, player_of(opponent, rules, "c4"), Terms(opponent, "both", (0, 3)))
    u = np.random.default_rng(3).random((6, both.begin_uniforms))
    whole, alone = both.begin(u), both.begin(u[4:5])
    assert {name: int(x[4]) for name, x in whole.items()} == {name: int(x[0]) for name, x in alone.items()}
    v, action = np.random.default_rng(4).random((6, both.move_uniforms)), np.full(6, 2)
    there, here = both.move(whole, action, v), both.move(alone, action[:1], v[4:5])
    assert [x[4] for x in there[1:]] == [x[0] for x in here[1:]]
    assert {name: int(x[4]) for name, x in there[0].items()} == {name: int(x[0]) for name, x in here[0].items()}


@pytest.mark.parametrize("opponent", ["random", "alphabeta:1", "alphabeta:4", "uct:60"])
def test_the_perfect_player_never_loses(opponent: str) -> None:
    """It plays from both sides, in games with random openings that are not lost yet."""
    theirs, perfect = player_of(opponent, GAME, "ttt"), player_of("perfect", GAME, "ttt")
    for side in ("first", "second"):
        rules = match(GAME, theirs, Terms("", side))
        state, results = rules.begin(np.random.default_rng(5).random((40, 1))), []
        rng = np.random.default_rng(6)
        while len(next(iter(state.values()))):
            n = len(state["mine"])
            state, reward, discount, _ = rules.move(state, perfect(state, rng.random(n)), rng.random((n, 1)))
            results += reward[discount == 0].tolist()
            state = at(state, np.flatnonzero(discount))
        assert min(results) == 0.0 and (max(results) == 1.0 or opponent != "random")


def test_players_win_at_once_and_prevent_it() -> None:
    """Three stones of "mine" above each other: who moves wins in that column, and the other player must take it."""
    rules = connect_four(np).rules
    three, far = 0b111, 0b101 << 21
    for name in ("alphabeta:2", "alphabeta:5", "uct:400"):
        player = player_of(name, rules, "c4")
        wins, saves = {"mine": np.array([three]), "theirs": np.array([far])}, {}
        saves = {"mine": wins["theirs"], "theirs": wins["mine"]}
        for u in (0.01, 0.5, 0.99):
            assert player(wins, np.array([u]))[0] == 0 and player(saves, np.array([u]))[0] == 0
    moves = {
        int(player_of("alphabeta:4", rules, "c4")(rules.begin(NO_U), np.array([u]))[0])
        for u in np.arange(0.01, 1, 0.05)
    }
    assert moves == set(range(7))  # equal moves are equally likely
    middle = player_of("alphabeta:4:middle", rules, "c4")
    assert {int(middle(rules.begin(NO_U), np.array([u]))[0]) for u in (0.01, 0.5, 0.99)} == {3}
    assert middle({"mine": np.array([0]), "theirs": np.array([three])}, np.array([0.9])).tolist() == [0]  # not a tie


def test_a_player_may_move_twice() -> None:
    """Where the other player moves again, discount 1, the answer goes on."""

    def move(state: RulesState, action: Array, u: Array) -> Any:
        left = state["left"] - 1 - action
        again = left % 2 == 1
        return (
            {"left": left},
            np.where(left <= 0, 1.0, 0.0),
            np.where(left <= 0, 0.0, np.where(again, 1.0, -1.0)),
            left > 99,
        )

    rules = Rules(GAME.spec, lambda u: {"left": np.full(len(u), 9)}, move, lambda state: state["left"])
    seen: list[int] = []

    def player(state: RulesState, u: Array) -> Array:
        seen.extend(state["left"].tolist())
        return np.zeros(len(u), np.int64)

    state, reward, discount, _ = answer(
        rules, player, {"left": np.array([8, 8])}, np.array([True, False]), np.arange(2, dtype=np.int64)
    )
    assert seen == [8, 7] and state["left"].tolist() == [6, 8]
    assert (reward.tolist(), discount.tolist()) == ([0, 0], [-1, 1])


# ---- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("id", "arguments", "words"),
    [
        ("toy/connect_four", {"opponent": "alfabeta:4"}, "is no player; name random, alphabeta:4, uct:1000, perfect"),
        ("toy/connect_four", {"opponent": "alphabeta"}, "is no player"),
        ("toy/connect_four", {"opponent": "alphabeta:0"}, "the number is from 1 to 20"),
        ("toy/connect_four", {"opponent": "uct:9:middle"}, "is no player"),
        ("toy/connect_four", {"opponent": 3}, "opponent = 3 is no name"),
        ("toy/connect_four", {"side": "first"}, "side needs an opponent"),
        ("toy/connect_four", {"opponent": "random", "side": "left"}, "it is first, second or both"),
        ("toy/connect_four", {"opponent": "random", "opening_plies": [3, 1]}, r"opening_plies = \[3, 1\] is refused"),
        ("toy/connect_four", {"opponent": "random", "opening_depth": -1}, "opening_depth = -1 is refused"),
        ("toy/connect_four", {"opponent": "random", "size": 3}, "takes no argument 'size'; it takes columns, l"),
        ("toy/catch", {"opponent": "random"}, "toy/catch is no game of two players"),
        ("toy/box_counter", {"opponent": "random"}, "is no game of two players"),
    ],
)  # fmt: skip
def test_mistakes(id: str, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(BadEnvironment, match=words):
        describe(id, arguments)
    with pytest.raises(BadEnvironment, match=words):
        make(id, arguments, 1)


def test_games_that_are_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpc_rl.envs.opponents.MOST", 2000)
    with pytest.raises(
        BadEnvironment, match=r"toy/connect_four is too large for opponent = 'perfect': more than 8,000"
    ):
        make("toy/connect_four", {"opponent": "perfect"}, 1)
    with pytest.raises(BadEnvironment, match="needs a run"):
        make("toy/connect_four", {"opponent": "checkpoint:runs/x"}, 1)
    monkeypatch.setattr("hpc_rl.envs.opponents.move_values", lambda *x: move_values(*x, most=100))
    environment = make("toy/connect_four", {"opponent": "alphabeta:8", "side": "first"}, 1)
    environment.reset(np.arange(1))
    environment.send(np.array([3]))
    with pytest.raises(BadEnvironment, match="8 moves ahead there are more than 100 moves to look at; name a sm"):
        environment.recv()


def test_an_illegal_answer_is_refused() -> None:
    rules = match(GAME, lambda state, u: np.zeros(len(u), np.int64), Terms("", "first"))
    state = rules.begin(np.zeros((1, 1)))
    with pytest.raises(
        BadEnvironment, match="the opponent's action 0 is not legal there; 1, 2, 3, 4, 5, 6, 7, 8 would be"
    ):
        rules.move(state, np.array([0]), np.zeros((1, 1)))


def test_a_policy_gets_the_rules_of_the_game() -> None:
    own, terms = terms_of("toy/tictactoe", {"rows": 4, "opponent": "perfect", "opening_plies": 2})
    assert own == {"rows": 4} and terms == Terms("perfect", "both", (2, 2), 0)
    import torch

    theirs = rules("toy/tictactoe", {"opponent": "random"})
    assert theirs is not None and theirs.begin_uniforms == 0
    state = theirs.begin(torch.zeros(1, 0))
    assert theirs.move(state, torch.tensor([4]), torch.zeros(1, 0))[2].tolist() == [-1.0]
    spec = describe("toy/tictactoe", {})
    describe_sets("toy/tictactoe", {}, [{"opponent": "random"}, {"opponent": "checkpoint:x", "side": "first"}], spec)
    with pytest.raises(BadEnvironment, match=r"evaluate.arguments\[0\] = .*changes the observation"):
        describe_sets("toy/tictactoe", {}, [{"opponent": "random", "rows": 4}], spec)


THEIRS = '''
from __future__ import annotations
import numpy as np
from hpc_rl.types import Actions, Rules, Spec

def nim(xp, stones=5, open=False) -> Rules:
    """Players take one or two stones in turn; who takes the last one wins 1."""

    def begin(u):
        return {"left": xp.zeros(len(u), dtype=xp.int64, device=u.device) + stones}

    def move(state, action, u):
        left = state["left"] - 1 - action
        over = left <= 0
        return {"left": left}, xp.where(over, 1.0, 0.0), xp.where(over, 0.0, -1.0), xp.zeros_like(over)

    def show(state):
        return xp.asarray(state["left"][:, None], dtype=xp.float32)

    def legal(state):
        return xp.stack([state["left"] >= 1, state["left"] >= 2], 1)

    spec = Spec("nim", (1,), "float32", Actions("discrete", (2,)))
    return Rules(spec, begin, move, show, legal=None if open else legal)

def number(xp) -> Rules:
    return 3

def stuck(xp) -> "Rules":
    rules = nim(xp)
    def legal(state):
        return rules.legal(state) & (state["left"] > 3)[:, None]

    return Rules(rules.spec, rules.begin, rules.move, rules.show, legal=legal)
'''


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_game.py").write_text(THEIRS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "their_game", raising=False)


@pytest.mark.usefixtures("theirs")
def test_a_game_of_the_users() -> None:
    environment = make("their_game:nim", {"stones": 6, "opponent": "perfect", "side": "first"}, 3)
    assert environment.rules_state is not None and describe("their_game:nim", {}).id == "nim"
    results = [row["reward"][row["ended"]].tolist() for row in played(environment, 0, 30)]  # type: ignore[arg-type]
    assert {x for group in results for x in group} == {-1.0}  # six stones are lost for who moves
    their_rules = rules("their_game:nim", {"stones": 7})
    assert their_rules is not None and their_rules.legal is not None
    assert check_environment("their_game:nim", {"opponent": "alphabeta:2"}) == []
    with pytest.raises(BadEnvironment, match="takes no argument 'size'; it takes open, stones"):
        describe("their_game:nim", {"size": 3})
    with pytest.raises(BadEnvironment, match="is declared to return Rules and returned a int"):
        describe("their_game:number", {})
    with pytest.raises(BadEnvironment, match="no legal move and is no end; let a pass be one"):
        make("their_game:stuck", {"opponent": "perfect"}, 1)


def test_rules_whose_first_move_fails_are_named() -> None:
    """Every run asks whether its Rules are a game of two, before any rank starts."""
    rules = tictactoe(np).rules

    def lost(state: RulesState, action: Array, u: Array) -> Any:
        return state["nothing"]

    with pytest.raises(
        BadEnvironment, match=r"toy/tictactoe: the first move fails: KeyError: 'nothing'; mend its Rules"
    ):
        two_players(replace(rules, move=lost))


@pytest.mark.parametrize("discount", [1.0, -1.0])
def test_one_discount_for_all_games_will_do(discount: float) -> None:
    rules = tictactoe(np).rules

    def move(state: RulesState, action: Array, u: Array) -> Any:
        return state, 0.0, discount, False

    assert two_players(replace(rules, move=move)) == (discount < 0)
