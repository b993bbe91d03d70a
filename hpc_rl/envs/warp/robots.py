"""Gymnasium's robots as Rules, whose worlds move in batches on the learner's device: half-cheetah, ant, humanoid.

Models, observations, rewards, ends, starts and time limits are those of Gymnasium's HalfCheetah-v5, Ant-v5 and
Humanoid-v5 with their defaults. Physics is MuJoCo's by mujoco_warp, in float32, which is made for GPUs and right on a
CPU, too.

What differs: the humanoid's solver is Newton's, for its model names one that mujoco_warp does not have; observations
differ by 1e-3 at most. Where MuJoCo begins a world anew that has diverged, its episode ends here, and its last reward
is not a number. Where a steep capsule touches the floor, mujoco_warp turns the friction pyramid to the world's axes,
and MuJoCo to the capsule's: an ant's foot slips a little differently.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import ModuleType

from hpc_rl.devices import to_device, to_host
from hpc_rl.envs.base import BadEnvironment
from hpc_rl.envs.toy import Outcome, Toy, normal, within
from hpc_rl.envs.warp.worlds import CARRIED, Reads, Worlds, model_of
from hpc_rl.types import Actions, Numbers, Rules, RulesState, Spec

SKIP = 5  # steps of the model's clock for a move
MOST_MOVES = 100_000
MOST = 1e10  # of a position or velocity


@dataclass(frozen=True)
class Robot:
    """What distinguishes one; reads are those of worlds.py, speeds in m/s, control as the model takes it."""

    id: str
    frame: int  # numbers shown
    noise: float  # of positions and velocities at the start
    normal: bool  # the noise of velocities is normal, with that deviation; else uniform, as that of positions
    reads: tuple[str, ...]
    place: Callable[[Reads], Numbers]  # [n] m, of what is to run
    show: Callable[[Reads], Numbers]  # [n, frame]
    pay: Callable[[Reads, Numbers, Numbers], Numbers]  # reads, speed [n], control [n, nu] -> reward [n]
    fallen: Callable[[Reads], Numbers]  # [n] bool, the episode terminates


def half_cheetah(xp: ModuleType, /, *, limit: int = 1000) -> Toy:
    """Two legs in a plane: pays its speed, less 0.1 times the squares of its control. It never falls."""

    def place(x: Reads) -> Numbers:
        return x["qpos"][:, 0]

    def show(x: Reads) -> Numbers:
        return _beside(x["qpos"][:, 1:], x["qvel"])

    def pay(x: Reads, speed: Numbers, control: Numbers) -> Numbers:
        return speed - 0.1 * (control * control).sum(1)

    def fallen(x: Reads) -> Numbers:
        return x["qpos"].isnan().any(1)  # and nowhere else

    return _toy(xp, Robot("warp/half_cheetah", 17, 0.1, True, (), place, show, pay, fallen), limit)


def ant(xp: ModuleType, /, *, limit: int = 1000) -> Toy:
    """Four legs: pays its speed and 1, less 0.5 times the squares of its control and 5e-4 those of contact forces."""

    def place(x: Reads) -> Numbers:
        return x["xpos"][:, 1, 0]

    def forces(x: Reads) -> Numbers:
        return x["cfrc_ext"].clamp(-1, 1)

    def show(x: Reads) -> Numbers:
        return _beside(x["qpos"][:, 2:], x["qvel"], forces(x)[:, 1:])

    def pay(x: Reads, speed: Numbers, control: Numbers) -> Numbers:
        costs = 0.5 * (control * control).sum(1) + 5e-4 * (forces(x) ** 2).sum((1, 2))
        return speed + 1.0 * ~fallen(x) - costs

    def fallen(x: Reads) -> Numbers:
        height = x["qpos"][:, 2]
        return ~((height >= 0.2) & (height <= 1.0))

    reads = ("xpos", "cfrc_ext")
    return _toy(xp, Robot("warp/ant", 105, 0.1, True, reads, place, show, pay, fallen), limit)


def humanoid(xp: ModuleType, /, *, limit: int = 1000) -> Toy:
    """Two legs and arms: pays 1.25 times the speed of its mass and 5, less 0.1 times the squares of its control and
    5e-7 times those of contact forces, of these at most 10."""

    def place(x: Reads) -> Numbers:
        return x["subtree_com"][:, 0, 0]

    def show(x: Reads) -> Numbers:
        inner = (x["cinert"][:, 1:], x["cvel"][:, 1:], x["qfrc_actuator"][:, 6:], x["cfrc_ext"][:, 1:])
        return _beside(x["qpos"][:, 2:], x["qvel"], *inner)

    def pay(x: Reads, speed: Numbers, control: Numbers) -> Numbers:
        contact = (5e-7 * (x["cfrc_ext"] ** 2).sum((1, 2))).clamp(max=10.0)
        return 1.25 * speed + 5.0 * ~fallen(x) - 0.1 * (control * control).sum(1) - contact

    def fallen(x: Reads) -> Numbers:
        height = x["qpos"][:, 2]
        return ~((height > 1.0) & (height < 2.0))

    reads = ("subtree_com", "cinert", "cvel", "qfrc_actuator", "cfrc_ext")
    return _toy(xp, Robot("warp/humanoid", 348, 0.01, False, reads, place, show, pay, fallen), limit)


ROBOTS: dict[str, Callable[..., Toy]] = {
    "warp/half_cheetah": half_cheetah,
    "warp/ant": ant,
    "warp/humanoid": humanoid,
}


def _toy(xp: ModuleType, robot: Robot, limit: int) -> Toy:
    """Its Rules; a state has CARRIED, what is shown of it, and ``place``. With NumPy the worlds are on the host."""
    within(robot.id, limit=(limit, 1, MOST_MOVES))
    import torch

    model = model_of(robot.id)
    worlds = Worlds(model, SKIP, robot.reads)
    low, high = (tuple(map(float, bound)) for bound in model.actuator_ctrlrange.T.astype("float32"))
    if low != tuple(-x for x in high) or len({*high}) > 1:
        raise BadEnvironment(f"{robot.id}: its controls reach from {low} to {high}, and one ±bound for all is expected")
    positions, velocities, seconds = model.nq, model.nv, SKIP * model.opt.timestep

    @cache
    def start(place: torch.device) -> torch.Tensor:
        return to_device(model.qpos0.astype("float32"), place)

    def begin(u: Numbers) -> RulesState:
        spread = normal(torch, u[:, positions:]) if robot.normal else 2 * u[:, positions:] - 1
        carried = {
            "qpos": start(u.device) + (robot.noise * (2 * u[:, :positions] - 1)).float(),
            "qvel": (robot.noise * spread).float(),
            "qacc_warmstart": torch.zeros(len(u), velocities, device=u.device),
        }
        reads = carried | worlds.standing(carried)
        step = torch.zeros(len(u), dtype=torch.int64, device=u.device)
        return carried | {"place": robot.place(reads).clone(), "shown": robot.show(reads), "step": step}

    def move(state: RulesState, action: Numbers, u: Numbers) -> Outcome:
        control = high[0] * action.float().clamp(-1, 1)
        reads = worlds.after({name: state[name] for name in CARRIED}, control)
        place, step = robot.place(reads).clone(), state["step"] + 1
        reward = robot.pay(reads, (place - state["place"]) / seconds, control)
        following = {name: reads[name] for name in CARRIED} | {
            "place": place,
            "shown": robot.show(reads),
            "step": step,
        }
        sound = _sound(reads)
        over = robot.fallen(reads) | ~sound
        reward = torch.where(sound, reward, torch.nan)
        return following, reward, (~over).float(), ~over & (step == limit)

    def show(state: RulesState) -> Numbers:
        return state["shown"]

    spec = Spec(robot.id, (robot.frame,), "float32", Actions("box", (model.nu,), low, high))
    uniforms = positions + (2 if robot.normal else 1) * velocities
    rules = Rules(spec, begin, move, show, uniforms)
    return Toy(rules if xp is torch else _on_host(rules))


def _on_host(rules: Rules) -> Rules:
    """The same for NumPy's arrays, whose memory the tensors share."""

    def begin(u: Numbers) -> RulesState:
        return {name: to_host(x) for name, x in rules.begin(to_device(u, "cpu")).items()}

    def move(state: RulesState, action: Numbers, u: Numbers) -> Outcome:
        tensors = {name: to_device(x, "cpu") for name, x in state.items()}
        following, *rest = rules.move(tensors, to_device(action, "cpu"), u)
        reward, discount, truncated = (to_host(x) for x in rest)
        return {name: to_host(x) for name, x in following.items()}, reward, discount, truncated

    return Rules(rules.spec, begin, move, rules.show, rules.begin_uniforms)


def _beside(*reads: Numbers) -> Numbers:
    """[n, …] of each, one after the other, as [n, k]."""
    import torch

    return torch.cat([x.flatten(1) for x in reads], 1)


def _sound(x: Reads) -> Numbers:
    """[n] bool: MuJoCo would not begin the world anew (mjMAXVAL)."""
    return (x["qpos"].abs() < MOST).all(1) & (x["qvel"].abs() < MOST).all(1)
