"""Environments with goals: their observation has the parts "observation", "achieved_goal" and "desired_goal", and their
rewards follow from the last two alone, so that a move can be judged by a goal that nobody had."""

from __future__ import annotations

import math
from types import ModuleType

from hpc_rl.envs.base import BadEnvironment
from hpc_rl.envs.mechanics import car_after, pendulum_after, upright
from hpc_rl.envs.toy import Outcome, Toy, float32_rows, one_hot, within, zeros
from hpc_rl.envs.toys import box_counter
from hpc_rl.types import Actions, Numbers, ObservationPart, Rules, RulesState, Spec

MOST_MOVES = 1_000_000  # of an episode
ONE = Actions("box", (1,), (-1.0,), (1.0,))


def bitflip(xp: ModuleType, /, *, bits: int = 15) -> Toy:
    """``bits`` = n bits of which a move flips one, until they are those of the goal (Andrychowicz et al. 2017, arXiv
    1707.01495, section 3.1). State and goal are drawn uniformly; a move pays -1, and 0 where it reaches the goal, which
    terminates and is a success; n moves truncate. Shows float32 [2n]: state, which is the achieved goal too, and goal.

    Random moves succeed in about n · 2^-n of the episodes.
    """
    within("toy/bitflip", bits=(bits, 1, 100))
    shown, goal = ObservationPart(0, bits, (bits,)), ObservationPart(bits, 2 * bits, (bits,))
    parts = {"observation": shown, "achieved_goal": shown, "desired_goal": goal}
    spec = Spec("toy/bitflip", (2 * bits,), "float32", Actions("discrete", (bits,)), parts=parts)

    def begin(u: Numbers) -> RulesState:
        drawn = xp.asarray(u < 0.5, dtype=xp.int64)
        return {"bits": drawn[:, :bits], "goal": drawn[:, bits:], "step": zeros(xp, u)}

    def goal_reward(achieved: Numbers, desired: Numbers) -> tuple[Numbers, Numbers]:
        reached = (achieved == desired).all(-1)
        return xp.where(reached, 0.0, -1.0), xp.where(reached, 0.0, 1.0)

    def move(state: RulesState, action: Numbers, u: Numbers) -> Outcome:
        flipped = xp.asarray(one_hot(xp, action, bits), dtype=xp.int64)
        now, step = (state["bits"] + flipped) % 2, state["step"] + 1
        reward, discount = goal_reward(now, state["goal"])
        return {**state, "bits": now, "step": step}, reward, discount, (discount > 0) & (step == bits)

    def show(state: RulesState) -> Numbers:
        return xp.asarray(xp.concatenate([state["bits"], state["goal"]], 1), dtype=xp.float32)

    def success(state: RulesState) -> Numbers:
        return (state["bits"] == state["goal"]).all(-1)

    return Toy(Rules(spec, begin, move, show, 2 * bits, success=success, goal_reward=goal_reward))


# ---- continuous control: the mechanics of Gymnasium's environments of the same names, in float64 ----


def goal_spec(id: str, observation: int, goal: int, actions: Actions) -> Spec:
    """A vector of ``observation`` numbers and twice ``goal``: observation, achieved goal, desired goal."""
    sizes, parts, start = {"observation": observation, "achieved_goal": goal, "desired_goal": goal}, {}, 0
    for name, size in sizes.items():
        parts[name] = ObservationPart(start, start + size, (size,))
        start += size
    return Spec(id, (start,), "float32", actions, parts=parts)


def met_within(
    xp: ModuleType, achieved: Numbers, desired: Numbers, thresholds: tuple[float, ...]
) -> tuple[Numbers, Numbers]:
    """(reward, discount) [..] of achieved and desired goals [.., g]: (0, 0) where each entry is at most its threshold
    away, else (−1, 1)."""
    limits = xp.asarray(thresholds, dtype=xp.float32, device=achieved.device)
    met = (abs(achieved - desired) <= limits).all(-1)
    return xp.where(met, 0.0, -1.0), xp.where(met, 0.0, 1.0)


def _pair(id: str, **arguments: tuple[float, ...]) -> None:
    """Raise BadEnvironment for the first argument that is not two finite numbers."""
    for name, pair in arguments.items():
        if len(pair) != 2 or not all(math.isfinite(x) for x in pair):
            raise BadEnvironment(f"{id}: {name} = {list(pair)!r} is refused; it must be two numbers")


