"""Which store the experience of a method needs."""

from __future__ import annotations

from hpc_rl.experience import Experience
from hpc_rl.replay.base import Store
from hpc_rl.replay.episodes import Episodes
from hpc_rl.replay.fresh import Fresh
from hpc_rl.replay.ring import Annotate, Ring
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
    first = experience.items[0]
    if all(items.fresh for items in experience.items):
        return Fresh(first.name)
    if len(experience.items) == 1 and not first.length:
        return Episodes(first.name, schema, spec, columns)
    return Ring(schema, spec, columns, experience, shards, key, annotate)
