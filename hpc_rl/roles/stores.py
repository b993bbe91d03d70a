"""The store of a rank's own experience, as it was saved where the run is resumed."""

from __future__ import annotations

from functools import partial

from hpc_rl.optim.group import Group
from hpc_rl.replay.base import Store
from hpc_rl.replay.stores import own_store
from hpc_rl.roles.base import Seat
from hpc_rl.storage.checkpoint import Misfit
from hpc_rl.types import Schema


def store_of(seat: Seat, schema: Schema, group: Group) -> Store:
    """Filled from the checkpoint where it has a part for this rank.

    Raises:
        Misfit: what was replayed was saved by another number of ranks, whose columns it cannot be dealt to.
    """
    annotate = partial(seat.algorithm.annotate, seat.config) if seat.algorithm.annotate else None
    key, columns = (seat.job.seed, seat.place.columns.start), len(seat.place.columns)
    store = own_store(seat.experience, schema, seat.spec, columns, group.size, key, annotate)
    parts = seat.resume[0].get("stores", []) if seat.resume else []
    if any(parts):
        if len(parts) != group.size:
            raise Misfit(f"the checkpoint holds a replay for each of {len(parts)} ranks; resume with -n {len(parts)}")
        try:
            store.load(parts[group.rank])
        except ValueError as error:
            raise Misfit(f"the checkpoint's replay does not fit this job: {error}") from error
    return store
