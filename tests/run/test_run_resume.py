"""N + resume + N updates equal 2N bitwise; kept steps are gapless over attempts; what a resumed run may change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hpc_rl.storage import checkpoint, metrics, segments
from tests.run.gapless import assert_gapless, kept_steps
from tests.run.program import (
    checkpoints,
    ended,
    hpc_rl,
    kill_everything,
    learning,
    started,
    state,
    summary,
    wait_for,
    write_job,
)


def assert_equal(state: Any, other: Any, key: str = "") -> None:
    """Bit for bit, whatever the nesting."""
    assert type(state) is type(other), key
    if isinstance(state, dict):
        assert state.keys() == other.keys(), key
        for name in state:
            assert_equal(state[name], other[name], f"{key}/{name}")
    elif isinstance(state, list):
        assert len(state) == len(other), key
        for index, pair in enumerate(zip(state, other, strict=True)):
            assert_equal(*pair, f"{key}/{index}")
    elif isinstance(state, torch.Tensor):
        assert state.dtype == other.dtype and state.numpy().tobytes() == other.numpy().tobytes(), key
    else:
        assert state == other, key


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """(job, a run of N and then N updates, a run of 2N updates), on two ranks; test_restart.py has one rank as well."""
    folder = tmp_path_factory.mktemp("halves")
    job = write_job(folder, "ppo", 2, env_steps=1000)
    two, one = folder / "two", folder / "one"
    for arguments in (
        (two,),
        (two, "--resume", "--set", "budget.env_steps=2000"),
        (one, "--set", "budget.env_steps=2000"),
    ):
        result = hpc_rl("run", job, "--out", *arguments)
        assert result.code == 0, result.err
    return job, two, one


def test_two_halves_equal_the_whole_bitwise(halves: tuple[Path, Path, Path]) -> None:
    _, two, one = halves
    assert checkpoints(two)[-1].name == checkpoints(one)[-1].name
    (state, my_meta), (other, other_meta) = (checkpoint.load(checkpoints(run)[-1]) for run in (two, one))
    assert my_meta.pop("attempt") == 1 and other_meta.pop("attempt") == 0
    mine_along, other_along = (
        my_meta.pop("schedule"),
        other_meta.pop("schedule"),
    )  # progress, which this job reads nowhere
    assert mine_along["begin"] >= 1000 and mine_along["reached"] == 1.0 and mine_along["budget"] == 2000
    assert other_along == {"budget": 2000, "begin": 0, "reached": 0.0, "unit": "env_steps"}
    for meta in (my_meta, other_meta):
        del meta["best"]  # of the checkpoints that were written, and when they are is a matter of seconds
    assert_equal(my_meta, other_meta)
    assert_equal(state, other)
    learner, sampler = state["learner"], state["sampler"]
    moments = learner["optimizers"]["weights"]
    assert moments["exp_avg"].abs().sum() > 0 and learner["own"]["round"] == my_meta["updates"] > 20
    assert len(sampler["streams"]) == 4 and sampler["environment"]["memory"]  # so the comparison was of something


def test_two_halves_record_the_same_moves_as_the_whole(halves: tuple[Path, Path, Path]) -> None:
    _, two, one = halves
    assert kept_steps(two).keys() == {0, 1, 2, 3}
    rewards = [kept_steps(run) for run in (two, one)]
    for column in range(4):
        assert_equal(*(torch.from_numpy(rewards_of[column]) for rewards_of in rewards))


def test_a_method_key_cannot_change_on_resume(halves: tuple[Path, Path, Path]) -> None:
    job, two, _ = halves
    before = (two / "job.toml").read_bytes()
    result = hpc_rl("run", job, "--out", two, "--resume", "--set", "ppo.unroll=5")
    assert result.code == 2 and result.out == "" and "ppo.unroll" in result.err and len(result.err.splitlines()) == 1
    assert (two / "job.toml").read_bytes() == before


def test_a_run_that_is_done_is_not_resumed_within_its_budget(halves: tuple[Path, Path, Path]) -> None:
    job, two, _ = halves
    before = checkpoints(two)
    result = hpc_rl("run", job, "--out", two, "--resume")
    assert result.code == 2 and result.out == "" and len(result.err.splitlines()) == 1
    assert "done: budget of 2000 env steps used; raise that limit" in result.err and checkpoints(two) == before


def test_impala_resumes_on_fewer_ranks_without_gaps(tmp_path: Path) -> None:
    job, run = write_job(tmp_path, "impala", 3, environment="toy/counter"), tmp_path / "run"
    with started("run", job, "--out", run) as process:
        wait_for(lambda: learning(run, 3) and checkpoints(run), process)
        process.terminate()
        first = ended(process)
    assert first.code == 0, first.err
    closed = {path: path.read_bytes() for path in segments.segments(run)}
    before = summary(run)["env_steps"]
    result = hpc_rl("run", job, "--out", run, "--resume", "-n", "2", "--set", f"budget.env_steps={before + 2000}")
    assert result.code == 0, result.err
    assert state(run)["attempt"] == 1 and summary(run)["env_steps"] >= before + 2000
    assert set(summary(run)["split_s"]) == {"learner-0", "actor-0"}
    assert all(path.read_bytes() == data for path, data in closed.items())
    assert_gapless(run)
    limits = segments.kept_from(run)
    resumed = checkpoint.load(checkpoints(run)[-1])[1]["steps"]
    assert {column for attempt, column in limits if attempt == 0} == {0, 1, 2, 3}
    assert all(limits[0, int(column)] < step for column, step in resumed.items())
    # rewards of the witness say which move of its attempt a step was: 1, 2, 3, … from where the attempt began
    for column, rows in kept_steps(run).items():
        edge = limits[0, column]
        assert (rows[:edge, 1] == rows[:edge, 0] + 1).all() and (rows[edge:, 1] == rows[edge:, 0] - edge + 1).all()


def test_ppo_resumes_on_more_ranks(tmp_path: Path) -> None:
    job, run = write_job(tmp_path, "ppo", 1, env_steps=500), tmp_path / "run"
    assert hpc_rl("run", job, "--out", run).code == 0
    result = hpc_rl("run", job, "--out", run, "--resume", "-n", "2", "--set", "budget.env_steps=1000")
    assert result.code == 0, result.err
    assert set(summary(run)["split_s"]) == {"worker-0", "worker-1"} and summary(run)["env_steps"] >= 1000
    assert_gapless(run)


def test_only_the_job_of_the_run_resumes_it(halves: tuple[Path, Path, Path], tmp_path: Path) -> None:
    _, two, _ = halves
    result = hpc_rl("run", write_job(tmp_path, "impala", 2), "--out", two, "--resume")
    assert result.code == 2 and "algorithm" in result.err and "'ppo'" in result.err


def test_metrics_after_a_sigkill_go_on_from_the_checkpoint(tmp_path: Path) -> None:
    job, run = write_job(tmp_path, "ppo", 1, environment="toy/counter", topology="solo"), tmp_path / "run"
    with started("run", job, "--out", run) as process:
        wait_for(lambda: learning(run, 1) and checkpoints(run), process)
        kill_everything(run)
    begin = checkpoint.load(checkpoints(run)[-1])[1]["env_steps"]
    result = hpc_rl("run", job, "--out", run, "--resume", "--set", f"budget.env_steps={begin + 2000}")
    assert result.code == 0, result.err
    lines = metrics.rows(run / "metrics" / "worker-0.jsonl")
    assert {row["attempt_from"] for row in lines if row["attempt"] == 1} == {begin}
    steps = [(row["attempt"], row["step"]) for row in metrics.series(run / "metrics" / "worker-0.jsonl")]
    assert steps == sorted(steps) and [step for _, step in steps] == sorted(step for _, step in steps)
    assert all(step <= begin for attempt, step in steps if attempt == 0) and steps[-1][0] == 1
