"""Evaluation during training on every topology: between updates and by an evaluator rank.

Mutations seen to fail: weights of the present instead of the copy judged; no copy at all; slices by the clock; the
target compared with training games; no games at the end; the figures of one set for another's; slices of a replay's
insertions, not of what is drawn from it; a policy judged whatever training returned.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpc_rl import job as jobs
from hpc_rl.assembly import SLICE_ROWS, slice_rows
from hpc_rl.checking import hints_of
from hpc_rl.envs.make import describe, make
from hpc_rl.experience import Unsuited
from hpc_rl.methods import config_class
from hpc_rl.optim.flat import flatten
from hpc_rl.storage import checkpoint
from tests.contract.batches import SHORT, environment_of, quick, rules_of, ways
from tests.contract.greedy import greedy_returns
from tests.contract.seats import Ran, left_over, run_job

RANKS = {"solo": 1, "allreduce": 2}  # any other topology: 3
METHOD = {"unroll": 5, "hidden": [8], "anneal": False, "min_size": 100, "capacity": 1000, "epochs": 1, "minibatches": 1}
METHOD |= {"batch_size": 32, "samples_per_insert": 2.0, "length": 5, "burn_in": 2, "stride": 5, "horizon": 4}
PENDULUM: dict[str, Any] = {"id": "Pendulum-v1", "columns": 4, "arguments": SHORT["Pendulum-v1"]}
WAYS = ways()


def table_of(name: str, topology: str, evaluators: int, **budget: Any) -> dict[str, Any]:
    id, fields = environment_of(name, "toy/catch"), hints_of(config_class(name))
    return {
        "algorithm": name,
        "topology": topology,
        "environment": {"id": id, "columns": 4, "arguments": SHORT.get(id, {})},
        "budget": {"env_steps": 1200, **budget},
        "evaluate": {"every_steps": 300, "episodes": 12},
        "resources": {"ranks": RANKS.get(topology, 3) + evaluators, "threads": 1, "evaluators": evaluators},
        "checkpoint": {"keep": 1000},
        "output": {"record": 0.0},
        name: {key: x for key, x in METHOD.items() if key in fields} | quick(fields),
    }


def with_returns_that_any_weight_changes(name: str, table: dict[str, Any]) -> dict[str, Any]:
    """On Pendulum, if the method suits it: a game of Catch ends at -1 or 1 whatever most weights are."""
    spec = describe(PENDULUM["id"], PENDULUM["arguments"])
    try:
        jobs.algorithm(name).policy(jobs.method_config(jobs.parse(table)), spec, None)
    except Unsuited:
        return table
    return {**table, "environment": PENDULUM}


def summary(job_run: Ran) -> dict[str, Any]:
    figures: dict[str, Any] = json.loads(job_run.run.summary_file.read_text())
    return figures


def judged_again(job_run: Ran) -> float:
    """The mean return of best.h5 in the games that chose it."""
    algorithm = jobs.algorithm(job_run.job.algorithm)
    policy = algorithm.policy(jobs.method_config(job_run.job), job_run.spec, rules_of(job_run.spec))
    flatten(policy.net).data.copy_(checkpoint.load(job_run.run.checkpoints / "best.h5")[0]["weights"])
    environment = job_run.job.environment
    returns = greedy_returns(
        lambda columns, threads: make(environment.id, environment.arguments, columns), policy, job_run.job.seed, 12
    )
    return float(np.mean(returns))


@pytest.mark.parametrize("evaluators", [0, 1])
@pytest.mark.parametrize(("name", "topology"), WAYS)
def test_the_best_checkpoint_is_the_policy_that_was_judged(
    name: str, topology: str, evaluators: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if evaluators and topology == "solo":
        pytest.skip("one rank")
    table = with_returns_that_any_weight_changes(name, table_of(name, topology, evaluators))
    job_run = run_job(table, tmp_path / "run")
    evaluations = re.findall(r"evaluation at (\d+) env steps: (-?[\d.]+) in 12 games", capfd.readouterr().out)
    assert len(evaluations) >= 2
    best = json.loads((job_run.run.checkpoints / "best.json").read_text())["score"]
    assert best == pytest.approx(max(float(score) for _, score in evaluations), abs=0.006)
    assert judged_again(job_run) == pytest.approx(best, rel=1e-12)
    meta = checkpoint.load(job_run.run.checkpoints / "best.h5")[1]
    assert meta["score"] == best and str(meta["env_steps"]) in [steps for steps, _ in evaluations]
    figures = summary(job_run)
    assert figures["reason"].startswith("done: budget") and np.isfinite(figures["greedy_return"])
    assert figures["greedy_success"] is None or 0 <= figures["greedy_success"] <= 1
    assert set(figures["split_s"]) == {rank.name for rank in job_run.plan.ranks} and left_over(job_run) == []


@pytest.mark.parametrize(("topology", "ranks"), [("solo", 1), ("allreduce", 2)])
def test_slices_repeat_themselves_and_leave_training_as_it_was(
    topology: str, ranks: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def job_run(folder: str, **changes: Any) -> tuple[str, torch.Tensor, Any]:
        # A2C draws no seed: threads share torch's generator
        table = table_of("a2c", topology, 0) | {"evaluate": {"every_steps": 100, "episodes": 12}} | changes
        run = run_job(table, tmp_path / folder).run
        last, best = sorted(run.checkpoints.glob("0*.h5"))[-1], run.checkpoints / "best.h5"
        return last.name, checkpoint.load(last)[0]["weights"], best.exists() and checkpoint.load(best)

    last, weights, best = job_run("one")
    begins = [int(steps) for steps in re.findall(r"evaluation at (\d+) env steps", capfd.readouterr().out)]
    assert begins[0] < 130 and (np.diff(begins) > 150).all(), "a move of each game after each update of 20 env steps"
    again, same, other = job_run("other")
    assert last == again and torch.equal(weights, same)
    assert torch.equal(best[0]["weights"], other[0]["weights"])
    assert [best[1][key] for key in ("score", "updates", "judged_at")] == [
        other[1][key] for key in ("score", "updates", "judged_at")
    ]
    assert torch.equal(weights, job_run("without", evaluate={})[1])


def test_no_policy_is_judged_before_training_has_a_return(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def begins(least: float) -> list[str]:
        table = table_of("a2c", "solo", 0) | {"evaluate": {"every_steps": 100, "episodes": 12, "from_return": least}}
        run_job(table, tmp_path / str(least))
        return re.findall(r"evaluation at (\d+) env steps", capfd.readouterr().out)

    assert begins(1.5) == [], "a game of Catch returns at most 1"
    first = int(begins(-1.0)[0])
    assert 100 <= first < 200, "as soon as there is a game"


@pytest.mark.parametrize(
    ("job", "moves"),
    [
        ("cem_cartpole", 16 * 10),  # of a rank's columns
        ("impala_cartpole", 8 * 32),  # of a batch
        ("dqn_cartpole", 40 * 12.8),  # inserted, and drawn from the replay
    ],
)
def test_a_slice_is_about_as_many_moves_as_are_learned_from_meanwhile(job: str, moves: float) -> None:
    plan, experience = jobs.plan(jobs.load(job)), jobs.experience(jobs.load(job))
    assert slice_rows(plan, experience, episodes=16) == slice_rows(plan, experience, episodes=20) == int(moves / 16)
    assert slice_rows(plan, experience, episodes=1) == SLICE_ROWS


@pytest.mark.parametrize(("topology", "evaluators"), [("solo", 0), ("allreduce", 0), ("allreduce", 1)])
def test_the_target_is_compared_with_greedy_games(topology: str, evaluators: int, tmp_path: Path) -> None:
    """A2C of random weights reaches -1 in any game: only games that were played tell so."""
    job_run = run_job(table_of("a2c", topology, evaluators, env_steps=100_000, stop_at_return=-1.0), tmp_path / "run")
    figures = summary(job_run)
    assert re.match(
        r"done: greedy games reached a mean return of -1, with \S+; the last \d+ training games: -?\d",
        figures["reason"],
    )
    assert figures["env_steps"] < 50_000 and figures["evaluated_return"] >= -1


def test_training_games_decide_where_nothing_is_evaluated(tmp_path: Path) -> None:
    table = table_of("a2c", "solo", 0, env_steps=100_000, stop_at_return=-1.0) | {"evaluate": {}}
    figures = summary(run_job(table, tmp_path / "run"))
    assert figures["reason"].startswith("done: mean return of 100 episodes reached") and figures["greedy_return"] >= -1


@pytest.mark.parametrize(("name", "topology"), WAYS)
def test_a_budget_of_updates(name: str, topology: str, tmp_path: Path) -> None:
    table = table_of(name, topology, 0, env_steps=100_000, updates=7)
    job, figures = jobs.parse(table), summary(run_job(table, tmp_path / "run"))
    assert figures["reason"] == "done: budget of 7 updates used"
    exact = topology != "parameter_server" and jobs.experience(job).items[0].fresh
    assert figures["updates"] == 7 if exact else figures["updates"] >= 7  # those of a round, or gradients on their way


def test_sets_of_arguments_are_judged_each_by_itself(tmp_path: Path) -> None:
    table = table_of("a2c", "solo", 0)
    table["evaluate"] |= {"arguments": [{}, {"pixels": False}]}
    job_run = run_job(table, tmp_path / "run")
    text = (job_run.run.metrics / "worker-0.jsonl").read_text()
    last = json.loads(text.splitlines()[-1])
    assert last["greedy_return"] == last["greedy_return/0"] == last["greedy_return/1"]  # the same game by two names
