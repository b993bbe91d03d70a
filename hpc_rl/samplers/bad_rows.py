"""Rows that are not finite: NaN or an infinite number in an observation, or in the reward that led to it.

They are recorded and sent as the environment gave them. The policy sees 0 in their place, and so does what a column
carries on (returns of games, the filtered return); `fragments.trajectory` takes the moves on either side of such an
observation, or of such a reward, out of everything that is learned.
"""

from __future__ import annotations

import numpy as np

from hpc_rl.types import Array


class BadRows:
    """Names the first bad row of each column in this attempt, and counts all of them."""

    def __init__(self, id: str, columns: Array) -> None:
        self.id, self.columns = id, columns
        self.named = np.zeros(len(columns), bool)
        self.counts = np.zeros(len(columns), np.int64)  # over all attempts

    @property
    def count(self) -> int:
        return int(self.counts.sum())

    def cleaned(self, observation: Array, reward: Array, steps: Array) -> tuple[Array, Array]:
        """Observation [b, *O] and reward [b] with 0 for what is not finite; ``steps`` [b] are env steps so far."""
        strange = ~np.isfinite(reward)
        if observation.dtype.kind == "f":
            strange |= ~np.isfinite(observation).reshape(len(observation), -1).all(1)
        if not strange.any():
            return observation, reward
        self.counts += strange
        for k in np.flatnonzero(strange & ~self.named):
            self.named[k] = True
            place = f"{self.id}, column {self.columns[k]}, env step {steps[k]}"
            print(
                f"warning: {place}: {_what(observation[k], reward[k])}; such rows are recorded and not learned from, "
                "and later ones of this column are only counted (metric bad_rows): mend the environment",
                flush=True,
            )
        if observation.dtype.kind == "f":
            observation = np.nan_to_num(observation, nan=0.0, posinf=0.0, neginf=0.0)
        return observation, np.nan_to_num(reward, nan=0.0, posinf=0.0, neginf=0.0)


def _what(observation: Array, reward: float) -> str:
    """In words, of one column's row."""
    if not np.isfinite(reward):
        return f"the reward is {reward}"
    places = np.argwhere(~np.isfinite(observation))
    at = places[0].tolist()
    return f"{len(places)} of {observation.size} numbers of the observation are not finite, the first at {at}"
