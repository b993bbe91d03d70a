"""What checkpoints keep of stores: how it is taken up again, and the sentences where there is nothing."""

from __future__ import annotations

from collections.abc import Callable

from hpc_rl.experience import Experience
from hpc_rl.optim.flat import StateDict
from hpc_rl.plan import Plan
from hpc_rl.replay.room import needs_ring
from hpc_rl.settings import Job
from hpc_rl.storage.checkpoint import CorruptCheckpoint, IncompatibleCheckpoint

_UNSAVED = "checkpoint.replay = false"


def shards(plan: Plan) -> int:
    """Parts that the experience of learners lies in, equally large: one of each that has columns to learn from, or
    its share of recorded moves. A parameter server's workers learn alone."""
    sharing = [spec for spec in plan.ranks if spec.learns and (plan.learned_columns(spec) or not plan.acts)]
    return 1 if plan.of("parameter_server") else len(sharing)


def load_store(load: Callable[[list[StateDict]], None], parts: list[StateDict]) -> None:
    """``load`` what ranks saved of their stores, if any did.

    Raises:
        CorruptCheckpoint: a file of a replay is torn.
        IncompatibleCheckpoint: the columns, leaves or capacity of what was replayed are others.
    """
    try:
        if saved := [part for part in parts if part]:
            load(saved)
    except CorruptCheckpoint:
        raise
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise IncompatibleCheckpoint(f"the checkpoint's replay does not fit this job: {error}") from error


def saved_replay(job: Job, state: StateDict) -> bool:
    """Whether a checkpoint's state names a replay, and the job takes it up."""
    return job.checkpoint.replay and any("file" in part for part in state.get("stores", []))


def lost_at_save(job: Job, experience: Experience) -> str:
    """A sentence where checkpoints leave a replay out, else ""."""
    if not needs_ring(experience) or job.checkpoint.replay:
        return ""
    return f"checkpoints hold no replay ({_UNSAVED}); a resumed run {_fills(experience)}"


def lost_at_resume(job: Job, experience: Experience, state: StateDict) -> str:
    """A sentence where a run goes on without the replay that it had, else ""."""
    if not needs_ring(experience) or saved_replay(job, state):
        return ""
    why = "the checkpoint holds none" if job.checkpoint.replay else _UNSAVED
    return f"the replay of the attempts before is lost ({why}); this one {_fills(experience)}"


def _fills(experience: Experience) -> str:
    return f"makes {max(experience.min_size, 1):,} env steps before its first update"
