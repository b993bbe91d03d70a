"""Who computes on what, and how exactly, on machines that are not here: rows of other hosts, GPUs that are pretended.

Mutations seen to fail: the index among all learners; rank 0 asked about the GPUs of others; one precision for every
processor; the table of job.toml ignored; a mask divided by all ranks of the job, or of its host; a share of the
cores for vectors, too.
"""

from __future__ import annotations

import tomllib
from typing import Any

import pytest
import torch
from torch import nn

from hpc_rl import hardware
from hpc_rl import job as jobs
from hpc_rl.nets import precision
from hpc_rl.nets.torsos import ConvTorso
from hpc_rl.transport.local import LocalLink, run_threads
from hpc_rl.transport.ports import Ports
from hpc_rl.transport.waiting import Waiting
from hpc_rl.types import Actions, Spec

IMAGES = Spec("images", (84, 84), "uint8", Actions("discrete", (6,)), stack=4)
VECTORS = Spec("vectors", (4,), "float32", Actions("discrete", (2,)))
CONVOLUTIONS, LAYERS = ConvTorso((4, 84, 84)), nn.Linear(4, 4)


def job_of(topology: str, ranks: int, algorithm: str = "impala", **resources: Any) -> jobs.Job:
    more = {"sampler": resources.pop("sampler")} if "sampler" in resources else {}
    table = {"environment": {"id": "toy/catch", "columns": 24}, "resources": {"ranks": ranks, **resources}, **more}
    return jobs.parse({"algorithm": algorithm, "topology": topology, **table})


def planned(job: jobs.Job) -> Any:
    return jobs.plan(job)


def row(gpus: int = 0, cpu: str = "Old CPU", model: str = "New GPU", host: str = "n0") -> dict[str, Any]:
    return {"cpu": cpu, "gpus": gpus, "model": model if gpus else "", "host": host}


# ---- threads --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("topology", "masks", "threads"),
    [
        ("actor_learner", [("n0", range(8 * rank, 8 * rank + 8)) for rank in range(9)], 8),  # srun has bound each task
        ("actor_learner", [(f"n{rank // 3}", range(8 * (rank % 3), 8 * (rank % 3) + 8)) for rank in range(9)], 8),
        ("actor_learner", [("n0", range(72))] * 9, 8),  # unbound: an equal part for each
        ("actor_learner", [(f"n{rank // 3}", range(24)) for rank in range(9)], 8),  # of its own host, not of all
        ("actor_learner", [("n0", range(2))] * 9, 1),
        (
            "actor_learner",
            [("n0", range(4)), *[("n0", range(4, 8))] * 8],
            4,
        ),  # the actors share a mask, not the learner's
        (
            "allreduce",
            [("n0", range(16)), ("n0", range(16)), ("n1", range(8)), ("n1", range(8))],
            4,
        ),  # of all the least
        ("solo", [("n0", range(6))], 6),
        ("parameter_server", [("n0", range(1)), *[("n0", range(4 * k, 4 * k + 4)) for k in range(1, 4)]], 4),
    ],
)
def test_a_learner_s_threads_are_its_share_of_the_cores_it_may_use(
    topology: str, masks: list[tuple[str, range]], threads: int
) -> None:
    """``-n 9 --cpus-per-task 8`` gave one thread to a learner that had eight cores for itself."""
    plan = planned(job_of(topology, len(masks), "impala" if topology == "actor_learner" else "ppo"))
    rows = [{"host": host, "cores": list(cores)} for host, cores in masks]
    assert hardware.threads(plan, rows, IMAGES) == threads
    assert hardware.threads(plan, rows, VECTORS) == 1


# ---- device ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "gpus", "devices"),
    [
        ([0, 0, 2, 2], 2, ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]),  # ranks fill one node after the other
        ([0, 1, 0, 1], 2, ["cuda:0", "cuda:0", "cuda:1", "cuda:1"]),  # ranks are dealt out to the nodes in turn
        ([0, 0, 0, 3], 3, ["cuda:0", "cuda:1", "cuda:2", "cuda:0"]),
        ([0, 1, 2, 3], 1, ["cuda:0"] * 4),
        ([0, 0, 0, 0], 1, ["cuda:0"] * 4),  # each task was bound to one of its own, or all share it
        ([0, 0, 0, 0], 2, ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]),
    ],
)
def test_a_learner_takes_the_gpu_of_its_turn_on_its_node(nodes: list[int], gpus: int, devices: list[str]) -> None:
    plan = planned(job_of("allreduce", 4))
    assert [hardware.device("cuda", plan, rank, nodes, row(gpus)) for rank in plan.ranks] == devices
    assert {hardware.device("cpu", plan, rank, nodes, row(gpus)) for rank in plan.ranks} == {"cpu"}


def test_ranks_that_do_not_learn_stay_on_the_cpu_and_are_not_counted() -> None:
    plan = planned(job_of("parameter_server", 4, "a2c", servers=2))
    devices = [hardware.device("cuda", plan, rank, [0, 1, 0, 1], row(2)) for rank in plan.ranks]
    assert devices == ["cpu", "cpu", "cuda:0", "cuda:0"]


