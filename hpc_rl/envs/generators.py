"""The generators that everything in a process shares: those behind ``numpy.random.…`` and ``random.…``.

An environment should draw from ``self.np_random``, which its seed starts anew. One that draws from these repeats as
long as ranks and processes stay the same: columns of one process share its stream in the order in which they move.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np


def seed_shared(*key: int) -> None:
    """Start both generators from a key of whole numbers >= 0."""
    words = np.random.SeedSequence(key).generate_state(8)
    np.random.seed(words)
    random.seed(words.tobytes())


class SharedGenerators:
    """Both generators for somebody who works now and then, an evaluation between updates: inside ``with`` they go on
    where they were at the end of the last one, and outside as if nothing had been drawn meanwhile.
    """

    def __init__(self) -> None:
        self.own: tuple[Any, Any] | None = None

    def __enter__(self) -> None:
        self.others = np.random.get_state(), random.getstate()
        if self.own is not None:
            np.random.set_state(self.own[0])
            random.setstate(self.own[1])

    def __exit__(self, *error: object) -> None:
        self.own = np.random.get_state(), random.getstate()
        np.random.set_state(self.others[0])
        random.setstate(self.others[1])


def shared_kept() -> SharedGenerators:
    """For one block: both generators go on afterwards as if nothing had been drawn in it."""
    return SharedGenerators()
