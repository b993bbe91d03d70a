"""Distributions over actions. A head's output [.., P] holds all parameters; nothing here draws, it inverts CDFs."""

from __future__ import annotations

from dataclasses import dataclass
from math import log, pi, prod

import torch
from torch import Tensor

from hpc_rl.types import Actions

_TINY = 1e-6  # keeps a uniform away from 0 and 1, whose normal quantiles are infinite


@dataclass(frozen=True)
class ActionDistribution:
    """Categorical over one or several choices (logits side by side), or a diagonal Gaussian (mean, log σ) for a box."""

    actions: Actions

    @property
    def outputs(self) -> int:
        """P: numbers the network must give."""
        return 2 * prod(self.actions.sizes) if self.actions.kind == "box" else sum(self.actions.sizes)

    @property
    def noise(self) -> int:
        """K: uniforms per action."""
        return prod(self.actions.sizes) if self.actions.kind == "box" else len(self.actions.sizes)

    def sample(self, output: Tensor, noise: Tensor, exploration: Tensor) -> Tensor:
        """Actions [b, *A] at temperature ``exploration`` [b]; 0 takes the most likely one. ``noise`` is [b, K]."""
        temperature = exploration[:, None]
        if self.actions.kind == "box":
            mean, log_std = output.chunk(2, -1)
            z = torch.special.ndtri(noise.double().clamp(_TINY, 1 - _TINY)).float()
            action: Tensor = mean + temperature * log_std.exp() * z
            return action.reshape(-1, *self.actions.shape)
        picks = []
        for k, logits in enumerate(torch.split(output, list(self.actions.sizes), -1)):
            cdf = torch.softmax(logits / temperature.clamp(min=_TINY), -1).cumsum(-1)
            choice = (cdf <= noise[:, k : k + 1]).sum(-1).clamp(max=logits.shape[-1] - 1)
            picks.append(torch.where(exploration > 0, choice, logits.argmax(-1)))
        return picks[0] if self.actions.kind == "discrete" else torch.stack(picks, -1)

    def log_prob_entropy(self, output: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """log π(a) and the entropy (nats), both [..], for output [.., P] and action [.., *A]."""
        if self.actions.kind == "box":
            mean, log_std = output.chunk(2, -1)
            z = (action.reshape(mean.shape) - mean) / log_std.exp()
            entropy = (log_std + 0.5 * (1 + log(2 * pi))).sum(-1)
            return -(0.5 * z.square() + log_std + 0.5 * log(2 * pi)).sum(-1), entropy
        action = action.unsqueeze(-1) if self.actions.kind == "discrete" else action
        log_prob, total = torch.zeros_like(output[..., 0]), torch.zeros_like(output[..., 0])
        for k, logits in enumerate(torch.split(output, list(self.actions.sizes), -1)):
            log_p = torch.log_softmax(logits, -1)
            log_prob = log_prob + log_p.gather(-1, action[..., k : k + 1]).squeeze(-1)
            total = total - (log_p.exp() * log_p).sum(-1)
        return log_prob, total
