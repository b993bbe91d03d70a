"""The generators that everything in a process shares: those behind ``numpy.random.…`` and ``random.…``.

An environment should draw from ``self.np_random``, which its seed starts anew. One that draws from these repeats as
long as ranks and processes stay the same: columns of one process share its stream in the order in which they move.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


def seed_shared(*key: int) -> None:
    """Start both generators from a key of whole numbers >= 0."""
    words = np.random.SeedSequence(key).generate_state(8)
    np.random.seed(words)
    random.seed(words.tobytes())


@contextmanager
def shared_kept() -> Iterator[None]:
    """Both generators go on afterwards as if nothing had been drawn meanwhile: an evaluation between updates."""
    theirs, python = np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        np.random.set_state(theirs)
        random.setstate(python)
