"""A board as a terminal shows it, and what its moves are called there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from hpc_rl.types import Array, Spec

STONES = "XO"  # of who moved first, and of the other player


def move_names(spec: Spec) -> list[str]:
    """A name for each action: a column's number, a place like b3 (row 1 at the bottom), "pass", or its own number."""
    actions = spec.actions.sizes[0]
    if not _is_board(spec):
        return [str(action) for action in range(actions)]
    rows, columns = spec.frame[1:]
    if actions == columns:
        return [str(column + 1) for column in range(columns)]
    places = [f"{_letter(column)}{rows - row}" for row in range(rows) for column in range(columns)]
    if actions - len(places) in (0, 1):
        return [*places, "pass"][:actions]
    return [str(action) for action in range(actions)]


def board_text(spec: Spec, frame: Array, mover: int) -> str:
    """One frame: of two or more planes as a board, whose first are the stones of ``mover`` (0 moved first, or 1)."""
    if not _is_board(spec):
        return f"position: {' '.join(f'{x:g}' for x in frame.ravel())}"
    rows, columns = spec.frame[1:]
    by_column = spec.actions.sizes[0] == columns
    below = [str(column + 1) if by_column else _letter(column) for column in range(columns)]
    lines = []
    for row in range(rows):
        cells = [_cell(frame[:, row, column], mover) for column in range(columns)]
        lines.append(f"{'' if by_column else rows - row:>3} {' '.join(cells)}")
    return "\n".join([*lines, f"    {' '.join(below)}"])


def opinion(extras: Mapping[str, Array], legal: Array, names: Sequence[str]) -> str:
    """What a policy remembers with a move: numbers [A] of its legal [A] moves, the largest first, and single ones."""
    tables = {name: x for name, x in extras.items() if x.shape == legal.shape and x.dtype.kind == "f"}
    single = {name: x for name, x in extras.items() if x.shape == () and x.dtype.kind == "f"}
    if not tables and not single:
        return "this policy remembers nothing with its moves that could be shown"
    lines = [f"{name.replace('_', ' ')} {float(x):+.2f}, for who moves" for name, x in single.items()]
    if tables:
        first = next(iter(tables.values()))
        order = sorted(np.flatnonzero(legal).tolist(), key=lambda action: -float(first[action]))
        lines.append("  ".join(["move", *tables]))
        for action in order[:8]:
            row = "  ".join(f"{float(x[action]):>{len(name)}.2f}" for name, x in tables.items())
            lines.append(f"{names[action]:<4}  {row}")
    return "\n".join(lines)


def _is_board(spec: Spec) -> bool:
    return len(spec.frame) == 3 and spec.frame[0] >= 2 and spec.stack == 1


def _cell(planes: Array, mover: int) -> str:
    return STONES[mover] if planes[0] else STONES[1 - mover] if planes[1] else "."


def _letter(column: int) -> str:
    return chr(ord("a") + column)
