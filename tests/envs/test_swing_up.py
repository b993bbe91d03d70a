"""The swing-ups against SciPy's integrator and the conservation of energy, and what they show and pay.

Mutations seen to fail: gravity 9.81; the rod's centre at its tip; the sign of the force on the rod; a cost of half the
width; noise added to the state itself; a success of the last cost alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from hpc_rl.envs.base import BadEnvironment
from hpc_rl.envs.built_in import TOYS
from hpc_rl.types import Array, Rules


def state_of(rules: Rules, state: list[float]) -> dict[str, Any]:
    first = rules.begin(np.full((1, rules.begin_uniforms), 0.25))
    return {**first, "state": np.array([state]), "late": np.zeros(1)}


def pendulum(t: float, x: Array, torque: float) -> list[float]:
    """The moment of inertia of a rod about its end is m l² / 3; its weight pulls at l / 2."""
    speed, angle = x
    return [(torque - 0.01 * speed - 1.0 * 9.82 * 0.5 * np.sin(angle)) / (1 / 3), speed]


def cartpole(t: float, x: Array, force: float) -> Array:
    """Lagrange's equations of a cart and a rod, as a linear system of both accelerations."""
    _, speed, spin, angle = x
    m, cart, length, g = 0.5, 0.5, 0.5, 9.82
    half = length / 2
    matrix = [[cart + m, m * half * np.cos(angle)], [m * half * np.cos(angle), m * length**2 / 3]]
    right = [force - 0.1 * speed + m * half * spin**2 * np.sin(angle), -m * g * half * np.sin(angle)]
    faster, turn = np.linalg.solve(matrix, right)
    return np.array([speed, faster, turn, spin])


CASES = [
    ("toy/pilco_pendulum", pendulum, 2.5, [1.0, 2.0]),
    ("toy/pilco_cartpole", cartpole, 10.0, [0.3, -1.0, 2.0, 2.5]),
]


@pytest.mark.parametrize(("id", "twin", "most", "begins"), CASES)
def test_a_move_is_a_tenth_of_a_second_of_the_equations(id: str, twin: Any, most: float, begins: list[float]) -> None:
    rules = TOYS[id](np, noise=[0.0] * len(begins)).rules
    state, exact = state_of(rules, begins), np.array(begins)
    for action in (1.0, -0.4, 3.0):
        state, reward, discount, truncated = rules.move(
            state, np.array([[action]]), np.full((1, rules.move_uniforms), 0.25)
        )
        force = most * np.clip(action, -1, 1)
        exact = solve_ivp(twin, (0, 0.1), exact, args=(force,), rtol=1e-10, atol=1e-10).y[:, -1]
        assert np.allclose(rules.show(state)[0], exact, rtol=1e-5)
        assert np.allclose(state["state"][0], exact, rtol=1e-5) and discount[0] == 1 and not truncated[0]
    angle = exact[-1]
    place = exact[0] if len(exact) == 4 else 0.0
    length, width = (0.5, 0.25) if len(exact) == 4 else (1.0, 0.5)
    tip = np.array([place + length * np.sin(angle), -length * np.cos(angle)])
    away = np.sum((tip - [0, length]) ** 2)
    assert reward[0] == pytest.approx(np.exp(-away / width**2 / 2), rel=1e-5)


def test_noise_is_shown_and_moves_nothing() -> None:
    u = np.random.default_rng(0).random((50_000, 8))
    for noise in ([0.0, 0.0], [0.5, 0.02]):
        rules = TOYS["toy/pilco_pendulum"](np, noise=noise, start=0.1).rules
        state = rules.begin(u)
        assert np.allclose(state["state"].std(0), 0.1, rtol=0.02)
        after = rules.move(state, np.zeros((len(u), 1)), u[:, :4])[0]
        away = rules.show(after) - after["state"]
        assert np.allclose(away.std(0), noise, rtol=0.02, atol=1e-6) and np.allclose(away.mean(0), 0, atol=0.01)
        if noise[0] == 0.0:
            silent = after["state"]
    assert np.array_equal(after["state"], silent)


def test_the_last_second_decides() -> None:
    rules = TOYS["toy/pilco_pendulum"](np, noise=[0.0, 0.0], moves=12).rules
    assert rules.success is not None
    for begins, up in (([0.0, np.pi], True), ([0.0, 0.0], False)):
        state = state_of(rules, begins)
        for k in range(12):
            state, _, _, truncated = rules.move(state, np.zeros((1, 1)), np.full((1, 4), 0.25))
            assert truncated[0] == (k == 11)
        assert rules.success(state)[0] == up
    last = []
    late = state_of(rules, [0.0, 2.4])  # pushed up over the whole second
    for _ in range(12):
        late, reward, _, _ = rules.move(late, np.full((1, 1), 1.0), np.full((1, 4), 0.25))
        last.append(1 - float(reward[0]))
    assert float(late["late"][0]) == pytest.approx(np.mean(last[-10:])) and last[-1] != pytest.approx(last[0])


def test_what_is_refused() -> None:
    with pytest.raises(BadEnvironment, match=r"noise = \[0.1\] is refused; it must be 4 deviations"):
        TOYS["toy/pilco_cartpole"](np, noise=[0.1])
    with pytest.raises(BadEnvironment, match=r"noise\[1\] = -1 is refused"):
        TOYS["toy/pilco_pendulum"](np, noise=[0.1, -1])
