"""What is settled once per attempt, before a rank's role begins: job, plan, table of ranks, device, checkpoint.

Imports torch and the rest of the package only inside functions: CUDA must be hidden from actors before that.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc_rl.decisions import Decisions, decide, settle_precision
from hpc_rl.launchers.base import END_VARIABLE, TOKEN_VARIABLE
from hpc_rl.storage.rank_records import write_record

if TYPE_CHECKING:
    from hpc_rl.agent import Agent
    from hpc_rl.algorithms.base import Policy
    from hpc_rl.envs.base import Environment
    from hpc_rl.hardware import Row
    from hpc_rl.plan import Plan, RankSpec
    from hpc_rl.runtime.context import RankContext
    from hpc_rl.runtime.counters import Limits
    from hpc_rl.runtime.files import Resume
    from hpc_rl.settings import Job
    from hpc_rl.stop_flag import StopFlag
    from hpc_rl.storage.run_dir import RunDir
    from hpc_rl.transport.ports import Link, Ports
    from hpc_rl.types import Spec


def make_context(folder: Path, link: Link, stop: StopFlag) -> RankContext:
    """Everything that is decided once per attempt: rank 0 decides, the others receive it as JSON.

    Raises:
        BadJob, BadEnvironment, NoUsableCheckpoint, IncompatibleCheckpoint: see there; the sentence is for the user.
    """
    from hpc_rl import job as jobs
    from hpc_rl.storage.run_dir import open_run
    from hpc_rl.transport.ports import Ports
    from hpc_rl.transport.waiting import Waiting

    run = open_run(folder)
    stop.file = run.stop_file
    job = jobs.load(run.job_file)
    ports = Ports(link, Waiting(job.resources.deadline_s))
    _agree(ports, job, run.job_file)
    plan = jobs.plan(job)
    rank_spec = plan.ranks[link.rank]
    write_record(folder, link.rank, {"role": rank_spec.name, "host": _host(), **_traces()})
    if rank_spec.rank in rank_spec.peers:  # its inference server is a thread of this process
        from hpc_rl.transport import mpi

        mpi.need_threads()
    if rank_spec.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    return _rank_context(job, plan, rank_spec, ports, run, stop)


def _rank_context(job: Job, plan: Plan, rank_spec: RankSpec, ports: Ports, run: RunDir, stop: StopFlag) -> RankContext:
    from hpc_rl.agent import agent_of
    from hpc_rl.assembly import Attempt, assemble
    from hpc_rl.energy import meter
    from hpc_rl.envs.make import describe_sets
    from hpc_rl.envs.mixture import check_shares
    from hpc_rl.runtime.counters import Limits

    if rank_spec.rank in plan.learners:
        ports.link.prepare(plan.learners)
    agent = agent_of(job)
    describe_sets(job.environment.id, job.environment.arguments, job.evaluate.arguments, agent.spec)
    nodes = ports.link.nodes()
    rows = _gathered(ports, job, plan, rank_spec, nodes)
    decisions = _decisions(ports, job, plan, run, agent, rows)
    ports.waiting.hosts = tuple(row["host"] for row in rows)
    if rank_spec.rank == 0:
        print(_table(rows), flush=True)
    device, precision = _processor(ports, job, plan, rank_spec, run, agent, nodes, rows, decisions)
    _seed(job, rank_spec, decisions.attempt)
    columns = len(rank_spec.columns) or job.environment.columns
    check_shares(job.environment.id, job.environment.arguments, columns, job.environment.processes)
    environments: list[Environment] = []
    limits = Limits(stop, job.budget.time_limit_s, float(os.environ.get(END_VARIABLE) or 0) or None)
    attempt = Attempt(
        job=job,
        plan=plan,
        run=run,
        number=decisions.attempt,
        token=decisions.token,
        nodes=nodes,
        device=device,
        agent=_placed(agent, precision, device),
        resume=_resumed(run, decisions.checkpoint, job, agent.spec),
        limits=limits,
        beat=_tolerance(ports, plan, rank_spec, run, limits) if job.resources.tolerate_lost_actors else lambda: None,
        make_environment=lambda columns, threads: _environment(job, columns, threads, environments),
        make_evaluation=lambda changes, columns: _environment(job, columns, 1, environments, changes),
        environments=environments,
        meter=meter(decisions.device == "cuda") if nodes.index(nodes[rank_spec.rank]) == rank_spec.rank else None,
    )
    return assemble(attempt, rank_spec, ports)


def _tolerance(ports: Ports, plan: Plan, rank_spec: RankSpec, run: RunDir, limits: Limits) -> Callable[[], None]:
    """`losses.tolerate`: rank 0 notes losses in the log and in state.json; an actor that was given up ends itself."""
    from hpc_rl.runtime.losses import tolerate

    lost: list[str] = []

    def report(rank: int, how: str) -> None:
        lost.append(f"rank {rank} ({plan.ranks[rank].name}) on {ports.waiting.hosts[rank]}")
        total = len(plan.of("actor"))
        print(f"warning: {lost[-1]} is lost: {how}; {total - len(lost)} of {total} actors are left", flush=True)
        with contextlib.suppress(OSError):
            run.write_state(lost=lost)

    def leave() -> None:
        print(f"rank {rank_spec.rank}: taken for lost while it was slow, so it leaves", flush=True)
        write_record(run.path, rank_spec.rank, {"ended": "given up"})
        os._exit(0)

    return tolerate(ports, plan, limits, report, leave)


def _gathered(ports: Ports, job: Job, plan: Plan, rank_spec: RankSpec, nodes: list[int]) -> list[Row]:
    """What every rank reports of itself, by rank; the same table on all ranks."""
    from hpc_rl import hardware

    everyone = range(ports.link.size)
    row = {**_row(rank_spec), **hardware.sight(job, plan, rank_spec, nodes)}
    rows = [json.loads(text) for text in ports.gather(json.dumps(row).encode(), everyone)]
    table: list[Row] = ports.broadcast(rows, everyone)
    return table


def _decisions(ports: Ports, job: Job, plan: Plan, run: RunDir, agent: Agent, rows: list[Row]) -> Decisions:
    """Rank 0's decisions, on every rank."""
    values = vars(decide(job, plan, run, agent, rows)) if ports.link.rank == 0 else {}
    return Decisions(**ports.broadcast(values, range(ports.link.size)))


