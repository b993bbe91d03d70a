"""Elo ratings of players from the points of their games, with intervals (Bradley & Terry 1952).

    P(i beats j) = 1 / (1 + 10^(−(R_i − R_j) / 400)),   a draw is half a win

maximum likelihood, with one drawn game more between two players that met, so that who won all has a rating; intervals
are those of the likelihood's curvature, with the rating of one player fixed at 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hpc_rl.types import Array

UNIT = 400 / float(np.log(10))  # points of Elo in a unit of log odds


@dataclass(frozen=True)
class Met:
    """Two players by their numbers, the points of the first (1, ½, 0 a game) and the games."""

    first: int
    second: int
    points: float
    games: int


@dataclass(frozen=True)
class Rating:
    elo: float
    half: float  # of its 95 % interval


def ratings(players: int, met: Sequence[Met], zero: int) -> list[Rating]:
    """The ratings of players 0..n − 1, all of whom are joined by games; that of ``zero`` is 0."""
    from scipy.optimize import minimize

    first, second = (np.array([getattr(x, name) for x in met]) for name in ("first", "second"))
    games = np.array([x.games + 1.0 for x in met])
    points = np.array([x.points + 0.5 for x in met])
    free = np.delete(np.arange(players), zero)
    sides = np.zeros((len(met), players))
    sides[np.arange(len(met)), first] += 1
    sides[np.arange(len(met)), second] -= 1
    sides = sides[:, free]

    def loss(theta: Array) -> tuple[float, Array]:
        odds = sides @ theta
        lost = np.logaddexp(0, -odds) @ points + np.logaddexp(0, odds) @ (games - points)
        return float(lost), sides.T @ (games / (1 + np.exp(-odds)) - points)

    theta = minimize(loss, np.zeros(len(free)), jac=True, method="BFGS", options={"gtol": 1e-8}).x
    chance = 1 / (1 + np.exp(-sides @ theta))
    curvature = sides.T @ (sides * (games * chance * (1 - chance))[:, None])
    half = 1.96 * UNIT * np.sqrt(np.diag(np.linalg.inv(curvature)))
    found = [Rating(0.0, 0.0) for _ in range(players)]
    for place, player in enumerate(free):
        found[player] = Rating(float(UNIT * theta[place]), float(half[place]))
    return found
