"""Othello as Rules, on bit boards: a stone turns all of the other player's that lie between it and one of one's own.

Bit size · row + column, row 0 at the top, is one place; 8 × 8 places fill an int64, its sign too. Action size² is a
pass, legal where no place is, and only there; the game ends as soon as neither player can place a stone. More stones
win 1, fewer lose 1, equal numbers pay 0.
"""

from __future__ import annotations

from types import ModuleType

import numpy as np

from hpc_rl.envs.base import BadEnvironment
from hpc_rl.envs.board_symmetries import turns_and_mirrors
from hpc_rl.envs.toy import Outcome, Toy, within, zeros
from hpc_rl.types import Actions, Numbers, Rules, RulesState, Spec

_WORD = 64


def othello(xp: ModuleType, /, *, size: int = 6) -> Toy:
    """``size`` is even, from 4 to 8; the first player owns the stones at e4 and d5 of an 8 × 8 board."""
    within("toy/othello", size=(size, 4, 8))
    if size % 2:
        raise BadEnvironment(f"toy/othello: size = {size} is refused; it must be even")
    board, half, places = _Board(xp, size), size // 2, size * size
    mine = _signed(1 << (half - 1) * size + half | 1 << half * size + half - 1)
    theirs = _signed(1 << (half - 1) * size + half - 1 | 1 << half * size + half)
    bits = np.array([_signed(1 << place) for place in range(places)] + [0])

    def begin(u: Numbers) -> RulesState:
        return {"mine": zeros(xp, u) + mine, "theirs": zeros(xp, u) + theirs}

    def legal(state: RulesState) -> Numbers:
        free = board.placings(state["mine"], state["theirs"])
        placing = (free[:, None] & xp.asarray(bits, device=free.device)) != 0
        return xp.where(free[:, None] == 0, xp.arange(places + 1, device=free.device) == places, placing)

    def move(state: RulesState, action: Numbers, u: Numbers) -> Outcome:
        stone = xp.asarray(bits, device=action.device)[action]
        turned = board.turned(stone, state["mine"], state["theirs"])
        mine, theirs = state["mine"] | stone | turned, state["theirs"] & ~turned
        over = (board.placings(mine, theirs) == 0) & (board.placings(theirs, mine) == 0)
        more = board.count(mine) - board.count(theirs)
        reward = xp.where(over, xp.sign(more) * 1.0, 0.0)
        return {"mine": theirs, "theirs": mine}, reward, xp.where(over, 0.0, -1.0), xp.zeros_like(over)

    def show(state: RulesState) -> Numbers:
        both = xp.stack([state["mine"], state["theirs"]], 1)[:, :, None]
        planes = (both & xp.asarray(bits[:-1], device=both.device)) != 0
        return xp.asarray(planes.reshape(-1, 2, size, size), dtype=xp.float32)

    spec = Spec("toy/othello", (2, size, size), "float32", Actions("discrete", (places + 1,)))
    return Toy(Rules(spec, begin, move, show, legal=legal, symmetries=turns_and_mirrors(xp, size, others=1)))


class _Board:
    """Steps of all stones at once into the eight directions; what leaves the board is gone."""

    def __init__(self, xp: ModuleType, size: int) -> None:
        self.xp, self.size = xp, size
        whole = (1 << size * size) - 1
        left = sum(1 << row * size for row in range(size))
        # A step to the right arrives in no leftmost column, one to the left in no rightmost
        self.arrives = {0: _signed(whole), 1: _signed(whole & ~left), -1: _signed(whole & ~(left << size - 1))}
        self.ways = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1) if down or right]

    def step(self, stones: Numbers, way: tuple[int, int]) -> Numbers:
        shift = way[0] * self.size + way[1]
        if shift > 0:
            return (stones << shift) & self.arrives[way[1]]
        return (stones >> -shift) & _signed((1 << _WORD + shift) - 1) & self.arrives[way[1]]

    def line(self, stones: Numbers, theirs: Numbers, way: tuple[int, int]) -> Numbers:
        """The other player's stones that follow on ``stones`` without a gap."""
        found = self.step(stones, way) & theirs
        for _ in range(self.size - 3):
            found = found | (self.step(found, way) & theirs)
        return found

    def placings(self, mine: Numbers, theirs: Numbers) -> Numbers:
        """[n] the places where a stone would turn others."""
        found = mine & 0
        for way in self.ways:
            found = found | self.step(self.line(mine, theirs, way), way)
        return found & ~(mine | theirs)

    def turned(self, stone: Numbers, mine: Numbers, theirs: Numbers) -> Numbers:
        """[n] the stones that a placed ``stone`` turns."""
        found = mine & 0
        for way in self.ways:
            line = self.line(stone, theirs, way)
            closed = (self.step(line, way) & mine) != 0
            found = found | self.xp.where(closed, line, 0)
        return found

    def count(self, stones: Numbers) -> Numbers:
        """[n] how many they are."""
        places = self.xp.arange(self.size * self.size, device=stones.device)
        return ((stones[:, None] >> places) & 1).sum(1)


def _signed(word: int) -> int:
    """The int64 of the same 64 bits."""
    return word - (1 << _WORD) if word >> (_WORD - 1) else word
