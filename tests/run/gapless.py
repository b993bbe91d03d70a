"""Do the kept steps of a run, over all its attempts, count 0, 1, 2 … in every column?"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from hpc_rl.storage import checkpoint, segments
from hpc_rl.storage.recorded import kept
from tests.run.program import checkpoints


def kept_steps(run: Path) -> dict[int, np.ndarray]:
    """column -> float64 [n, 2] step numbers and rewards of the moves that count, by attempt and time."""
    limits = segments.kept_from(run)
    steps_of: dict[int, list[np.ndarray]] = {}
    for path in segments.segments(run):
        segment = segments.describe(path)
        moves = kept(segment, limits)[0]
        valid = ~segments.read(path, "first", slice(1, None))
        step = segment.start + np.cumsum(valid, 0) - valid
        reward = segments.read(path, "reward")
        for place, column in enumerate(segment.columns.tolist()):
            rows = moves[:, place]
            steps_of.setdefault(column, []).append(np.stack([step[rows, place], reward[rows, place]], 1))
    return {column: np.concatenate(parts) for column, parts in steps_of.items()}


def story(run: Path) -> str:
    """Where every attempt began, and what each segment holds: enough to see where a gap came from."""
    starts = [
        f"{path.name}: {json.loads(path.read_text())['resumed_from']}" for path in sorted(run.glob("provenance/*"))
    ]
    recorded = [segments.describe(path) for path in segments.segments(run)]
    lines = [f"{s.path.relative_to(run)}: {s.columns} from {s.start} to {s.stop}" for s in recorded]
    return "\n".join([*starts, *lines])


def assert_gapless(run: Path) -> None:
    """Every column's steps count 0, 1, 2, … over all attempts, up to where the newest checkpoint ends at least."""
    through = checkpoint.load(checkpoints(run)[-1])[1]["steps"]
    for column, rows in kept_steps(run).items():
        assert rows[:, 0].tolist() == list(range(len(rows))), f"column {column} of\n{story(run)}"
        assert len(rows) >= through[str(column)] > 0
