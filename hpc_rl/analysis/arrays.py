"""Lazy Dask arrays over the moves of runs, one a leaf: entry i of each is of the same move."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any

import dask.array as da
import numpy as np
from dask.highlevelgraph import HighLevelGraph

from hpc_rl.analysis.runs import RecordedRun
from hpc_rl.storage import recorded
from hpc_rl.storage.recorded import Series
from hpc_rl.storage.run_dir import BadRun
from hpc_rl.storage.segments import Limits, Segment
from hpc_rl.types import Array

BLOCK_BYTES = 64 << 20
OWN = {"kept": "bool", "step": "int64", "column": "int32", "run": "int32", "attempt": "int32"}
"""Leaves that every run has. kept: the move happened and was not made again later (use it as a mask); step: the
column's env-step number; run: place among the opened runs."""


@dataclass(frozen=True)
class Block:
    """Rows ``begin`` to ``end`` of all columns of one segment: a whole number of HDF5 chunks, but at its end."""

    run: int
    segment: Segment
    limits: Limits
    begin: int
    end: int

    @property
    def moves(self) -> int:
        return (self.end - self.begin) * len(self.segment.columns)


def leaves(runs: Sequence[RecordedRun]) -> dict[str, Series]:
    """The recorded leaves that all runs have with one shape and dtype, as the first segment of each shows them.

    Raises:
        BadRun: nothing was recorded.
    """
    own = [recorded.series(run.segments[0]) for run in runs if run.segments]
    if not own:
        raise BadRun(f"{runs[0].path} has no closed segments; record it (output.record > 0) and let it save once")
    alike = {name: x for name, x in own[0].items() if all(_alike(x, other.get(name)) for other in own)}
    return alike


def arrays(runs: Sequence[RecordedRun], names: Collection[str] = ()) -> dict[str, da.Array]:
    """Leaf -> [moves, *shape]: all moves of all runs, segment by segment, row by row, column by column.

    ``names`` are the leaves that are wanted, by default all; a block is sized by the largest of them. An observation is
    the one before its move, of stacked frames the newest. Rows of "kept" that are false are to be left out.

    Raises:
        BadRun: nothing was recorded, or a leaf of ``names`` is not there in all runs.
    """
    known = leaves(runs)
    absent = sorted(set(names) - set(known) - set(OWN))
    if absent:
        raise BadRun(f"{runs[0].path} has no leaf {absent[0]!r}; there are {', '.join([*known, *OWN])}")
    series = {name: x for name, x in known.items() if name in names or not names}
    cut = blocks(runs, list(series.values()))
    lazy = {name: _array(name, cut, _moves, name, np.dtype(x.dtype), x.shape) for name, x in series.items()}
    own = {name: np.dtype(dtype) for name, dtype in OWN.items() if name in names or not names}
    return lazy | {name: _array(name, cut, _own, name, dtype, ()) for name, dtype in own.items()}


def blocks(runs: Sequence[RecordedRun], series: Sequence[Series]) -> list[Block]:
    """All segments, cut at whole chunks of these leaves into blocks of at most `BLOCK_BYTES` of the largest."""
    cut: list[Block] = []
    for index, run in enumerate(runs):
        for segment in run.segments:
            rows = min([_rows(x, len(segment.columns)) for x in series], default=segment.moves)
            borders = [*range(0, segment.moves, max(rows, 1)), segment.moves]
            limits = {key: step for key, step in run.limits.items() if key[0] == segment.attempt}
            cut += [Block(index, segment, limits, begin, end) for begin, end in pairwise(borders)]
    return [block for block in cut if block.moves]


def _rows(series: Series, columns: int) -> int:
    row_bytes = max(columns * prod(series.shape) * np.dtype(series.dtype).itemsize, 1)
    return max(BLOCK_BYTES // (row_bytes * series.chunk_rows), 1) * series.chunk_rows


def _array(
    leaf: str,
    cut: Sequence[Block],
    read: Callable[[Block, str], Array],
    name: str,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
) -> da.Array:
    key = f"{leaf}-{da.core.tokenize(leaf, [(str(b.segment.path), b.begin, b.end, dict(b.limits)) for b in cut])}"
    inner = (0,) * len(shape)
    graph = {(key, k, *inner): (read, block, name) for k, block in enumerate(cut)}
    chunks = (tuple(block.moves for block in cut), *((extent,) for extent in shape))
    return da.Array(HighLevelGraph.from_collections(key, graph), key, chunks, dtype=dtype)


def _moves(block: Block, name: str) -> Array:
    data = recorded.moves(block.segment, name, block.begin, block.end)
    return data.reshape(-1, *data.shape[2:])


def _own(block: Block, name: str) -> Array:
    if name in ("kept", "step"):
        kept, step = recorded.kept(block.segment, block.limits)
        flat: Array = (kept if name == "kept" else step)[block.begin : block.end].reshape(-1)
        return flat
    rows = block.end - block.begin
    if name == "column":
        return np.tile(block.segment.columns, rows)
    return np.full(block.moves, block.run if name == "run" else block.segment.attempt, np.int32)


def _alike(series: Series, other: Series | None) -> bool:
    return other is not None and (series.shape, series.dtype) == (other.shape, other.dtype)
