"""Which store the experience of a method needs."""

from __future__ import annotations

from hpc_rl.experience import Experience
from hpc_rl.replay.base import Store
from hpc_rl.replay.episodes import Episodes
from hpc_rl.replay.fresh import Fresh
from hpc_rl.replay.ring import Annotate, Ring, ring_bytes
from hpc_rl.types import Schema, Spec


def own_store(
    experience: Experience,
    schema: Schema,
    spec: Spec,
    columns: int,
    shards: int,
    key: tuple[int, int],
    annotate: Annotate | None = None,
) -> Store:
    """The store of a rank that learns from its own ``columns``, one of ``shards`` ranks that learn together.

    ``key`` = (seed, its first column) keys its draws. Raises Unreplayable where a `Ring` cannot hold it.
    """
    kind = _kind(experience)
    if kind is Fresh:
        return Fresh(experience.items[0].name)
    if kind is Episodes:
        return Episodes(experience.items[0].name, schema, spec, columns)
    return Ring(schema, spec, columns, experience, shards, key, annotate)


def store_bytes(experience: Experience, schema: Schema, spec: Spec, columns: int, shards: int) -> int:
    """Memory that ``own_store`` takes at once; 0 where fragments and episodes are kept for one update only.

    Raises:
        Unreplayable: it would refuse.
    """
    return ring_bytes(schema, spec, columns, experience, shards) if _kind(experience) is Ring else 0


def _kind(experience: Experience) -> type[Fresh | Episodes | Ring]:
    if all(items.fresh for items in experience.items):
        return Fresh
    if len(experience.items) == 1 and not experience.items[0].length:
        return Episodes
    return Ring
