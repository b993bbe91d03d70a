"""Whole runs as a user starts them: exit code, summary, metrics, recorded data, evaluation."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import numpy as np
import pytest

from hpc_rl import job as jobs
from hpc_rl.envs.base import Environment
from hpc_rl.envs.make import describe, make
from hpc_rl.optim.flat import flatten
from hpc_rl.storage import checkpoint, recorded, segments
from hpc_rl.storage.metrics import rows
from tests.contract.greedy import greedy_returns
from tests.run.program import Ended, checkpoints, hpc_rl, leftovers, state, summary, write_job

KEYS = {
    "env_steps", "frames", "updates", "wall_s", "env_steps_per_s", "roofline_share", "mean_return_100", "policy_lag",
    "peak_rss_bytes", "split_s", "greedy_return", "greedy_success",
}  # fmt: skip
CASES = {  # name -> (method, topology, ranks, record, names of the ranks)
    "impala": ("impala", "actor_learner", 3, 0.5, ["learner-0", "actor-0", "actor-1"]),
    "allreduce": ("ppo", "allreduce", 2, 1.0, ["worker-0", "worker-1"]),
    "solo": ("ppo", "solo", 1, 0.0, ["worker-0"]),
    "evaluator": ("ppo", "allreduce", 3, 0.0, ["worker-0", "worker-1", "evaluator-0"]),
}
SETTINGS = ["--set", "evaluate.every_steps=1100", "--set", "evaluate.episodes=16", "--set", "checkpoint.interval_s=60"]


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path, Ended]:
    """One finished run of every topology."""
    folder = tmp_path_factory.mktemp(request.param)
    method, topology, ranks, record, _ = CASES[request.param]
    job = write_job(folder, method, ranks, env_steps=3000, topology=topology)
    more = ["--set", "resources.evaluators=1"] if request.param == "evaluator" else []
    result = hpc_rl("run", job, "--out", folder / "run", "--set", f"output.record={record}", *SETTINGS, *more)
    return request.param, job, folder / "run", result


def test_ends_well_and_leaves_nothing_behind(case: tuple[str, Path, Path, Ended]) -> None:
    _, _, run, result = case
    assert result.code == 0, result.err
    assert result.out == f"{run}\n"  # stdout is data: the run directory and nothing else
    assert state(run)["state"] == "done" and "budget of 3000" in state(run)["reason"]
    assert leftovers(run) == []


def test_summary_holds_the_figures_of_the_run(case: tuple[str, Path, Path, Ended]) -> None:
    name, _, run, _ = case
    figures = summary(run)
    assert figures.keys() >= KEYS
    assert 3000 <= figures["env_steps"] < 3400 and figures["frames"] == figures["env_steps"]
    assert figures["updates"] > 10 and figures["env_steps_per_s"] > 0 and figures["wall_s"] > 0
    assert -1 <= figures["mean_return_100"] <= 1 and -1 <= figures["greedy_return"] <= 1
    assert figures["greedy_success"] == pytest.approx((1 + figures["greedy_return"]) / 2)  # every game pays 1 or -1
    assert set(figures["peak_rss_bytes"]) == set(figures["split_s"]) == set(figures["cpu_s"]) == set(CASES[name][4])
    used, all_cpu_s = figures["efficiency"], sum(figures["cpu_s"].values())
    assert used["cpu_hours"] == pytest.approx(all_cpu_s / 3600) and 0 < used["cores_used"] <= 1.1
    assert used["attempts"] == 1 and used["wall_hours"] > figures["wall_s"] / 3600
    assert used["peak_rss_bytes"] == sum(figures["peak_rss_bytes"].values()) < used["memory_bytes"]
    assert all(50e6 < peak < 2e9 for peak in figures["peak_rss_bytes"].values())
    for seconds in figures["split_s"].values():
        assert 0 < sum(seconds.values()) < 2 * figures["wall_s"]
    assert (figures["policy_lag"] > 0) == (name == "impala")


def test_metrics_are_lines_of_json_and_events(case: tuple[str, Path, Path, Ended]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    name, _, run, _ = case
    for rank in CASES[name][4]:
        text = (run / "metrics" / f"{rank}.jsonl").read_text()
        lines = [json.loads(line) for line in text.splitlines()]
        assert lines and lines == rows(run / "metrics" / f"{rank}.jsonl")
    head = CASES[name][4][0]
    last = rows(run / "metrics" / f"{head}.jsonl")[-1]
    assert last["env_steps"] == summary(run)["env_steps"] and last["updates"] == summary(run)["updates"]
    events = EventAccumulator(str(run / "metrics" / "tensorboard" / head))
    events.Reload()
    points = events.Scalars("mean_return_100")
    assert points[-1].step == last["env_steps"] and points[-1].value == pytest.approx(last["mean_return_100"])


def test_job_is_what_was_asked_with_what_was_settled(case: tuple[str, Path, Path, Ended]) -> None:
    name, job, run, _ = case
    source, saved = tomllib.loads(job.read_text()), tomllib.loads((run / "job.toml").read_text())
    source["output"]["record"] = CASES[name][3]
    source["evaluate"] = {"every_steps": 1100, "episodes": 16}
    source["resources"] |= {"evaluators": 1} if name == "evaluator" else {}
    source["checkpoint"]["interval_s"] = 60.0
    for section, table in source.items():
        if isinstance(table, dict):
            assert table == {key: saved[section][key] for key in table}, section
        else:
            assert saved[section] == table
    assert saved["resources"]["precision"] == "fp32" and saved["resources"]["device"] == "cpu"


def test_that_fraction_of_columns_is_recorded(case: tuple[str, Path, Path, Ended]) -> None:
    name, _, run, _ = case
    described = [segments.describe(path) for path in segments.segments(run)]
    columns = sorted({int(column) for segment in described for column in segment.columns})
    assert len(columns) == 4 * CASES[name][3]
    limits = segments.kept_from(run)
    moves = sum(int(recorded.kept(segment, limits)[0].sum()) for segment in described)
    if name == "allreduce":
        assert moves == summary(run)["env_steps"]  # every step that was learned from, once
    elif columns:
        assert moves > 0.4 * summary(run)["env_steps"]


def test_best_checkpoint_is_the_best_evaluation(case: tuple[str, Path, Path, Ended]) -> None:
    _, _, run, _ = case
    log = (run / "logs" / "ranks.log").read_text()
    words = [line.split() for line in log.splitlines() if line.startswith("evaluation at")]
    returns = [float(line[5]) for line in words]
    assert len(returns) >= 2
    best = json.loads((run / "checkpoints" / "best.json").read_text())
    assert best["score"] == pytest.approx(max(returns), abs=0.006)
    saved = checkpoint.load(run / "checkpoints" / "best.h5")[1]["env_steps"]
    assert str(saved) in [line[2] for line in words]  # its state when it was judged, not when its games ended
    assert checkpoints(run)


def test_eval_plays_other_games_than_those_that_chose_the_best(case: tuple[str, Path, Path, Ended]) -> None:
    name, _, run, _ = case
    if name in ("allreduce", "evaluator"):
        pytest.skip("solo has the same code; one process less to start")
    result = hpc_rl("eval", run, "--episodes", "16", "--json")
    assert result.code == 0, result.err
    figures = json.loads(result.out)
    for games in (figures["greedy"], figures["sampled"]):
        assert games["games"] == len(games["returns"]) == 16 and set(games["returns"]) <= {-1.0, 1.0}
        assert games["mean"] == pytest.approx(np.mean(games["returns"]))
        assert games["low"] <= games["mean"] <= games["high"]
        assert games["distinct_returns"] == len(set(games["returns"])) <= games["distinct_games"] <= 16
    assert figures["checkpoint"].endswith("best.h5") and figures["chosen"] == "best"
    best = json.loads((run / "checkpoints" / "best.json").read_text())
    assert figures["score"] == best["score"] and figures["scored_by"] == "the mean of 16 greedy games during training"
    assert np.mean(judged_again(run)) == pytest.approx(best["score"])  # best.h5 is the very policy that was judged


def judged_again(run: Path) -> list[float]:
    """Returns of best.h5 in the games that chose it."""
    job = jobs.load(run / "job.toml")
    spec = describe(job.environment.id, job.environment.arguments)
    policy = jobs.algorithm(job.algorithm).policy(jobs.method_config(job), spec, None)
    state, _ = checkpoint.load(run / "checkpoints" / "best.h5")
    flatten(policy.net).parameter.data.copy_(state["weights"])

    def build(columns: int, threads: int) -> Environment:
        return make(job.environment.id, job.environment.arguments, columns, threads)

    return greedy_returns(build, policy, job.seed, job.evaluate.episodes)


def test_gloo_learns_what_mpi_learns(case: tuple[str, Path, Path, Ended], tmp_path: Path) -> None:
    name, job, over_mpi, _ = case
    if name != "allreduce":
        pytest.skip("one learner sums with nobody")
    result = hpc_rl("run", job, "--out", tmp_path / "run", "--set", "resources.reduction=gloo", *SETTINGS)
    assert result.code == 0 and leftovers(tmp_path / "run") == [], result.err
    weights, expected = (checkpoint.load(checkpoints(run)[-1])[0]["weights"] for run in (tmp_path / "run", over_mpi))
    assert summary(tmp_path / "run")["updates"] == summary(over_mpi)["updates"]
    assert np.allclose(weights, expected, rtol=0, atol=1e-6)


def test_gloo_without_a_network_says_so(tmp_path: Path) -> None:
    """Mutation seen to fail: the job's reduction not handed to the group."""
    job, run = write_job(tmp_path, "ppo", 2), tmp_path / "run"
    result = hpc_rl("run", job, "--out", run, "--set", "resources.reduction=gloo", GLOO_SOCKET_IFNAME="nosuch0")
    assert result.code == 1 and 'resources.reduction = "gloo" does not start on rank' in result.last, result.err
    assert 'or use "mpi"' in result.last and "Traceback" not in result.err and leftovers(run) == []
