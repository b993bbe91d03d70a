"""The store of a rank's own experience, as it was saved where the run is resumed."""

from __future__ import annotations

from hpc_rl.optim.flat import StateDict
from hpc_rl.replay.base import Store
from hpc_rl.storage.checkpoint import IncompatibleCheckpoint


def load_store(store: Store, parts: list[StateDict], rank: int, size: int) -> None:
    """Fill the store of member ``rank`` of ``size`` from a checkpoint's parts, where it has any.

    Raises:
        IncompatibleCheckpoint: what was replayed was saved by another number of ranks, whose columns it cannot be
            dealt to.
    """
    if not any(parts):
        return
    if len(parts) != size:
        raise IncompatibleCheckpoint(
            f"the checkpoint holds a replay for each of {len(parts)} ranks; resume with -n {len(parts)}"
        )
    try:
        store.load(parts[rank])
    except ValueError as error:
        raise IncompatibleCheckpoint(f"the checkpoint's replay does not fit this job: {error}") from error
