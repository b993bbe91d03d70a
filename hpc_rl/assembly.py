"""A rank's context from what was settled for its attempt: where the parts of runtime/ get their environments and files.

Roles see the factories only, so that none of them depends on how a sampler, a store or a file format is made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from hpc_rl.agent import Agent
from hpc_rl.algorithms.base import Policy
from hpc_rl.energy import Meter
from hpc_rl.envs.base import Environment, close
from hpc_rl.experience import Experience
from hpc_rl.optim.flat import StateDict, count_trainable
from hpc_rl.optim.group import Group
from hpc_rl.plan import Plan, RankSpec, weight_routes
from hpc_rl.replay.base import RemoteReplay, ReplayRank, Store
from hpc_rl.replay.desk import Desk
from hpc_rl.replay.items import replay_layouts
from hpc_rl.replay.recorded import Share
from hpc_rl.replay.remote import Remote, ReplayLayouts
from hpc_rl.replay.rings import Rings, updates_allowed
from hpc_rl.replay.room import needs_ring, prioritised
from hpc_rl.replay.saving import Saver
from hpc_rl.replay.stores import own_store, recorded_store
from hpc_rl.run_files import run_files
from hpc_rl.runtime.context import Columns, Method, RankContext, Sampling
from hpc_rl.runtime.counters import Counters, Limits
from hpc_rl.runtime.evaluation import Evaluation, Judge, Slice
from hpc_rl.runtime.evaluator_client import EvaluatorClient
from hpc_rl.runtime.files import Recording, Resume, RunFiles
from hpc_rl.runtime.fingerprint import fingerprint
from hpc_rl.runtime.judge import GreedyGames, MakeEvaluation
from hpc_rl.runtime.messages import schemas
from hpc_rl.runtime.sampling import Lanes, central_sampler, own_sampler
from hpc_rl.runtime.schedule import schedule
from hpc_rl.runtime.stores import load_store, lost_at_save, saved_replay, shards
from hpc_rl.samplers.base import EVALUATED_TOGETHER, Timings
from hpc_rl.settings import Job
from hpc_rl.sources import RecordedExperience
from hpc_rl.starts import begin
from hpc_rl.storage import replay_files
from hpc_rl.storage.packing import from_bytes, to_bytes
from hpc_rl.storage.run_dir import RunDir
from hpc_rl.transport.group import learners
from hpc_rl.transport.ports import Ports
from hpc_rl.types import Array, Schema

SLICE_S, SLICE_ROWS = 0.2, 64  # the longest slice of an evaluation: seconds (free-running ranks), moves of all columns


@dataclass
class Attempt:
    """What was settled for one rank of an attempt, whatever role it takes."""

    job: Job
    plan: Plan
    run: RunDir
    number: int
    token: str
    nodes: list[int]
    device: str
    agent: Agent
    resume: Resume
    limits: Limits
    make_environment: Callable[[int, int], Environment]  # (columns, threads)
    make_evaluation: MakeEvaluation  # environments of the games that judge a policy
    beat: Callable[[], None] = lambda: None  # called often by an actor: a sign of life where lost ones are tolerated
    environments: list[Environment] = field(default_factory=list)
    meter: Meter | None = None  # of the host's energy, on its first rank
    saver: Saver | None = field(init=False)  # of this rank's replay, where it is kept

    def __post_init__(self) -> None:
        read, write = partial(replay_files.read, self.run), partial(replay_files.write, self.run)
        limit_s = self.job.resources.deadline_s
        self.saver = Saver(f"a{self.number}", write, read, limit_s) if self.job.checkpoint.replay else None


def assemble(attempt: Attempt, rank_spec: RankSpec, ports: Ports) -> RankContext:
    """The context of a rank in this role, on these ports."""
    job, plan, agent, spec, resume = attempt.job, attempt.plan, attempt.agent, attempt.agent.spec, attempt.resume
    note = lost_at_save(job, agent.experience)
    files = run_files(attempt.run, job, spec, rank_spec, attempt.number, note, attempt.meter)
    annealing = schedule(job.budget, resume[1] if resume else None)
    about = {"schedule": vars(annealing), "attempt": attempt.number, "fingerprint": fingerprint(job, spec)}

    def exploration(columns: Array, env_steps: int, updates: int) -> Array:
        progress = annealing.progress(env_steps, updates)
        return agent.exploration(columns, job.environment.columns, progress)

    def make_group() -> Group:
        reduction, stop = job.resources.reduction, attempt.limits.requested
        return learners(ports, plan.learners, reduction, attempt.device, attempt.token, stop)

    def make_judge(policy: Policy, timings: Timings) -> Judge:
        return GreedyGames(policy, attempt.make_evaluation, job.evaluate.arguments, job.seed, timings).judge()

    return RankContext(
        job=job,
        plan=plan,
        rank_spec=rank_spec,
        ports=ports,
        method=Method(
            name=job.algorithm,
            spec=spec,
            device=attempt.device,
            arrivals=agent.experience.arrivals,
            items=agent.experience.items[0].name,
            prioritised=prioritised(agent.experience),
            make_policy=agent.make_policy,
            begin=partial(begin, starts=agent.starts, spec=spec),
            make_learner=agent.make_learner,
            progress=annealing.progress,
            exploration=exploration,
        ),
        files=files,
        limits=attempt.limits,
        attempt=attempt.number,
        about=about,
        routes=weight_routes(plan, attempt.nodes, attempt.token, job.resources.tolerate_lost_actors),
        resume=resume,
        gather=partial(_gather, ports),
        make_group=make_group,
        make_store=partial(_store, attempt, rank_spec),
        save_store=partial(_save_store, attempt),
        saved_stores=partial(_saved_stores, attempt),
        updates_before=partial(_updates_before, attempt),
        make_replay=partial(_replay, attempt, rank_spec, ports),
        make_remote=partial(_remote, attempt, rank_spec, ports),
        make_sampling=partial(_sampling, attempt, rank_spec, ports, files),
        make_columns=lambda count, threads: columns_of(attempt.make_environment(count, threads)),
        make_judge=make_judge,
        make_evaluation=partial(_evaluation, attempt, rank_spec, ports, make_judge),
        in_role=partial(assemble, replace(attempt, meter=None)),
        flush_replay=attempt.saver.flush if attempt.saver else lambda: None,
        close_environments=lambda: _close(attempt),
    )


def _gather(ports: Ports, state: StateDict, members: Sequence[int]) -> list[StateDict]:
    """The states of these ranks, at the first; elsewhere none. One alone sends nothing."""
    return [state] if len(members) == 1 else [from_bytes(part) for part in ports.gather(to_bytes(state), members)]


def columns_of(environment: Environment) -> Columns:
    """An environment as a rank sees it that does not act in it."""
    return Columns(environment.reset, environment.send, lambda: vars(environment.recv()))


def _close(attempt: Attempt) -> None:
    for environment in attempt.environments:
        close(environment, attempt.agent.spec.id)


def _store(attempt: Attempt, rank_spec: RankSpec, schema: Schema) -> Store:
    """The store of this rank's own columns, or of its share of recorded moves.

    Raises:
        IncompatibleCheckpoint: what was saved of it does not fit.
        BadSource, Unreplayable: the recorded moves cannot be learned from.
    """
    agent, plan, columns, seed = attempt.agent, attempt.plan, rank_spec.columns, attempt.job.seed
    if isinstance(agent.experience, RecordedExperience):
        share = Share(plan.learners.index(rank_spec.rank), len(plan.learners), seed)
        return recorded_store(agent.experience, schema, agent.spec, share)
    parts = (agent.annotate, attempt.saver, agent.make_goal_reward())
    store = own_store(agent.experience, schema, agent.spec, columns, shards(plan), seed, *parts)
    load_store(store.load, attempt.resume[0].get("stores", []) if attempt.resume else [])
    return store


def _save_store(attempt: Attempt, store: Store, number: int) -> None:
    """Begin to write this rank's replay under the names that `_saved_stores` gives for a new checkpoint ``number``."""
    if attempt.saver is not None and number > attempt.saver.count:
        attempt.saver.count = number - 1
        store.state()


