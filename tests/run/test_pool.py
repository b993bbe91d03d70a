"""Matches of a run's policy in a game of two: against a pool, another checkpoint, and a person.

Mutations seen to fail: both sides as the first; points of lost games; lines of one side; the job's own opponent left
out; a checkpoint that does not decide; one of another game taken; an illegal move taken; who won turned round.
"""

from __future__ import annotations

import json
import os
import pty
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from hpc_rl import cli, pool, preflight
from hpc_rl import job as jobs
from hpc_rl.agent import agent_of
from hpc_rl.envs.base import BadEnvironment
from hpc_rl.envs.games import tictactoe
from hpc_rl.opponents import player_of_run, with_opponent
from hpc_rl.optim.alone import Alone
from hpc_rl.runtime.checkpoints import learner_state
from hpc_rl.runtime.counters import Counters
from hpc_rl.runtime.fingerprint import fingerprint
from hpc_rl.search.levels import legal_moves
from hpc_rl.search.replies import all_replies
from hpc_rl.storage import checkpoint
from hpc_rl.storage.run_dir import BadRun, create
from hpc_rl.types import ActOutput, Array, RulesState

NIM = '''
from hpc_rl.types import Actions, Rules, Spec

def nim(xp, stones=7) -> Rules:
    """Players take one or two stones in turn; who takes the last one wins 1. Every move is legal."""

    def begin(u):
        return {"left": xp.zeros(len(u), dtype=xp.int64, device=u.device) + stones}

    def move(state, action, u):
        left = state["left"] - 1 - action
        over = left <= 0
        return {"left": left}, xp.where(over, 1.0, 0.0), xp.where(over, 0.0, -1.0), xp.zeros_like(over)

    def show(state):
        return xp.asarray(state["left"][:, None], dtype=xp.float32)

    return Rules(Spec("nim", (1,), "float32", Actions("discrete", (2,))), begin, move, show)
'''


