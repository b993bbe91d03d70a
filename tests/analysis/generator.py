"""Large recorded runs, made quickly: the recorder writes one segment of random moves, whose copies are moved on.

`small` has episodes of a few dozen moves with observations of four numbers and predicted values; `pixels` has frames of
84 × 84 that change little from move to move, as Pong's do, and cost as much to unpack.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from hpc_rl.fragments import trajectory_schema
from hpc_rl.storage.run_dir import RunDir
from hpc_rl.storage.trajectories import Recorder
from hpc_rl.types import Actions, Leaf, Spec, Tree
from tests.analysis.histories import cut, history, metrics, new_run, valid

VECTORS = Spec("toy/catch", (4,), "float32", Actions("discrete", (3,)))
FRAMES = Spec("toy/pixels", (84, 84), "uint8", Actions("discrete", (6,)), stack=4)
EXTRAS = {"value": Leaf((), "float32"), "log_prob": Leaf((), "float32")}


def small(folder: Path, segments: int, rows: int = 1250, columns: int = 8, ranks: int = 2) -> RunDir:
    """A run of ppo with so many segments of ``rows`` moves of ``columns`` columns, shared by ``ranks`` actors."""
    return _run(folder, VECTORS, EXTRAS, segments, rows, columns, ranks, "ppo")


def pixels(folder: Path, segments: int, rows: int = 3125, columns: int = 16, ranks: int = 2) -> RunDir:
    """A run of impala with images."""
    extras = {"log_prob": EXTRAS["log_prob"]}
    return _run(folder, FRAMES, extras, segments, rows, columns, ranks, "impala")


def _run(
    folder: Path, spec: Spec, extras: dict[str, Leaf], segments: int, rows: int, columns: int, ranks: int, method: str
) -> RunDir:
    run = new_run(folder, columns=columns * ranks, algorithm=method)
    tree = history(0, rows, range(columns), spec, extras, longest=60)
    if spec.dtype == "uint8":
        _film(tree)
    tree["first"][-1] = True  # so that segments follow each other at an episode's border
    schema = trajectory_schema(spec, extras, {})
    per_rank, made = segments // ranks, valid(tree).sum(0)
    for rank in range(ranks):
        tree["column"][:] = np.arange(columns) + rank * columns
        directory = run.trajectories / f"a0-actor-{rank}"
        recorder = Recorder(directory, schema, spec, tree["column"], np.ones(columns, bool), 0)
        recorder.write(cut(tree, 0, rows, spec.stack))  # as one fragment: its own layout, chunks and attributes
        recorder.close()
        first = directory / "segment-000000.h5"
        for number in range(1, per_rank):
            _copy(first, directory / f"segment-{number:06d}.h5", made * number, number * 10)
    updates = [(k * int(made.sum()) * ranks, {"updates": 10 * k}) for k in range(0, per_rank + 1)]
    metrics(run, updates, "learner-0")
    return run


def _copy(first: Path, path: Path, start: Any, version: int) -> None:
    """The segment, moved on by steps and versions."""
    path.write_bytes(first.read_bytes())
    with h5py.File(path, "r+") as file:
        made = file.attrs["last_step"] - file.attrs["first_step"]
        file.attrs["first_step"], file.attrs["last_step"] = start, start + made
        data = file["version"]
        data[...] = data[...] + version
        file["start"][...] = start


def _film(tree: Tree) -> None:
    """A ball and two paddles on a grey court."""
    frames = tree["observation"]
    frames[:] = 87
    count, columns = frames.shape[:2]
    chance = np.random.default_rng(1)
    row, column = np.arange(count)[:, None], np.arange(columns)[None, :]
    y, x = (np.abs((chance.integers(0, 160, columns) + speed * row) % 160 - 80) for speed in (2, 3))
    paddle = np.abs((chance.integers(0, 140, columns) + row) % 140 - 70)
    frames[:, :, :12], frames[:, :, 12:15] = 50, 236
    for k in range(2):
        frames[row, column, np.minimum(y + k, 83), np.minimum(x, 83)] = 236
    for k in range(8):
        frames[row, column, paddle + k, 75] = 147
        frames[row, column, np.minimum(y + k, 83), 8] = 147
