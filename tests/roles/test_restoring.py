"""Whole checkpoints of wrong things fall back to older ones; those of another job stop the run.

Mutations seen to fail: `usable` that looks at nothing; shapes not compared; the optimiser's moments not compared; the
learner's own `load` not tried; samplers not looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpc_rl.agent import agent_of
from hpc_rl.runtime.fingerprint import fingerprint
from hpc_rl.runtime.restoring import usable
from hpc_rl.storage import checkpoint
from hpc_rl.storage.checkpoint import CorruptCheckpoint, IncompatibleCheckpoint
from tests.contract.seats import run_job

TABLES: dict[str, dict[str, Any]] = {
    "ppo": {"topology": "solo", "ppo": {"unroll": 4, "hidden": [8], "normalize_observation": False}},
    "impala": {"topology": "actor_learner", "impala": {"unroll": 4, "hidden": [8]}},
    "a2c": {"topology": "solo", "a2c": {"unroll": 4, "hidden": [8], "lstm": 4, "normalize_observation": True}},
}


def trained(method: str, folder: Path) -> tuple[Any, Any, dict[str, Any], dict[str, Any], Any]:
    """(job, run, state, meta, check) of a job that has learned a little."""
    ranks = 2 if method == "impala" else 1
    table = {
        "algorithm": method,
        "environment": {"id": "toy/catch", "columns": 4},
        "budget": {"env_steps": 200},
        "resources": {"ranks": ranks, "threads": 1, "precision": "fp32", "device": "cpu"},
        **TABLES[method],
    }
    job_run = run_job(table, folder)
    newest = checkpoint.newest(job_run.run, pytest.fail)
    assert newest is not None
    agent = agent_of(job_run.job)
    columns = 4 if ranks == 1 else None
    return job_run.job, job_run.run, newest[1], newest[2], usable(agent, fingerprint(job_run.job, agent.spec), columns)


@pytest.mark.parametrize("method", TABLES)
def test_what_a_run_wrote_is_taken(method: str, tmp_path: Path) -> None:
    _, run, _, _, check = trained(method, tmp_path / "run")
    assert checkpoint.newest(run, pytest.fail, check=check) is not None


def _set(*path: Any) -> Callable[[Any], None]:
    """Put the last item at the place that the others name; ... removes it."""

    def change(parts: Any) -> None:
        *keys, last, value = path
        for key in keys:
            parts = parts[key]
        if value is ...:
            del parts[last]
        else:
            parts[last] = value(parts[last]) if callable(value) else value

    return change


WRONG: dict[str, Callable[[Any], None]] = {
    "no learner": _set("state", "learner", ...),
    "a learner of another kind": _set("state", "learner", [1]),
    "no parameters": _set("state", "weights", ...),
    "fewer parameters": _set("state", "weights", lambda x: x[:-1]),
    "one parameter": _set("state", "weights", torch.zeros(1)),  # copy_ would spread it over all
    "parameters of another shape": _set("state", "weights", lambda x: x[None]),
    "parameters of another type": _set("state", "weights", lambda x: x.double()),
    "parameters that are text": _set("state", "weights", "weights"),
    "no optimiser": _set("state", "learner", "optimizers", ...),
    "an optimiser of another kind": _set("state", "learner", "optimizers", "weights", 3),
    "moments of another shape": _set("state", "learner", "optimizers", "weights", "exp_avg", lambda x: x[:3]),
    "a round of another kind": _set("state", "learner", "own", "round", "third"),
    "no own state": _set("state", "learner", "own", ...),
    "no rows of columns": _set("state", "columns", ...),
    "no env steps": _set("meta", "env_steps", ...),
    "env steps of another kind": _set("meta", "env_steps", 1.5),
    "columns of another kind": _set("meta", "steps", {"one": 1}),
    "a column beyond the job's": _set("meta", "steps", {"4": 1}),
    "steps that are text": _set("meta", "steps", {"0": "1"}),
    "no fit": _set("meta", "fingerprint", ...),
    "a fit of another kind": _set("meta", "fingerprint", []),
    "returns of another kind": _set("meta", "recent", "many"),
    "no sampler": _set("state", "sampler", ...),
    "a column twice": _set("state", "sampler", "columns", lambda x: x * 0),
    "a column too many": _set("state", "sampler", "columns", lambda x: torch.arange(5)),
    "no steps": _set("state", "sampler", "steps", ...),
    "steps of another shape": _set("state", "sampler", "steps", lambda x: x[:2]),
    "a stream too few": _set("state", "sampler", "streams", lambda x: x[:3]),
    "a stream of another kind": _set("state", "sampler", "streams", 1, {"bit_generator": "PCG64", "state": 3}),
    "a stream that is text": _set("state", "sampler", "streams", 1, "x"),
    "no environment": _set("state", "sampler", "environment", ...),
    "rewards of another shape": _set("state", "sampler", "reward", lambda x: x[:1]),
}


@pytest.fixture(scope="module")
def ppo(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return trained("ppo", tmp_path_factory.mktemp("ppo") / "run")


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_one_falls_back_with_a_sentence(ppo: Any, fault: str) -> None:
    _, run, state, meta, check = ppo
    for path in run.checkpoints.iterdir():
        path.unlink()
    older = checkpoint.save(run, 1, state, meta)
    parts = {"state": _copy(state), "meta": _copy(meta)}
    WRONG[fault](parts)
    newer = checkpoint.save(run, 2, parts["state"], parts["meta"])
    warnings: list[str] = []
    newest = checkpoint.newest(run, warnings.append, check=check)
    assert newest is not None and newest[0] == older
    assert (
        len(warnings) == 1
        and warnings[0].startswith(f"{newer} cannot be resumed from: ")
        and "falling back" in warnings[0]
    )
    with pytest.raises(CorruptCheckpoint, match="cannot be resumed from"):
        checkpoint.examined(newer, check)


def test_an_optimiser_that_never_stepped_is_taken(ppo: Any) -> None:
    _, _, state, meta, check = ppo
    check({**state, "learner": {**state["learner"], "optimizers": {"weights": {}}}}, meta)


def test_one_of_another_job_stops(ppo: Any) -> None:
    _, run, state, meta, check = ppo
    checkpoint.save(run, 1, state, meta)
    checkpoint.save(run, 2, state, {**meta, "fingerprint": {**meta["fingerprint"], "algorithm": "a2c"}})
    with pytest.raises(IncompatibleCheckpoint, match="algorithm is 'a2c'"):
        checkpoint.newest(run, pytest.fail, check=check)


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_copy(item) for item in value]
    return value.clone() if isinstance(value, torch.Tensor) else value


def test_random_generators_are_as_they_were(ppo: Any) -> None:
    """The trial makes a network: what draws after it must not depend on whether there was a checkpoint."""
    _, _, state, meta, check = ppo
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    check(state, meta)
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == np.random.get_state()[1].tolist()
