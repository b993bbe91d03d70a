"""What came after each move: where its episode ended, and the discounted rewards until there.

An episode may lie over several segments, so that a segment does not know what its last moves led to. One pass over a
run (`after`) finds what each segment's first moves led to, and gives it to the segment before; with it `endings` and
`returns` know of every move whose episode's end was recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import dask
import numpy as np

from hpc_rl.analysis.moves import Moves
from hpc_rl.analysis.runs import RecordedRun
from hpc_rl.storage import recorded
from hpc_rl.storage.segments import Limits, Segment
from hpc_rl.types import Array, Tree

_TOGETHER = 16  # segments that one task reads
UNKNOWN = -1

Learned = Callable[[Tree], tuple[Array, Array]]
"""Leaves -> (rewards as the method learns from them, its prediction for the observation before the move), [rows, b]."""


@dataclass(frozen=True)
class After:
    """``of``: path of a segment -> what is known of the moves behind it, "end", "length" and "value", [b] each.
    ``low`` and ``high``: the extreme predictions; inf and −inf where there are none."""

    of: Mapping[str, Tree]
    low: float
    high: float


def after(run: RecordedRun, names: Sequence[str], learned: Learned | None = None, gamma: float = 1.0) -> After:
    """What came after each segment of a run; reads it once.

    ``names`` are the leaves that ``learned`` reads; without it values are not known. end: the column's env steps when
    the episode that goes on there is over; value: the discounted return of the next row. `UNKNOWN` and NaN where no
    segment of the same attempt follows without a gap, or the end was not recorded.
    """
    groups = [run.segments[k : k + _TOGETHER] for k in range(0, len(run.segments), _TOGETHER)]
    read = [partial(_heads, group, tuple(names), run.limits, learned, gamma) for group in groups]
    heads = dask.compute([dask.delayed(part, pure=False)() for part in read])[0]
    known: dict[str, Tree] = {}
    behind: Tree = {}
    flat = [head for group in heads for head in group]
    for segment, head in reversed(list(zip(run.segments, flat, strict=True))):
        tail = behind if _follows(behind, segment) else _nothing(len(segment.columns))
        known[str(segment.path)] = {name: tail[name] for name in ("end", "length", "value")}
        open_end = head["end"] == UNKNOWN
        behind = {
            "end": np.where(open_end, tail["end"], head["end"]),
            "length": np.where(open_end, tail["length"], head["length"]),
            "value": _joined(head["value"], head["scale"], tail["value"]),
            "start": segment.start, "column": segment.columns, "attempt": np.array(segment.attempt),
        }  # fmt: skip
    low, high = (np.concatenate([np.empty(0), *(head[name] for head in flat)]) for name in ("low", "high"))
    return After(known, float(np.min(low, initial=np.inf)), float(np.max(high, initial=-np.inf)))


def endings(moves: Moves) -> tuple[Array, Array]:
    """Of every move the column's env steps when its episode is over, and its length, [rows, b]; else `UNKNOWN`."""
    return _endings(moves.leaves["episode_length"], moves.step, moves.after["end"], moves.after["length"])


def returns(moves: Moves, learned: Learned, gamma: float) -> Array:
    """The discounted return from each move on, [rows, b]: cut by terminations, and at a time limit continued by the
    prediction for the last observation. NaN where it is not known."""
    total, scale = _discounted(moves.leaves, learned, gamma)
    return _joined(total, scale, moves.after["value"])


def _heads(
    group: Sequence[Segment], names: Sequence[str], limits: Limits, learned: Learned | None, gamma: float
) -> list[Tree]:
    heads = []
    for segment in group:
        leaves = recorded.block(segment, ("episode_length", *names), limits, 0, segment.moves)
        unknown = np.full(len(segment.columns), UNKNOWN, np.int64)
        end, length = _endings(leaves["episode_length"], leaves["step"], unknown, unknown)
        head = {"end": end, "length": length, "value": np.full(end.shape, np.nan), "scale": np.ones(end.shape)}
        head |= {"low": np.full((1, 1), np.inf), "high": np.full((1, 1), -np.inf)}
        if learned is not None:
            head["value"], head["scale"] = _discounted(leaves, learned, gamma)
            values = learned(leaves)[1]
            values = values[np.isfinite(values) & leaves["kept"]]
            head["low"], head["high"] = (
                values.min(initial=np.inf, keepdims=True)[None],
                values.max(initial=-np.inf, keepdims=True)[None],
            )
        heads.append({name: x[0] for name, x in head.items()})
    return heads


def _endings(lengths: Array, step: Array, tail_end: Array, tail_length: Array) -> tuple[Array, Array]:
    rows = len(lengths)
    at = np.where(lengths > 0, np.arange(rows)[:, None], rows)
    at = np.minimum.accumulate(at[::-1], 0)[::-1]  # the row that ends each row's episode
    inside = at < rows
    row = np.minimum(at, rows - 1)
    end = np.where(inside, np.take_along_axis(step, row, 0) + 1, tail_end)
    return end, np.where(inside, np.take_along_axis(lengths, row, 0), tail_length)


def _discounted(leaves: Tree, learned: Learned, gamma: float) -> tuple[Array, Array]:
    """(G, s): a row's discounted return is G + s × that of the row behind the segment. By doubling (Hillis and Steele
    1986): after pass k a row has taken in 2^k rows."""
    reward, prediction = learned(leaves)
    happened = leaves["valid"]
    total = np.where(happened, reward, prediction).astype(np.float64)
    scale = np.where(happened, gamma * leaves["discount"].astype(np.float64), 0.0)
    reach = 1
    while reach < len(total) and scale.any():
        total[:-reach] += scale[:-reach] * total[reach:]
        scale[:-reach] *= scale[reach:]
        reach *= 2
    return total, scale


def _joined(total: Array, scale: Array, tail: Array) -> Array:
    return np.where(scale == 0, total, total + scale * tail)  # 0 × NaN: what is not needed may be unknown


def _follows(behind: Tree, segment: Segment) -> bool:
    same = bool(behind) and np.array_equal(behind["column"], segment.columns)
    return same and int(behind["attempt"]) == segment.attempt and np.array_equal(behind["start"], segment.stop)


def _nothing(columns: int) -> Tree:
    unknown = np.full(columns, UNKNOWN, np.int64)
    return {"end": unknown, "length": unknown, "value": np.full(columns, np.nan)}
