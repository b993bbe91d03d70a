"""One update with the figures around it: the progress that annealing needs, and who is to blame for divergence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from hpc_rl.algorithms.base import Diverged, Learner
from hpc_rl.roles.base import Seat
from hpc_rl.roles.schedule import schedule
from hpc_rl.roles.tally import Tally
from hpc_rl.types import Trajectory, Update

MOST_BAD_UPDATES = 10  # in a row, each with a step that was dropped, before a run is given up
HUGE = 1e4  # rewards or observations of this size are likelier to blame than the learning rate


def update(seat: Seat, learn: Learner, batch: Trajectory, tally: Tally) -> Update:
    """The learner's update; metrics also count the steps that were dropped so far, "dropped_steps".

    Raises:
        Diverged: the tenth update in a row with a dropped step; names method, update, columns, env steps, likely cause.
    """
    before = learn.group.dropped
    done = learn.update(batch, schedule(seat).progress(tally.env_steps))
    dropped, what = learn.group.dropped > before, f"{seat.job.algorithm}, update {tally.updates}"
    tally.bad_updates = in_a_row(tally.bad_updates, dropped, what, lambda: _cause(learn, batch))
    return replace(done, metrics={**done.metrics, "dropped_steps": float(learn.group.dropped)})


def in_a_row(bad: int, dropped: bool, what: str, cause: Callable[[], str]) -> int:
    """Updates in a row that dropped a step, this one included. Raises Diverged at the tenth, with its ``cause``."""
    bad = bad + 1 if dropped else 0
    if bad >= MOST_BAD_UPDATES:
        raise Diverged(f"{what}: {bad} updates in a row had a gradient that was not finite. {cause()}")
    return bad


def _cause(learn: Learner, batch: Trajectory) -> str:
    """One sentence about the largest numbers in the last batch, over all learners: each of them says the same."""
    group, table = learn.group, torch.zeros((learn.group.size, 8), dtype=torch.float64)
    table[group.rank] = torch.tensor([*_largest(batch, batch.reward), *_largest(batch, _sizes(batch)), *_extent(batch)])
    table = group.sum(table)
    reward, observation = (table[table[:, k].argmax(), k : k + 3].tolist() for k in (0, 3))
    low, high = int(table[:, 6].min()), int(table[:, 7].max())
    for name, (size, column, step), remedy in (
        ("a reward", reward, "clip or normalise rewards"),
        ("an observation", observation, "scale or normalise observations"),
    ):
        if size > HUGE:
            return (
                f"Likely cause: {name} of size {size:.3g} in column {column:.0f} at env step {step:.0f}; {remedy}, "
                "or mend the environment"
            )
    return (
        f"Likely cause: the learning rate, for the data of columns {low}-{high} are small (largest reward "
        f"{reward[0]:.3g}, largest observation {observation[0]:.3g}); lower it, or raise epsilon"
    )


def _sizes(batch: Trajectory) -> Tensor:
    """[T, b] the largest number of each move's observation."""
    return batch.observation[:-1].float().abs().flatten(2).amax(2)


def _largest(batch: Trajectory, x: Tensor) -> tuple[float, float, float]:
    """The largest |x| [T, b] of the valid moves, and its column and env step."""
    sizes = torch.where(batch.valid, x.abs(), -torch.ones(()))
    t, k = divmod(int(sizes.argmax()), sizes.shape[1])
    steps = int(batch.start[k]) + int((~batch.first[1 : t + 1, k]).sum())
    return float(sizes[t, k]), float(batch.column[k]), float(steps)


def _extent(batch: Trajectory) -> tuple[float, float]:
    return float(batch.column.min()), float(batch.column.max())
