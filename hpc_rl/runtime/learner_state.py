"""What a checkpoint holds of a learner: weights at its top level, beside them the rest, and rows of single columns."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from hpc_rl.algorithms.base import Learner
from hpc_rl.devices import to_device
from hpc_rl.optim.flat import StateDict
from hpc_rl.optim.optimizers import load_states, optimizer_state, states


def learner_state(learner: Learner) -> StateDict:
    """{"weights": [parameters], "learner": {"optimizers": …, "own": …}}: copies, alike on all learners of a group."""
    optimizers = states(learner.weights, learner.optimizers)
    return {"weights": learner.weights.data.clone(), "learner": {"optimizers": optimizers, "own": learner.state()}}


def load_learner(learner: Learner, state: StateDict) -> None:
    """The inverse of `learner_state`. Raises KeyError, ValueError, RuntimeError where the state is another method's."""
    learner.weights.data.copy_(state["weights"])
    load_states(learner.weights, learner.optimizers, state["learner"]["optimizers"])
    learner.load(state["learner"]["own"])


def load_columns(learner: Learner, rows: Mapping[str, Tensor], columns: Collection[int]) -> None:
    """Give the learner the rows of those global ``columns`` that it learns from."""
    if rows:
        kept = torch.isin(rows["column"], to_device(torch.tensor(sorted(columns)), rows["column"].device))
        if kept.any():
            learner.load_columns({name: x[kept] for name, x in rows.items()})


def joined_columns(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The rows of several learners as one set; those without any are passed over."""
    some = [part for part in parts if part]
    return {name: torch.cat([part[name] for part in some]) for name in some[0]} if some else {}


def check_identical(learner: Learner) -> None:
    """Raise RuntimeError where a member's weights, parameters or moments are not the first's to the bit. Collective."""
    tensors = [learner.weights.data]
    for optimizer in learner.optimizers.values():
        if not optimizer.flat.inside(learner.weights):
            tensors.append(optimizer.flat.data)
        tensors += [x for x in optimizer_state(optimizer).values() if isinstance(x, Tensor)]
    learner.group.check_identical(tensors)