def _saved_stores(attempt: Attempt, number: int) -> list[StateDict]:
    """What checkpoint ``number`` of this attempt names of each worker's replay; nothing where none is kept."""
    if attempt.saver is None or not needs_ring(attempt.agent.experience):
        return []
    workers = [rank for rank in attempt.plan.ranks if rank.role == "worker"]
    return [
        {"column": np.array(rank.columns, np.int32), "file": attempt.saver.name(rank.columns.start, number)}
        for rank in workers
    ]


def _updates_before(attempt: Attempt, fragment: int) -> int:
    """Of this attempt: one less than batches of fresh fragments, or as many as the replay's limiter allows."""
    plan, experience, replayed = attempt.plan, attempt.agent.experience, attempt.plan.of("replay_server")
    if not replayed:
        return max(0, fragment - 1)
    kept = bool(attempt.resume and saved_replay(attempt.job, attempt.resume[0]))
    return updates_allowed(experience, fragment * plan.steps * attempt.job.environment.columns, kept)


def _replay(attempt: Attempt, rank_spec: RankSpec, ports: Ports, recorded: Schema, sent: Schema) -> ReplayRank:
    """The replay of this replay rank. Raises IncompatibleCheckpoint."""
    agent, plan, job = attempt.agent, attempt.plan, attempt.job
    lanes, in_turn = plan.lanes(rank_spec), job.schedule == "deterministic"
    columns, count = job.environment.columns, len(plan.learners)
    parts = (agent.annotate, in_turn, attempt.saver, agent.make_goal_reward())
    rings = Rings(agent.experience, recorded, agent.spec, lanes, columns, count, job.seed, *parts)
    load_store(rings.load, attempt.resume[0].get("stores", []) if attempt.resume else [])
    return Desk(ports.link, ports.waiting, plan.learners, _layouts(attempt, sent), rings, in_turn).replay()


