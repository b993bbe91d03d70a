"""Environments with goals: their observation has the parts "observation", "achieved_goal" and "desired_goal", and their
rewards follow from the last two alone, so that a move can be judged by a goal that nobody had."""

from __future__ import annotations

from types import ModuleType

from hpc_rl.envs.toy import Outcome, Toy, one_hot, within, zeros
from hpc_rl.types import Actions, Numbers, ObservationPart, Rules, RulesState, Spec


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
