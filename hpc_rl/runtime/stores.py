"""The store of a rank's own experience, as it was saved where the run is resumed."""

from __future__ import annotations

from collections.abc import Callable

from hpc_rl.optim.flat import StateDict
from hpc_rl.plan import Plan
from hpc_rl.storage.checkpoint import IncompatibleCheckpoint


def shards(plan: Plan) -> int:
    """Parts that the experience of learners lies in, equally large: one of each that has columns to learn from. A
    parameter server's workers learn alone."""
    sharing = [spec for spec in plan.ranks if spec.learns and plan.learned_columns(spec)]
    return 1 if plan.of("parameter_server") else len(sharing)


def load_store(load: Callable[[list[StateDict]], None], parts: list[StateDict]) -> None:
    """``load`` what ranks saved of their stores, if any did.

    Raises:
        IncompatibleCheckpoint: the columns, leaves or capacity of what was replayed are others.
    """
    if not (saved := [part for part in parts if part]):
        return
    try:
        load(saved)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise IncompatibleCheckpoint(f"the checkpoint's replay does not fit this job: {error}") from error
