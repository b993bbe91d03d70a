"""What rank 0 decides for all ranks of an attempt, and writes into job.toml, state.json and provenance."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hpc_rl.launchers.base import TOKEN_VARIABLE

if TYPE_CHECKING:
    from hpc_rl.agent import Agent
    from hpc_rl.hardware import Row
    from hpc_rl.optim.flat import StateDict
    from hpc_rl.plan import Plan
    from hpc_rl.settings import Job
    from hpc_rl.storage.run_dir import RunDir
    from hpc_rl.transport.ports import Ports


@dataclass(frozen=True)
class Decisions:
    """Alike on all ranks, which get them as JSON."""

    attempt: int
    checkpoint: str | None  # file to go on from, relative to the run
    device: str  # kind of processor of the learning ranks
    threads: int  # of each of them
    token: str  # names this attempt's files in node-shared memory


def decide(job: Job, plan: Plan, run: RunDir, agent: Agent, rows: Sequence[Row]) -> Decisions:
    """Rank 0's part; threads and device are written into job.toml, the attempt into provenance.

    Raises:
        BadJob: the learning ranks see no GPU and the job insists on one, or a replay does not fit into memory.
        NoUsableCheckpoint, IncompatibleCheckpoint: the run cannot go on.
    """
    from hpc_rl import hardware, usage
    from hpc_rl import job as jobs
    from hpc_rl.runtime.fingerprint import fingerprint
    from hpc_rl.runtime.restoring import usable
    from hpc_rl.runtime.stores import lost_at_resume
    from hpc_rl.storage import checkpoint, provenance, replay_files
    from hpc_rl.storage.run_dir import write_text

    columns = job.environment.columns if plan.acts and plan.ranks[0].role == "worker" else None
    learnable = usable(agent, fingerprint(job, agent.spec), columns)

    def takes(state: StateDict, meta: Mapping[str, Any]) -> None:
        learnable(state, meta)
        if job.checkpoint.replay:
            replay_files.check(run, state)

    newest = checkpoint.newest(run, lambda text: print(f"warning: {text}", flush=True), set_aside=True, check=takes)
    shard = _replay_bytes(job, plan, agent)
    check_memory(job, plan, shard, rows)
    if full := replay_files.room(run, _files_bytes(job, plan, agent, shard)):
        print(f"warning: {full}", flush=True)
    threads = job.resources.threads or hardware.threads(plan, rows, agent.spec)
    device = hardware.device_kind(job, plan, rows)
    jobs.check_reduction(job.resources.reduction, device)
    write_text(run.job_file, jobs.dumps(jobs.with_resources(job, threads=threads, device=device)))
    attempt = run.next_attempt()
    if attempt and not newest:
        print("warning: the attempts before wrote no checkpoint; this one starts from the beginning", flush=True)
    if newest and (lost := lost_at_resume(job, agent.experience, newest[1])):
        print(f"warning: {lost}", flush=True)
    file = str(newest[0].relative_to(run.path)) if newest else None
    steps = newest[2]["steps"] if newest else {}
    extra = {"resumed_from": {"file": file, "steps": steps}, "mpi": _library(len(plan.ranks))}
    provenance.write(run, attempt, provenance.collect(sys.argv, attempt, job.seed, extra))
    usage.begin(run, attempt, rows, device == "cuda", newest[2]["env_steps"] if newest else 0)
    run.write_state(state="running", attempt=attempt, reason="", lost=[])
    token = os.environ.get(TOKEN_VARIABLE) or f"{os.getpid():x}{time.time_ns() & 0xFFFFFF:x}"
    return Decisions(attempt, file, device, threads, token)


def _replay_bytes(job: Job, plan: Plan, agent: Agent) -> int:
    """What one shard replays from, in memory."""
    import torch

    from hpc_rl.memory import replay_bytes
    from hpc_rl.replay.room import needs_ring
    from hpc_rl.runtime.messages import schemas

    if not needs_ring(agent.experience):
        return 0
    with torch.device("meta"):
        recorded, _ = schemas(agent.make_policy(), agent.spec)
    columns = next(len(rank.columns) for rank in plan.ranks if rank.columns)
    return replay_bytes(job, plan, agent.experience, recorded, agent.spec, columns)


def _files_bytes(job: Job, plan: Plan, agent: Agent, shard: int) -> int:
    """What checkpoints will hold of replays, about."""
    from hpc_rl.memory import ATARI_RATIO, saved_shards

    return shard * saved_shards(job, plan) // (ATARI_RATIO if "ALE/" in agent.spec.id else 1)


def check_memory(job: Job, plan: Plan, shard: int, rows: Sequence[Row]) -> None:
    """Raise Unreplayable where the shards of a replay, ``shard`` bytes each, do not fit into a host's memory.

    Memory is only taken page by page as the replay fills: without this the host would run out of it hours later.
    """
    from hpc_rl.replay.room import Unreplayable

    keepers = plan.of("replay_server") or [
        rank.rank for rank in plan.ranks if rank.learns and plan.learned_columns(rank)
    ]
    for host in sorted({rows[r]["host"] for r in keepers}):
        here = [r for r in keepers if rows[r]["host"] == host]
        free = min(rows[r]["memory"] for r in here)
        if free and shard * len(here) > free:
            raise Unreplayable(
                f"the replay of {job.algorithm} takes {shard * len(here) / 2**30:.3g} GiB on {host} "
                f"({len(here)} rank(s)), where {free / 2**30:.3g} GiB are free; lower {job.algorithm}.capacity, ask "
                "for more memory, or spread its ranks over more nodes"
            )


def _library(ranks: int) -> str | None:
    if ranks == 1:
        return None
    from hpc_rl.transport import mpi

    return mpi.library()


def settle_precision(
    ports: Ports, job: Job, plan: Plan, run: RunDir, agent: Agent, rows: Sequence[Row], kind: str, device: str
) -> str:
    """What this rank computes in; rank 0 writes into job.toml what every processor does."""
    import torch

    from hpc_rl import hardware
    from hpc_rl import job as jobs
    from hpc_rl.storage.run_dir import write_text

    if device != "cpu":
        torch.cuda.set_device(device)  # else this rank would take memory on GPU 0, too
    names = hardware.processors(kind, plan, rows)
    net = agent.make_policy().net
    precisions = hardware.settled(ports, job, net, names, device)
    if ports.link.rank == 0:
        write_text(run.job_file, jobs.dumps(hardware.with_precisions(jobs.load(run.job_file), net, precisions)))
    return precisions.get(names[ports.link.rank], "fp32")
