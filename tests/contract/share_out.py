"""A method whose learners share out work as well as experience: what a rank without columns is for.

Its policy takes any action, all as likely. Each learner sums what it has observed; learner k of W takes the entries k,
k + W, … of the mean, and all get the whole. A linear guess of the reward is learned by gradients.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from hpc_rl.algorithms import base
from hpc_rl.config import PositiveInt
from hpc_rl.experience import Experience, Items
from hpc_rl.optim.flat import StateDict, flatten
from hpc_rl.optim.group import Group
from hpc_rl.optim.optimizers import make_optimizer
from hpc_rl.types import ActOutput, Rules, Schema, Spec, Step, Trajectory, UpdateResult

TOPOLOGIES = ("solo", "allreduce")


@dataclass(frozen=True)
class Config:
    unroll: PositiveInt = 4
    eats: Literal["fragments", "episodes", "items"] = "fragments"

    def experience(self) -> Experience:
        items = {
            "fragments": Items("items", 0),
            "episodes": Items("items", 0, complete="episode"),
            "items": Items("items", 8, 3, samples_per_insert=2.0),
        }[self.eats]
        return Experience(self.unroll, (items,), 0 if items.fresh else 400, columnless=True)


class AnyAction:
    noise, fragment_noise = 1, 0

    def __init__(self, net: nn.Module, actions: int) -> None:
        self.net, self.actions = net, actions
        self.extras: Schema = {}
        self.carry: Schema = {}

    def initial_carry(self, columns: int) -> dict[str, Tensor]:
        return {}

    def act(self, step: Step, carry: dict[str, Tensor], exploration: Tensor, noise: Tensor) -> ActOutput:
        return ActOutput((noise[:, 0] * self.actions).long().clamp(max=self.actions - 1), {}, {})


def policy(config: Config, spec: Spec, rules: Rules | None) -> AnyAction:
    features = torch.zeros(spec.observation).numel()
    return AnyAction(nn.Linear(features, 1), spec.actions.sizes[0])


class Learner(base.Learner):
    def __init__(self, config: Config, spec: Spec, rules: Rules | None, policy: AnyAction, group: Group) -> None:
        self.config, self.policy, self.group = config, policy, group
        self.weights = flatten(policy.net)
        group.broadcast_(self.weights.data)
        self.optimizer = make_optimizer(self.weights, "adam", 1e-2, 1e-8, 0.999, 0.9)
        self.optimizers = {"weights": self.optimizer}
        self.mean = torch.zeros(len(self.weights.data) - 1, dtype=torch.float64)

    def update(self, batches: Mapping[str, Trajectory], progress: float) -> UpdateResult:
        batch, group = batches["items"], self.group
        x, weight = batch.observation[:-1].flatten(2).float(), batch.valid.float()
        own = torch.cat([(weight[..., None] * x).sum((0, 1)).double(), weight.sum()[None].double()])
        total, share = group.sum(own), torch.zeros_like(self.mean)
        share[group.rank :: group.size] = (total[:-1] / total[-1].clamp(min=1))[group.rank :: group.size]
        self.mean = group.sum(share)
        count = int(weight.sum())
        error = (self.policy.net(x)[..., 0] - batch.reward).square() if count else None
        norm = group.apply_gradients(self.optimizer, (weight * error).sum() if error is not None else None, count, 10.0)
        return UpdateResult({"grad_norm": norm})

    def state(self) -> StateDict:
        return {"mean": self.mean}

    def load(self, state: StateDict) -> None:
        self.mean = state["mean"].clone()


ALGORITHM = base.Algorithm(config=Config, policy=policy, learner=Learner)