def test_auto_is_decided_by_the_ranks_that_learn_and_not_by_rank_0() -> None:
    job = job_of("parameter_server", 3, "a2c")
    plan = planned(job)
    assert plan.ranks[0].device == "cpu"
    assert hardware.device_kind(job, plan, [row(0), row(1), row(1)]) == "cuda"
    assert hardware.device_kind(job, plan, [row(0), row(1), row(0)]) == "cpu"  # all alike
    assert hardware.device_kind(job, plan, [row(1), row(0), row(0)]) == "cpu"


def test_a_learner_without_a_gpu_is_named_where_the_job_insists() -> None:
    job = job_of("allreduce", 3, device="cuda")
    with pytest.raises(jobs.BadJob, match=r"rank 2 \(worker-2\) on n7 sees no GPU; .*--gpus-per-node"):
        hardware.device_kind(job, planned(job), [row(1), row(1), row(0, host="n7")])
    assert hardware.device_kind(job, planned(job), [row(1)] * 3) == "cuda"


def test_a_rank_looks_at_gpus_only_where_it_may_use_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    job = job_of("actor_learner", 3, learners=1)
    plan = planned(job)
    rows = [hardware.sight(job, plan, rank, [0, 0, 0]) for rank in plan.ranks]
    assert [(x["gpus"], x["model"]) for x in rows] == [(2, "GPU 0"), (0, ""), (0, "")]
    assert hardware.sight(job_of("solo", 1, device="cpu"), plan, plan.ranks[0], [0, 0, 0])["gpus"] == 0
    assert hardware.cpu_name()


# ---- precision ------------------------------------------------------------------------------------------------------


def settled(
    job: jobs.Job, names: list[str], gains: dict[str, str], net: nn.Module = CONVOLUTIONS
) -> tuple[dict[str, str], list[str]]:
    """What all ranks settle on, and which processors were measured; ``gains`` is what a measurement finds."""
    measured: list[str] = []
    precisions: dict[int, dict[str, str]] = {}

    def rank(link: LocalLink) -> None:
        name = names[link.rank]
        precisions[link.rank] = hardware.settled(Ports(link, Waiting(20.0)), job, net, names, name)

    def measure(net: nn.Module, device: str) -> str:
        measured.append(device)
        return gains[device]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision, "faster_precision", measure)
        run_threads(len(names), rank, 30.0)
    assert all(x == precisions[0] for x in precisions.values())
    return precisions[0], sorted(measured)


GAINS = {"New GPU": "bf16", "Old CPU": "fp32", "New CPU": "bf16"}


def test_a_gpu_that_gains_by_bf16_imposes_it_on_no_cpu() -> None:
    job = job_of("actor_learner", 3)
    names = hardware.processors("cuda", planned(job), [row(1), row(), row(cpu="New CPU")])
    assert names == ["New GPU", "Old CPU", "New CPU"]
    assert settled(job, names, GAINS) == (GAINS, sorted(GAINS))


def test_one_kind_of_processor_is_measured_once() -> None:
    job = job_of("allreduce", 4)
    names = hardware.processors("cpu", planned(job), [row(1)] * 4)
    assert settled(job, names, GAINS) == ({"Old CPU": "fp32"}, ["Old CPU"])


def test_environment_workers_have_no_policy_and_are_not_asked() -> None:
    job = job_of("actor_learner", 3, sampler="central")
    names = hardware.processors("cuda", planned(job), [row(1), row(), row()])
    assert names == ["New GPU", "", ""] and settled(job, names, GAINS) == ({"New GPU": "bf16"}, ["New GPU"])


def test_what_was_decided_stays_and_another_processor_is_measured_anew() -> None:
    job = job_of("allreduce", 2)
    first = hardware.with_precisions(
        job, CONVOLUTIONS, {"Old CPU": "bf16"}
    )  # near the threshold; another measurement finds fp32
    again = jobs.parse(tomllib.loads(jobs.dumps(first)))
    assert again.resources.precisions == {"Old CPU": "bf16"} and again.resources.precision == "auto"
    assert settled(again, ["Old CPU", "Old CPU"], GAINS) == ({"Old CPU": "bf16"}, [])
    moved, measured = settled(again, ["New CPU", "New CPU"], GAINS)
    assert moved == {"Old CPU": "bf16", "New CPU": "bf16"} and measured == ["New CPU"]
    assert hardware.with_precisions(again, CONVOLUTIONS, moved).resources.precisions == moved


@pytest.mark.parametrize("stated", ["fp32", "bf16"])
def test_a_stated_precision_holds_for_all(stated: str) -> None:
    job = job_of("actor_learner", 3, precision=stated)
    assert settled(job, ["New GPU", "Old CPU", "Old CPU"], {}) == ({"New GPU": stated, "Old CPU": stated}, [])
    assert hardware.with_precisions(job, CONVOLUTIONS, {"New GPU": stated}) == job


def test_plain_layers_are_fp32_and_nothing_is_measured() -> None:
    job = job_of("actor_learner", 3)
    assert settled(job, ["New GPU", "Old CPU", "Old CPU"], {}, LAYERS)[0] == {"New GPU": "fp32", "Old CPU": "fp32"}
    assert hardware.with_precisions(job, LAYERS, {"New GPU": "fp32"}).resources.precision == "fp32"


def test_a_precision_that_does_not_exist_is_refused() -> None:
    with pytest.raises(jobs.BadJob, match="choose from fp32, bf16"):
        job_of("solo", 1, precisions={"Old CPU": "fp8"})