def _processor(
    ports: Ports, job: Job, plan: Plan, rank_spec: RankSpec, run: RunDir, agent: Agent, nodes: list[int],
    rows: list[Row], decisions: Decisions,
) -> tuple[str, str]:  # fmt: skip
    """(device, precision) of this rank; the number of its threads is set."""
    import torch

    from hpc_rl import hardware
    from hpc_rl.nets.precision import flush_subnormals

    flush_subnormals()  # before the first threads begin
    torch.set_num_threads(decisions.threads if rank_spec.learns else rank_spec.threads)
    device = hardware.device(decisions.device, plan, rank_spec, nodes, rows[rank_spec.rank])
    return device, settle_precision(ports, job, plan, run, agent, rows, decisions.device, device)


def _seed(job: Job, rank_spec: RankSpec, attempt: int) -> None:
    """The generators that foreign code may draw from; every stream of this package has a key of its own."""
    import torch

    from hpc_rl.envs.generators import seed_shared

    torch.manual_seed(job.seed)
    seed_shared(job.seed, rank_spec.columns.start if rank_spec.columns else job.environment.columns, attempt)


def _placed(agent: Agent, precision: str, device: str) -> Agent:
    """The agent whose policy's net computes in this precision on this device."""
    from hpc_rl.nets.precision import set_precision

    def make_policy() -> Policy:
        policy = agent.make_policy()
        set_precision(policy.net, precision)
        policy.net.to(device)
        return policy

    return replace(agent, make_policy=make_policy)


def _resumed(run: RunDir, file: str | None, job: Job, spec: Spec) -> Resume:
    """State and meta of the checkpoint to go on from, None for none. Raises IncompatibleCheckpoint."""
    from hpc_rl.runtime.fingerprint import fingerprint
    from hpc_rl.storage import checkpoint

    if file is None:
        return None
    state, meta = checkpoint.load(run.path / file)
    checkpoint.check_compatible(fingerprint(job, spec), meta["fingerprint"])
    return state, meta


def _environment(
    job: Job, columns: int, threads: int, kept: list[Environment], changes: Mapping[str, Any] | None = None
) -> Environment:
    """Columns for training or evaluation, also put into ``kept``; a process is named before others give up on us.

    ``changes`` override the job's arguments.
    """
    from hpc_rl.envs.column_shares import Processes
    from hpc_rl.envs.make import make
    from hpc_rl.opponents import with_opponent

    config = job.environment
    arguments = with_opponent(config.id, {**config.arguments, **(changes or {})})
    # `_rank_context` has refused too many for training; an evaluation may well have fewer columns. A policy plays here.
    count = 0 if callable(arguments.get("opponent")) else min(config.processes, columns)
    processes = Processes(count, job.resources.deadline_s / 2)
    kept.append(make(config.id, arguments, columns, threads, processes, config.state))
    return kept[-1]


def _agree(ports: Ports, job: Job, file: Path) -> None:
    """Raise BadJob on rank 0, which ends all, where a rank has read another job: a folder that is not shared, say."""
    from hpc_rl.config import BadJob
    from hpc_rl.job import dumps

    digest = hashlib.sha256(dumps(job).encode()).hexdigest()
    rows = [json.loads(row) for row in ports.gather(json.dumps([_host(), digest]).encode(), range(ports.link.size))]
    for rank, (host, found) in enumerate(rows):
        if found != digest:
            raise BadJob(
                f"rank {rank} on {host} reads another job than rank 0 in {file}; "
                "put the run where every node sees the same files, with --out"
            )


def _host() -> str:
    return os.environ.get("SLURMD_NODENAME") or os.uname().nodename


def _row(rank_spec: RankSpec) -> Row:
    """What one rank reports of itself; the table of all answers most questions about a slow start."""
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "all")
    cores = sorted(os.sched_getaffinity(0))
    gpu = gpus if rank_spec.device == "accelerator" else ""
    return {"rank": rank_spec.rank, "role": rank_spec.name, "host": _host(), "cores": cores, "gpu": gpu}


def _table(rows: list[Row]) -> str:
    lines = [f"{'rank':>4}  {'role':<12} {'host':<16} {'cores':<16} gpu"]
    for row in rows:
        cores = f"{len(row['cores'])}: {row['cores'][0]}-{row['cores'][-1]}"
        lines.append(f"{row['rank']:>4}  {row['role']:<12} {row['host']:<16} {cores:<16} {row['gpu']}".rstrip())
    return "\n".join(lines)


def _traces() -> dict[str, Any]:
    """What a launcher needs to find this rank and what it would leave behind: process, token, files in /dev/shm."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        maps = ""
    shared = set(re.findall(r" (/dev/shm/\S+)$", maps, re.MULTILINE))  # those marked (deleted) are gone already
    return {"pid": os.getpid(), "token": os.environ.get(TOKEN_VARIABLE, ""), "shared": sorted(shared)}
