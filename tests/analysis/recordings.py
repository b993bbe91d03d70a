"""Small runs made by hand for the tests of analyses: segments through the Recorder, metrics, provenance, state."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hpc_rl import job as jobs
from hpc_rl.analysis import figures, open_runs
from hpc_rl.analysis.sections import Section
from hpc_rl.fragments import allocate, trajectory_schema
from hpc_rl.storage import run_dir
from hpc_rl.storage.run_dir import RunDir
from hpc_rl.storage.trajectories import Recorder
from hpc_rl.types import Actions, Schema, Spec

SPEC = Spec("toy/catch", (2,), "float32", Actions("discrete", (2,)))
COLUMNS, EPISODE = 2, 5  # of the job by default; moves per episode


def made(folder: Path, environment: Mapping[str, Any] | None = None, **job: Any) -> RunDir:
    """A run directory with this job.toml; two columns of toy/catch by default."""
    head = {"algorithm": "impala", "topology": "solo"}
    place = {"id": "toy/catch", "columns": COLUMNS, **(environment or {})}
    return run_dir.create(folder, jobs.dumps(jobs.parse({**head, **job, "environment": place})))


def record(
    run: RunDir,
    scores: Sequence[Any],
    start: int = 0,
    *,
    attempt: int = 0,
    rank: str = "worker-0",
    columns: Sequence[int] = range(COLUMNS),
    version: Any = 0,
    spec: Spec = SPEC,
    extras: Schema | None = None,
    leaves: Mapping[str, Any] | None = None,
) -> None:
    """One segment: every column plays one episode of `EPISODE` moves for each of ``scores`` [n] or [n, columns], and
    the void move after it, from its env step ``start`` on. All reward comes with the last move.

    ``version`` [n] or [n, columns] are those of each episode; ``leaves`` are put in as they are.
    """
    count, rows = len(scores), EPISODE + 1
    shape = (count, len(columns))
    schema = trajectory_schema(spec, extras or {}, {})
    tree = allocate(schema, count * rows, len(columns), spec.stack)
    tree["column"][:], tree["start"][:], tree["attempt"][:] = columns, start, attempt
    score, versions = (np.broadcast_to(_by_column(x, count), shape) for x in (scores, version))
    ends = np.arange(count) * rows + EPISODE - 1
    tree["first"][::rows] = True
    for name in ("episode_return", "episode_success"):
        tree[name][:] = np.nan
    tree["discount"][:] = 1
    tree["reward"][ends] = tree["episode_return"][ends] = score
    tree["discount"][ends], tree["episode_length"][ends] = 0, EPISODE
    tree["version"][:] = np.repeat(versions, rows, axis=0)
    for name, values in (leaves or {}).items():
        tree[name][:] = values
    folder = run.trajectories / f"a{attempt}-{rank}"
    recorder = Recorder(folder, schema, spec, np.array(columns, np.int32), np.ones(len(columns), bool), attempt)
    recorder.write(tree)
    recorder.close()


def _by_column(values: Any, count: int) -> Any:
    array = np.asarray(values, float)
    return array[:, None] if array.ndim == 1 else array.reshape(-1, array.shape[-1]) if array.ndim else array


def write_metrics(run: RunDir, lines: Sequence[Mapping[str, float | None]], rank: str = "worker-0") -> None:
    """metrics/RANK.jsonl of these lines; "time" and "step" are theirs."""
    run.metrics.mkdir(exist_ok=True)
    text = "".join(json.dumps({"attempt": 0, "attempt_from": 0, **line}) + "\n" for line in lines)
    (run.metrics / f"{rank}.jsonl").write_text(text)


def write_provenance(run: RunDir, attempt: int, time: float = 0.0, steps: Mapping[int, int] | None = None) -> None:
    """provenance/NNNN.json of an attempt that began at this time and at these env steps of the columns."""
    run.provenance.mkdir(exist_ok=True)
    begun = {
        "file": "checkpoints/1.h5" if steps else None,
        "steps": {str(c): step for c, step in (steps or {}).items()},
    }
    (run.provenance / f"{attempt:04d}.json").write_text(json.dumps({"time": time, "resumed_from": begun}))


def program(name: str) -> Any:
    """The module of a program of `analysis/`."""
    spec = importlib.util.spec_from_file_location(f"program_{name}", jobs.data_folder("analysis") / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def analysed(name: str, *folders: Path, **options: Any) -> Section:
    """What a program finds in these runs; each of its pictures is drawn once."""
    section: Section = program(name).analyze(open_runs(folders), **options)
    for draw in section.pictures.values():
        assert figures.png(draw, dpi=40).startswith(b"\x89PNG")
    return section
