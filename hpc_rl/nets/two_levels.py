"""Two levels of actors, of which the high one sets relative goals for the low one, and the policy that they make."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod

import torch
from torch import Tensor, nn

from hpc_rl.nets.continuous import DeterministicActor, noisy
from hpc_rl.types import Actions, ActOutput, Leaf, Schema, Spec, Step


def default_position(spec: Spec) -> range:
    """The entries of the part achieved_goal; all, of an observation without one."""
    part = spec.parts.get("achieved_goal")
    return range(part.start, part.stop) if part else range(spec.observation[0])


class TwoLevels(nn.Module):
    """Two actors of observations [n, O], rows of numbers: ``high`` sets goals that ``low`` acts for.

    high: observation -> goal [n, k] in −1..1 of ``limit`` [k].
    low: entries ``seen`` of it, without the task's goal as in the released code, and goal / limit -> action [n, *A].
    ``position`` names the k entries that a goal is an offset of.
    """

    entries: Tensor
    seen: Tensor
    limit: Tensor

    def __init__(self, spec: Spec, hidden: tuple[int, ...], position: list[int], limit: list[float]) -> None:
        super().__init__()
        task = spec.parts.get("desired_goal")
        hidden_from = range(task.start, task.stop) if task else range(0)
        seen = [k for k in range(spec.observation[0]) if k not in hidden_from]
        goals = Actions("box", (len(position),))
        self.high = DeterministicActor(replace(spec, actions=goals, parts={}), hidden)
        self.low = DeterministicActor(replace(spec, frame=(len(seen) + len(position),), parts={}), hidden)
        self.register_buffer("entries", torch.tensor(position), persistent=False)
        self.register_buffer("seen", torch.tensor(seen), persistent=False)
        self.register_buffer("limit", torch.tensor(limit), persistent=False)

    def position(self, observation: Tensor) -> Tensor:
        """s [.., k]"""
        return observation[..., self.entries]

    def below(self, observation: Tensor, goal: Tensor) -> Tensor:
        """What the low level sees [.., O' + k] of observations [.., O] under goals [.., k]."""
        return torch.cat([observation[..., self.seen], goal / self.limit], -1)

    def acting(self, observation: Tensor) -> Callable[[Tensor], Tensor]:
        """Goals [m, .., k] -> what ``low`` does [m, .., *A] at observations [.., O]."""

        def act(goal: Tensor) -> Tensor:
            rows = self.below(observation.expand(len(goal), *observation.shape), goal)
            action: Tensor = self.low(rows.flatten(0, -2))
            return action.reshape(*goal.shape[:-1], -1)

        return act


class TwoLevelPolicy:
    """Keeps each goal for c moves at its place, ``target``, and acts for it; ``exploration`` = σ of both levels."""

    fragment_noise = 0

    def __init__(self, net: TwoLevels, interval: int) -> None:
        self.net, self.interval, self.goals = net, interval, len(net.limit)
        self.noise = self.goals + prod(net.low.shape)
        place = Leaf((self.goals,), "float32", "fragment", "", "s + g of the goal set last")
        clock = Leaf((), "int64", "fragment", "", "moves until the next goal; 0 sets one")
        self.carry: Schema = {"target": place, "clock": clock}
        self.extras: Schema = {
            "target": Leaf((self.goals,), "float32", "step", "", "as it was before the move"),
            "clock": Leaf((), "int64", "step", "", "as it was before the move"),
            "goal": Leaf(
                (self.goals,), "float32", "step", "", "g that the move was made for, in units of observations"
            ),
            "decides": Leaf((), "bool", "step", "", "the high level set it here"),
        }

    def initial_carry(self, columns: int) -> dict[str, Tensor]:
        device = self.net.limit.device
        clock = torch.zeros(columns, dtype=torch.int64, device=device)
        return {"target": torch.zeros(columns, self.goals, device=device), "clock": clock}

    @torch.no_grad()
    def act(self, step: Step, carry: dict[str, Tensor], exploration: Tensor, noise: Tensor) -> ActOutput:
        net, x, position = self.net, step.observation, self.net.position(step.observation)
        decides = step.first | (carry["clock"] == 0)
        fresh = net.limit * noisy(net.high(x), exploration, noise[:, : self.goals])
        goal = torch.where(decides[:, None], fresh, carry["target"] - position)
        action = noisy(net.low(net.below(x, goal)), exploration, noise[:, self.goals :])
        clock = torch.where(decides, self.interval, carry["clock"]) - 1
        return ActOutput(
            action, {"target": position + goal, "clock": clock}, {**carry, "goal": goal, "decides": decides}
        )
