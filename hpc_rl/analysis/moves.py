"""Sums over all moves of a run: one task reads a stretch of moves, adds up what a function makes of each block, and
gives the sum only. However many moves there are, a process holds one block of them.

def reward(moves: Moves) -> Sums:
    return {"reward": moves.of("reward").sum(), "moves": moves.kept.sum()}

sums, = dask.compute(total(run, ["reward"], reward))
print(sums["reward"] / sums["moves"])
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any

import dask
import numpy as np

from hpc_rl.analysis.arrays import Block, blocks
from hpc_rl.analysis.runs import RecordedRun
from hpc_rl.analysis.stages import Borders
from hpc_rl.storage import recorded
from hpc_rl.types import Array, Tree

TASK_BYTES, TASK_SEGMENTS = 128 << 20, 16  # that one task reads
_FAN_IN = 8

Sums = dict[str, Any]
"""Name -> whatever can be added: numbers, arrays, `tallies.Tally`, `tallies.Distinct`."""


@dataclass(frozen=True)
class Moves:
    """A block of moves of one segment. ``leaves`` [rows, b, *shape]; ``kept``: they count; ``step``: of the column.

    ``after``: what is known of the moves behind the segment (`analysis.futures`), [b] each.
    """

    leaves: Tree
    kept: Array
    step: Array
    column: Array
    borders: Borders
    after: Tree = field(default_factory=dict)

    def of(self, name: str) -> Array:
        """A leaf of the moves that count, [n, *shape]."""
        return self.leaves[name][self.kept]

    def stage(self, step: Array | None = None) -> Array:
        """Of every move the tenth of the job's env steps in which it was made, 0 to 9, int64 [rows, b]; or of other
        env steps [rows, b] of the columns."""
        steps = self.step if step is None else step
        begins = [self.borders.get(number, np.empty(0)) for number in self.column.tolist()]
        stages = [np.searchsorted(own, x, side="right") for own, x in zip(begins, steps.T, strict=True)]
        return np.stack(stages, 1)


Reduce = Callable[[Moves], Sums]


def has(run: RecordedRun) -> dict[str, recorded.Series]:
    """The leaves of a run's moves, as its first segment shows them; empty where it has none."""
    return recorded.series(run.segments[0]) if run.segments else {}


def total(
    run: RecordedRun,
    names: Collection[str],
    reduce: Reduce,
    borders: Borders | None = None,
    after: Mapping[str, Tree] | None = None,
) -> Any:
    """A delayed `Sums`: those of ``reduce`` over all blocks of the run; empty where it has none.

    ``borders`` are the run's (`stages.borders`); without, all moves are of stage 0. ``after`` (by path of segment)
    makes blocks whole segments. ``reduce`` must travel to processes: a function of a file, or `functools.partial`.
    """
    cut = blocks([run], [x for name, x in has(run).items() if name in names])
    if after is not None:
        cut = [Block(0, x.segment, x.limits, 0, x.segment.moves) for x in cut if x.begin == 0]
    size = sum(prod(x.shape) * np.dtype(x.dtype).itemsize for name, x in has(run).items() if name in names) + 10
    # Arguments within a partial: dask looks into each field of those of a call for something to compute.
    tasks = [
        dask.delayed(partial(_reduced, part, tuple(names), reduce, borders or {}, _of_part(part, after)), pure=False)()
        for part in _parts(cut, size)
    ]
    while len(tasks) > 1:
        tasks = [dask.delayed(added)(tasks[k : k + _FAN_IN]) for k in range(0, len(tasks), _FAN_IN)]
    return tasks[0] if tasks else dask.delayed(dict)()


def added(parts: Sequence[Sums]) -> Sums:
    """The sum, name by name; a name may be missing in a part."""
    sums: Sums = {}
    for part in parts:
        for name, value in part.items():
            sums[name] = sums[name] + value if name in sums else value
    return sums


def _reduced(
    part: Sequence[Block], names: Sequence[str], reduce: Reduce, borders: Borders, after: Mapping[str, Tree]
) -> Sums:
    sums: Sums = {}
    for block in part:
        leaves = recorded.block(block.segment, names, block.limits, block.begin, block.end)
        kept, step, columns = leaves.pop("kept"), leaves.pop("step"), block.segment.columns
        if not kept.any():  # all of it was made again by a later attempt
            continue
        behind = after.get(str(block.segment.path), {})
        sums = added([sums, reduce(Moves(leaves, kept, step, columns, borders, behind))])
    return sums


def _parts(cut: Sequence[Block], move_bytes: int) -> list[list[Block]]:
    """Consecutive blocks of at most `TASK_BYTES` and `TASK_SEGMENTS` together."""
    parts: list[list[Block]] = []
    filled = 0
    for block in cut:
        size = block.moves * move_bytes
        if not parts or filled + size > TASK_BYTES or len(parts[-1]) == TASK_SEGMENTS:
            parts.append([])
            filled = 0
        parts[-1].append(block)
        filled += size
    return parts


def _of_part(part: Sequence[Block], after: Mapping[str, Tree] | None) -> dict[str, Tree]:
    paths = {str(block.segment.path) for block in part}
    return {path: after[path] for path in paths if path in after} if after else {}
