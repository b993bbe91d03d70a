"""The games that choose the best checkpoint, played again by a test."""

from __future__ import annotations

from collections.abc import Callable

from hpc_rl.algorithms.base import Policy
from hpc_rl.runtime.games import Games, MakeEnvironment
from hpc_rl.types import Array


def greedy_returns(
    make_environment: MakeEnvironment,
    policy: Policy,
    seed: int,
    episodes: int,
    watch: Callable[[Array], None] | None = None,
) -> list[float]:
    """Raw returns, in the order of the columns."""
    games = Games(make_environment, policy, seed, episodes, 0.0, "evaluate", watch)
    games.advance()
    return [game.total for game in games.games]
