"""Networks of a hierarchy of goals: each level sees the observation, what was achieved, and a goal of its own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor, nn

from hpc_rl.formulas.subgoals import GoalSpace, bounded_value, runs_over
from hpc_rl.nets.continuous import Critics, DeterministicActor, noisy
from hpc_rl.types import Actions, ActOutput, Leaf, Schema, Spec, Step

PARTS = ("observation", "achieved_goal", "desired_goal")


@dataclass(frozen=True)
class GoalView:
    """Observations [.., O] with the PARTS, as levels see them."""

    seen: slice[int, int, None]
    achieved: slice[int, int, None]
    desired: slice[int, int, None]
    space: GoalSpace

    @property
    def width(self) -> int:
        """Of what a level sees."""
        return self.seen.stop - self.seen.start + 2 * self.goal

    @property
    def goal(self) -> int:
        """Entries of a goal."""
        return self.achieved.stop - self.achieved.start

    def inputs(self, observation: Tensor, goal: Tensor) -> Tensor:
        """[.., width] of [.., O] and goals [.., g]: achieved and desired in the scale of actions, −1..1."""
        achieved = self.space.scaled(observation[..., self.achieved])
        return torch.cat([observation[..., self.seen], achieved, self.space.scaled(goal)], -1)


def goal_view(spec: Spec, space: GoalSpace) -> GoalView:
    """Raises KeyError where the observation lacks one of the PARTS."""
    seen, achieved, desired = (slice(spec.parts[name].start, spec.parts[name].stop) for name in PARTS)
    return GoalView(seen, achieved, desired, space)


def level_specs(spec: Spec, view: GoalView, levels: int) -> list[Spec]:
    """What each level sees and chooses: level 0 the actions of the environment, all others goals."""
    goals = Actions("box", (view.goal,), (-1.0,) * view.goal, (1.0,) * view.goal)
    return [Spec(spec.id, (view.width,), "float32", goals if level else spec.actions) for level in range(levels)]


class BoundedCritic(nn.Module):
    """inputs [n, width], action [n, *A] -> values [1, n] within −H..0, near `FIRST_VALUE` before they are learned."""

    def __init__(self, spec: Spec, hidden: tuple[int, ...], horizon: int) -> None:
        super().__init__()
        self.critic, self.horizon = Critics(spec, hidden, 1), horizon
        with torch.no_grad():
            self.critic.value.weight.mul_(0.01)

    def forward(self, inputs: Tensor, action: Tensor) -> Tensor:
        return bounded_value(self.critic(inputs, action), self.horizon)


Exploring = tuple[float, tuple[float, ...], float, float]
"""σ of actions in the scale of −1..1, σ of subgoals, each entry in its own unit, the share of both that are drawn
uniformly, and that of subgoals that are tested."""


class SubgoalPolicy:
    """Acts with all levels, from the highest down: each whose action has ended takes another one.

    ``exploration`` scales noise, random actions and tests; 0 has none of them. What is carried, and remembered, is what
    a move is made with: goals and attempts already chosen and counted for it.
    """

    fragment_noise = 0

    def __init__(
        self, view: GoalView, specs: list[Spec], hidden: tuple[int, ...], horizon: int, exploring: Exploring
    ) -> None:
        self.net = nn.ModuleList(DeterministicActor(spec, hidden) for spec in specs)
        self.view, self.horizon, self.exploring = view, horizon, exploring
        self.shape, self.levels, lower = specs[0].actions.shape, len(specs), range(len(specs) - 1)
        self.sizes = [prod(spec.actions.shape) for spec in specs]
        self.noise = sum(self.sizes) + 2 * self.levels  # of an action: whether at random, whether tested, each entry
        state = {
            "goals": Leaf((self.levels, view.goal), "float32", doc="of every level"),
            "attempts": Leaf((self.levels,), "int64", doc="actions of every level's run so far, this one included"),
            "testing": Leaf((self.levels,), "bool", doc="the level acts without noise, for its goal is tested"),
        }
        self.carry: Schema = {name: replace(leaf, rows="fragment") for name, leaf in state.items()}
        self.extras: Schema = {
            **state,
            **{f"goal_{i}": Leaf((view.goal,), "float32", doc=f"of level {i}") for i in lower},
            **{f"decides_{i + 1}": Leaf((), "bool", doc=f"level {i + 1} takes an action") for i in lower},
            "used": Leaf((self.levels,), "int64", doc="attempts, once more: items have them of every row"),
        }

    def initial_carry(self, columns: int) -> dict[str, Tensor]:
        device = next(self.net.parameters()).device
        return {
            name: torch.zeros(columns, *leaf.shape, dtype=getattr(torch, leaf.dtype), device=device)
            for name, leaf in self.carry.items()
        }

    @torch.no_grad()
    def act(self, step: Step, carry: dict[str, Tensor], exploration: Tensor, noise: Tensor) -> ActOutput:
        view, levels, observation, test_share = self.view, range(self.levels), step.observation, self.exploring[-1]
        goals, testing = list(carry["goals"].unbind(1)), list(carry["testing"].unbind(1))
        achieved, goals[-1] = observation[:, view.achieved], observation[:, view.desired]
        met = torch.stack([*(view.space.met(achieved, goal) for goal in goals[:-1]), step.reward >= 0], 1)
        over = runs_over(met, carry["attempts"], self.horizon) | step.first[:, None]
        decides = torch.cat([torch.ones_like(over[:, :1]), over[:, :-1]], 1)  # its action ended with the run below
        begins = torch.cat([over[:, :-1], step.first[:, None]], 1)
        attempts = torch.where(begins, 0, carry["attempts"]) + decides
        for i, uniforms in reversed(list(zip(levels, torch.split(noise, [k + 2 for k in self.sizes], 1), strict=True))):
            action = self._action(i, observation, goals[i], exploration * ~testing[i], uniforms)
            if i:
                goals[i - 1] = torch.where(decides[:, i, None], view.space.unscaled(action), goals[i - 1])
                tested = testing[i] | (uniforms[:, 1] < exploration * test_share)
                testing[i - 1] = torch.where(decides[:, i], tested, testing[i - 1])
        after = {"goals": torch.stack(goals, 1), "attempts": attempts, "testing": torch.stack(testing, 1)}
        rows = {f"goal_{i}": goals[i] for i in levels[:-1]} | {f"decides_{i}": decides[:, i] for i in levels[1:]}
        return ActOutput(action.reshape(-1, *self.shape), after, {**after, **rows, "used": attempts})

    def _action(self, level: int, observation: Tensor, goal: Tensor, scale: Tensor, noise: Tensor) -> Tensor:
        """[b, K] of a level; ``scale`` [b] of what explores."""
        of_actions, of_subgoals, random_actions, _ = self.exploring
        std = self.view.space.spread(goal.new_tensor(of_subgoals)) if level else goal.new_tensor(of_actions)
        proposal = self.net[level](self.view.inputs(observation, goal)).flatten(1)
        at_random = noise[:, 0] < scale * random_actions
        return torch.where(
            at_random[:, None], 2 * noise[:, 2:] - 1, noisy(proposal, std * scale[:, None], noise[:, 2:])
        )