def _remote(attempt: Attempt, rank_spec: RankSpec, ports: Ports, sent: Schema) -> RemoteReplay:
    """The part of a learner in the replay on other ranks."""
    plan, job, experience = attempt.plan, attempt.job, attempt.agent.experience
    servers, count, in_turn = plan.of("replay_server"), len(plan.learners), job.schedule == "deterministic"
    layouts, index = _layouts(attempt, sent), rank_spec.index
    return Remote(ports.link, ports.waiting, servers, layouts, experience, index, count, job.seed, in_turn).replay()


def _layouts(attempt: Attempt, sent: Schema) -> ReplayLayouts:
    """Messages between replay ranks and learners."""
    agent, plan = attempt.agent, attempt.plan
    fragment = (plan.steps, plan.fragment_columns)
    return replay_layouts(agent.experience, sent, agent.spec, len(plan.learners), fragment, agent.annotate)


def _sampling(
    attempt: Attempt,
    rank_spec: RankSpec,
    ports: Ports,
    files: RunFiles,
    policy: Policy,
    timings: Timings,
    pulse: Callable[[], None],
) -> Sampling:
    """The sampler of the job, and a writer for all columns or for each of its lanes."""
    job, plan, spec, resume = attempt.job, attempt.plan, attempt.agent.spec, attempt.resume
    lanes = Lanes(job.seed, attempt.number, resume[1]["steps"] if resume else {})
    recorded = schemas(policy, spec)[0]

    def pulse_and_beat() -> None:
        pulse()
        attempt.beat()

    if job.sampler == "central":
        central = central_sampler(lanes, policy, rank_spec, plan, ports, spec, timings, pulse)
        names = [plan.ranks[remote.peer].name for remote in central.remotes]
        return Sampling(central, Recording(files, recorded, [lane.columns for lane in central.lanes], names), dict)
    own = own_sampler(lanes, policy, rank_spec, job, attempt.make_environment, timings, pulse_and_beat)
    if rank_spec.role == "actor":
        ports.waiting.pulse = attempt.beat
    if resume and "sampler" in resume[0]:
        own.load(resume[0]["sampler"])
    return Sampling(own, Recording(files, recorded, [own.columns], [rank_spec.name]), own.state)


def _evaluation(
    attempt: Attempt,
    rank_spec: RankSpec,
    ports: Ports,
    make_judge: Callable[[Policy, Timings], Judge],
    policy: Policy,
    counters: Counters,
) -> Evaluation:
    """Rank 0's evaluation: by the evaluator, or in slices between its updates."""
    job, plan = attempt.job, attempt.plan
    evaluate = job.evaluate if rank_spec.rank == 0 else replace(job.evaluate, every_steps=0, every_updates=0)
    evaluator = None
    if evaluate.periodic and plan.evaluator is not None:
        size, sets = count_trainable(policy.net), max(1, len(evaluate.arguments))
        evaluator = EvaluatorClient(ports.link, ports.waiting, plan.evaluator, size, sets).remote()
    rows = slice_rows(plan, attempt.agent.experience, evaluate.episodes)
    free = not rank_spec.columns and job.schedule == "free"
    return Evaluation(
        evaluate,
        job.budget.stop_at_return,
        counters,
        lambda: make_judge(policy, Timings()),
        Slice(rows, SLICE_S) if free else Slice(rows),
        attempt.limits.requested,
        evaluator,
    )


def slice_rows(plan: Plan, experience: Experience, episodes: int) -> int:
    """Moves of all columns in a slice of an evaluation: about as many as a rank learns from between two slices.

    Then an evaluation costs at most as much as the training meanwhile, and does not last much longer than it must: what
    it stops has been trained further since it began. A replay has each move learned from several times.
    """
    reuse = max(1.0, sum(items.samples_per_insert for items in experience.items))
    drawn = sum(items.batch_size * items.length for items in experience.items) / len(plan.learners)
    moves = int(plan.steps * plan.learning_columns * reuse if plan.acts else drawn)
    return max(1, min(SLICE_ROWS, moves // min(EVALUATED_TOGETHER, episodes)))
