"""PointMaze of HIRO's released code: a point with a heading in a U-shaped corridor, by its kinematics alone."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

from hpc_rl.envs.base import BadEnvironment
from hpc_rl.envs.toy import LARGEST, Outcome, Toy, within, zeros
from hpc_rl.types import Actions, Numbers, ObservationPart, Rules, RulesState, Spec

LOW, HIGH = -2.0, 10.0  # of the maze, and of training's goals, in both coordinates
WALL = (-2.0, 6.0, 2.0, 6.0)  # lowest and highest x, lowest and highest y: what makes a U of the square
FORWARD, TURN = 0.2, 0.25  # most of a move: distance, radians
NEAR = 5.0  # from the goal at the end: a success


def point_maze(xp: ModuleType, /, *, steps: int = 500, goal: Sequence[float] = ()) -> Toy:
    """A point near (0, 0) is to come near its goal around a wall (Nachum et al. 2018, arXiv 1805.08296, released code).

    An action of −1..1 goes up to 0.2 forward, or back, after a turn of up to 0.25 rad; a move into a wall leaves the
    place as it was. Goals are uniform in the square of the maze, walls included, or all at ``goal`` = (x, y). Pays
    −‖place − goal‖ after each move; ``steps`` moves end the episode, as a time limit, and are a success within 5 of
    the goal. From the beginning the goal at (0, 8) is 24 away, 8 as the crow flies.

    Shows x, y, cos and sin of the heading, the share of time that is over, and the goal. The released environment has
    the heading itself, three velocities that never change, and the time as steps / 1000.

    Raises:
        BadEnvironment: a goal that is not two numbers within the maze.
    """
    within("toy/point_maze", steps=(steps, 1, 10 * LARGEST))
    if len(goal) not in (0, 2):
        raise BadEnvironment(f"toy/point_maze: goal = {list(goal)!r} is refused; it must be two numbers, x and y")
    within("toy/point_maze", **{f"goal[{k}]": (x, LOW, HIGH) for k, x in enumerate(goal)})

    def begin(u: Numbers) -> RulesState:
        place, heading = 0.2 * u[:, :2] - 0.1, 0.2 * u[:, 2] - 0.1
        target = LOW + (HIGH - LOW) * u[:, 3:5]
        if goal:
            target = xp.zeros_like(target) + xp.asarray(list(goal), dtype=xp.float64, device=u.device)
        return {"place": place, "heading": heading, "goal": target, "step": zeros(xp, u)}

    def move(state: RulesState, action: Numbers, u: Numbers) -> Outcome:
        action = xp.clip(xp.asarray(action, dtype=xp.float64), -1, 1)
        heading = state["heading"] + TURN * action[:, 1]
        way = xp.stack([xp.cos(heading), xp.sin(heading)], 1)
        ahead = state["place"] + FORWARD * action[:, :1] * way
        place = xp.where(_blocked(ahead)[:, None], state["place"], ahead)
        step = state["step"] + 1
        following = {"place": place, "heading": heading, "goal": state["goal"], "step": step}
        reward = -_distance(xp, place, state["goal"])
        return following, reward, xp.ones_like(reward), step == steps

    def show(state: RulesState) -> Numbers:
        heading, time = state["heading"], state["step"] / steps
        rest = xp.stack([xp.cos(heading), xp.sin(heading), xp.asarray(time, dtype=xp.float64)], 1)
        return xp.asarray(xp.concatenate([state["place"], rest, state["goal"]], 1), dtype=xp.float32)

    def success(state: RulesState) -> Numbers:
        return _distance(xp, state["place"], state["goal"]) < NEAR

    return Toy(Rules(_spec(), begin, move, show, begin_uniforms=5, success=success))


def _spec() -> Spec:
    parts = {
        "observation": ObservationPart(0, 5, (5,)),
        "achieved_goal": ObservationPart(0, 2, (2,)),
        "desired_goal": ObservationPart(5, 7, (2,)),
    }
    actions = Actions("box", (2,), (-1.0, -1.0), (1.0, 1.0))
    return Spec("toy/point_maze", (7,), "float32", actions, parts=parts)


def _blocked(place: Numbers) -> Numbers:
    """[n] bool: outside, or in the wall, whose faces belong to it."""
    x, y = place[:, 0], place[:, 1]
    left, right, low, high = WALL
    outside = (x <= LOW) | (x >= HIGH) | (y <= LOW) | (y >= HIGH)
    return outside | ((x >= left) & (x <= right) & (y >= low) & (y <= high))


def _distance(xp: ModuleType, place: Numbers, goal: Numbers) -> Numbers:
    """‖place − goal‖ [n] of both [n, 2]."""
    return xp.sqrt(((place - goal) ** 2).sum(1))
