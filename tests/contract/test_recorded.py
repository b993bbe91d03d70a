"""Whole jobs that learn from recorded moves: no env step, the same bits when resumed, one sentence where they cannot.

Mutations seen to fail: counters that divide by no columns; a sampler's state joined from no rank; an evaluation that
waits for env steps; a checkpoint that must hold what columns did; last games that wait for a training game; ranks that
draw the same items.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hpc_rl import job as jobs
from hpc_rl import preflight, startup
from hpc_rl.conclusion import conclude
from hpc_rl.replay.base import Batches
from hpc_rl.replay.recorded import Recorded
from hpc_rl.show import render
from hpc_rl.storage import checkpoint, run_dir
from hpc_rl.storage.archive import BadSource
from hpc_rl.transport.local import alone
from tests.contract.batches import ACTING, NAMES
from tests.contract.seats import Ran, newest, run_job

RECORDED = [name for name in NAMES if name not in ACTING]
UPDATES = 40


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short recorded run of another method."""
    table = {
        "algorithm": "a2c",
        "topology": "solo",
        "environment": {"id": "toy/catch", "columns": 4},
        "budget": {"env_steps": 2000},
        "resources": {"threads": 1},
    }
    return run_job(table, tmp_path_factory.mktemp("source") / "run").run.path


def table_of(name: str, source: Path | str, ranks: int = 1, updates: int = UPDATES, **more: Any) -> dict[str, Any]:
    return {
        "algorithm": name,
        "topology": "solo" if ranks == 1 else "allreduce",
        "environment": {"id": "toy/catch", "columns": 4},
        "budget": {"updates": updates},
        "evaluate": {"every_updates": 10, "episodes": 2},
        "resources": {"ranks": ranks, "threads": 1},
        name: {"source": str(source), "batch_size": 32, "anneal": False},
        **more,
    }


def weights(ran: Ran) -> torch.Tensor:
    state: torch.Tensor = newest(ran)[0]["weights"]
    return state


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("name", RECORDED)
def test_no_env_step_is_made(name: str, ranks: int, source: Path, tmp_path: Path) -> None:
    ran = run_job(table_of(name, source, ranks), tmp_path / "run")
    summary = json.loads(ran.run.summary_file.read_text())
    assert summary["reason"] == f"done: budget of {UPDATES} updates used"
    assert (summary["env_steps"], summary["updates"], summary["episodes"]) == (0, UPDATES, 0)
    assert summary["evaluated_return"] is not None and summary["greedy_return"] is not None
    assert summary["policy_lag"] == 0.0
    assert summary["best"] is not None and (ran.run.checkpoints / "best.h5").exists()
    assert not list(ran.run.trajectories.glob("*")) if ran.run.trajectories.exists() else True
    assert all(torch.equal(x.weights.data, ran.learners[0].weights.data) for x in ran.learners.values())


