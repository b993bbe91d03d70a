"""What a job needs: its plan, environment and method as figures, and each rank's memory by purpose."""

from __future__ import annotations

from dataclasses import dataclass

from hpc_rl import job as jobs
from hpc_rl.agent import agent_of
from hpc_rl.conclusion import REPORT_GAMES
from hpc_rl.envs.mixture import check_shares
from hpc_rl.experience import Experience
from hpc_rl.footprint import Footprint, footprint
from hpc_rl.fragments import fragment_bytes
from hpc_rl.plan import Plan, RankSpec
from hpc_rl.replay.rings import rings_bytes
from hpc_rl.replay.room import prioritised
from hpc_rl.replay.saving import PIECE_BYTES
from hpc_rl.replay.stores import store_bytes
from hpc_rl.runtime.messages import weights_layout
from hpc_rl.runtime.stores import shards
from hpc_rl.samplers.base import EVALUATED_TOGETHER
from hpc_rl.settings import Job
from hpc_rl.sources import source_of
from hpc_rl.transport.layout import Layout
from hpc_rl.types import Schema, Spec

MIB = 1 << 20

# Resident memory of processes with torch 2.13 for the CPU on Linux. A learning rank with CUDA needs some GiB more.
CODE_BYTES = 284 * MIB  # an actor with next to no data: Python, torch, mpi4py, h5py
LEARNING_CODE_BYTES = 10 * MIB  # what gradients, their optimiser and TensorBoard load on top
ATARI_CODE_BYTES = 8 * MIB
SERVER_BYTES = 46 * MIB  # the fork server of environment processes, and Python's tracker beside it
CHILD_BYTES = 7 * MIB  # what one of those processes does not share with the server
ATARI_RATIO = 100  # frames of Atari games with zstd; measured on Pong
GAME_BYTES = int(1.7 * MIB)  # one emulator with its frames
TENSOR_COLUMN_BYTES = 1 << 10  # a column of the device sampler, with what a move computes on the way
PIECES = 4  # of a replay, copied and compressed at a time while they are written
BUFFER_BYTES = 32 * MIB  # the most that a recorder holds back of one leaf


@dataclass(frozen=True)
class Figures:
    """Everything that `hpc-rl show` is computed from; sizes in bytes."""

    job: Job
    plan: Plan
    spec: Spec
    experience: Experience
    method: Footprint
    columns: int  # of one stepping rank

    @property
    def weights_bytes(self) -> int:
        """What actors copy."""
        return 4 * self.method.weights

    @property
    def weights_message_bytes(self) -> int:
        return weights_layout(self.weights_bytes).nbytes

    @property
    def message_bytes(self) -> int:
        """One fragment between two ranks: what is recorded, and how far each column's segments are closed."""
        return Layout(self.method.sent, self.plan.steps, self.columns, self.spec.stack).nbytes

    @property
    def step_bytes(self) -> float:
        """One env step on disk before compression."""
        longer, shorter = (fragment_bytes(self.method.recorded, t, 1, self.spec.stack) for t in (1001, 1))
        return (longer - shorter) / 1000

    @property
    def replay_bytes(self) -> int:
        """What one shard replays from, in memory and in files. Raises Unreplayable."""
        return replay_bytes(self.job, self.plan, self.experience, self.method.recorded, self.spec, self.columns)

    @property
    def replays_bytes(self) -> int:
        """What the files of all replays hold together, before compression; 0 where none is kept."""
        return self.replay_bytes * saved_shards(self.job, self.plan)

    @property
    def items_bytes(self) -> int:
        """What every checkpoint knows of the items in them: where they begin, their lengths and priorities."""
        each = 4 * len(self.experience.items) + 8 * bool(prioritised(self.experience))
        return self.experience.capacity * each if self.replays_bytes else 0

    @property
    def queues_bytes(self) -> int:
        """What every checkpoint holds of the learners' queues."""
        return self.method.queue_bytes * len(self.plan.learners)


