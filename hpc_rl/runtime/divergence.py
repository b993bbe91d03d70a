"""Divergence: how many bad updates in a row end a run, what their likely cause is; members that are no longer alike."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hpc_rl.algorithms.base import Learner
from hpc_rl.optim.group import Diverged, Group
from hpc_rl.types import Trajectory

MOST_BAD_UPDATES = 10  # in a row, each with a step that was dropped or without any, before a run is given up
HUGE = 1e4  # rewards or observations of this size are likelier to blame than the learning rate
_LIKELY = "The gradient was not finite. Likely cause: "


def in_a_row(before: int, dropped: bool, place: str, cause: Callable[[], str]) -> int:
    """Bad updates in a row, this one included. Raises Diverged at the tenth, with its ``cause``."""
    count = before + 1 if dropped else 0
    if count >= MOST_BAD_UPDATES:
        raise Diverged(f"{place}: {count} updates in a row dropped a step or took none. {cause()}")
    return count


def cause_of(group: Group, batch: Trajectory) -> str:
    """Why, by the numbers in the last batch of all learners: each of them says the same."""
    table = torch.zeros((group.size, 10), dtype=torch.float64)
    if len(column := batch.column):  # a rank without columns has nothing to blame
        sizes = batch.observation[:-1].float().abs().flatten(2).amax(2)  # [T, b]
        numbers = (*_largest(batch, batch.reward), *_largest(batch, sizes), float(column.min()), float(column.max()))
        table[group.rank] = torch.tensor([*numbers, float(batch.valid.sum()), 1.0])
    table = group.sum(table)
    table = table[table[:, 9] > 0]
    reward, observation = (table[table[:, k].argmax(), k : k + 3].tolist() for k in (0, 3))
    low, high = int(table[:, 6].min()), int(table[:, 7].max())
    if not table[:, 8].sum():
        return (
            f"No move of the last batch could be learned from: rewards or observations of columns {low}-{high} are not "
            "finite (metric bad_rows; the warnings name the first ones); mend the environment"
        )
    for name, (size, column, step), remedy in (
        ("a reward", reward, "clip or normalise rewards"),
        ("an observation", observation, "scale or normalise observations"),
    ):
        if size > HUGE:
            return (
                f"{_LIKELY}{name} of size {size:.3g} in column {column:.0f} at env step {step:.0f}; {remedy}, "
                "or mend the environment"
            )
    return (
        f"{_LIKELY}the learning rate, for the data of columns {low}-{high} are small (largest reward "
        f"{reward[0]:.3g}, largest observation {observation[0]:.3g}); lower it, or raise epsilon"
    )


def check_identical(learner: Learner) -> None:
    """Raise RuntimeError where a member's weights, parameters or moments are not the first's to the bit. Collective."""
    tensors = [learner.weights.data]
    for optimizer in learner.optimizers.values():
        if not optimizer.flat.inside(learner.weights):
            tensors.append(optimizer.flat.data)
        tensors += [x for x in optimizer.state.values() if isinstance(x, Tensor)]
    learner.group.check_identical(tensors)


def _largest(batch: Trajectory, x: Tensor) -> tuple[float, float, float]:
    """The largest |x| [T, b] of the valid moves, and its column and env step."""
    sizes = torch.where(batch.valid, x.abs(), -torch.ones(()))
    t, k = divmod(int(sizes.argmax()), sizes.shape[1])
    steps = int(batch.start[k]) + int((~batch.first[1 : t + 1, k]).sum())
    return float(sizes[t, k]), float(batch.column[k]), float(steps)
