"""CEM, the cross-entropy method over policy parameters (Mannor, Rubinstein and Gat 2003, ICML).

Every episode of a column is played by a candidate of its own, θ ~ N(μ, diag σ²):

    θ = μ + σ Φ⁻¹(u),   u [M] uniforms of the fragment that the episode begins in

One update takes all whole episodes since the last one, of all learners, each a candidate with its return R. Of the N
candidates the ⌈ρ N⌉ of the largest R are the elite E, and

    μ ← mean of E,   σ² ← variance of E + Z²        (Z as in Szita and Lőrincz 2006, Neural Computation 18, "noisy CEM")

Z = extra_std falls linearly to 0 over extra_fraction of the budget: without it σ often collapses before μ is good. A
candidate acts greedily: the largest output of each choice, or a box's outputs as they are. No gradient is taken and no
optimiser has a state; μ and σ are the weights that act, and evaluation plays μ.

All learners hold the same table of (return, column, env step) and of the elite's θ, so the result does not depend on
how columns are dealt out to ranks, to the bit.

Published settings, in the fields of Config: Szita and Lőrincz, Tetris, 22 weights of a linear function: 100 candidates,
elite 0.1, initial_std 10 (variance 100), Z² from 5 falling by 0.1 an iteration.

What differs from the papers: the number of candidates is not fixed; a batch is due when every column has a whole
episode, and columns whose episodes are short have several. Szita and Lőrincz play one game each as here, Mannor and
others several. Policies are linear or small networks with tanh; images are flattened.

Needs nothing in extras; fragments carry u. Topologies: solo, allreduce.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, prod
from typing import Annotated

import torch
from torch import Tensor, nn

from hpc_rl.algorithms import base
from hpc_rl.config import Fraction, NonNegative, Positive, PositiveInt, Range
from hpc_rl.devices import to_device
from hpc_rl.experience import Experience, Items
from hpc_rl.optim.flat import StateDict, flatten
from hpc_rl.optim.group import Group
from hpc_rl.optim.tables import joined
from hpc_rl.types import ActOutput, Leaf, Rules, Schema, Spec, Step, Trajectory, UpdateResult

TOPOLOGIES = ("solo", "allreduce")
EXTRAS: Schema = {}
TINY = 1e-6  # keeps a uniform away from 0 and 1, whose normal quantiles are infinite


@dataclass(frozen=True)
class Config:
    unroll: Annotated[PositiveInt, "moves per column between two looks for complete episodes"] = 10
    elite: Annotated[float, Range(0, 1, open_low=True), "ρ, share of the candidates"] = 0.2
    initial_std: Annotated[Positive, "σ at the start"] = 1.0
    extra_std: Annotated[NonNegative, "Z at the start"] = 0.0
    extra_fraction: Annotated[Fraction, "of the budget, until Z is 0"] = 0.5
    hidden: Annotated[tuple[PositiveInt, ...], "units per layer; without one the policy is linear"] = ()

    def experience(self) -> Experience:
        return Experience(self.unroll, (Items("items", 0, complete="episode"),))


class Candidates(nn.Module):
    """A layered network whose M parameters are a row of the input: observation [n, *O], θ [n, M] -> outputs [n, P]."""

    def __init__(self, spec: Spec, hidden: tuple[int, ...], std: float) -> None:
        super().__init__()
        self.inputs = prod(spec.observation)
        outputs = prod(spec.actions.sizes) if spec.actions.kind == "box" else sum(spec.actions.sizes)
        self.layers = list(pairwise([self.inputs, *hidden, outputs]))
        self.size = sum((a + 1) * b for a, b in self.layers)
        self.mean = nn.Parameter(torch.zeros(self.size))
        self.std = nn.Parameter(torch.full((self.size,), std))

    def candidate(self, uniform: Tensor, scale: Tensor) -> Tensor:
        """θ [n, M] of u [n, M], with σ times ``scale`` [n]."""
        z: Tensor = torch.special.ndtri(uniform.double().clamp(TINY, 1 - TINY)).float()
        return self.mean.detach() + scale[:, None] * self.std.detach() * z

    def forward(self, observation: Tensor, candidate: Tensor) -> Tensor:
        x = observation.reshape(len(observation), self.inputs).float()
        x = x / 255 if observation.dtype == torch.uint8 else x
        position = 0
        for depth, (inputs, units) in enumerate(self.layers):
            bias = position + inputs * units
            weight = candidate[:, position:bias].reshape(-1, inputs, units)
            position = bias + units
            x = ((x.tanh() if depth else x)[:, None] @ weight)[:, 0] + candidate[:, bias:position]
        return x


class Player:
    """Plays each episode with one candidate, which its carry keeps from row to row; ``exploration`` scales σ."""

    noise = 0
    extras = EXTRAS

    def __init__(self, net: Candidates, spec: Spec) -> None:
        self.net, self.actions, self.fragment_noise = net, spec.actions, net.size
        self.carry: Schema = {
            "uniform": Leaf(
                (net.size,), "float32", "fragment", "", "u of the candidate that plays the row before row 0"
            )
        }

    def initial_carry(self, columns: int) -> dict[str, Tensor]:
        return {"uniform": torch.full((columns, self.net.size), 0.5, device=self.net.mean.device)}

    @torch.no_grad()
    def act(self, step: Step, carry: dict[str, Tensor], exploration: Tensor, noise: Tensor) -> ActOutput:
        uniform = torch.where(step.first[:, None], noise, carry["uniform"])
        output = self.net(step.observation, self.net.candidate(uniform, exploration))
        if self.actions.kind == "box":
            return ActOutput(output.reshape(-1, *self.actions.shape), {"uniform": uniform}, {})
        best = torch.stack([x.argmax(-1) for x in output.split(list(self.actions.sizes), -1)], -1)
        return ActOutput(best.reshape(-1, *self.actions.shape), {"uniform": uniform}, {})


def policy(config: Config, spec: Spec, rules: Rules | None) -> Player:
    return Player(Candidates(spec, tuple(config.hidden), config.initial_std), spec)


def rows_of_all(group: Group, places: Tensor, rows: slice, own_rows: Tensor) -> Tensor:
    """The rows ``places`` [E] of all learners' table, of which ``own_rows`` [n, M] are ``rows``."""
    out = torch.zeros(len(places), own_rows.shape[1], dtype=torch.float64)
    of_member = (places >= rows.start) & (places < rows.stop)
    out[of_member] = own_rows[places[of_member] - rows.start]
    return group.sum(out)


