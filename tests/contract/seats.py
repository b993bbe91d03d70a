"""All ranks of a job as threads of this process, each with a context that assembly.py made; no launcher, no MPI."""

from __future__ import annotations

import shutil
import threading
import uuid
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from hpc_rl import job as jobs
from hpc_rl.agent import Agent, agent_of
from hpc_rl.assembly import Attempt, assemble
from hpc_rl.conclusion import conclude
from hpc_rl.envs.make import make
from hpc_rl.roles.inference_thread import InferenceThread
from hpc_rl.runtime.context import RankContext
from hpc_rl.runtime.counters import Limits
from hpc_rl.runtime.losses import tolerate
from hpc_rl.storage import checkpoint, replay_files, run_dir
from hpc_rl.transport.local import LocalLink, run_threads
from hpc_rl.transport.ports import Ports
from hpc_rl.transport.waiting import Waiting
from tests.contract.fake_gpu import FakeGpu

DEADLINE_S = 60.0


@dataclass
class Ran:
    """What is left of a finished job."""

    run: run_dir.RunDir
    job: Any
    plan: Any
    spec: Any
    token: str  # of the attempt, part of the names of what its ranks share
    learners: dict[int, Any] = field(default_factory=dict)  # rank -> its Learner
    policies: dict[int, list[Any]] = field(default_factory=dict)  # rank -> its policies; the last one acts


def newest(job_run: Ran) -> tuple[Any, dict[str, Any]]:
    """State and meta of its last checkpoint."""
    return checkpoint.load(sorted(job_run.run.checkpoints.glob("0*.h5"))[-1])


def replays(job_run: Ran) -> list[dict[str, Any]]:
    """What its last checkpoint knows of each ring, with the rows "low" to "end": leaf -> bytes [n, b, k]."""
    rings = []
    for part in (part for part in newest(job_run)[0]["stores"] if part):
        pieces = [replay_files.read(job_run.run, piece["name"])["rows"] for piece in part["rows"]]
        known = replay_files.read(job_run.run, part["file"])
        del known["pieces"]  # the names of these files
        low = known["low"] - known["end"]
        rings.append({**known, "rows": {name: torch.cat([x[name] for x in pieces])[low:] for name in pieces[0]}})
    return rings


def run_job(
    table: dict[str, Any], folder: Path, gpu: bool = False, resume: Ran | tuple[Any, dict[str, Any]] | None = None
) -> Ran:
    """Run the job of a TOML-like ``table`` in ``folder`` to its end; with ``gpu`` learning ranks have a `FakeGpu`.

    ``resume``: the run whose newest checkpoint it goes on from; or state and meta, where there is no replay.
    """
    job = jobs.parse(table, "test")
    plan, token = jobs.plan(job), uuid.uuid4().hex
    agent = agent_of(job)
    job_run, lock = Ran(run_dir.create(folder, jobs.dumps(job)), job, plan, agent.spec, token), threading.Lock()

    if isinstance(resume, Ran):
        replay = resume.run.checkpoints / "replay"
        if replay.exists():
            shutil.copytree(replay, job_run.run.checkpoints / "replay")
        resume = newest(resume)

    def entered(body: Any, argument: Any) -> None:
        with FakeGpu() if gpu else nullcontext():
            body(argument)

    def rank(link: LocalLink) -> None:
        entered(_run, _context(job_run, agent, link, lock, gpu, resume))

    threads, serve = torch.get_num_threads(), InferenceThread._run
    torch.set_num_threads(1)
    try:
        with mock.patch.object(InferenceThread, "_run", lambda server: entered(serve, server)):  # has its own thread
            run_threads(len(job_run.plan.ranks), rank, DEADLINE_S)
    finally:
        torch.set_num_threads(threads)
    return job_run


def left_over(job_run: Ran) -> list[Path]:
    """Shared memory that nobody removed."""
    return list(Path("/dev/shm").glob(f"hpc_rl-{job_run.token}-*"))


def _run(context: RankContext) -> None:
    """As rank.py does."""
    if (outcome := jobs.topology(context.job.topology).run(context)) is not None:
        conclude(context, outcome)


def _context(job_run: Ran, agent: Agent, link: LocalLink, lock: threading.Lock, gpu: bool, resume: Any) -> RankContext:
    job, rank_spec = job_run.job, job_run.plan.ranks[link.rank]
    environment, device = job.environment, f"cuda:{rank_spec.index}" if gpu and rank_spec.learns else "cpu"

    def make_policy() -> Any:
        with lock:  # threads share torch's generator; ranks of MPI have one each
            torch.manual_seed(job.seed)
            policy = agent.make_policy()
            policy.net.to(device)
            job_run.policies.setdefault(rank_spec.rank, []).append(policy)
            return policy

    def make_learner(*arguments: Any) -> Any:
        job_run.learners[rank_spec.rank] = agent.make_learner(*arguments)
        return job_run.learners[rank_spec.rank]

    ports, limits = Ports(link, Waiting(DEADLINE_S / 2)), Limits(lambda: False, job.budget.time_limit_s)
    attempt = Attempt(
        job=job,
        plan=job_run.plan,
        run=job_run.run,
        number=0 if resume is None else 1,
        token=job_run.token,
        nodes=link.nodes(),
        device=device,
        agent=replace(agent, make_policy=make_policy, make_learner=make_learner),
        resume=deepcopy(resume),  # every rank reads the file for itself
        limits=limits,
        beat=_beat(job_run, ports, limits),
        make_environment=lambda columns, n: make(environment.id, environment.arguments, columns, n),
        make_evaluation=lambda changes, n: make(environment.id, {**environment.arguments, **changes}, n),
    )
    return assemble(attempt, rank_spec, ports)


def _beat(job_run: Ran, ports: Ports, limits: Limits) -> Callable[[], None]:
    """What gives signs of life where lost actors are tolerated; no actor is slow enough to be given up."""
    if not job_run.job.resources.tolerate_lost_actors:
        return lambda: None
    return tolerate(ports, job_run.plan, limits, lambda rank, how: None, pytest.fail)