def goal_mountaincar(
    xp: ModuleType,
    /,
    *,
    goal: tuple[float, float] = (0.48, 0.04),
    thresholds: tuple[float, float] = (0.01, 0.02),
    limit: int = 999,
) -> Toy:
    """MountainCarContinuous whose goal is a position and a velocity; a time limit of ``limit`` moves truncates.

    An action is the engine's force, −1..1; the car begins at rest, from −0.6 to −0.4. Observation and achieved goal
    are both position (−1.2..0.6) and velocity (−0.07..0.07 a move).

    Raises:
        BadEnvironment: goal or thresholds are not two numbers.
    """
    id = "toy/goal_mountaincar"
    within(id, limit=(limit, 1, MOST_MOVES))
    _pair(id, goal=goal, thresholds=thresholds)

    def begin(u: Numbers) -> RulesState:
        position = -0.6 + 0.2 * u[:, 0]
        return {"position": position, "velocity": xp.zeros_like(position), "step": zeros(xp, u)}

    def move(state: RulesState, action: Numbers, u: Numbers) -> Outcome:
        position, velocity = car_after(xp, state["position"], state["velocity"], action[:, 0])
        following = {"position": position, "velocity": velocity, "step": state["step"] + 1}
        reward, discount = goal_reward(*goals(following))
        return following, reward, discount, (discount > 0) & (following["step"] == limit)

    def goals(state: RulesState) -> tuple[Numbers, Numbers]:
        achieved = float32_rows(xp, state["position"], state["velocity"])
        return achieved, xp.zeros_like(achieved) + xp.asarray(goal, dtype=xp.float32, device=achieved.device)

    def goal_reward(achieved: Numbers, desired: Numbers) -> tuple[Numbers, Numbers]:
        return met_within(xp, achieved, desired, thresholds)

    def show(state: RulesState) -> Numbers:
        achieved, desired = goals(state)
        return xp.concat([achieved, achieved, desired], 1)

    def success(state: RulesState) -> Numbers:
        return goal_reward(*goals(state))[1] == 0

    return Toy(Rules(goal_spec(id, 2, 2, ONE), begin, move, show, 1, success=success, goal_reward=goal_reward))


def goal_pendulum(
    xp: ModuleType,
    /,
    *,
    spread: tuple[float, float] = (0.2793, 0.6),
    thresholds: tuple[float, float] = (0.1658, 0.6),
    limit: int = 200,
) -> Toy:
    """Pendulum whose goal is an angle (rad, 0 is upright) and a speed (rad/s), drawn from −spread..spread.

    An action is the torque as a share of 2 N·m, −1..1. An episode begins at an angle from π/4 to 7π/4 and a speed of
    −1..1; a time limit of ``limit`` moves of 0.05 s truncates. Observation: cos and sin of the angle, speed; achieved
    goal: angle within −π..π, speed within −8..8. Spread and thresholds are those of Levy et al. 2019 (16°, 0.6; 9.5°,
    0.6).

    Raises:
        BadEnvironment: spread or thresholds are not two numbers.
    """
    id = "toy/goal_pendulum"
    within(id, limit=(limit, 1, MOST_MOVES))
    _pair(id, spread=spread, thresholds=thresholds)

    def begin(u: Numbers) -> RulesState:
        angle, speed = math.pi * (0.25 + 1.5 * u[:, 0]), 2 * u[:, 1] - 1
        desired = {"angle": spread[0] * (2 * u[:, 2] - 1), "speed": spread[1] * (2 * u[:, 3] - 1)}
        start = {"angle": angle, "speed": speed, "step": zeros(xp, u)}
        return start | {f"desired_{name}": x for name, x in desired.items()}

    def move(state: RulesState, action: Numbers, u: Numbers) -> Outcome:
        angle, speed = pendulum_after(xp, state["angle"], state["speed"], action[:, 0])
        following = {**state, "angle": angle, "speed": speed, "step": state["step"] + 1}
        reward, discount = goal_reward(*goals(following))
        return following, reward, discount, (discount > 0) & (following["step"] == limit)

    def goals(state: RulesState) -> tuple[Numbers, Numbers]:
        return float32_rows(xp, upright(state["angle"]), state["speed"]), float32_rows(
            xp, state["desired_angle"], state["desired_speed"]
        )

    def goal_reward(achieved: Numbers, desired: Numbers) -> tuple[Numbers, Numbers]:
        return met_within(xp, achieved, desired, thresholds)

    def show(state: RulesState) -> Numbers:
        angle = state["angle"]
        return xp.concat([float32_rows(xp, xp.cos(angle), xp.sin(angle), state["speed"]), *goals(state)], 1)

    def success(state: RulesState) -> Numbers:
        return goal_reward(*goals(state))[1] == 0

    return Toy(Rules(goal_spec(id, 3, 2, ONE), begin, move, show, 4, success=success, goal_reward=goal_reward))


def goal_counter(xp: ModuleType, /) -> Toy:
    """The witness (`toys.counter`) for methods that need goals: its numbers, and goals of two numbers beside them.

    The achieved goal is ((step − 5) / 8, (episode mod 3) / 128), the desired one (0.25, 0). Rewards stay the counter's:
    they show a lost step, and are no measure of the goal.
    """
    sound = box_counter(xp)
    rules = sound.rules

    def show(state: RulesState) -> Numbers:
        achieved = float32_rows(xp, (state["step"] - 5) / 8, (state["episode"] % 3) / 128)
        desired = float32_rows(xp, 0.25 + 0.0 * state["step"], 0.0 * state["step"])
        return xp.concat([rules.show(state), achieved, desired], 1)

    def goal_reward(achieved: Numbers, desired: Numbers) -> tuple[Numbers, Numbers]:
        return met_within(xp, achieved, desired, (0.05, 0.02))

    spec = goal_spec("toy/goal_counter", 3, 2, rules.spec.actions)
    return Toy(Rules(spec, rules.begin, rules.move, show, goal_reward=goal_reward), sound.follow)
