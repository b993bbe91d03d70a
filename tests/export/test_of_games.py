"""Games of players as a run: each is what the rules make of its moves, and behaviour cloning can learn from them.

Mutations seen to fail: the other player's turn taken by the same one; the frame behind the last move left out; a return
that adds up the rewards of both players; the opening's moves recorded; streams shared by all games.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from hpc_rl.api import open_run
from hpc_rl.cli import cli
from hpc_rl.envs.base import BadEnvironment
from hpc_rl.envs.of_rules import game_of_two
from hpc_rl.export.base import NotExported
from hpc_rl.export.of_games import Fixture, played, record_games
from hpc_rl.opponents import player_of_run
from hpc_rl.sources import Source
from hpc_rl.storage.archive import archive
from hpc_rl.types import Array, Rules, RulesState

ID = "toy/tictactoe"


def rules_of() -> Rules:
    rules = game_of_two(ID, {})
    assert rules is not None
    return rules


def recorded(run: Path) -> list[dict[str, Array]]:
    moves = archive(Source(str(run)), rules_of().spec)
    names = ("observation", "action", "reward", "discount", "episode_return")
    return [moves.read(k, 0, episode.length, names) for k, episode in enumerate(moves.episodes)]


@pytest.mark.parametrize("opening", [0, 2])
def test_a_game_is_what_the_rules_make_of_its_moves(opening: int, tmp_path: Path) -> None:
    rules, none = rules_of(), np.zeros((1, 0))
    result = record_games(Fixture(ID, {}, ["random", "perfect"], 40, opening), tmp_path / "run", player_of_run)
    games = recorded(tmp_path / "run")
    assert len(games) == result.episodes == 40 and sum(len(x["action"]) for x in games) == result.env_steps
    for game in games:
        shown = game["observation"]
        assert shown[0].sum() == opening and len(shown) == len(game["action"]) + 1
        # whose stones are whose follows from the planes; tic-tac-toe's state is them as bit boards
        state = _state(rules, shown[0])
        for t, action in enumerate(game["action"].tolist()):
            assert rules.legal is not None and rules.legal(state)[0, action]
            state, reward, discount, _ = rules.move(state, np.array([action]), none)
            assert np.array_equal(rules.show(state)[0], shown[t + 1])
            assert (reward[0], discount[0]) == (game["reward"][t], game["discount"][t])
        assert game["discount"][-1] == 0 and (game["discount"][:-1] == -1).all()
        winner = 1.0 if len(game["action"]) % 2 else -1.0
        assert game["episode_return"][-1] == winner * game["reward"][-1]


def _state(rules: Rules, planes: Array) -> RulesState:
    """The state that shows these planes, found by moves in some order that ends no game on the way."""
    none, mine, theirs = np.zeros((1, 0)), *(np.flatnonzero(x).tolist() for x in planes)
    count = len(mine) + len(theirs)
    state = rules.begin(np.zeros((1, 0)))
    for k in range(count):
        own = mine if (count - k) % 2 == 0 else theirs
        state = rules.move(state, np.array([own.pop()]), none)[0]
    return state


def test_both_players_take_turns_and_either_begins_as_often() -> None:
    calls: list[tuple[str, int]] = []

    def player(name: str) -> object:
        def act(state: RulesState, u: Array) -> Array:
            assert rules.legal is not None
            calls.append((name, len(u)))
            return np.asarray(rules.legal(state)).argmax(-1)

        return act

    rules = rules_of()
    u = np.random.default_rng(0).random((3, rules.begin_uniforms + 1))
    games = played(rules, (player("a"), player("b")), u, 0)  # type: ignore[arg-type]
    assert [name for name, _ in calls] == ["ab"[k % 2] for k in range(len(calls))]
    assert all(game.action == games[0].action for game in games)
    assert Fixture(ID, {}, ["x", "y"], 4).pairs == [("x", "y"), ("y", "x")]
    assert Fixture(ID, {}, ["x"], 4).pairs == [("x", "x")]


def test_a_seed_gives_the_same_games_and_each_is_another(tmp_path: Path) -> None:
    for name, seed in (("one", 5), ("two", 5), ("other", 6)):
        record_games(Fixture(ID, {}, ["random"], 50, 0, seed), tmp_path / name, player_of_run)
    one, two, other = (recorded(tmp_path / name) for name in ("one", "two", "other"))
    texts = [[game["action"].tolist() for game in games] for games in (one, two, other)]
    assert texts[0] == texts[1] != texts[2]
    assert len({tuple(x) for x in texts[0]}) > 40


def test_perfect_players_draw_and_the_run_is_done(tmp_path: Path) -> None:
    out = tmp_path / "run"
    arguments = ["record", ID, "perfect", "--games", "12", "--out", str(out), "--set", "line=3"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output
    assert f"{out}" in result.output and "12 games, 108 moves" in result.output
    assert {float(game["episode_return"][-1]) for game in recorded(out)} == {0.0}
    assert open_run(out).summary["reason"] == "done: 12 games of perfect"


def test_sentences(tmp_path: Path) -> None:
    record_games(Fixture(ID, {}, ["random"], 1), tmp_path / "run", player_of_run)
    for words, error, fixture in (
        ("is no game of two players", NotExported, Fixture("toy/catch", {}, ["random"], 1)),
        ("'clever' is no player", BadEnvironment, Fixture(ID, {}, ["clever"], 1)),
        ("exists; choose another --out", NotExported, Fixture(ID, {}, ["random"], 1)),
    ):
        with pytest.raises(error, match=words):
            record_games(fixture, tmp_path / "run", player_of_run)
