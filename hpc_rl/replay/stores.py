"""Which store the experience of a method needs."""

from __future__ import annotations

from collections.abc import Callable

from hpc_rl.experience import Experience
from hpc_rl.replay.base import Store
from hpc_rl.replay.fresh import Fresh
from hpc_rl.types import Array, Schema, Spec, Tree

Annotate = Callable[[Tree], dict[str, Array] | None]
"""A method's ``annotate`` with its config in place."""


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

    ``key`` = (seed, shard) keys its draws. Raises ValueError where there is no such store yet.
    """
    if all(items.fresh for items in experience.items):
        return Fresh(experience.items[0].name)
    raise ValueError(f"no store for {[items.name for items in experience.items]}")
