"""Evaluation beside training: greedy episodes on seeds of their own, every so many env steps."""

from __future__ import annotations

import time

import numpy as np

from hpc_rl.algorithms.base import Policy
from hpc_rl.evaluate import greedy_returns
from hpc_rl.roles.base import Seat
from hpc_rl.runtime.tally import Tally


class Evaluation:
    """Runs on the first learner; the others wait for it at their next reduction."""

    def __init__(self, seat: Seat) -> None:
        self.seat = seat

    def maybe(self, policy: Policy, tally: Tally) -> bool:
        """Evaluate when due; True where the mean raw return is the best so far, so that this policy should be saved.

        Called once for every policy there is: what was judged before was another one.
        """
        tally.judged, every = None, self.seat.job.evaluate.every_steps
        if not every or tally.env_steps < tally.judged_at + every or self.seat.place.rank != 0:
            return False
        begin = time.monotonic()
        tally.judged_at = tally.env_steps
        returns = greedy_returns(
            self.seat.make_environment, policy, self.seat.job.seed, self.seat.job.evaluate.episodes
        )
        tally.evaluated = tally.judged = float(np.mean(returns))
        took = time.monotonic() - begin
        print(f"evaluation at {tally.env_steps} env steps: {tally.evaluated:.2f} in {len(returns)} games, {took:.1f} s")
        return tally.judged > tally.best
