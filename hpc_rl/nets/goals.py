"""Goals out of a list: how a network is shown one, and when an observation reaches it; action values given a goal."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from hpc_rl.formulas.q_learning import epsilon_greedy
from hpc_rl.nets.q import QNetwork
from hpc_rl.nets.torsos import image
from hpc_rl.types import Actions, ActOutput, Leaf, Schema, Spec, Step

MOVED = 12  # grey levels by which a pixel differs from the frame before where something moved
TOUCHED = 2  # such pixels inside a box, at least
CUT = 0.1  # of the frame's pixels: where more differ, the scene is another one


class EntryGoals(nn.Module):
    """Goal k is reached where entry ``entries[k]`` of the observation, a vector of zeros and ones, is 1.

    A network is shown the goal as a one-hot vector behind the observation: its first layer learns an embedding of each.
    """

    def __init__(self, spec: Spec, entries: tuple[int, ...]) -> None:
        super().__init__()
        self.count, size = len(entries), spec.observation[0]
        self.spec = replace(spec, frame=(size + self.count,), dtype="float32", stack=1, parts={})
        self.entries: Tensor
        self.marks: Tensor
        self.register_buffer("entries", torch.tensor(entries))
        self.register_buffer("marks", torch.eye(self.count))

    def joined(self, observation: Tensor, goal: Tensor) -> Tensor:
        """[n, O + G] of observations [n, O] and goals [n]."""
        return torch.cat([observation.float(), self.marks[goal]], -1)

    def reached(self, observation: Tensor, goal: Tensor) -> Tensor:
        """[n] bool."""
        return observation.gather(-1, self.entries[goal][:, None]).squeeze(-1) > 0.5


class BoxGoals(nn.Module):
    """Goal k is reached where something moves inside ``boxes[k]``: x0, y0, x1, y1 in pixels, the last ones outside.

    That is where at least TOUCHED pixels of the box differ by more than MOVED between the two newest frames, unless
    more than CUT of all pixels do. A network is shown the goal as one more plane, 255 inside the box.
    """

    def __init__(self, spec: Spec, boxes: tuple[tuple[int, ...], ...]) -> None:
        super().__init__()
        self.count, (frames, height, width) = len(boxes), spec.observation
        self.spec = replace(spec, frame=(frames + 1, height, width), stack=1)
        self.masks: Tensor
        masks = torch.zeros(self.count, height, width, dtype=torch.uint8)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes, strict=True):
            mask[y0:y1, x0:x1] = 255
        self.register_buffer("masks", masks)

    def joined(self, observation: Tensor, goal: Tensor) -> Tensor:
        """[n, stack + 1, H, W] of observations [n, stack, H, W] and goals [n]."""
        return torch.cat([observation, self.masks[goal][:, None]], 1)

    def reached(self, observation: Tensor, goal: Tensor) -> Tensor:
        """[n] bool."""
        moved = (observation[:, -1].int() - observation[:, -2].int()).abs() > MOVED
        touched = (moved & (self.masks[goal] > 0)).flatten(1).sum(1) >= TOUCHED
        return touched & (moved.flatten(1).float().mean(1) <= CUT)


def named_goals(spec: Spec, entries: tuple[int, ...], boxes: tuple[tuple[int, ...], ...]) -> EntryGoals | BoxGoals:
    """The goals that a job names: boxes on images, entries of vectors (each where none is named).

    Raises:
        ValueError: the observations have no such goals; the message names them and the remedy.
    """
    shape = spec.observation
    if image(shape, spec.dtype) is None:
        entries = entries or tuple(range(shape[0]))
        if boxes or len(shape) != 1 or max(entries) >= shape[0]:
            raise ValueError(
                f"observations of {spec.id} are {list(shape)}; goals there are entries of a vector, and boxes = "
                f"{list(boxes)} or goals = {list(entries)} are none; name goals from 0 to {shape[0] - 1}"
            )
        return EntryGoals(spec, entries)
    if entries or not boxes or len(shape) != 3 or spec.stack < 2:
        raise ValueError(
            f"observations of {spec.id} are images {list(shape)}; goals there are boxes on stacks of two grey frames "
            f"or more, and boxes = {list(boxes)}, goals = {list(entries)}; name boxes [[x0, y0, x1, y1], …], no goals"
        )
    for box in boxes:
        if len(box) != 4 or not (box[0] < box[2] <= shape[2] and box[1] < box[3] <= shape[1]):
            raise ValueError(
                f"boxes has {list(box)}, which is no box of frames of {spec.id}; write [x0, y0, x1, y1] with "
                f"x0 < x1 <= {shape[2]} and y0 < y1 <= {shape[1]}"
            )
    return BoxGoals(spec, boxes)


class TwoLevelQ(nn.Module):
    """Q₁(x, a; g) of the controller, Q₂(x, g) of the meta-controller, and the ε that each acts with.

    ``epsilon`` [G + 1] is the controller's for every goal, then the meta-controller's: a parameter without a gradient,
    so that it travels with the weights.
    """

    def __init__(self, spec: Spec, goals: EntryGoals | BoxGoals, hidden: tuple[int, ...], network: str) -> None:
        super().__init__()
        self.goals = goals
        self.controller = QNetwork(goals.spec, hidden, network)
        self.meta = QNetwork(replace(spec, actions=Actions("discrete", (goals.count,))), hidden, network)
        self.epsilon = nn.Parameter(torch.ones(goals.count + 1))

    def q1(self, observation: Tensor, goal: Tensor) -> Tensor:
        """[n, A] of observations [n, *O] and goals [n]."""
        q: Tensor = self.controller(self.goals.joined(observation, goal))
        return q

    def q2(self, observation: Tensor) -> Tensor:
        """[n, G] of observations [n, *O]."""
        q: Tensor = self.meta(observation)
        return q


class GoalPolicy:
    """Chooses a goal where an option begins, and an action for it in every row, both ε-greedily."""

    noise, fragment_noise = 4, 0  # whether and which, of the goal and of the action

    def __init__(self, net: TwoLevelQ, option_limit: int) -> None:
        self.net, self.option_limit = net, option_limit
        self.carry: Schema = {
            "pursued": Leaf((), "int64", "fragment", "", "goal of the move before row 0"),
            "moves": Leaf((), "int64", "fragment", "", "rows since it was chosen"),
        }
        self.extras: Schema = {
            "pursued": Leaf((), "int64", "step", "", "goal of the move before"),
            "moves": Leaf((), "int64", "step", "", "rows since it was chosen"),
            "goal": Leaf((), "int64", "step", "", "goal that the move is made for"),
            "decides": Leaf((), "bool", "step", "", "the goal was chosen here"),
            "ended": Leaf((), "bool", "step", "", "an option for the pursued goal ended before this row"),
            "reached": Leaf((), "bool", "step", "", "the pursued goal is reached"),
        }

    def initial_carry(self, columns: int) -> dict[str, Tensor]:
        zeros = torch.zeros(columns, dtype=torch.int64, device=self.net.epsilon.device)
        return {"pursued": zeros, "moves": zeros.clone()}

    @torch.no_grad()
    def act(self, step: Step, carry: dict[str, Tensor], exploration: Tensor, noise: Tensor) -> ActOutput:
        net, pursued, moves = self.net, carry["pursued"], carry["moves"]
        reached = net.goals.reached(step.observation, pursued) & ~step.first
        decides = step.first | reached | (moves >= self.option_limit)
        chosen = epsilon_greedy(net.q2(step.observation), exploration * net.epsilon[-1], noise[:, :2])
        goal = torch.where(decides, chosen, pursued)
        q1 = net.q1(step.observation, goal)
        action = epsilon_greedy(q1, exploration * net.epsilon[goal], noise[:, 2:])
        ended = decides & (moves > step.first.long())  # a goal chosen at LAST had no move
        extras = {**carry, "goal": goal, "decides": decides, "ended": ended, "reached": reached}
        return ActOutput(action, {"pursued": goal, "moves": torch.where(decides, 1, moves + 1)}, extras)
