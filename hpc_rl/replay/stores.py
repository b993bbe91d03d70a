"""Which store the experience of a method needs."""

from __future__ import annotations

from hpc_rl.experience import Experience
from hpc_rl.replay.base import Store
from hpc_rl.replay.empty import Empty
from hpc_rl.replay.episodes import Episodes
from hpc_rl.replay.fresh import Fresh
from hpc_rl.replay.recorded import Recorded, Share
from hpc_rl.replay.ring import Ring, ring_bytes
from hpc_rl.replay.room import needs_ring
from hpc_rl.replay.rows import Annotate
from hpc_rl.replay.saving import Saver
from hpc_rl.sources import RecordedExperience, source_of
from hpc_rl.storage.archive import archive
from hpc_rl.types import GoalReward, Schema, Spec


def own_store(
    experience: Experience,
    schema: Schema,
    spec: Spec,
    columns: range,
    shards: int,
    seed: int,
    annotate: Annotate | None = None,
    saver: Saver | None = None,
    goal_reward: GoalReward | None = None,
) -> Store:
    """The store of a rank that learns from its own ``columns``, one of ``shards`` with as many that learn together.

    ``seed`` and its first column key its draws. Raises Unreplayable where a `Ring` cannot hold it.
    """
    first = experience.items[0]
    if first.fresh and not needs_ring(experience):
        return Fresh(first.name)
    if not columns:
        return Empty(experience, schema, spec, annotate)
    if needs_ring(experience):
        return Ring(schema, spec, columns, experience, shards, seed, annotate, saver, goal_reward)
    return Episodes(first.name, schema, spec, columns)


def recorded_store(experience: RecordedExperience, schema: Schema, spec: Spec, share: Share) -> Recorded:
    """The store of a rank's ``share`` of recorded moves; the first rank warns of segments that cannot be read.

    Raises:
        BadSource, Unreplayable: they cannot be learned from.
    """
    moves = archive(experience.source, spec)
    for sentence in moves.faults if share.index == 0 else ():
        print(f"warning: {sentence}", flush=True)
    return Recorded(experience, schema, spec, moves.episodes, moves.read, share)


def store_bytes(experience: Experience, schema: Schema, spec: Spec, columns: int, shards: int) -> int:
    """Memory that ``own_store`` takes at once; 0 where fragments and episodes are kept for one update only.

    Raises:
        Unreplayable: it would refuse.
    """
    return ring_bytes(schema, spec, columns, experience, shards) if needs_ring(experience) else 0


def keeps_episodes(experience: Experience) -> bool:
    """Whether `own_store` keeps whole episodes, whose memory depends on their lengths."""
    return not (experience.items[0].fresh or source_of(experience) or needs_ring(experience))
