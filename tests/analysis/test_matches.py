"""Elo over training, from metrics made by hand.

Mutations seen to fail: returns for points; lines that repeat an evaluation counted as others; the first opponent for
"random" as the zero; the games of one set only; an evaluation without an opponent taken for one.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from hpc_rl.analysis.sections import NotRecorded
from tests.analysis.recordings import analysed, made, record, write_metrics

GAME = {"id": "toy/connect_four", "arguments": {}}
SETS = [{"opponent": "alphabeta:2"}, {"opponent": "random", "opening_plies": 2}]


def test_strength_over_training(tmp_path: Path) -> None:
    run = made(
        tmp_path / "game", GAME, algorithm="a2c", evaluate={"every_steps": 10, "episodes": 40, "arguments": SETS}
    )
    record(run, [1.0])
    told = [(-1.0, 0.0), (-1.0, 0.0), (0.0, 0.5), (0.0, 0.5), (0.0, 0.9)]
    write_metrics(run, [
        {"step": 10 * k, "time": float(k), "updates": float(k), "greedy_return/0": x, "greedy_return/1": y}
        for k, (x, y) in enumerate(told, 1)
    ])  # fmt: skip
    section = analysed("matches", run.path)
    table = section.tables["matches"]
    assert table["env_steps"].tolist() == [10, 30, 50]
    assert table["alphabeta:2"].tolist() == [0.0, 0.5, 0.5] and table["random 2"].tolist() == [0.5, 0.75, 0.95]
    assert table["elo"].is_monotonic_increasing and abs(table["elo"].iloc[0]) < 100 and (table["half"] > 50).all()
    (text,) = section.findings
    assert text.startswith("game: Elo ") and "at 10 env steps and" in text and " 50, apart by more" in text


def test_one_opponent_gives_the_formula(tmp_path: Path) -> None:
    evaluate = {"every_steps": 10, "episodes": 40, "arguments": SETS[:1]}
    run = made(tmp_path / "game", GAME, algorithm="a2c", evaluate=evaluate)
    record(run, [1.0])
    write_metrics(run, [{"step": 10, "time": 1.0, "updates": 1.0, "greedy_return": 0.5}])
    (elo,) = analysed("matches", run.path).tables["matches"]["elo"]
    assert elo == pytest.approx(400 * math.log10(30.5 / 10.5), abs=0.01)


def test_without_matches_it_says_what_it_looked_for(tmp_path: Path) -> None:
    evaluate = {"every_steps": 10, "arguments": [{}, {"opponent": "random"}]}
    run = made(tmp_path / "plain", GAME, algorithm="a2c", evaluate=evaluate)
    record(run, [1.0])
    write_metrics(run, [{"step": 10, "time": 1.0, "updates": 1.0, "greedy_return/0": 1.0, "greedy_return/1": 1.0}])
    with pytest.raises(NotRecorded, match=r"was not judged in matches; give evaluate.arguments an opponent each"):
        analysed("matches", run.path)
