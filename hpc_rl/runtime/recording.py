"""The writers of a rank's trajectories: one for all its columns, or one for each lane that moves at its own pace."""

from __future__ import annotations

from collections.abc import Sequence

from hpc_rl.runtime.context import RankContext, recorded_columns
from hpc_rl.storage.trajectories import Recorder
from hpc_rl.types import Array, Schema, Tree


class Recording:
    """Sends each fragment to the writer of its columns."""

    def __init__(self, context: RankContext, schema: Schema, shares: Sequence[Array], names: Sequence[str]) -> None:
        self.writers = {
            int(columns[0]): _recorder(context, schema, columns, name)
            for columns, name in zip(shares, names, strict=True)
            if len(columns)
        }

    def write(self, tree: Tree) -> None:
        if len(tree["column"]):
            self.writers[int(tree["column"][0])].write(tree)

    def write_and_mark(self, tree: Tree, roll: bool) -> None:
        """Write a fragment that is sent on, ``roll`` where asked, and say in it how far its columns are closed."""
        self.write(tree)
        if roll:
            self.roll()
        if len(tree["column"]):
            tree["closed"][:] = self.writers[int(tree["column"][0])].closed

    @property
    def bytes_written(self) -> int:
        return sum(writer.bytes_written for writer in self.writers.values())

    def roll(self) -> None:
        for writer in self.writers.values():
            writer.roll()

    def close(self) -> None:
        for writer in self.writers.values():
            writer.close()


def _recorder(context: RankContext, schema: Schema, columns: Array, name: str) -> Recorder:
    output = context.job.output
    return Recorder(
        context.run.trajectories / f"a{context.attempt}-{name}",
        schema,
        context.spec,
        columns,
        recorded_columns(columns, context.job.environment.columns, output.record),
        context.attempt,
        output.segment_bytes,
        output.segment_s,
        output.compression,
        {"job": context.job.name, "environment": context.job.environment.id, "seed": context.job.seed},
    )
