"""Action values over one torso: convolutions for images, plain layers with ReLU for vectors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hpc_rl.nets.torsos import ConvTorso, Lstm, MlpTorso, image, orthogonal
from hpc_rl.types import Spec


class QNetwork(nn.Module):
    """observation [.., *O] -> Q values [.., A] of one discrete choice.

    ``dueling``: Q = V + advantage − mean of the advantages, from two streams of one hidden layer each (Wang et al.
    2016, arXiv 1511.06581, eq. 9).
    """

    def __init__(self, spec: Spec, hidden: tuple[int, ...], network: str = "nature", dueling: bool = False) -> None:
        super().__init__()
        self.shape = spec.observation
        self.planes = image(spec.observation, spec.dtype)
        self.torso = ConvTorso(self.planes, network) if self.planes else MlpTorso(self.shape, hidden, nn.ReLU)
        features, actions = self.torso.features, spec.actions.sizes[0]
        self.value = _stream(features, 1) if dueling else None
        self.advantage = _stream(features, actions) if dueling else orthogonal(nn.Linear(features, actions), 1.0)

    def prepared(self, observation: Tensor) -> Tensor:
        """Observations [n, *O] as such networks take them: what would cost each of several as much, done once."""
        return self.torso.pixels(observation) if isinstance(self.torso, ConvTorso) else observation

    def forward(self, observation: Tensor) -> Tensor:
        """Of observations [.., *O], or of some [n, *O] that are `prepared`."""
        ready = self.planes is not None and observation.is_floating_point()
        lead = observation.shape[: 1 if ready else observation.dim() - len(self.shape)]
        features = self.torso(observation)
        q: Tensor = self.advantage(features)
        if self.value is not None:
            q = self.value(features) + q - q.mean(-1, keepdim=True)
        return q.reshape(*lead, -1)


class RecurrentQNetwork(nn.Module):
    """Rows [T, b, *O] -> Q values [T, b, A] through a torso, an LSTM and two dueling streams.

    The LSTM also takes the action (one-hot) and the raw reward that led to each row, zeros where it opens an episode
    (Kapturowski et al. 2019, R2D2, section 2.3). Its forget gates begin with a bias of 1 (Jozefowicz et al. 2015):
    a new cell keeps 0.73 of its state from row to row, where 0.5 would leave a five-hundredth of it after nine rows.
    """

    def __init__(self, spec: Spec, hidden: tuple[int, ...], network: str, lstm: int) -> None:
        super().__init__()
        self.shape, self.actions = spec.observation, spec.actions.sizes[0]
        self.planes = image(spec.observation, spec.dtype)
        self.torso = ConvTorso(self.planes, network) if self.planes else MlpTorso(self.shape, hidden, nn.ReLU)
        self.lstm = Lstm(self.torso.features + self.actions + 1, lstm)
        nn.init.ones_(self.lstm.get_parameter("input.bias")[lstm : 2 * lstm])  # the second gate's
        self.value, self.advantage = _stream(lstm, 1), _stream(lstm, self.actions)

    def forward(
        self, observation: Tensor, last_action: Tensor, last_reward: Tensor, first: Tensor, carry: Tensor
    ) -> tuple[Tensor, Tensor]:
        """last_action, last_reward, first: [T, b]; carry [b, 2, H] before row 0. Also gives that after the last row."""
        lead = first.shape
        x = observation if self.planes is None else observation.reshape(*lead, *self.planes)
        features = self.torso(x).reshape(*lead, -1)
        one_hot = last_action[..., None] == torch.arange(self.actions, device=last_action.device)
        led_here = torch.cat([one_hot, last_reward[..., None]], -1)
        led_here = led_here * ~first[..., None]
        rows, carry = self.lstm(torch.cat([features, led_here], -1), first, carry)
        q: Tensor = self.advantage(rows)
        return self.value(rows) + q - q.mean(-1, keepdim=True), carry


def _stream(features: int, outputs: int) -> nn.Module:
    """One hidden layer as wide as the features, then ``outputs``."""
    hidden = orthogonal(nn.Linear(features, features), 2**0.5)
    return nn.Sequential(hidden, nn.ReLU(), orthogonal(nn.Linear(features, outputs), 1.0))
