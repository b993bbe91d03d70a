"""A Gaussian squashed by tanh, for boxes of actions from −1..1, and the policy that draws from it."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn

from hpc_rl.nets.continuous import layers_of, normal
from hpc_rl.types import Actions, ActOutput, Schema, Spec, Step

LOG_STD = (-20.0, 2.0)  # of the squashed Gaussian, as in the authors' code (Haarnoja et al. 2018)


class GaussianActor(nn.Module):
    """observation [n, *O] -> mean and log σ, each [n, K], of what tanh squashes to an action."""

    def __init__(self, spec: Spec, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = layers_of(spec, hidden, 2)

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.layers(observation).chunk(2, -1)
        return mean, log_std.clamp(*LOG_STD)


class SquashedGaussianPolicy:
    """Acts by tanh(μ + temperature · σ z), temperature = ``exploration``; 0 takes tanh μ; remembers nothing."""

    fragment_noise = 0

    def __init__(self, net: GaussianActor, actions: Actions) -> None:
        self.net, self.shape, self.noise = net, actions.shape, prod(actions.shape)
        self.extras: Schema = {}
        self.carry: Schema = {}

    def initial_carry(self, columns: int) -> dict[str, Tensor]:
        return {}

    @torch.no_grad()
    def act(self, step: Step, carry: dict[str, Tensor], exploration: Tensor, noise: Tensor) -> ActOutput:
        mean, log_std = self.net(step.observation)
        action = torch.tanh(mean + exploration[:, None] * log_std.exp() * normal(noise))
        return ActOutput(action.reshape(-1, *self.shape), {}, {})
