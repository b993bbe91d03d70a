"""Ranks that learn and step no environment: whole jobs of a method that shares work out, over all stores.

A rank without columns must change nothing of what is learned: the run has the bits of one without it, at every end.

Mutations seen to fail: a store without columns that is never due; shards counted over all learners; counters of a
column at the place of another; a sampler's empty state joined to the others'; a lane without columns.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hpc_rl.algorithms
from hpc_rl import job as jobs
from hpc_rl import methods
from hpc_rl.show import render
from hpc_rl.storage import checkpoint
from tests.contract.seats import Ran, run_job
from tests.contract.test_witness import check_column, column_of

HALF, METHOD = 60, "share_out"


@pytest.fixture(autouse=True)
def method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    folder = tmp_path / "algorithms"
    folder.mkdir()
    shutil.copy(Path(__file__).with_name(f"{METHOD}.py"), folder)
    monkeypatch.setattr(methods, "FOLDER", folder)
    monkeypatch.setattr(hpc_rl.algorithms, "__path__", [str(folder), *hpc_rl.algorithms.__path__])
    yield
    sys.modules.pop(f"hpc_rl.algorithms.{METHOD}", None)


def table_of(eats: str, ranks: int, columns: int, env_steps: int, **more: Any) -> dict[str, Any]:
    return {
        "algorithm": METHOD,
        "topology": "solo" if ranks == 1 else "allreduce",
        "environment": {"id": "toy/counter", "columns": columns},
        "budget": {"env_steps": env_steps},
        "resources": {"ranks": ranks, "threads": 1},
        "output": {"record": 1.0, "compression": "none"},
        "evaluate": {"every_steps": 50, "episodes": 2},
        METHOD: {"eats": eats},
        **more,
    }


def last(ran: Ran) -> tuple[Any, dict[str, Any]]:
    return checkpoint.load(sorted(ran.run.checkpoints.glob("0*.h5"))[-1])


@pytest.mark.parametrize("eats", ["fragments", "episodes", "items"])
def test_a_rank_without_columns_learns_with_the_others(eats: str, tmp_path: Path) -> None:
    ran, alone = (run_job(table_of(eats, n, 1, 2 * HALF), tmp_path / f"{n}") for n in (2, 1))
    assert [list(rank.columns) for rank in ran.plan.ranks] == [[0], []] and ran.plan.learners == [0, 1]
    one, other = ran.learners.values()
    assert torch.equal(one.weights.data, other.weights.data) and torch.equal(one.mean, other.mean)
    assert (one.mean[1::2] != 0).any(), "the entries of the rank without columns"
    assert torch.equal(one.weights.data, alone.learners[0].weights.data) and torch.equal(
        one.mean, alone.learners[0].mean
    )
    moves = check_column(column_of(ran.run.path, 0))
    summary, expected = (json.loads(x.run.summary_file.read_text()) for x in (ran, alone))
    assert summary["reason"].startswith("done") and summary["env_steps"] == moves >= 2 * HALF
    assert summary["split_s"].keys() == summary["peak_rss_bytes"].keys() == {"worker-0", "worker-1"}
    for figure in ("updates", "episodes", "mean_return_100", "evaluated_return", "greedy_return", "best"):
        assert summary[figure] == expected[figure] is not None, figure
    assert summary["split_s"]["worker-1"]["step"] == 0 < summary["split_s"]["worker-0"]["step"]
    assert [path.name for path in (ran.run.path / "trajectories").iterdir()] == ["a0-worker-0"]
    assert len(list(ran.run.metrics.glob("worker-1*"))) == 1


@pytest.mark.parametrize("eats", ["fragments", "episodes", "items"])
def test_it_may_come_and_go_where_the_run_is_resumed(eats: str, tmp_path: Path) -> None:
    """The second half with and without a rank that has no columns, after a first half without and with one."""
    whole = last(run_job(table_of(eats, 1, 1, 2 * HALF), tmp_path / "whole"))[0]
    for before, after in ((2, 2), (1, 2), (2, 1)):
        half = run_job(table_of(eats, before, 1, HALF), tmp_path / f"{before}{after}")
        assert last(half)[1]["env_steps"] < whole["sampler"]["steps"].sum()
        state = last(run_job(table_of(eats, after, 1, 2 * HALF), tmp_path / f"{before}{after}more", resume=half))[0]
        assert torch.equal(state["weights"], whole["weights"]), (before, after)
        assert torch.equal(state["learner"]["own"]["mean"], whole["learner"]["own"]["mean"])
        assert [bool(part) for part in state["stores"]] == [eats != "fragments", *[False] * (after - 1)]


@pytest.mark.parametrize("ranks", [3, 5])
def test_more_than_one_rank_with_columns(ranks: int, tmp_path: Path) -> None:
    ran = run_job(table_of("items", ranks, 2, HALF), tmp_path / "run")
    assert [len(rank.columns) for rank in ran.plan.ranks] == [1, 1, *[0] * (ranks - 2)]
    weights = [learner.weights.data for learner in ran.learners.values()]
    assert len(weights) == ranks and all(torch.equal(x, weights[0]) for x in weights)
    moves = [check_column(column_of(ran.run.path, column)) for column in range(2)]
    assert json.loads(ran.run.summary_file.read_text())["env_steps"] == sum(moves)
    state, meta = last(ran)
    assert np.array_equal(state["sampler"]["columns"], [0, 1]) and list(meta["steps"].values()) == moves


def test_an_evaluator_beside_it(tmp_path: Path) -> None:
    resources = {"ranks": 3, "threads": 1, "evaluators": 1}
    ran = run_job(table_of("fragments", 3, 1, HALF, resources=resources), tmp_path / "run")
    assert [rank.role for rank in ran.plan.ranks] == ["worker", "worker", "evaluator"]
    summary = json.loads(ran.run.summary_file.read_text())
    assert summary["evaluated_return"] is not None and len(summary["split_s"]) == 3


def test_its_page_counts_no_environments_and_no_replay_for_it() -> None:
    text = render(jobs.parse(table_of("items", 3, 2, HALF)))
    rows = [line.split() for line in text.splitlines()]
    assert ["2", "worker", "2", "0", "–", "1", "CPU", "or", "GPU"] in rows
    assert any(row[:2] == ["worker", "×2"] for row in rows) and any(
        row[:1] == ["worker"] and "×" not in row[1] for row in rows
    )


def test_other_methods_keep_their_sentence() -> None:
    table = {"algorithm": METHOD, "topology": "allreduce", "environment": {"id": "toy/counter", "columns": 2}}
    plan = jobs.topology("allreduce").plan
    assert plan(jobs.parse({**table, "resources": {"ranks": 3}}))
    source = (methods.FOLDER / f"{METHOD}.py").read_text().replace(", columnless=True", "")
    (methods.FOLDER / "ordinary.py").write_text(source)
    with pytest.raises(jobs.BadJob, match="columns = 2 cannot be shared by 3 ranks"):
        plan(jobs.parse({**table, "algorithm": "ordinary", "resources": {"ranks": 3}}))
