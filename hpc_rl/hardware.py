"""What each rank computes on and in which precision: settled once, from what every rank sees of its own host.

A learning rank takes the GPU of its turn among those of its node; all other ranks compute on the CPU. Precision belongs
to a kind of processor: bf16 may double the speed of one and be emulated by another.
"""

from __future__ import annotations

import json
import platform
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc_rl import host_memory
from hpc_rl.config import BadJob
from hpc_rl.job import with_resources
from hpc_rl.plan import Plan, RankSpec
from hpc_rl.settings import Job
from hpc_rl.transport.ports import Ports
from hpc_rl.types import Spec

if TYPE_CHECKING:
    from torch import nn

Row = dict[str, Any]
"""One rank's answer: "host"; "cores", the numbers of those that it may use; "cpu", the name of the processor;
"gpus", how many it may use; "model", the name of its own; "memory", the bytes that it may still take, 0 if unknown."""


def turn(plan: Plan, rank: int, nodes: Sequence[int]) -> int:
    """The index of a rank among those of its node that may use a GPU; ``nodes[r]`` is the lowest rank on r's node."""
    return [r for r in plan.accelerated if nodes[r] == nodes[rank]].index(rank)


def sight(job: Job, plan: Plan, rank: RankSpec, nodes: Sequence[int]) -> Row:
    """What this rank sees. A GPU is looked at only where the job may use one."""
    import torch

    allowed = rank.device == "accelerator" and job.resources.device != "cpu"
    gpus = torch.cuda.device_count() if allowed else 0
    model = torch.cuda.get_device_name(turn(plan, rank.rank, nodes) % gpus) if gpus else ""
    return {"cpu": cpu_name(), "gpus": gpus, "model": model, "memory": host_memory.available()}


def device_kind(job: Job, plan: Plan, rows: Sequence[Row]) -> str:
    """ "cuda" or "cpu", what the learning ranks compute on: all of them alike, whichever rank looks at it.

    Raises:
        BadJob: the job insists on GPUs, and a learning rank sees none.
    """
    device = job.resources.device
    blind = [rank for rank in plan.accelerated if not rows[rank]["gpus"]]
    if device == "cuda" and blind:
        name, host = plan.ranks[blind[0]].name, rows[blind[0]].get("host", "its host")
        raise BadJob(
            f'resources.device = "cuda" but rank {blind[0]} ({name}) on {host} sees no GPU; '
            'give each node of a learning rank one (--gpus-per-node), or use device = "auto" or "cpu"'
        )
    if device == "auto":
        return "cpu" if blind else "cuda"
    return device


def device(kind: str, plan: Plan, rank: RankSpec, nodes: Sequence[int], row: Row) -> str:
    """The torch device of this rank. Where SLURM has bound each task to GPUs of its own, they are its 0, 1, …"""
    if kind != "cuda" or rank.device == "cpu":
        return "cpu"
    return f"cuda:{turn(plan, rank.rank, nodes) % row['gpus']}"


def threads(plan: Plan, rows: Sequence[Row], spec: Spec) -> int:
    """CPU threads of each learning rank: its share of the cores that it may use, the same for all of them, at least 1.

    Where observations are no images it is 1: small layers gain nothing by threads, which wait for each other in every
    product, and most of the time where something else takes one of their cores.

    A core is shared by the ranks of its host that may use it. Where srun has bound each task to cores of its own, these
    are all its own; where nothing is bound, each rank has an equal part of the host.
    """
    from hpc_rl.nets.precision import is_image

    if not is_image(spec):
        return 1
    users = Counter((row["host"], core) for row in rows for core in row["cores"])

    def share(row: Row) -> Fraction:
        return sum((Fraction(1, users[row["host"], core]) for core in row["cores"]), Fraction(0))

    return max(1, int(min(share(rows[rank]) for rank in plan.learners)))


def processors(kind: str, plan: Plan, rows: Sequence[Row]) -> list[str]:
    """For each rank the name of what its policy computes on; empty where it has none."""
    names = []
    for rank, row in zip(plan.ranks, rows, strict=True):
        on_gpu = kind == "cuda" and rank.device == "accelerator"
        names.append("" if rank.role == "env_worker" else row["model"] if on_gpu else row["cpu"])
    return names


def settled(ports: Ports, job: Job, net: nn.Module, names: Sequence[str], device: str) -> dict[str, str]:
    """Precision of every processor in ``names``, which is in rank order; ``device`` is this rank's. Collective.

    What the job states holds for all. "auto" is measured by the first rank of each processor that job.toml does not
    list yet.

    Raises:
        Deadline: a rank did not answer.
    """
    from hpc_rl.nets.precision import faster_precision, has_choice

    precision = job.resources.precision
    if precision != "auto" or not has_choice(net):
        return dict.fromkeys(filter(None, names), "fp32" if precision == "auto" else precision)
    precisions: dict[str, str] = {**job.resources.precisions}
    own_name = names[ports.link.rank]
    if own_name and own_name not in precisions and names.index(own_name) == ports.link.rank:
        precisions[own_name] = faster_precision(net, device)
    parts = ports.gather(json.dumps(precisions).encode(), range(ports.link.size))
    for part in parts:
        precisions |= json.loads(part)
    agreed: dict[str, str] = ports.broadcast(precisions, range(ports.link.size))
    return agreed


def with_precisions(job: Job, net: nn.Module, precisions: dict[str, str]) -> Job:
    """The job with what `settled` found for "auto", for the attempts to come."""
    from hpc_rl.nets.precision import has_choice

    if job.resources.precision != "auto":
        return job
    return with_resources(job, precisions=precisions) if has_choice(net) else with_resources(job, precision="fp32")


def cpu_name() -> str:
    """Name, family and model of the processor: in a virtual machine the name alone is that of many. Else its kind."""
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        lines = []
    pairs = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    if not pairs.get("model name"):
        return platform.machine()
    return f"{pairs['model name']}, family {pairs.get('cpu family', '?')} model {pairs.get('model', '?')}"
