"""What a rank writes into its run: checkpoints, the summary, metric lines, segments. assembly.py fills these values.

Every file format lies behind these callables, so that neither a role nor its parts know of one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hpc_rl.optim.flat import StateDict
from hpc_rl.types import Array, Schema, Tree

Resume = tuple[StateDict, dict[str, Any]] | None
"""State and meta of the checkpoint to go on from."""


@dataclass(frozen=True)
class SegmentWriter:
    """Writes the fragments of some columns; storage/trajectories.py."""

    write: Callable[[Tree], None]
    roll: Callable[[], None]  # closes the open segment
    close: Callable[[], None]
    closed: Callable[[], Array]  # [b] int64, env step up to which each column lies in closed segments
    bytes_written: Callable[[], int]  # so far, before compression


@dataclass(frozen=True)
class MetricsWriter:
    """Writes the metric lines of a rank, one about every ``interval_s``; storage/metrics.py."""

    interval_s: float
    write: Callable[[int, Mapping[str, float]], None]
    close: Callable[[], None]


@dataclass(frozen=True)
class RunFiles:
    """The run's folder, as far as this attempt writes it.

    ``save_checkpoint(state, meta, best)`` writes checkpoint number meta["updates"], also as the best where ``best``,
    removes those that are not to be kept, and notes in state.json how far the run is. ``save_best(state, meta)`` writes
    the best one alone. Both raise NonFinite, SaveFailed, and Superseded where another attempt has begun.
    ``replay_written(state)`` returns what tells whether the files of replays are there that a state names; it raises
    SaveFailed once none has come for too long.
    """

    save_checkpoint: Callable[[StateDict, dict[str, Any], bool], None]
    save_best: Callable[[StateDict, dict[str, Any]], None]
    replay_written: Callable[[StateDict], Callable[[], bool]]
    best_score: Callable[[], float]  # of the best checkpoint; -inf where there is none
    write_summary: Callable[[dict[str, Any]], None]  # summary.json, and state.json with its reason
    metrics: Callable[[int], MetricsWriter]  # of this rank, which goes on from so many env steps
    segments: Callable[[Schema, Array, str], SegmentWriter]  # of columns [b], under this name


class Recording:
    """The segments of a rank: one writer for all its columns, or one for each lane that moves at its own pace.

    ``shares`` are the columns [b] of each writer, ``names`` what its segments are called.
    """

    def __init__(self, files: RunFiles, schema: Schema, shares: Sequence[Array], names: Sequence[str]) -> None:
        pairs = zip(shares, names, strict=True)
        self.writers = {
            int(columns[0]): files.segments(schema, columns, name) for columns, name in pairs if len(columns)
        }

    def write(self, tree: Tree) -> None:
        if len(tree["column"]):
            self.writers[int(tree["column"][0])].write(tree)

    def write_and_mark(self, tree: Tree, roll: bool) -> None:
        """Write a fragment that is sent on, ``roll`` where requested, and mark in it how far its columns are closed."""
        self.write(tree)
        if roll:
            self.roll()
        if len(tree["column"]):
            tree["closed"][:] = self.writers[int(tree["column"][0])].closed()

    @property
    def bytes_written(self) -> int:
        return sum(writer.bytes_written() for writer in self.writers.values())

    def roll(self) -> None:
        for writer in self.writers.values():
            writer.roll()

    def close(self) -> None:
        for writer in self.writers.values():
            writer.close()
