"""Gymnasium's classic control tasks as Rules: thousands of them move at once, on a device, and may be cloned.

Mechanics, rewards, ends and time limits are Gymnasium's (CartPole-v1, Pendulum-v1, Acrobot-v1,
MountainCarContinuous-v0), whose boxes of actions are −1..1 here. A state's numbers have the dtype of the uniforms that
it began from: float64 as there, or float32, which is twice as fast.
"""

from __future__ import annotations

import math
from types import ModuleType

from hpc_rl.envs.mechanics import car_after, pendulum_after, runge_kutta, upright
from hpc_rl.envs.toy import Outcome, Toy, float32_rows, toy_spec, within, zeros
from hpc_rl.types import Actions, Numbers, Rules, RulesState, Spec

MOST_MOVES = 100_000
ONE = Actions("box", (1,), (-1.0,), (1.0,))
GRAVITY = 9.8  # m/s²

POLE = ("place", "speed", "angle", "spin")
NAMES = ("upper", "lower", "upper_speed", "lower_speed")  # of Acrobot's rods
MOST_SPEED = {"upper_speed": 4 * math.pi, "lower_speed": 9 * math.pi}  # rad/s
TILT, TRACK = 12 * 2 * math.pi / 360, 2.4  # CartPole ends beyond: rad, m


def cartpole(xp: ModuleType, /, *, limit: int = 500) -> Toy:
    """A pole of 0.1 kg and 1 m on a cart of 1 kg that ±10 N push for 0.02 s; each move pays 1 (Barto et al. 1983)."""
    within("toy/cartpole", limit=(limit, 1, MOST_MOVES))
    whole, half, lever = 1.1, 0.5, 0.05  # kg, m to the pole's middle, kg m

    def begin(u: Numbers) -> RulesState:
        start = 0.1 * u - 0.05
        return {name: start[:, k] for k, name in enumerate(POLE)} | {"step": zeros(xp, u)}

    def move(state: RulesState, action: Numbers, u: Numbers) -> Outcome:
        speed, angle, spin = state["speed"], state["angle"], state["spin"]
        sin, cos = xp.sin(angle), xp.cos(angle)
        pushed = (20.0 * action - 10.0 + lever * spin * spin * sin) / whole
        turning = (GRAVITY * sin - cos * pushed) / (half * (4 / 3 - (0.1 / whole) * cos * cos))
        following = {
            "place": state["place"] + 0.02 * speed,
            "speed": speed + 0.02 * (pushed - (lever / whole) * turning * cos),
            "angle": angle + 0.02 * spin,
            "spin": spin + 0.02 * turning,
            "step": state["step"] + 1,
        }
        over = (abs(following["place"]) > TRACK) | (abs(following["angle"]) > TILT)
        reward = xp.ones_like(speed)
        return following, reward, xp.where(over, 0.0, reward), ~over & (following["step"] == limit)

    def show(state: RulesState) -> Numbers:
        return float32_rows(xp, state["place"], state["speed"], state["angle"], state["spin"])

    return Toy(Rules(toy_spec("toy/cartpole", (4,), 2), begin, move, show, 4))


def pendulum(xp: ModuleType, /, *, limit: int = 200) -> Toy:
    """A rod of 1 kg and 1 m that a torque of at most 2 N·m is to hold upright: pays −(θ² + 0.1 ω² + 0.001 τ²)."""
    within("toy/pendulum", limit=(limit, 1, MOST_MOVES))

    def begin(u: Numbers) -> RulesState:
        return {"angle": math.pi * (2 * u[:, 0] - 1), "speed": 2 * u[:, 1] - 1, "step": zeros(xp, u)}

    def move(state: RulesState, action: Numbers, u: Numbers) -> Outcome:
        angle, speed = pendulum_after(xp, state["angle"], state["speed"], action[:, 0])
        torque, bent = 2 * xp.clip(action[:, 0], -1.0, 1.0), upright(state["angle"])
        reward = -(bent * bent + 0.1 * state["speed"] * state["speed"] + 0.001 * torque * torque)
        following = {"angle": angle, "speed": speed, "step": state["step"] + 1}
        return following, reward, xp.ones_like(reward), following["step"] == limit

    def show(state: RulesState) -> Numbers:
        return float32_rows(xp, xp.cos(state["angle"]), xp.sin(state["angle"]), state["speed"])

    return Toy(Rules(Spec("toy/pendulum", (3,), "float32", ONE), begin, move, show, 2))


