"""The games of an evaluation: greedy, with a copy of the weights, over all sets of arguments, a few moves at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from hpc_rl.algorithms.base import Policy
from hpc_rl.envs.base import Environment
from hpc_rl.optim.flat import flatten
from hpc_rl.runtime.evaluation import Judge, Judgement
from hpc_rl.runtime.games import Games
from hpc_rl.samplers.base import Timings

MakeEvaluation = Callable[[Mapping[str, Any], int], Environment]
"""(arguments that override the job's, columns) -> environments that only the judge steps."""


class GreedyGames:
    """Plays ``episodes`` greedy games of each set of arguments; ``purpose`` names their seeds (games.py).

    The weights are its own from `begin` on, so that training may go on meanwhile. Nothing is drawn from generators that
    training uses.
    """

    def __init__(
        self,
        policy: Policy,
        make_evaluation: MakeEvaluation,
        sets: Sequence[Mapping[str, Any]],
        seed: int,
        timings: Timings | None = None,
    ) -> None:
        self.make_evaluation, self.sets, self.seed = make_evaluation, list(sets) or [{}], seed
        self.policy = copy.deepcopy(policy)
        self.parameter = flatten(self.policy.net).data
        self.timings = timings or Timings()
        self.games: list[Games] = []

    def begin(self, weights: Tensor, episodes: int, purpose: str) -> None:
        """Judge the policy with ``weights``, which are copied."""
        self.parameter.copy_(weights)

        def games(changes: Mapping[str, Any]) -> Games:
            def make_environment(columns: int, threads: int) -> Environment:
                return self.make_evaluation(changes, columns)

            return Games(make_environment, self.policy, self.seed, episodes, 0.0, purpose, timings=self.timings)

        self.games = [games(changes) for changes in self.sets]

    def advance(self, rows: int, give_up: Callable[[], bool] = lambda: False) -> Judgement | None:
        """Play ``rows`` moves of all columns, fewer once ``give_up()``; the judgement as soon as all games ended."""
        open_sets = [games for games in self.games if not games.over]
        if open_sets and not (open_sets[0].advance(rows, give_up) and len(open_sets) == 1):
            return None
        returns = tuple(_mean(game.total for game in games.games) for games in self.games)
        return Judgement(returns, tuple(_mean(game.success for game in games.games) for games in self.games))

    def close(self) -> None:
        """Give up the games under way."""
        for games in self.games:
            games.close()

    def judge(self) -> Judge:
        """These games as an evaluation uses them."""
        return Judge(self.begin, self.advance, self.close)


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))
