"""Policy and value over one torso, or over two where a value gradient would disturb a small policy network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hpc_rl.nets.actions import Head
from hpc_rl.nets.conv import ConvTorso
from hpc_rl.nets.init import orthogonal
from hpc_rl.nets.mlp import MlpTorso
from hpc_rl.nets.sizes import images
from hpc_rl.types import Spec


class ActorCritic(nn.Module):
    """observation [.., *O] -> (head output [.., P], value [..]); images share a torso, vectors get one each."""

    def __init__(self, spec: Spec, hidden: tuple[int, ...], network: str = "nature") -> None:
        super().__init__()
        self.shape = spec.observation
        conv = images(spec)
        self.torso = ConvTorso(self.shape, network) if conv else MlpTorso(self.shape, hidden)
        self.critic = None if conv else MlpTorso(self.shape, hidden)
        head = Head(spec.actions)
        box = spec.actions.kind == "box"
        self.policy = orthogonal(nn.Linear(self.torso.features, head.outputs // 2 if box else head.outputs), 0.01)
        self.log_std = nn.Parameter(torch.zeros(head.outputs // 2)) if box else None
        self.value = orthogonal(nn.Linear(self.torso.features, 1), 1.0)

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        lead = observation.shape[: observation.dim() - len(self.shape)]
        features = self.torso(observation)
        output = self.policy(features)
        if self.log_std is not None:
            output = torch.cat([output, self.log_std.expand_as(output)], -1)
        value = self.value(features if self.critic is None else self.critic(observation)).squeeze(-1)
        return output.reshape(*lead, -1), value.reshape(lead)
