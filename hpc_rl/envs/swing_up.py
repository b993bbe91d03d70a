"""Swing-ups of a pendulum and of a pole on a cart, with the constants of PILCO's released code (UCL-SML/pilco-matlab).

A move holds its force for 0.1 s. Both begin hanging at rest, give or take a normal start; both pay 1 − the saturating
cost 1 − exp(−½ ‖tip − upright tip‖² / width²) after each move, and an episode is a success where that cost was
below 0.2 on average over its last second. Angles are 0 where the pole hangs and π upright, and are not wrapped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType

from hpc_rl.envs.base import BadEnvironment
from hpc_rl.envs.mechanics import runge_kutta
from hpc_rl.envs.toy import LARGEST, Outcome, Toy, normal, within, zeros
from hpc_rl.types import Actions, Numbers, Rules, RulesState, Spec

STEP_S, PARTS = 0.1, 10  # of a move: seconds, Runge–Kutta steps
GRAVITY = 9.82  # m/s²
LAST_S, LOW_COST = 1.0, 0.2  # of an episode, and its mean cost where it succeeds

Derivative = Callable[[Numbers, Numbers], Numbers]
"""(state [n, D], force [n]) -> its rate of change [n, D]."""


def pilco_pendulum(
    xp: ModuleType, /, *, moves: int = 40, noise: Sequence[float] = (0.1, 0.01), start: float = 0.1
) -> Toy:
    """A rod of 1 kg and 1 m on a hinge with a torque of at most 2.5 N·m, half of what holds it level.

    Shows the speed (rad/s) and the angle (rad), with normal ``noise`` of these deviations. ``start`` is the deviation
    of both at the beginning; ``moves`` end the episode, as a time limit. The cost's width is 0.5 m.

    Raises:
        BadEnvironment: not two deviations of noise.
    """
    inertia, friction = 1 / 4 + 1 / 12, 0.01  # m l²/4 + m l²/12, N·m·s/rad

    def derivative(state: Numbers, torque: Numbers) -> Numbers:
        speed, angle = state[:, 0], state[:, 1]
        return xp.stack([(torque - friction * speed - GRAVITY / 2 * xp.sin(angle)) / inertia, speed], 1)

    def squares(state: Numbers) -> Numbers:
        return _tip(xp, state[:, 1], 1.0) / 0.5**2

    return _swing_up(xp, "toy/pilco_pendulum", 2.5, derivative, squares, moves, noise, (start,) * 2)


def pilco_cartpole(
    xp: ModuleType,
    /,
    *,
    moves: int = 40,
    noise: Sequence[float] = (0.01, 0.01, 0.01, 0.01),
    start: float = 0.1,
) -> Toy:
    """A rod of 0.5 kg and 0.5 m on a cart of 0.5 kg that a force of at most 10 N pushes, with friction 0.1 N·s/m.

    Shows position (m), speed (m/s), the rod's speed (rad/s) and its angle (rad), with normal ``noise`` of these
    deviations. ``start`` is the deviation of all four at the beginning; ``moves`` end the episode, as a time limit. The
    cost's width is 0.25 m, from the tip to where it is when the cart stands at 0 with the rod upright.

    Raises:
        BadEnvironment: not four deviations of noise.
    """
    length, rod, cart, friction = 0.5, 0.5, 0.5, 0.1

    def derivative(state: Numbers, force: Numbers) -> Numbers:
        speed, spin = state[:, 1], state[:, 2]
        sin, cos = xp.sin(state[:, 3]), xp.cos(state[:, 3])
        below = 4 * (cart + rod) - 3 * rod * cos**2
        pull = force - friction * speed
        faster = (2 * rod * length * spin**2 * sin + 3 * rod * GRAVITY * sin * cos + 4 * pull) / below
        turn = -3 * rod * length * spin**2 * sin * cos - 6 * (cart + rod) * GRAVITY * sin - 6 * pull * cos
        return xp.stack([speed, faster, turn / (length * below), spin], 1)

    def squares(state: Numbers) -> Numbers:
        return _tip(xp, state[:, 3], length, state[:, 0]) / 0.25**2

    return _swing_up(xp, "toy/pilco_cartpole", 10.0, derivative, squares, moves, noise, (start,) * 4)


def _tip(xp: ModuleType, angle: Numbers, length: float, place: Numbers = 0.0) -> Numbers:
    """Squared distance of the rod's tip to that of an upright rod over 0."""
    return (place + length * xp.sin(angle)) ** 2 + length**2 * (xp.cos(angle) + 1) ** 2


def _swing_up(
    xp: ModuleType,
    id: str,
    most: float,
    derivative: Derivative,
    squares: Callable[[Numbers], Numbers],
    moves: int,
    noise: Sequence[float],
    start: Sequence[float],
) -> Toy:
    """The environment of these equations. ``squares``: of the distance to the goal in units of the cost's width."""
    size = len(start)
    within(id, moves=(moves, 1, LARGEST), start=(start[0], 0, 10))
    if len(noise) != size:
        raise BadEnvironment(f"{id}: noise = {list(noise)!r} is refused; it must be {size} deviations")
    within(id, **{f"noise[{k}]": (x, 0, 10) for k, x in enumerate(noise)})
    last = min(moves, round(LAST_S / STEP_S))

    def observed(state: Numbers, u: Numbers) -> Numbers:
        return state + normal(xp, u) * xp.asarray(list(noise), dtype=xp.float64, device=u.device)

    def begin(u: Numbers) -> RulesState:
        state = normal(xp, u[:, : 2 * size]) * xp.asarray(list(start), dtype=xp.float64, device=u.device)
        return {"state": state, "shown": observed(state, u[:, 2 * size :]), "step": zeros(xp, u), "late": 0.0 * u[:, 0]}

    def move(state: RulesState, action: Numbers, u: Numbers) -> Outcome:
        force = most * xp.clip(xp.asarray(action[:, 0], dtype=xp.float64), -1, 1)
        now, step = _moved(derivative, state["state"], force), state["step"] + 1
        cost = 1 - xp.exp(-squares(now) / 2)
        late = state["late"] + xp.where(step > moves - last, cost / last, 0.0)
        following = {"state": now, "shown": observed(now, u), "step": step, "late": late}
        return following, 1 - cost, xp.ones_like(cost), step == moves

    def show(state: RulesState) -> Numbers:
        return xp.asarray(state["shown"], dtype=xp.float32)

    def success(state: RulesState) -> Numbers:
        return state["late"] < LOW_COST

    spec = Spec(id, (size,), "float32", Actions("box", (1,), (-1.0,), (1.0,)))
    return Toy(Rules(spec, begin, move, show, 4 * size, 2 * size, success=success))


def _moved(derivative: Derivative, state: Numbers, force: Numbers) -> Numbers:
    """The state [n, D] after a move with this force [n]."""
    for _ in range(PARTS):
        state = runge_kutta(lambda x: derivative(x, force), state, STEP_S / PARTS)
    return state