class Learner(base.Learner):
    """One update = one generation: new μ and σ from the elite of all learners' episodes."""

    def __init__(self, config: Config, spec: Spec, rules: Rules | None, policy: Player, group: Group) -> None:
        self.config, self.policy, self.group = config, policy, group
        self.weights = flatten(policy.net)
        group.broadcast_(self.weights.data)
        self.optimizers = {}

    @torch.no_grad()
    def update(self, batches: Mapping[str, Trajectory], progress: float) -> UpdateResult:
        config, batch, net = self.config, batches["items"], self.policy.net
        result = to_device((batch.reward * batch.valid).double().sum(0), "cpu")
        candidate = to_device(net.candidate(batch.noise, torch.ones_like(batch.noise[:, 0])), "cpu").double()
        keys = [to_device(x.double(), "cpu") for x in (batch.column, batch.start)]
        table, rows = joined(self.group, torch.stack([result, *keys], 1))
        order = _ranking(table)
        elite = order[: ceil(config.elite * len(order))]
        parameters = rows_of_all(self.group, elite, rows, candidate)
        share = min(progress / config.extra_fraction, 1.0) if config.extra_fraction else 1.0
        extra = config.extra_std * (1.0 - share)
        net.mean.data.copy_(parameters.mean(0))
        net.std.data.copy_((parameters.var(0, correction=0) + extra**2).sqrt())
        averages = {
            "return": table[:, 0].mean(),
            "elite_return": table[elite, 0].mean(),
            "best_return": table[:, 0].max(),
        }
        figures = {name: float(x) for name, x in averages.items()}
        return UpdateResult({**figures, "candidates": float(len(table)), "std": float(net.std.mean())})

    def state(self) -> StateDict:
        return {}

    def load(self, state: StateDict) -> None:
        """Nothing: μ and σ are the weights."""


def _ranking(table: Tensor) -> Tensor:
    """Row numbers of (return, column, start) [N, 3]: the largest return first, equal ones by column and start."""
    order = torch.arange(len(table))
    for key in (table[:, 2], table[:, 1], -table[:, 0]):
        order = order[key[order].argsort(stable=True)]
    return order


ALGORITHM = base.Algorithm(config=Config, policy=policy, learner=Learner)