SEARCH = {"algorithm": "alphazero", "alphazero": {"simulations": 1, "blocks": 0, "hidden": [8]}}
"""With weights of 0 it takes the first legal action."""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that makes a run with one checkpoint, whose policy always takes ``action``; None: of `SEARCH`."""
    (tmp_path / "their_nim.py").write_text(NIM)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "their_nim", raising=False)
    counter = iter(range(9))

    def made(action: int | None, id: str = "their_nim:nim", sets: Any = (), **arguments: Any) -> Path:
        table = {"environment": {"id": id, "arguments": arguments}, "evaluate": {"arguments": sets}}
        job = jobs.parse({**(SEARCH if action is None else {"algorithm": "a2c"}), "topology": "solo", **table})
        directory = create(tmp_path / f"run{next(counter)}", jobs.dumps(job))
        agent = agent_of(job)
        policy, spec = agent.make_policy(), agent.spec
        learn = agent.make_learner(policy, Alone())
        learn.weights.data.zero_()
        if action is not None:
            bias = next(x for x in policy.net.parameters() if x.shape == (spec.actions.sizes[0],))
            with torch.no_grad():
                bias[action] = 1
        meta = {
            "env_steps": 1234, "updates": 1, "episodes": 100, "recent": [], "best": 21.0, "score": 21.0,
            "scored_by": Counters.scored_by(job), "steps": {str(k): 0 for k in range(8)}, "attempt": 0,
            "fingerprint": fingerprint(job, spec), "evaluated": None, "judged_at": 0,
        }  # fmt: skip
        checkpoint.mark_best(directory, checkpoint.save(directory, 1, learner_state(learn), meta), 21.0)
        return directory.path

    return made


def test_matches_are_those_of_the_rules(run: Any) -> None:
    """Who leaves a multiple of three wins: a policy that takes one stone of seven does so once, and then by chance."""
    folder = run(0)
    result = pool.play_pool(folder, 30, None, ["perfect", "random"])
    perfect, chance = result["opponents"]
    assert perfect["arguments"] == {"opponent": "perfect"} and perfect["games"] == 60
    assert perfect["second"] == {"won": 0, "drawn": 0, "lost": 30}
    assert perfect["first"]["won"] + perfect["first"]["lost"] == 30
    assert perfect["points"] == perfect["first"]["won"] / 60 < chance["points"]
    assert sum(chance["first"].values()) == 30 and 0 < chance["points"] < 1
    assert chance["low"] < chance["points"] < chance["high"]
    assert chance["points"] == (chance["first"]["won"] + chance["second"]["won"]) / 60
    assert result["elo"]["random"] == [0.0, 0.0]
    assert result["elo"]["perfect"][0] > result["elo"]["this policy"][0]
    # first: 7 → 6, then one or two stones are taken in turn: the player's are always one
    assert result["lines"]["first"] == {**lines_of(6, mine=False), "positions": 7}
    assert result["lines"]["second"] == {**lines_of(7, mine=False), "positions": 7}
    text, remarks = pool.told(result)
    assert text[1].startswith("perfect ") and text[1].endswith(" second 0/0/30")
    lost = result["lines"]["first"]["lost"] + result["lines"]["second"]["lost"]
    assert text[-1].startswith(f"losing lines: {lost} of ") and "against perfect differ" in remarks[0]


def lines_of(left: int, mine: bool) -> dict[str, int]:
    """Lines from so many stones, the policy taking one, the other player one or two."""
    total = {"won": 0, "drawn": 0, "lost": 0}
    for taken in (1,) if mine else (1, 2):
        if left - taken <= 0:
            total["won" if mine else "lost"] += 1
        else:
            total = {end: count + total[end] for end, count in lines_of(left - taken, not mine).items()}
    return total


def test_the_pool_is_that_of_the_command_or_the_job(run: Any) -> None:
    sets = [{"opponent": "alphabeta:3", "opening_plies": 2, "side": "first"}, {"opponent": "random"}]
    result = pool.play_pool(run(1, sets=sets), 4, None)
    assert [row["arguments"] for row in result["opponents"]] == [
        {"opponent": "alphabeta:3", "opening_plies": 2},
        {"opponent": "random"},
    ]
    assert list(result["elo"]) == ["this policy", "alphabeta:3, opening_plies 2", "random"]
    against = pool.play_pool(run(1, opponent="alphabeta:1"), 4, None)
    assert [row["arguments"] for row in against["opponents"]] == [{"opponent": "alphabeta:1"}]
    names = [row["arguments"]["opponent"] for row in pool.play_pool(run(1), 2, None)["opponents"]]
    assert names == list(pool.POOL)


def test_the_command_prints_what_json_has(run: Any) -> None:
    folder = run(0)
    arguments = ["eval", str(folder), "--episodes", "3", "--opponent", "random"]
    text = CliRunner().invoke(cli.cli, arguments).stdout.splitlines()
    assert [line.split()[0] for line in text] == ["matches", "random", "elo", "elo", "losing"]
    result = json.loads(CliRunner().invoke(cli.cli, [*arguments, "--json"]).stdout)
    assert all(key in (pool.play_pool.__doc__ or "") for key in [*result, *result["opponents"][0]])
    with pytest.raises(BadRun, match="CartPole-v1 is no game of two players; leave --opponent and --lines out"):
        pool.play_pool(run(0, id="CartPole-v1"), 3, None, ["random"])
    refused = CliRunner().invoke(cli.cli, [*arguments, "--video", "x.gif"])
    assert refused.exit_code == 2 and "`hpc-rl play` shows a game of two" in refused.output


def test_the_job_may_be_changed(run: Any) -> None:
    """Six stones are lost for the first player, against one who knows it."""
    folder, changed = run(0), ("--set", "environment.arguments.stones=6")
    text = CliRunner().invoke(cli.cli, ["eval", str(folder), "--opponent", "perfect", *changed]).stdout.splitlines()
    assert "first 0/0/20" in text[1]
    played = CliRunner().invoke(cli.cli, ["play", str(folder), *changed], input="q\n")
    assert "position: 6" in played.stdout


def test_a_checkpoint_plays(run: Any) -> None:
    """Who takes two stones at each move against one who takes one, from seven: the former wins as first."""
    one, two = run(0), run(1)
    row = pool.play_pool(two, 2, None, [f"checkpoint:{one}"])["opponents"][0]
    left, mover, winner = 7, 2, 0
    while left > 0:
        left, winner, mover = left - mover, mover, 3 - mover
    assert row["first"]["won"] == (2 if winner == 2 else 0)
    file = one / "checkpoints" / "000000001.h5"
    player = with_opponent("their_nim:nim", {"opponent": f"checkpoint:{file}"})["opponent"]
    assert player({"left": np.array([5, 3])}, np.array([0.5, 0.1])).tolist() == [0, 0]
    with pytest.raises(BadRun, match="was trained in nim, which is another game than this toy/tictactoe"):
        player_of_run(one, "toy/tictactoe", {})
    with pytest.raises(BadRun):
        with_opponent("their_nim:nim", {"opponent": "checkpoint:nowhere"})


def test_a_game_too_large_for_perfect_play_is_found_before_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpc_rl.envs.opponents.MOST", 2000)
    table = {"algorithm": "a2c", "topology": "solo", "environment": {"id": "toy/connect_four"}}
    job = jobs.parse({**table, "evaluate": {"arguments": [{"opponent": "perfect"}]}})
    with pytest.raises(BadEnvironment, match="toy/connect_four is too large for opponent = 'perfect'"):
        preflight.check(job, jobs.plan(job))


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"evaluate": {"every_steps": 100}}, True),
        ({"evaluate": {"every_steps": 100, "arguments": [{"opponent": "random"}, {"line": 3}]}}, True),
        ({"budget": {"stop_at_return": 0.5}}, True),
        ({"evaluate": {"every_steps": 100, "arguments": [{"opponent": "random"}]}}, False),
        ({"budget": {"stop_at_return": 0.5}, "environment": {"id": "toy/catch"}}, False),
        ({}, False),
    ],
)
def test_games_against_itself_judge_no_policy(changes: dict[str, Any], refused: bool) -> None:
    table = {"algorithm": "a2c", "topology": "solo", "environment": {"id": "toy/tictactoe"}, **changes}
    job = jobs.parse(table)
    if refused:
        with pytest.raises(BadEnvironment, match="plays both sides, and the return of such a game judges neither"):
            preflight.check(job, jobs.plan(job))
    else:
        preflight.check(job, jobs.plan(job))


def test_self_play_does_not_learn_in_matches() -> None:
    game = {"id": "toy/tictactoe", "arguments": {"opponent": "random"}}
    job = jobs.parse({"algorithm": "alphazero", "topology": "solo", "environment": game})
    with pytest.raises(BadEnvironment, match=r"name opponent = 'random' in evaluate\.arguments instead"):
        preflight.check(job, jobs.plan(job))


def test_an_opponent_that_is_not_there_is_found_before_a_run(run: Any) -> None:
    one = run(0)
    table = {"algorithm": "a2c", "topology": "solo", "environment": {"id": "their_nim:nim"}}
    for opponent in (one, one / "checkpoints" / "best.h5", "nowhere"):
        job = jobs.parse({**table, "evaluate": {"arguments": [{"opponent": f"checkpoint:{opponent}"}]}})
        if opponent == "nowhere":
            with pytest.raises(BadRun, match="nowhere"):
                preflight.check(job, jobs.plan(job))
        else:
            preflight.check(job, jobs.plan(job))


def test_a_policy_that_does_not_look_at_the_rules_is_named(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = run(None, id="toy/tictactoe")
    result = pool.play_pool(folder, 3, None, ["random"])
    assert result["lines"]["first"]["lost"] == all_replies(tictactoe(np).rules, first_legal, True, 9999).lost
    output = ActOutput(torch.tensor([4]), {}, {})
    for module in ("pool", "play"):
        monkeypatch.setattr(f"hpc_rl.{module}.consulted", lambda policy, rules, state, u: output)
    with pytest.raises(BadRun, match="the policy's move is not legal; it does not look at"):
        pool.play_pool(folder, 3, None, ["random"])
    played = CliRunner().invoke(cli.cli, ["play", str(folder)], input="b2\n")
    assert "the policy plays b2, which is not legal; its method does not look at" in str(played.exception)


def first_legal(state: RulesState) -> Array:
    return legal_moves(tictactoe(np).rules, state).argmax(1)


# ---- a person -------------------------------------------------------------------------------------------------------


def test_a_person_plays_and_wins(run: Any) -> None:
    """Action 1 takes two stones: 7 5 4 2 1 … by a person against a policy that takes one."""
    result = CliRunner().invoke(cli.cli, ["play", str(run(0))], input="?\n7\n\n0\n0\n1\n0\n1\n")
    lines = result.stdout.splitlines()
    assert "plays O, you play X" in lines[0] and "your move is one of 0, 1; ? shows" in lines[1]
    assert "position: 7" in lines[2]
    assert "'7' is no move; name one of 0, 1" in result.output and "'' is no move" in result.output
    assert "it would play 0" in result.output and "O plays 0" in result.output
    assert lines[-1] in ("you win", "O wins") and result.exit_code == 0
    left, mover = 7, "you win"
    for taken in (1, 1, 1, 1, 2, 1):  # the person's 0 0 1 between the policy's 0 0 0
        left -= taken
        if left <= 0:
            break
        mover = "O wins" if mover == "you win" else "you win"
    assert lines[-1] == mover


def test_a_person_may_leave_and_move_second(run: Any) -> None:
    folder = run(1)
    for text in ("q\n", ""):
        result = CliRunner().invoke(cli.cli, ["play", str(folder), "--second"], input=text)
        assert result.exit_code == 0 and "X plays 1" in result.output and "wins" not in result.output


def test_a_game_in_a_terminal(run: Any) -> None:
    """A pseudo-terminal, as a person has it."""
    folder = run(None, id="toy/connect_four", rows=4, columns=4)
    child, fd = pty.fork()
    if not child:
        os.execv(sys.executable, [sys.executable, "-m", "hpc_rl", "play", str(folder)])
    screen = ""
    for word in ("5", "2", "3", "q"):
        while not screen.endswith("X> "):
            screen += os.read(fd, 4096).decode()
        os.write(fd, f"{word}\n".encode())
        screen += os.read(fd, 4096).decode()
    os.close(fd)
    os.waitpid(child, 0)
    assert "'5' is no move; name one of 1, 2, 3, 4" in screen
    assert "O plays 1" in screen and "    O X . .\r\n    1 2 3 4" in screen
