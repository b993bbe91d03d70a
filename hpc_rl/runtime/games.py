"""Whole games that judge a policy: raw returns, seeds that training never uses, played a few moves at a time.

Games that choose the best checkpoint ("evaluate") and games that tell how good a policy is ("report") have seeds of
their own: the best of many means over the same games is too high for them, and for no others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator
from dataclasses import dataclass

import numpy as np

from hpc_rl.algorithms.base import Policy
from hpc_rl.envs.base import Environment
from hpc_rl.envs.generators import SharedGenerators, seed_shared
from hpc_rl.fragments import allocate, trajectory_schema
from hpc_rl.samplers.base import EVALUATED_TOGETHER, PURPOSES, Timings, episode_seeds, streams
from hpc_rl.samplers.lanes import Lane
from hpc_rl.samplers.vector import Vector
from hpc_rl.types import Array

MAX_MOVES = 200_000  # a longer game is cut

MakeEnvironment = Callable[[int, int], Environment]
"""(columns, threads) -> environments that nobody else steps; the games close them."""


@dataclass(frozen=True)
class Game:
    """One whole game."""

    total: float  # raw return
    digest: bytes  # of all that was observed and done in it: equal games have equal ones
    success: float = float("nan")  # episode_success of its last move; NaN: the environment gives none


class Games:
    """``episodes`` games, each the first one of its own column, so that long games count as well.

    ``exploration`` is the policy's: 0 plays greedily. ``purpose`` names the seeds: "evaluate" or "report". ``watch`` is
    called with every observation [*O] of the first game, its last one included.
    """

    def __init__(
        self,
        make_environment: MakeEnvironment,
        policy: Policy,
        seed: int,
        episodes: int,
        exploration: float,
        purpose: str,
        watch: Callable[[Array], None] | None = None,
        max_moves: int = MAX_MOVES,
        timings: Timings | None = None,
    ) -> None:
        self.make_environment, self.policy, self.seed, self.exploration = make_environment, policy, seed, exploration
        self.purpose, self.watch, self.max_moves, self.timings = purpose, watch, max_moves, timings or Timings()
        self.games: list[Game] = []
        self.over = False
        self.shared = SharedGenerators()
        self.rows = self._rows(episodes)

    def advance(self, rows: int | None = None, give_up: Callable[[], bool] = lambda: False) -> bool:
        """Play ``rows`` moves of all columns, or all that are left; fewer once ``give_up()``. True: all games ended."""
        with self.shared:
            while rows is None or rows > 0:
                if next(self.rows, True):
                    self.over = True
                    return True
                rows = None if rows is None else rows - 1
                if give_up():
                    break
        return False

    def close(self) -> None:
        """Give up the games under way, and close their environments."""
        self.rows.close()

    def _rows(self, episodes: int) -> Generator[bool, None, None]:
        """One item, False, after every move of all columns."""
        for low in range(0, episodes, EVALUATED_TOGETHER):
            seed_shared(self.seed, PURPOSES[self.purpose], low)
            yield from self._first_games(range(low, min(low + EVALUATED_TOGETHER, episodes)))

    def _first_games(self, columns: range) -> Generator[bool, None, None]:
        environment, watch = self.make_environment(len(columns), 1), self.watch if columns[0] == 0 else None
        try:
            lane = Lane(environment, self.policy, np.array(columns), self._streams(columns))
            lane.exploration.fill_(self.exploration)
            lane.start(episode_seeds(self.seed, self.purpose, columns, 0))
            vector = Vector([lane], self.timings)
            policy, spec = self.policy, environment.spec
            schema = trajectory_schema(spec, policy.extras, policy.carry, policy.fragment_noise)
            tree = allocate(schema, 1, len(columns), spec.stack)
            returns, success = np.full(len(columns), np.nan), np.full(len(columns), np.nan)
            digests = [hashlib.blake2b(x.tobytes(), digest_size=8) for x in lane.observation]
            if watch is not None:
                watch(lane.observation[0])
            for _ in range(self.max_moves):
                vector.collect(tree, lambda: 0)
                if watch is not None and np.isnan(returns[0]):
                    watch(lane.observation[0])
                for column in np.flatnonzero(np.isnan(returns)):
                    digests[column].update(tree["action"][0, column].tobytes())
                    digests[column].update(tree["observation"][-1, column].tobytes())
                ends = np.isnan(returns) & np.isfinite(tree["episode_return"][0])
                returns[ends] = tree["episode_return"][0][ends]
                if "episode_success" in tree:
                    success[ends] = tree["episode_success"][0][ends]
                if np.isfinite(returns).all():
                    break
                yield False
            totals = np.where(np.isnan(returns), lane.running_return, returns)
            for total, digest, reached in zip(totals, digests, success, strict=True):
                self.games.append(Game(float(total), digest.digest(), float(reached)))
        finally:
            environment.close()

    def _streams(self, columns: range) -> list[np.random.Generator]:
        return streams(self.seed, f"{self.purpose}_act", columns, 0)
