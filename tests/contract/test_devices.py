"""Every method on a device that is not the host: learning, acting beside it, messages, checkpoints.

There is no GPU where these tests run; `FakeGpu` is one in what it refuses.

Mutations seen to fail: ``WeightSubscriber`` reading weights into the policy's own memory; no ``write_back`` there; a
queue or a carry taken from a checkpoint as it comes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hpc_rl import job as jobs
from hpc_rl import methods
from hpc_rl.devices import to_device, to_host, write_back
from tests.contract.batches import ACTING, ONE_OF_A_KIND, SHORT, environment_of, quick, rules_of
from tests.contract.fake_gpu import FakeGpu, lying_on
from tests.contract.seats import newest, run_job

COLUMNS = 4
BUDGET = 120  # env steps: three fragments of all columns, thus more than one update, checkpoint and evaluation
PIXELS = {"environment": {"id": "toy/catch", "columns": COLUMNS, "arguments": {"pixels": True, "stack": 4}}}


def ways() -> list[Any]:
    """(method, topology, ranks, keys of the job, keys of the method), all that the folder has, by what they carry."""
    cases = []
    sections = {
        "hidden": [8],
        "lstm": 4,
        "minibatches": 2,
        "normalize_observation": True,
        "normalize_reward": True,
        "replay": 0.5,
        "objective": "kl",
        "min_size": 60,
        "epochs": 1,
        "batch_size": 32,
        "samples_per_insert": 4.0,
        "length": 5,
        "burn_in": 2,
        "stride": 5,
    }
    for name in ACTING:
        fields = methods.config_class(name).__dataclass_fields__
        carried = {key: value for key, value in sections.items() if key in fields}
        for topology in methods.allowed_topologies(name):
            more = carried
            if topology == "parameter_server":
                more = {key: value for key, value in carried.items() if not key.startswith("normalize")}
            ranks = {"solo": 1, "allreduce": 2}.get(topology, 3)
            cases.append(pytest.param(name, topology, ranks, {}, more, id=f"{name}-{topology}"))
            if topology == "solo" and name in ONE_OF_A_KIND:  # all that see images have the same torso
                cases.append(pytest.param(name, topology, 1, PIXELS, carried, id=f"{name}-pixels"))
            if topology == "actor_learner":
                cases.append(pytest.param(name, topology, ranks, {"sampler": "central"}, more, id=f"{name}-central"))
    return cases


def test_the_fake_refuses_what_a_gpu_refuses() -> None:
    with FakeGpu():
        on_gpu, host = torch.zeros(3, device="cuda:1"), torch.ones(3)
        refused: list[Callable[[], Any]] = [
            on_gpu.numpy,
            lambda: on_gpu[1:].detach().numpy(),
            lambda: on_gpu + host,
            lambda: torch.cat([on_gpu, host]),
            lambda: on_gpu.index_select(0, torch.tensor([0])),
        ]
        for call in refused:
            with pytest.raises((TypeError, RuntimeError), match="device"):
                call()
        assert float((on_gpu + torch.tensor(2.0)).sum()) == 6.0  # scalars may lie anywhere
        assert str((on_gpu + 1)[1:].device) == "cuda:1" and host.device.type == on_gpu.cpu().device.type == "cpu"


def test_a_tensor_goes_to_the_host_and_back() -> None:
    plain = torch.arange(3.0)
    to_host(plain)[0] = 7.0
    assert plain[0] == 7.0 and to_device(plain, "cpu") is plain  # no copy on the host
    with FakeGpu():
        far = to_device(plain, "cuda:0")
        host = to_host(far)
        host[0] = 8.0
        assert far.tolist() == [7.0, 1.0, 2.0]
        write_back(host, far)
        assert far.tolist() == [8.0, 1.0, 2.0] and str(far.device) == "cuda:0"


def job_of(name: str, topology: str, ranks: int, keys: dict[str, Any], method: dict[str, Any]) -> dict[str, Any]:
    id = environment_of(name, "toy/catch")
    return {
        "algorithm": name,
        "topology": topology,
        "environment": {"id": id, "columns": COLUMNS, "arguments": SHORT.get(id, {})},
        "budget": {"env_steps": BUDGET},
        "evaluate": {"every_steps": BUDGET // 2, "episodes": 2},
        "resources": {"ranks": ranks, "threads": 1},
        name: {"unroll": 10, **quick(methods.config_class(name).__dataclass_fields__), **method},
        **keys,
    }


@pytest.mark.parametrize(("name", "topology", "ranks", "keys", "method"), ways())
def test_a_job_whose_learners_have_a_gpu_runs_and_is_resumed(
    name: str, topology: str, ranks: int, keys: dict[str, Any], method: dict[str, Any], tmp_path: Path
) -> None:
    table = job_of(name, topology, ranks, keys, method)
    first_run = run_job(table, tmp_path / "begun", gpu=True)
    table["budget"] = {"env_steps": 2 * BUDGET}
    job_run = run_job(table, tmp_path / "resumed", gpu=True, resume=first_run)
    learners = [rank for rank in job_run.plan.ranks if rank.learns]
    assert learners
    torch.manual_seed(job_run.job.seed)
    before = list(
        jobs.algorithm(name)
        .policy(jobs.method_config(job_run.job), job_run.spec, rules_of(job_run.spec))
        .net.parameters()
    )
    for rank in learners:
        acting = list(job_run.policies[rank.rank][-1].net.parameters())
        with FakeGpu():
            assert {str(x.device) for x in acting} == {f"cuda:{rank.index}"}
        assert not all(torch.equal(x, y) for x, y in zip(acting, before, strict=True)), "it acts by its first weights"
    state, meta = newest(job_run)
    assert meta["env_steps"] >= 2 * BUDGET and lying_on(state) == {"cpu"}


@pytest.mark.parametrize("name", ACTING)
def test_the_device_changes_no_bit(name: str, tmp_path: Path) -> None:
    """On one device a result does not depend on what was moved to it and from it."""
    table = job_of(name, "solo", 1, {}, {})
    states = [newest(run_job(table, tmp_path / str(gpu), gpu))[0]["weights"] for gpu in (False, True)]
    assert torch.equal(*states)
