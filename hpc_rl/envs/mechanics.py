"""Equations of motion that several environments share, of n of them at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType

from hpc_rl.types import Numbers


def runge_kutta(slope: Callable[[Numbers], Numbers], x: Numbers, h: float) -> Numbers:
    """x [n, D] after h, by one step of the classical method of fourth order; ``slope`` gives dx/dt [n, D]."""
    k1 = slope(x)
    k2 = slope(x + h / 2 * k1)
    k3 = slope(x + h / 2 * k2)
    k4 = slope(x + h * k3)
    return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


def upright(angle: Numbers) -> Numbers:
    """The same angle within −π..π."""
    return (angle + math.pi) % (2 * math.pi) - math.pi


def pendulum_after(xp: ModuleType, angle: Numbers, speed: Numbers, torque: Numbers) -> tuple[Numbers, Numbers]:
    """Angle (rad, 0 is upright) and speed (rad/s) of Pendulum 0.05 s later; ``torque`` is a share of 2 N·m, −1..1."""
    push = 2 * xp.clip(torque, -1.0, 1.0)
    speed = xp.clip(speed + (15.0 * xp.sin(angle) + 3.0 * push) * 0.05, -8.0, 8.0)  # 3 g / 2 l, 3 / m l²
    return angle + 0.05 * speed, speed


def car_after(xp: ModuleType, position: Numbers, velocity: Numbers, force: Numbers) -> tuple[Numbers, Numbers]:
    """Position and velocity of MountainCarContinuous's car after a move with this force, −1..1."""
    velocity = velocity + 0.0015 * xp.clip(force, -1.0, 1.0) - 0.0025 * xp.cos(3 * position)
    velocity = xp.clip(velocity, -0.07, 0.07)
    position = xp.clip(position + velocity, -1.2, 0.6)
    return position, xp.where((position <= -1.2) & (velocity < 0), 0.0, velocity)  # the left wall
