"""Several parameter servers take a checkpoint whatever the timing of their messages; workers go on from theirs.

Mutations seen to fail: a wait for gradients that only an order to stop ends; a worker that takes nothing up; the
numbers of the first column for all workers; reports that are not noted; a worker whose learner is made before it has
the parameters; env steps of the last server, which counts none. Of the workers' replays: none taken up; the last one
not written; none ordered but the last; files not waited for; updates counted from 0 where they are dealt out.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from hpc_rl.runtime.messages import ControlServer
from hpc_rl.storage import checkpoint
from tests.contract import seats
from tests.contract.test_witness import check_column, column_of, table_of


@pytest.mark.parametrize("servers", [2, 3])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_server_that_waits_for_gradients_sees_the_orders_of_the_chief(
    servers: int, workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pause lets every worker come to the chief, which does not serve while it gathers the shares."""
    order = ControlServer.order

    def late(self: ControlServer, *arguments: Any, **options: Any) -> None:
        time.sleep(0.1)
        order(self, *arguments, **options)

    monkeypatch.setattr(ControlServer, "order", late)
    monkeypatch.setattr(seats, "DEADLINE_S", 20.0)
    table = table_of("a2c", "parameter_server", servers + workers)
    table["resources"] |= {"servers": servers}
    table["checkpoint"] = {"interval_s": 0.05}
    job_run = seats.run_job(table, tmp_path / "run")
    assert all(check_column(column_of(job_run.run.path, column)) for column in range(4))
    assert len(list(job_run.run.checkpoints.glob("0*.h5"))) > 1


def newest(run: Path) -> tuple[Any, dict[str, Any]]:
    return checkpoint.load(sorted(run.glob("checkpoints/0*.h5"))[-1])


@pytest.mark.parametrize("quorum", [0, 2])
def test_beta_and_shuffles_of_each_worker_go_on(quorum: int, tmp_path: Path) -> None:
    """The target is so large that beta halves at every round, and so tells how many there were."""
    table = table_of("ppo", "parameter_server", 3, objective="kl", kl_target=100.0, epochs=1, minibatches=1)
    table["resources"] |= {"quorum": quorum}
    seats.run_job(table, tmp_path / "run")
    state, meta = newest(tmp_path / "run")
    before = {name: x.tolist() for name, x in state["workers"].items()}
    rounds = before["round"]
    assert rounds[0] == rounds[1] and rounds[2] == rounds[3] and min(rounds) > 5  # two columns each
    assert before["kl_cost"] == [0.5**k for k in rounds]
    table["budget"] = {"env_steps": 900}
    table["resources"] |= {"ranks": 5, "quorum": 0}  # one column each
    seats.run_job(table, tmp_path / "again", resume=(state, meta))
    after = {name: x.tolist() for name, x in newest(tmp_path / "again")[0]["workers"].items()}
    assert all(new >= old for new, old in zip(after["round"], rounds, strict=True)) and sum(after["round"]) > sum(
        rounds
    )
    assert after["kl_cost"] == [0.5**k for k in after["round"]] and after["seed"] == before["seed"]


def test_a_method_that_keeps_nothing_reports_nothing(tmp_path: Path) -> None:
    seats.run_job(table_of("a2c", "parameter_server", 2, env_steps=100), tmp_path / "run")
    assert newest(tmp_path / "run")[0]["workers"] == {}


def test_target_networks_of_resumed_workers_begin_with_what_the_servers_have(tmp_path: Path) -> None:
    """Gorila: two servers with half of the parameters each, a replay in each of two workers; judged on the way."""
    more = {"min_size": 50, "batch_size": 8, "samples_per_insert": 4.0, "target_every": 1_000_000, "anneal": True}
    table = table_of("dqn", "parameter_server", 4, 300, **more)
    table["resources"] |= {"servers": 2}
    table["evaluate"] = {"every_steps": 100, "episodes": 2}
    before = seats.run_job(table, tmp_path / "run")
    state, meta = newest(tmp_path / "run")
    assert len(state["stores"]) == 2
    first = before.learners[2].target.data
    assert torch.equal(before.learners[3].target.data, first), "workers begin alike"
    rates = [before.learners[worker].optimizer.learning_rate for worker in (2, 3)]
    assert max(rates) < 2e-4, "what is annealed follows the env steps of all, which the first server counts"
    assert meta["updates"] > 20 and not torch.equal(state["weights"], first)
    best, about = checkpoint.load(tmp_path / "run/checkpoints/best.h5")
    assert best["weights"].shape == state["weights"].shape and about["evaluated"] is not None
    assert len({float(x) for x in (best["weights"] - first).tensor_split(2)[1]}) > 1, "the second server's part as well"
    table["budget"] = {"env_steps": 400}
    after = seats.run_job(table, tmp_path / "again", resume=before)
    for worker in (2, 3):
        assert torch.equal(after.learners[worker].target.data, state["weights"])


LEAST, DRAWN, BATCH = 40, 4.0, 8


def gorila(workers: int, env_steps: int) -> dict[str, Any]:
    method = {"min_size": LEAST, "batch_size": BATCH, "samples_per_insert": DRAWN, "capacity": 240, "hidden": [8]}
    table = table_of("dqn", "parameter_server", 1 + workers, env_steps, **method, priority_exponent=0.6, n_step=3)
    table["dqn"]["unroll"] = 5
    return table | {"checkpoint": {"interval_s": 0.1}, "evaluate": {"every_steps": 30, "episodes": 2}}


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> seats.Ran:
    return seats.run_job(gorila(2, 400), tmp_path_factory.mktemp("begun"))


@pytest.mark.parametrize("workers", [2, 1, 4])
def test_replays_of_workers_go_on_with_theirs_or_other_workers(workers: int, begun: seats.Ran, tmp_path: Path) -> None:
    """Each column keeps its newest moves; updates go on where they were: none is waited for, none made up for."""
    resumed = seats.run_job(gorila(workers, 520), tmp_path / "run", resume=begun)
    rings = seats.replays(resumed)
    before, after = (
        {int(column): (ring, k) for ring in seats.replays(run) for k, column in enumerate(ring["column"])}
        for run in (begun, resumed)
    )
    assert len(list(begun.run.checkpoints.glob("0*.h5"))) > 1, "files that nobody wrote were waited for"
    assert sorted(before) == sorted(after) == [0, 1, 2, 3] and len(rings) == workers
    for column in range(4):
        (old, k), (new, j) = before[column], after[column]
        starts, later = rows_of(old, k), rows_of(new, j)
        made = int(new["env_steps"][j] - old["env_steps"][k])
        assert made > 0 and starts[-1] in later and later[-1] > starts[-1], "moves of both attempts"
    for ring in rings:  # at most a fragment of each attempt was not learned from when it ended
        allowed = (int(ring["env_steps"].sum()) - LEAST) * DRAWN / BATCH
        assert allowed - 20 <= ring["updates"] <= allowed, "as many as its env steps allow, with the first attempt's"
    (_, meta), (_, first) = newest(resumed.run.path), newest(begun.run.path)
    steps, updates = (meta[name] - first[name] for name in ("env_steps", "updates"))
    assert 0.5 <= updates / (steps * DRAWN / BATCH) <= 1.7, "a wait, or a burst"


def rows_of(ring: dict[str, Any], place: int) -> list[int]:
    """Env steps of a column before each row that its replay holds."""
    rows: list[int] = ring["rows"]["start"][:, place].contiguous().view(torch.int64).reshape(-1).tolist()
    return rows
