"""The store of a rank's own experience, as it was saved where the run is resumed."""

from __future__ import annotations

from functools import partial

from hpc_rl.optim.group import Group
from hpc_rl.replay.base import Store
from hpc_rl.replay.stores import own_store
from hpc_rl.runtime.context import RankContext
from hpc_rl.storage.checkpoint import IncompatibleCheckpoint
from hpc_rl.types import Schema


def store_of(context: RankContext, schema: Schema, group: Group) -> Store:
    """Filled from the checkpoint where it has a part for this rank.

    Raises:
        IncompatibleCheckpoint: what was replayed was saved by another number of ranks, to whose columns it cannot be
            dealt.
    """
    annotate = partial(context.algorithm.annotate, context.config) if context.algorithm.annotate else None
    key, columns = (context.job.seed, context.rank_spec.columns.start), len(context.rank_spec.columns)
    store = own_store(context.experience, schema, context.spec, columns, group.size, key, annotate)
    parts = context.resume[0].get("stores", []) if context.resume else []
    if any(parts):
        if len(parts) != group.size:
            raise IncompatibleCheckpoint(
                f"the checkpoint holds a replay for each of {len(parts)} ranks; resume with -n {len(parts)}"
            )
        try:
            store.load(parts[group.rank])
        except ValueError as error:
            raise IncompatibleCheckpoint(f"the checkpoint's replay does not fit this job: {error}") from error
    return store