def replay_bytes(job: Job, plan: Plan, experience: Experience, recorded: Schema, spec: Spec, columns: int) -> int:
    """What one shard replays from; ``columns`` are those of one stepping rank. Raises Unreplayable."""
    if keepers := plan.of("replay_server"):
        width, lanes = plan.fragment_columns, len(plan.lanes(plan.ranks[keepers[0]]))
        return rings_bytes(recorded, spec, width, lanes, job.environment.columns // width, experience)
    return store_bytes(experience, recorded, spec, columns, shards(plan))


def saved_shards(job: Job, plan: Plan) -> int:
    """Shards of a replay that checkpoints keep."""
    if not job.checkpoint.replay:
        return 0
    alone = plan.of("worker") if plan.of("parameter_server") else []  # whose workers have a whole replay each
    return len(plan.of("replay_server") or alone) or shards(plan)


def gather(job: Job) -> Figures:
    """Plan, environment and method of a job.

    Raises:
        BadJob, BadEnvironment, Unsuited, Unreplayable: no plan, environment, method for it, or replay can be made.
    """
    plan = jobs.plan(job)
    agent = agent_of(job)
    columns = next((len(rank.columns) for rank in plan.ranks if rank.columns), 1)
    check_shares(job.environment.id, job.environment.arguments, columns, job.environment.processes)
    method = footprint(agent, plan, columns)
    agent.make_goal_reward()  # raises where there is none to be relabelled by
    return Figures(job, plan, agent.spec, agent.experience, method, columns)


def budget(figures: Figures, rank: RankSpec) -> dict[str, float]:
    """Bytes of one rank by purpose: its largest resident memory, within 15 % of the runs that were measured."""
    plan, method, weights = figures.plan, figures.method, figures.weights_bytes
    actors, workers, keepers = plan.of("actor"), plan.of("worker"), plan.of("replay_server")
    width, atari = len(rank.columns), "ALE/" in figures.spec.id
    parts: dict[str, float] = {"code": CODE_BYTES + ATARI_CODE_BYTES * atari}
    serving, judging = rank.role == "parameter_server", rank.role == "evaluator"
    if rank.learns or serving:
        parts["code"] += LEARNING_CODE_BYTES
        parts["weights and optimiser"] = method.learner_bytes + method.checkpoint_bytes  # and a checkpoint's copy
    if rank.learns:
        parts["learning"] = method.batch_bytes + method.update_bytes
        parts["replay"] = figures.replay_bytes if plan.learned_columns(rank) and not keepers else 0
        parts["queue of fragments"] = method.queue_bytes
        parts["recorded moves"] = source.memory_bytes if (source := source_of(figures.experience)) else 0
        parts["a checkpoint's copies"] = _copies_bytes(figures, rank) + _pieces_bytes(figures) * bool(parts["replay"])
        if keepers:
            parts["batches on their way"] = 2 * method.batch_bytes * len(keepers)
    elif rank.role == "replay_server":
        parts["replay"] = figures.replay_bytes
        parts["a checkpoint's copies"] = _pieces_bytes(figures)
        parts["messages"] = 2 * figures.message_bytes * len(rank.peers) + method.batch_bytes * len(plan.learners)
    elif rank.role == "actor" or judging:
        parts["weights"] = 3 * weights  # with a gradient buffer, and a copy while new ones are taken
    if actors and rank.role not in ("env_worker", "evaluator", "replay_server"):
        parts["shared weights"] = 2 * weights
        parts["messages"] = 2 * figures.message_bytes * (len(actors) * (not keepers) if rank.learns else 1)
    if (servers := plan.of("parameter_server")) and not judging:
        parts["messages"] = 4 * weights * (len(workers) / len(servers) if serving else 1)
    if width and rank.role != "env_worker":
        parts["recorder"] = _recorder_bytes(figures, width)
        parts["inference"] = width * method.act_bytes
        if rank.learns:
            parts["rollout"] = fragment_bytes(method.recorded, plan.steps, width, figures.spec.stack)
    if judging or rank.rank == 0:  # rank 0 plays the last games
        games = min(EVALUATED_TOGETHER, max(figures.job.evaluate.episodes, 0 if judging else REPORT_GAMES))
        parts["games that judge"] = games * ((GAME_BYTES if atari else 16 << 10) + method.act_bytes)
    if width and (rank.role != "actor" or not plan.of("env_worker")):
        of_one = TENSOR_COLUMN_BYTES if figures.job.sampler == "device" else GAME_BYTES if atari else 16 << 10
        parts["environments"] = width * of_one
        if processes := figures.job.environment.processes:
            parts["environment processes"] = SERVER_BYTES + processes * CHILD_BYTES
    return parts


def _copies_bytes(figures: Figures, rank: RankSpec) -> float:
    """What a rank copies of its queue while a checkpoint is taken: the state, its message, what rank 0 gathers of all.
    A single learner has nothing to send."""
    own = figures.method.queue_bytes
    if len(figures.plan.learners) == 1:
        return own
    first = rank.rank == figures.plan.learners[0]
    return own + 2 * (figures.queues_bytes if first else own)


def _pieces_bytes(figures: Figures) -> float:
    """What a rank copies of its replay while that is written."""
    return min(figures.replay_bytes, PIECES * PIECE_BYTES) if figures.job.checkpoint.replay else 0


def _recorder_bytes(figures: Figures, width: int) -> float:
    """Rows that wait until a chunk is full: 128 of large leaves, about 1 MiB of small ones."""
    if not figures.job.output.record:
        return 0.0
    recorded = figures.method.recorded.items()
    leaves = [leaf for name, leaf in recorded if leaf.rows != "fragment" or name == "noise"]
    rows = (128 * width * fragment_bytes({"": leaf}, 1, 1, 0) for leaf in leaves)
    return float(sum(min(BUFFER_BYTES, max(MIB // 2, count)) for count in rows))