def mountaincar(xp: ModuleType, /, *, limit: int = 999, repeat: int = 1) -> Toy:
    """A car too weak for the hill that it is to drive up: pays 100 at the top, and −0.1 a² for each step.

    A move holds its force for ``repeat`` of Gymnasium's steps, or until the car is there; ``limit`` counts moves.
    """
    within("toy/mountaincar", limit=(limit, 1, MOST_MOVES), repeat=(repeat, 1, MOST_MOVES))

    def at_top(position: Numbers, velocity: Numbers) -> Numbers:
        return (position >= 0.45) & (velocity >= 0)

    def begin(u: Numbers) -> RulesState:
        position = -0.6 + 0.2 * u[:, 0]
        return {"position": position, "velocity": xp.zeros_like(position), "step": zeros(xp, u)}

    def move(state: RulesState, action: Numbers, u: Numbers) -> Outcome:
        force, position, velocity = action[:, 0], state["position"], state["velocity"]
        reward, there = xp.zeros_like(position), at_top(position, velocity)
        for _ in range(repeat):
            position_then, velocity_then = car_after(xp, position, velocity, force)
            position, velocity = xp.where(there, position, position_then), xp.where(there, velocity, velocity_then)
            reward = reward - xp.where(there, 0.0, 0.1 * force * force)
            there = at_top(position, velocity)
        following = {"position": position, "velocity": velocity, "step": state["step"] + 1}
        reward = reward + xp.where(there, 100.0, 0.0)
        return following, reward, xp.where(there, 0.0, 1.0), ~there & (following["step"] == limit)

    def show(state: RulesState) -> Numbers:
        return float32_rows(xp, state["position"], state["velocity"])

    return Toy(Rules(Spec("toy/mountaincar", (2,), "float32", ONE), begin, move, show, 1))


def acrobot(xp: ModuleType, /, *, limit: int = 500) -> Toy:
    """Two rods of 1 kg and 1 m, −1, 0 or 1 N·m between them, are to swing above the hinge by 1 m: each move until then
    pays −1 (Sutton 1996; the equations of Sutton and Barto's book)."""
    within("toy/acrobot", limit=(limit, 1, MOST_MOVES))

    def begin(u: Numbers) -> RulesState:
        return {name: 0.2 * u[:, k] - 0.1 for k, name in enumerate(NAMES)} | {"step": zeros(xp, u)}

    def slope(x: Numbers, torque: Numbers) -> Numbers:
        """dx/dt of (θ₁, θ₂, ω₁, ω₂) [n, 4]."""
        upper, lower, first, second = (x[:, k] for k in range(4))
        sin, cos = xp.sin(lower), xp.cos(lower)
        d1, d2 = 3.5 + cos, 1.25 + 0.5 * cos
        phi2 = 0.5 * GRAVITY * xp.sin(upper + lower)
        phi1 = -0.5 * second * second * sin - second * first * sin + 1.5 * GRAVITY * xp.sin(upper) + phi2
        faster = (torque + d2 / d1 * phi1 - 0.5 * first * first * sin - phi2) / (1.25 - d2 * d2 / d1)
        return xp.stack([first, second, -(d2 * faster + phi1) / d1, faster], 1)

    def move(state: RulesState, action: Numbers, u: Numbers) -> Outcome:
        x = xp.stack([state[name] for name in NAMES], 1)
        x = runge_kutta(lambda y: slope(y, action - 1.0), x, 0.2)
        angles = {"upper": upright(x[:, 0]), "lower": upright(x[:, 1])}
        speeds = {name: xp.clip(x[:, k], -most, most) for k, (name, most) in enumerate(MOST_SPEED.items(), 2)}
        following = {**angles, **speeds, "step": state["step"] + 1}
        there = -xp.cos(angles["upper"]) - xp.cos(angles["upper"] + angles["lower"]) > 1
        reward = xp.where(there, 0.0, -1.0)
        return following, reward, -reward, ~there & (following["step"] == limit)

    def show(state: RulesState) -> Numbers:
        angles = [f(state[name]) for name in ("upper", "lower") for f in (xp.cos, xp.sin)]
        return float32_rows(xp, *angles, state["upper_speed"], state["lower_speed"])

    return Toy(Rules(toy_spec("toy/acrobot", (6,), 3), begin, move, show, 4))
