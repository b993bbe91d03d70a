"""The writers of a rank's trajectories: one for all its columns, or one for each lane that moves at its own pace."""

from __future__ import annotations

from collections.abc import Sequence

from hpc_rl.roles.base import Seat, recorded_columns
from hpc_rl.storage.trajectories import Recorder
from hpc_rl.types import Array, Schema, Tree


class Records:
    """Sends each fragment to the writer of its columns."""

    def __init__(self, seat: Seat, schema: Schema, shares: Sequence[Array], names: Sequence[str]) -> None:
        self.writers = {
            int(columns[0]): _recorder(seat, schema, columns, name) for columns, name in zip(shares, names, strict=True)
        }

    def write(self, tree: Tree) -> None:
        self.writers[int(tree["column"][0])].write(tree)

    def closed(self, tree: Tree) -> Array:
        """[b] env step up to which each column of this fragment lies in closed segments."""
        return self.writers[int(tree["column"][0])].closed

    @property
    def bytes_written(self) -> int:
        return sum(writer.bytes_written for writer in self.writers.values())

    def roll(self) -> None:
        for writer in self.writers.values():
            writer.roll()

    def close(self) -> None:
        for writer in self.writers.values():
            writer.close()


def _recorder(seat: Seat, schema: Schema, columns: Array, name: str) -> Recorder:
    output = seat.job.output
    return Recorder(
        seat.run.trajectories / f"a{seat.attempt}-{name}",
        schema,
        seat.spec,
        columns,
        recorded_columns(columns, seat.job.environment.columns, output.record),
        seat.attempt,
        output.segment_bytes,
        output.segment_s,
        output.compression,  # type: ignore[arg-type]  # job.py checked it
        {"job": seat.job.name, "environment": seat.job.environment.id, "seed": seat.job.seed},
    )
