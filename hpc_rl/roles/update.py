"""One update with the figures around it: the progress that annealing needs, and who is to blame for divergence."""

from __future__ import annotations

import torch

from hpc_rl.algorithms.base import Diverged, Learner
from hpc_rl.roles.base import Seat
from hpc_rl.roles.schedule import schedule
from hpc_rl.roles.tally import Tally
from hpc_rl.types import Trajectory, Update


def update(seat: Seat, learn: Learner, batch: Trajectory, tally: Tally) -> Update:
    """Raises Diverged, naming method, update and the columns whose data are not finite (else all of the batch)."""
    try:
        return learn.update(batch, schedule(seat).progress(tally.env_steps))
    except Diverged as error:
        raise Diverged(f"{seat.job.algorithm}, update {tally.updates}, {_suspects(batch)}: {error}") from None


def _suspects(batch: Trajectory) -> str:
    strange = ~torch.isfinite(batch.reward).all(0)
    seen = batch.observation.float().flatten(2) if batch.observation.dim() > 2 else batch.observation.float()[..., None]
    strange |= ~torch.isfinite(seen).all(2).all(0)
    columns = batch.column[strange].tolist()
    if columns:
        return f"rewards or observations of columns {', '.join(map(str, columns))} are not finite"
    return f"data of columns {int(batch.column.min())}-{int(batch.column.max())} are finite"