@pytest.mark.parametrize("name", RECORDED)
def test_ranks_draw_from_moves_of_their_own(
    name: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[int, set[tuple[int, int]]] = {}
    sample = Recorded.sample

    def seen(store: Recorded, update: int) -> Batches:
        batches = sample(store, update)
        (tree,) = batches["items"][0]
        pairs = zip(tree["column"].tolist(), tree["start"].tolist(), strict=True)
        drawn.setdefault(id(store), set()).update(pairs)
        return batches

    monkeypatch.setattr(Recorded, "sample", seen)
    run_job(table_of(name, source, 2), tmp_path / "run")
    one, other = drawn.values()
    assert one and other and not one & other


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("name", RECORDED)
def test_a_resumed_run_has_the_bits_of_a_whole_one(name: str, ranks: int, source: Path, tmp_path: Path) -> None:
    whole = run_job(table_of(name, source, ranks), tmp_path / "whole")
    again = run_job(table_of(name, source, ranks), tmp_path / "again")
    half = run_job(table_of(name, source, ranks, UPDATES // 2), tmp_path / "half")
    resumed = run_job(table_of(name, source, ranks), tmp_path / "resumed", resume=half)
    assert torch.equal(weights(whole), weights(again)) and not torch.equal(weights(whole), weights(half))
    assert torch.equal(weights(whole), weights(resumed))
    other = run_job({**table_of(name, source, ranks), "seed": 2}, tmp_path / "other")
    assert not torch.equal(weights(whole), weights(other))


class NeverStopped:
    file: Path | None = None

    def __call__(self) -> bool:
        return False


@pytest.mark.parametrize("name", RECORDED)
def test_a_started_rank_takes_up_the_newest_checkpoint(name: str, source: Path, tmp_path: Path) -> None:
    """Through the checks of a started rank, which `run_job` leaves out."""
    whole = run_job(table_of(name, source), tmp_path / "whole")
    folder = tmp_path / "run"
    threads = torch.get_num_threads()
    try:
        for updates in (UPDATES // 2, UPDATES):
            job = jobs.parse(table_of(name, source, updates=updates, resources={"threads": 1, "precision": "fp32"}))
            if folder.exists():
                run_dir.write_text(run_dir.RunDir(folder).job_file, jobs.dumps(job))
            else:
                run_dir.create(folder, jobs.dumps(job))
            context = startup.make_context(folder, alone(), NeverStopped())  # type: ignore[arg-type]
            outcome = jobs.topology("solo").run(context)
            conclude(context, outcome)
    finally:
        torch.set_num_threads(threads)
    newest_file = sorted(run_dir.RunDir(folder).checkpoints.glob("0*.h5"))[-1]
    state, meta = checkpoint.load(newest_file)
    assert meta["updates"] == UPDATES and meta["attempt"] == 1
    assert torch.equal(state["weights"], weights(whole))


@pytest.mark.parametrize("name", RECORDED)
def test_on_a_gpu_and_beside_an_evaluator(name: str, source: Path, tmp_path: Path) -> None:
    table = table_of(name, source, 3, resources={"ranks": 3, "threads": 1, "evaluators": 1})
    ran = run_job(table, tmp_path / "run", gpu=True)
    assert [rank.role for rank in ran.plan.ranks] == ["worker", "worker", "evaluator"]
    assert json.loads(ran.run.summary_file.read_text())["evaluated_return"] is not None


@pytest.mark.parametrize("name", RECORDED)
def test_its_page(name: str, source: Path) -> None:
    text = render(jobs.parse(table_of(name, source, 2)))
    assert f"recorded moves of {source}" in text and "none recorded" in text
    assert "32 items of 1 move(s) per update and 8 held_out of 1 move(s) per update" in text


@pytest.mark.parametrize("name", RECORDED)
def test_sentences(name: str, source: Path, tmp_path: Path) -> None:
    plan = jobs.plan
    for words, changes in {
        "makes no env steps, so that budget.env_steps never ends it; set budget.updates": {"budget": {}},
        "never comes to an evaluation, .* makes no env steps; use evaluate.every_updates": {
            "evaluate": {"every_steps": 10}
        },
        "a batch of 1 items cannot be shared by 2 learners": {name: {"source": str(source), "batch_size": 1}},
    }.items():
        with pytest.raises(jobs.BadJob, match=words):
            plan(jobs.parse({**table_of(name, source, 2), **changes}))
    for words, folder, id in (
        ("names no run of them; set source to a run directory", "", "toy/catch"),
        ("run is missing|no run|is not a run|nowhere", str(tmp_path / "nowhere"), "toy/catch"),
        ("was recorded in toy/catch, whose id is 'toy/catch'", str(source), "toy/counter"),
    ):
        job = jobs.parse({**table_of(name, folder), "environment": {"id": id}})
        with pytest.raises(BadSource, match=words):
            preflight.check(job, plan(job))
