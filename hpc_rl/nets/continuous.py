"""Networks and policies for boxes of actions from −1..1: one action and k critics; squashed Gaussians: squashed.py."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import prod
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpc_rl.nets.torsos import MlpTorso, orthogonal
from hpc_rl.types import Actions, ActOutput, Array, Leaf, Schema, Spec, Step

N = TypeVar("N", bound=nn.Module)  # what acts, and maybe more beside it


def normal(noise: Tensor) -> Tensor:
    """Standard normals by the quantile function of the uniforms ``noise``."""
    z: Tensor = torch.special.ndtri(noise.double().clamp(1e-6, 1 - 1e-6)).float()
    return z


def noisy(action: Tensor, exploration: Tensor, noise: Tensor) -> Tensor:
    """clip(a + σ z, −1, 1) of a [n, *A], σ = ``exploration`` [n] or [n, K], z from uniforms [n, K]."""
    spread = (exploration.reshape(len(action), -1) * normal(noise)).reshape(action.shape)
    return (action + spread).clamp(-1, 1)


def layers_of(spec: Spec, hidden: tuple[int, ...], heads: int) -> nn.Sequential:
    """observation [n, *O] -> [n, heads · K] for K entries of an action, from layers with ReLU; bytes as 0..1."""
    torso = MlpTorso(spec.observation, hidden, nn.ReLU)
    return nn.Sequential(torso, orthogonal(nn.Linear(torso.features, heads * prod(spec.actions.shape)), 0.01))


class DeterministicActor(nn.Module):
    """observation [n, *O] -> action [n, *A], squashed by tanh."""

    def __init__(self, spec: Spec, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.layers, self.shape, self.spec = layers_of(spec, hidden, 1), spec.actions.shape, spec

    def forward(self, observation: Tensor) -> Tensor:
        action: Tensor = self.layers(observation)
        return action.tanh().reshape(-1, *self.shape)


class DeterministicPolicy(Generic[N]):
    """Acts by clip(π(x) + σ z, −1, 1), z standard normal, σ = ``exploration``.

    Remembers nothing, or with ``critics`` what the first of them says of the action taken and of π(x).
    """

    fragment_noise = 0

    def __init__(self, net: N, actions: Actions, critics: Critics | None = None) -> None:
        self.net, self.noise, self.critics = net, prod(actions.shape), critics
        self.extras: Schema = critics.said if critics else {}
        self.carry: Schema = {}

    def initial_carry(self, columns: int) -> dict[str, Tensor]:
        return {}

    @torch.no_grad()
    def act(self, step: Step, carry: dict[str, Tensor], exploration: Tensor, noise: Tensor) -> ActOutput:
        action: Tensor = self.net(step.observation)
        taken = noisy(action, exploration, noise)
        if self.critics is None:
            return ActOutput(taken, {}, {})
        values = (self.critics(step.observation, x)[0] for x in (taken, action))
        return ActOutput(taken, {}, dict(zip(self.extras, values, strict=True)))


def falling_noise(columns: Array, progress: float, least: float, fraction: float) -> Array:
    """σ [b] for a `DeterministicPolicy`, in a line from 1 to ``least`` over the first ``fraction`` of the budget."""
    share = min(progress / fraction, 1.0) if fraction else 1.0
    return np.full(len(columns), 1.0 + share * (least - 1.0), np.float32)


class StackedLinear(nn.Module):
    """k linear layers [k, n, inputs] -> [k, n, outputs] as one batched matrix product; orthogonal, zero bias."""

    def __init__(self, count: int, inputs: int, outputs: int, gain: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(count, 1, outputs))
        for layer in self.weight.data:
            nn.init.orthogonal_(layer, gain)

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight.transpose(1, 2))


class Critics(nn.Module):
    """observation [n, *O], action [n, *A] -> values [k, n] of k = ``count`` critics that share nothing.

    Observation and action go in side by side; bytes are taken as 0..1. With ``outputs`` > 1 each gives [k, n, outputs].
    """

    def __init__(self, spec: Spec, hidden: tuple[int, ...], count: int, outputs: int = 1) -> None:
        super().__init__()
        widths = [prod(spec.observation) + prod(spec.actions.shape), *hidden]
        layers = [StackedLinear(count, a, b, 2**0.5) for a, b in pairwise(widths)]
        self.layers, self.value = nn.ModuleList(layers), StackedLinear(count, widths[-1], outputs, 1.0)
        self.count, self.outputs, self.bytes = count, outputs, spec.dtype == "uint8"

    @property
    def said(self) -> Schema:
        """What a policy remembers of them."""
        of = {"critic_action": "of the action taken", "critic_policy": "of the action without noise"}
        return {name: Leaf((self.outputs,) * (self.outputs > 1), "float32", doc=text) for name, text in of.items()}

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        x = observation.flatten(1).float()
        x = torch.cat([x / 255 if self.bytes else x, action.flatten(1)], -1).expand(self.count, -1, -1)
        for layer in self.layers:
            x = F.relu(layer(x), inplace=True)
        value: Tensor = self.value(x)
        return value.squeeze(-1) if self.outputs == 1 else value


class ActorWithCritic(nn.Module):
    """An actor and its critic as the network of one policy, for actors that value what they do: ``forward`` acts."""

    def __init__(self, spec: Spec, hidden: tuple[int, ...], outputs: int = 1) -> None:
        super().__init__()
        self.actor, self.critics = DeterministicActor(spec, hidden), Critics(spec, hidden, 1, outputs)

    def forward(self, observation: Tensor) -> Tensor:
        action: Tensor = self.actor(observation)
        return action


def slope_of(critics: Callable[[Tensor, Tensor], Tensor], observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
    """∂Q/∂a [n, *A] of the first critic at ``action``, and Q [n] there; no other gradient is taken."""
    action = action.detach().requires_grad_()
    q = critics(observation, action)[0]
    return torch.autograd.grad(q.sum(), action)[0], q.detach()
