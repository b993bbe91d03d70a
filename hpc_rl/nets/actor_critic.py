"""Policy and value over one torso, or over two where a value gradient would disturb a small policy network."""

from __future__ import annotations

from math import log

import torch
from torch import Tensor, nn

from hpc_rl.nets.actions import ActionDistribution
from hpc_rl.nets.normalizers import Standardize
from hpc_rl.nets.torsos import ConvTorso, Lstm, MlpTorso, image, orthogonal
from hpc_rl.types import ActOutput, Leaf, Schema, Spec, Step


class ActorCritic(nn.Module):
    """observation [.., *O] -> (head output [.., P], value [..]); images share a torso, vectors get one each.

    More than one of ``values`` (of several streams of reward) come as [.., V], from one critic. With ``lstm`` units
    each torso is followed by its own LSTM, and rows are time-major: [T, b, *O]. ``standardize`` applies to vectors. A
    box's σ begins at ``std``, in the scale of −1..1.
    """

    def __init__(
        self,
        spec: Spec,
        hidden: tuple[int, ...],
        network: str = "nature",
        lstm: int = 0,
        standardize: bool = False,
        std: float = 1.0,
        values: int = 1,
    ) -> None:
        super().__init__()
        self.shape = spec.observation
        self.planes = image(spec.observation, spec.dtype)
        vector = self.planes is None
        self.standardize = Standardize(self.shape) if standardize and vector else None
        self.torso = MlpTorso(self.shape, hidden) if self.planes is None else ConvTorso(self.planes, network)
        self.critic = MlpTorso(self.shape, hidden) if vector else None
        self.units = lstm
        self.lstms = nn.ModuleList(Lstm(self.torso.features, lstm) for _ in range((1 + vector) if lstm else 0))
        features = lstm or self.torso.features
        head = ActionDistribution(spec.actions)
        box = spec.actions.kind == "box"
        self.policy = orthogonal(nn.Linear(features, head.outputs // 2 if box else head.outputs), 0.01)
        self.log_std = nn.Parameter(torch.full((head.outputs // 2,), log(std))) if box else None
        self.value = orthogonal(nn.Linear(features, values), 1.0)
        self.values = values
        self.text = f"σ begins at {std:g}" if box else ""

    def extra_repr(self) -> str:
        return self.text

    def forward(
        self, observation: Tensor, first: Tensor | None = None, carry: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """LSTMs also want first [T, b] and their carries [b, 2 each, H] before row 0, and give those after the last."""
        lead = observation.shape[: observation.dim() - len(self.shape)]
        x = observation if self.standardize is None else self.standardize(observation)
        features = [self.torso(x)] if self.critic is None else [self.torso(x), self.critic(x)]
        if self.lstms:
            assert first is not None and carry is not None
            rows = [y.reshape(*lead, -1) for y in features]
            outputs = [
                f(y, first, c) for f, y, c in zip(self.lstms, rows, carry.chunk(len(self.lstms), 1), strict=True)
            ]
            features, carry = [y for y, _ in outputs], torch.cat([after for _, after in outputs], 1)
        output = self.policy(features[0]).reshape(*lead, -1)
        if self.log_std is not None:
            output = torch.cat([output, self.log_std.expand_as(output)], -1)
        value = self.value(features[-1])
        return output, value.reshape(lead if self.values == 1 else (*lead, self.values)), carry


VALUES = ("value", "intrinsic_value")
"""Extras that a policy's values have: one of the environment's rewards, and where there is a second one of bonuses."""
FILTERED: Schema = {
    "filtered_return": Leaf((), "float32", "step", "", "discounted sum of the episode's rewards so far")
}


def _carry(net: ActorCritic, filtered: bool) -> Schema:
    """What goes from row to row, so that a fragment can be replayed from its start."""
    shape, text = (2 * len(net.lstms), net.units), "hidden and cell state of each LSTM before row 0"
    state = {"lstm": Leaf(shape, "float32", "fragment", "", text)} if net.units else {}
    text = "the discounted sum of rewards of the row before row 0"
    return {**state, **({"filtered_return": Leaf((), "float32", "fragment", "", text)} if filtered else {})}


class StochasticPolicy:
    """Acts by sampling π(a|x); remembers those of log π(a|x) and the `VALUES` of x that ``extras`` names.

    With ``filter_discount`` γ it also carries and remembers the discounted sum of the episode's rewards so far,
    F_t = γ F_{t−1} + r_{t−1}, whose spread scales rewards (OpenAI Baselines' VecNormalize).
    """

    def __init__(self, net: ActorCritic, spec: Spec, extras: Schema, filter_discount: float | None = None) -> None:
        self.net, self.head, self.filter_discount = net, ActionDistribution(spec.actions), filter_discount
        self.noise, self.fragment_noise = self.head.noise, 0
        self.extras = {**extras, **(FILTERED if filter_discount is not None else {})}
        self.carry = _carry(net, filter_discount is not None)

    def initial_carry(self, columns: int) -> dict[str, Tensor]:
        device = next(self.net.parameters()).device
        return {name: torch.zeros(columns, *leaf.shape, device=device) for name, leaf in self.carry.items()}

    @torch.no_grad()
    def act(self, step: Step, carry: dict[str, Tensor], exploration: Tensor, noise: Tensor) -> ActOutput:
        output, value, state = self.net(step.observation[None], step.first[None], carry.get("lstm"))
        output, values = output[0], value[0].reshape(len(output[0]), -1).unbind(-1)
        extras = dict(zip(VALUES, values, strict=False))
        action = self.head.sample(output, noise, exploration)
        carry_after = {} if state is None else {"lstm": state}
        if "log_prob" in self.extras:
            extras["log_prob"] = self.head.log_prob_entropy(output, action)[0]
        if self.filter_discount is not None:
            sum_so_far = (self.filter_discount * carry["filtered_return"] + step.reward) * ~step.first
            carry_after["filtered_return"] = extras["filtered_return"] = sum_so_far
        return ActOutput(action, carry_after, {name: extras[name] for name in self.extras})
