"""The protocols between a method and the rest of the house. A method is one file of this folder."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
from torch import Tensor, nn

from hpc_rl.optim.flat import Flat, Optimizer, StateDict
from hpc_rl.optim.group import Group
from hpc_rl.types import ActOutput, Array, Rules, Schema, Spec, Step, Trajectory, Tree, UpdateResult


class Policy(Protocol):
    """Chooses actions. ``act`` draws nothing itself: ``noise`` are standard uniforms of each column's stream.

    The first M of them stay the same over a fragment, which keeps them as its leaf "noise"; K are new for each move.
    """

    @property
    def net(self) -> nn.Module: ...

    @property
    def noise(self) -> int: ...  # K

    @property
    def fragment_noise(self) -> int: ...  # M, 0 for most

    @property
    def extras(self) -> Schema: ...

    @property
    def carry(self) -> Schema: ...

    def initial_carry(self, columns: int) -> dict[str, Tensor]: ...

    def act(self, step: Step, carry: dict[str, Tensor], exploration: Tensor, noise: Tensor) -> ActOutput:
        """exploration [b] in [0, 1], whose meaning the method states; 0 evaluates greedily. noise is [b, M + K]."""
        ...


class Learner(Protocol):
    """Improves a policy. One ``update`` is one optimisation round, its epochs and minibatches included.

    ``weights`` are all networks that act: what actors copy, evaluation loads and a checkpoint holds at its top level.
    Each of ``optimizers`` is over them, a part of them, or a Flat of what never acts; {} where no gradients are taken.
    """

    policy: Policy
    weights: Flat
    optimizers: Mapping[str, Optimizer]
    group: Group

    @abstractmethod
    def update(self, batches: Mapping[str, Trajectory], progress: float) -> UpdateResult:
        """Learn from one batch of each of ``Experience.items``, by name, on the learner's device.

        progress rises from 0 to 1 over the budget and never falls: all that annealed values depend on.
        """
        ...

    def arrived(self, rows: Mapping[str, Tensor]) -> None:
        """Take the leaves [T, b, …] that ``Experience.arrivals`` names, of each new fragment once, before an update."""
        return

    @abstractmethod
    def state(self) -> StateDict:
        """What all learners hold alike beyond ``weights`` and the optimisers' states: counters, moments, targets."""
        ...

    @abstractmethod
    def load(self, state: StateDict) -> None: ...

    def columns(self) -> dict[str, Tensor]:
        """Rows [n, …] that only this learner holds, each of the global column in their leaf "column"; {} for none."""
        return {}

    def load_columns(self, rows: dict[str, Tensor]) -> None:
        """The inverse of ``columns``, for the rows of those columns that this learner has now."""
        return


def sample_as_learned(config: object, columns: Array, total: int, progress: float) -> Array:
    """The exploration [b] of a method whose policy samples in training: 1 in each of ``columns`` [b]."""
    return np.ones(len(columns), np.float32)


C = TypeVar("C")
P = TypeVar("P", bound=Policy)


@dataclass(frozen=True)
class Algorithm(Generic[C, P]):
    """A method as a value: the last line of each file of this folder; C is its Config, P its kind of policy.

    ``policy(config, spec, rules)`` and ``learner(config, spec, rules, policy, group)``: rules are those of the job's
    environment on torch, for what looks ahead or uses symmetries, and None where it is not made of Rules.
    ``exploration(config, columns [b], total, progress) -> [b]`` is what training passes to ``act`` in each column of
    ``total``. ``annotate(config, rows) -> {name: [n]} | None`` gives leaves that become known only when an item is
    complete (a first priority, a game's outcome) from its rows [L(+1), n] without observations; see `Items.annotated`.
    """

    config: type[C]
    policy: Callable[[C, Spec, Rules | None], P]
    learner: Callable[[C, Spec, Rules | None, P, Group], Learner]
    exploration: Callable[[C, Array, int, float], Array] = sample_as_learned
    annotate: Callable[[C, Tree], dict[str, Array] | None] | None = None
    legal: bool = False  # its policy makes no move that `Rules.legal` does not allow
