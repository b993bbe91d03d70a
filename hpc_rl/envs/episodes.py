"""What brings the open episodes of Gymnasium environments back: of each column a seed, the episode's number, its moves.

Every episode opens with a seed of its own, keyed (the column's seed, number of the episode), so that it depends on
nothing that happened before. An environment that draws from what ``reset(seed=…)`` starts and from nothing else then
repeats an episode from its seed and its actions, to the bit.

Memory: a byte per choice where none has more than 256 categories, else 8; 4 bytes per entry of a box action; a third
more in a checkpoint, as text. A million moves of CartPole take 1 MB, of a box of 17 entries 68 MB. Of an episode beyond
`LONGEST` moves nothing is kept, and a resumed run opens a new one in its place.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from hpc_rl.types import Actions, Array

LONGEST = 1_000_000  # moves of an episode that are kept


def episode_seed(seed: int, number: int) -> int:
    """The 31-bit seed of a column's episode ``number``, from that of its first one, whose number is 0."""
    if number == 0:
        return seed
    return int(np.random.SeedSequence(seed, spawn_key=(number,)).generate_state(1)[0] >> 1)


class EpisodeLog:
    """The open episodes of b columns."""

    def __init__(self, columns: int, actions: Actions) -> None:
        small = actions.kind != "box" and max(actions.sizes) <= 256
        self._actions, self._dtype = actions, np.dtype("uint8" if small else actions.dtype)
        self._most = LONGEST * self._dtype.itemsize * int(np.prod(actions.shape, dtype=np.int64))
        self._moves = [bytearray() for _ in range(columns)]
        self.start(np.zeros(columns, np.int64))

    def start(self, seeds: Array) -> None:
        """Episode 0 of every column begins, with the seeds [b]."""
        self.seeds, self.numbers = np.array(seeds, np.int64), np.zeros(len(seeds), np.int64)
        for moves in self._moves:
            moves.clear()

    def seed(self, column: int) -> int:
        """That of the open episode."""
        return episode_seed(int(self.seeds[column]), int(self.numbers[column]))

    def next(self, column: int) -> int:
        """The next episode of a column begins; its seed."""
        self.numbers[column] += 1
        self._moves[column].clear()
        return self.seed(column)

    def add(self, action: Array) -> None:
        """Actions [b, *A] of a policy. Where an episode has ended, `next` forgets that one together with the others."""
        rows = np.ascontiguousarray(action, self._dtype).tobytes()
        size = len(rows) // len(self._moves)
        for column, moves in enumerate(self._moves):
            if len(moves) <= self._most:  # one row too many marks an episode that is not kept
                moves.extend(rows[column * size : (column + 1) * size])

    def state(self) -> dict[str, Any]:
        """Per column; the moves as text, None of an episode that is not kept."""
        kept = [moves if len(moves) <= self._most else None for moves in self._moves]
        return {
            "seeds": self.seeds.copy(),
            "numbers": self.numbers.copy(),
            "moves": [None if moves is None else base64.b64encode(moves).decode() for moves in kept],
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take up a state of as many columns; an episode that was not kept has no moves.

        Raises:
            KeyError, TypeError, ValueError: it is no such state.
        """
        columns = len(self._moves)
        self.start(np.asarray(state["seeds"]).reshape(columns))
        self.numbers[:] = np.asarray(state["numbers"]).reshape(columns)
        self._moves = [bytearray(base64.b64decode(text or "", validate=True)) for text in state["moves"]]
        if len(self._moves) != columns or (self.seeds < 0).any() or (self.numbers < 0).any():
            raise ValueError(f"a state of {len(self._moves)} columns, seeds {self.seeds} and episodes {self.numbers}")

    def actions(self, column: int) -> Array:
        """Actions [n, *A] of the open episode. Raises ValueError where they are no actions of this environment."""
        actions = np.frombuffer(self._moves[column], self._dtype).reshape(-1, *self._actions.shape)
        if self._actions.kind != "box" and (actions >= np.array(self._actions.sizes)).any():
            raise ValueError("an action is none of this environment")
        return actions.astype(self._actions.dtype)
