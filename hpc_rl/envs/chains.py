"""Chains whose reward depends on where the agent has been."""

from __future__ import annotations

from types import ModuleType

from hpc_rl.envs.toy import Outcome, Toy, one_hot, toy_spec, zeros
from hpc_rl.types import Numbers, Rules, RulesState

STATES, START = 6, 1  # counted from 0: the paper's s2


def six_states(xp: ModuleType, /) -> Toy:
    """The stochastic decision process of Kulkarni et al. 2016 (arXiv 1604.06057, section 4.1), states one-hot.

    Begins in the second of six states. Action 0 goes left; 1 goes right with probability ½, else left; the last state
    is left to the fifth whatever the action. The first state terminates and pays 1 where the last one was visited,
    which is a success, else 0.01. That visit is not shown, so that the reward depends on the history.

    Best is always right until the last state: return 0.208; 0.1705 where one action in ten is random, 0.0182 where all
    are.
    """

    def begin(u: Numbers) -> RulesState:
        place = zeros(xp, u) + START
        return {"place": place, "visited": xp.zeros_like(place)}

    def move(state: RulesState, action: Numbers, u: Numbers) -> Outcome:
        right = (action == 1) & (u[:, 0] < 0.5) & (state["place"] < STATES - 1)
        place = xp.clip(state["place"] + xp.where(right, 1, -1), 0, STATES - 1)
        visited = xp.where(place == STATES - 1, 1, state["visited"])
        over = place == 0
        reward = xp.where(over, xp.where(visited == 1, 1.0, 0.01), 0.0)
        return {"place": place, "visited": visited}, reward, xp.where(over, 0.0, 1.0), xp.zeros_like(over)

    def show(state: RulesState) -> Numbers:
        return one_hot(xp, state["place"], STATES)

    def success(state: RulesState) -> Numbers:
        return state["visited"] == 1

    return Toy(Rules(toy_spec("toy/six_states", (STATES,), 2), begin, move, show, move_uniforms=1, success=success))
