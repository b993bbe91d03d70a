"""Where an analysis computes. The tasks of a real srun are in tests/slurm/test_real.py.

Mutations seen to fail: the most tasks of a node taken from the first entry; the least number of tasks not checked; keys
written for everybody; the wait for them without a deadline.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from hpc_rl.analysis import clusters, slurm_tasks
from hpc_rl.analysis.clusters import Where, computing
from hpc_rl.storage.run_dir import BadRun


def step(monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    for name in ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_STEP_TASKS_PER_NODE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("variables", [{}, {"SLURM_PROCID": "0", "SLURM_NTASKS": "2"}])
def test_too_few_tasks_for_a_cluster(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    step(monkeypatch, **variables)
    with pytest.raises(BadRun, match="srun --ntasks=3"), computing(Where("slurm"), 0):
        pass


@pytest.mark.parametrize(("text", "most"), [("", 1), ("2(x3),1", 2), ("1,4(x2)", 4), ("3", 3)])
def test_tasks_of_a_node(monkeypatch: pytest.MonkeyPatch, text: str, most: int) -> None:
    step(monkeypatch, SLURM_STEP_TASKS_PER_NODE=text)
    assert slurm_tasks._tasks_of_a_node() == most


def test_keys_are_for_this_user_and_awaited_with_a_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm_tasks, "WAIT_S", 0.1)
    with pytest.raises(BadRun, match=r"keys\.json within"):
        slurm_tasks._security(tmp_path / "dask-7-0-0", first=False)
    made = slurm_tasks._security(tmp_path / "dask-7-0-0", first=True)
    assert (tmp_path / "dask-7-0-0").stat().st_mode & 0o777 == 0o700
    assert slurm_tasks._security(tmp_path / "dask-7-0-0", first=False).tls_worker_key == made.tls_worker_key


def test_a_small_run_needs_no_processes(tmp_path: Path) -> None:
    with computing(Where(), 1000) as client:
        assert client is None
    assert clusters.recorded_bytes([tmp_path]) == 0


def test_no_scheduler_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "WAIT_S", 0.2)
    with pytest.raises(BadRun, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9"):
        computing(Where("tcp://127.0.0.1:9"), 0).__enter__()


def test_the_dashboard_needs_bokeh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "find_spec", lambda name: None)
    with pytest.raises(BadRun, match="bokeh"), computing(Where(performance=Path("x.html")), 0):
        pass
