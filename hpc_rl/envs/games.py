"""Board games of two players as Rules: moves alternate, so discounts are −1, and rewards belong to who moves.

A state is seen by the player to move: "mine" and "theirs" are bit boards, int64 [n], whose bit (rows + 1) · column +
row is one place, row 0 at the bottom; the bit above each column stays empty, so that no line runs on into the next. A
win pays 1 and ends the game; a draw pays 0. Both show planes [2, rows, columns] of 0 and 1, the mover's stones first,
the top row first, and look the same in a mirror; a square tic-tac-toe also turned.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import ModuleType

import numpy as np

from hpc_rl.envs.base import BadEnvironment
from hpc_rl.envs.board_symmetries import turns_and_mirrors
from hpc_rl.envs.toy import Outcome, Toy, within, zeros
from hpc_rl.envs.toys import counter
from hpc_rl.types import Actions, Map, Numbers, Rules, RulesState, Spec

BITS = 62  # of an int64 whose sign stays out of it

Move = Callable[[RulesState, Numbers, Numbers], Outcome]


def tictactoe(xp: ModuleType, /, *, rows: int = 3, columns: int = 3, line: int = 3) -> Toy:
    """``line`` stones in a row win; action columns · row + column, from the top, takes an empty place."""
    board = _Board(xp, "toy/tictactoe", rows, columns, line)
    places = np.array([board.bit(row, column) for row in range(rows - 1, -1, -1) for column in range(columns)])

    def legal(state: RulesState) -> Numbers:
        taken = state["mine"] | state["theirs"]
        return (taken[:, None] & xp.asarray(places, device=taken.device)) == 0

    def move(state: RulesState, action: Numbers, u: Numbers) -> Outcome:
        return board.after(state, xp.asarray(places, device=action.device)[action])

    def mirrored(action: Numbers) -> Numbers:
        return action // columns * columns + columns - 1 - action % columns

    return board.toy(rows * columns, legal, move, mirrored, turns_and_mirrors(xp, rows) if rows == columns else ())


def connect_four(xp: ModuleType, /, *, rows: int = 6, columns: int = 7, line: int = 4) -> Toy:
    """``line`` stones in a row win; an action drops a stone onto those of one column."""
    board = _Board(xp, "toy/connect_four", rows, columns, line)
    bottom = np.array([board.bit(0, column) for column in range(columns)])
    top = np.array([board.bit(rows - 1, column) for column in range(columns)])

    def legal(state: RulesState) -> Numbers:
        taken = state["mine"] | state["theirs"]
        return (taken[:, None] & xp.asarray(top, device=taken.device)) == 0

    def move(state: RulesState, action: Numbers, u: Numbers) -> Outcome:
        lowest = xp.asarray(bottom, device=action.device)[action]
        taken = state["mine"] | state["theirs"]
        whole = lowest * (2 ** (rows + 1) - 1)  # the column and the bit above it, into which a full one is carried
        return board.after(state, ((taken & whole) + lowest) & ~taken)

    return board.toy(columns, legal, move, lambda action: columns - 1 - action)


def game_counter(xp: ModuleType, /) -> Toy:
    """The witness (`toys.counter`) for methods that need the legal moves of a game: its two, of which each is legal.

    Its three numbers are planes [3, 1, 1] of a board of one place, and the second move is a pass.
    """
    sound = counter(xp)

    def legal(state: RulesState) -> Numbers:
        return xp.stack([state["step"] >= 0, state["step"] >= 0], 1)

    def show(state: RulesState) -> Numbers:
        return sound.rules.show(state)[:, :, None, None]

    spec = replace(sound.rules.spec, id="toy/game_counter", frame=(3, 1, 1))
    return replace(sound, rules=replace(sound.rules, spec=spec, show=show, legal=legal))


class _Board:
    """Bit boards of ``rows`` × ``columns`` places. Raises BadEnvironment for one that an int64 does not hold."""

    def __init__(self, xp: ModuleType, id: str, rows: int, columns: int, line: int) -> None:
        self.xp, self.id, self.rows, self.columns, self.line = xp, id, rows, columns, line
        within(id, rows=(rows, 1, BITS), columns=(columns, 1, BITS), line=(line, 2, max(rows, columns)))
        if (rows + 1) * columns > BITS:
            raise BadEnvironment(f"{id}: {rows} × {columns} places are refused; (rows + 1) × columns is at most {BITS}")
        self.full = sum(self.bit(row, column) for row in range(rows) for column in range(columns))

    def bit(self, row: int, column: int) -> int:
        return 1 << ((self.rows + 1) * column + row)

    def after(self, state: RulesState, stone: Numbers) -> Outcome:
        """The game once the player to move has placed ``stone`` [n], one bit each."""
        xp, mine, theirs = self.xp, state["mine"] | stone, state["theirs"]
        won = self.has_line(mine)
        over = won | ((mine | theirs) == self.full)
        following = {"mine": theirs, "theirs": mine}
        return following, xp.where(won, 1.0, 0.0), xp.where(over, 0.0, -1.0), xp.zeros_like(over)

    def has_line(self, stones: Numbers) -> Numbers:
        """[n] bool: ``line`` of them lie side by side in one of the four directions."""
        found = 0 * stones
        for step in (1, self.rows, self.rows + 1, self.rows + 2):
            begins, length = stones, 1  # bits at which so many stones begin, which doubles in each turn
            while length < self.line:
                more = min(length, self.line - length)
                begins, length = begins & (begins >> (more * step)), length + more
            found = found | begins
        return found != 0

    def toy(
        self, actions: int, legal: Map, move: Move, mirrored: Map, symmetries: tuple[tuple[Map, Map], ...] = ()
    ) -> Toy:
        """``symmetries``: all there are, where these are more than the mirror."""
        xp, rows, columns = self.xp, self.rows, self.columns
        places = np.array([[self.bit(row, column) for column in range(columns)] for row in range(rows - 1, -1, -1)])

        def begin(u: Numbers) -> RulesState:
            return {"mine": zeros(xp, u), "theirs": zeros(xp, u)}

        def show(state: RulesState) -> Numbers:
            both = xp.stack([state["mine"], state["theirs"]], 1)[:, :, None, None]
            return xp.asarray((both & xp.asarray(places, device=both.device)) != 0, dtype=xp.float32)

        def flipped(frames: Numbers) -> Numbers:
            return xp.flip(frames, (-1,))

        spec = Spec(self.id, (2, rows, columns), "float32", Actions("discrete", (actions,)))
        return Toy(Rules(spec, begin, move, show, legal=legal, symmetries=symmetries or ((flipped, mirrored),)))
