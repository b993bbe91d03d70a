"""Small runs made by hand: a history of every column, cut into fragments, recorded as segments of attempts.

The history is the twin: what a test expects it computes from the arrays it recorded, with loops.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hpc_rl import job as jobs
from hpc_rl.fragments import allocate, trajectory_schema
from hpc_rl.storage import run_dir
from hpc_rl.storage.metrics import Metrics
from hpc_rl.storage.run_dir import RunDir
from hpc_rl.storage.trajectories import Recorder
from hpc_rl.types import Actions, Array, Leaf, Spec, Tree

SPEC = Spec("toy/catch", (2,), "float32", Actions("discrete", (3,)))


def new_run(
    folder: Path, columns: int = 2, algorithm: str = "impala", method: Mapping[str, Any] | None = None, **head: Any
) -> RunDir:
    """A run directory with a job of so many columns; ``method`` is the table of the method, ``head`` other keys."""
    environment = {"id": "toy/catch", "columns": columns, **head.pop("environment", {})}
    job = {
        "algorithm": algorithm,
        "topology": "solo",
        "environment": environment,
        algorithm: dict(method or {}),
        **head,
    }
    return run_dir.create(folder, jobs.dumps(jobs.parse(job)))


def history(
    seed: int,
    moves: int,
    columns: Sequence[int],
    spec: Spec = SPEC,
    extras: Mapping[str, Leaf] | None = None,
    versions: int = 10,
    start: int = 0,
    longest: int = 12,
) -> Tree:
    """One long fragment of random episodes of these columns, with every leaf that a recorder wants.

    An episode has 1 to ``longest`` moves and ends by termination or by its time limit. Versions rise from 0 to
    ``versions`` − 1. ``start``: env steps that the columns had made before.
    """
    chance = np.random.default_rng(seed)
    leaves = {name: leaf for name, leaf in (extras or {}).items()}
    tree = allocate(trajectory_schema(spec, leaves, {}), moves, len(columns), spec.stack)
    for name, leaf in tree.items():
        if name == "observation" or name.startswith("extras/"):
            whole = leaf.dtype.kind in "ui"
            leaf[...] = chance.integers(0, 200, leaf.shape, leaf.dtype) if whole else chance.normal(size=leaf.shape)
    shape = (moves, len(columns))
    tree["reward"][:] = chance.integers(-1, 3, shape)
    sizes = spec.actions.sizes
    drawn = (
        chance.integers(0, sizes[0], shape) if spec.actions.kind == "discrete" else chance.normal(size=(*shape, *sizes))
    )
    tree["action"][:] = drawn
    tree["version"][:] = (np.arange(moves) * versions // moves)[:, None]
    tree["discount"][:], tree["episode_return"][:], tree["episode_success"][:] = 1.0, np.nan, np.nan
    tree["column"][:], tree["start"][:] = columns, start
    for k in range(len(columns)):
        row = 0
        while row <= moves:
            tree["first"][row, k] = True
            last = row + int(chance.integers(1, longest + 1)) - 1  # the move that ends the episode
            if last < moves:
                tree["discount"][last, k] = float(chance.random() < 0.5)
                tree["episode_return"][last, k] = tree["reward"][row : last + 1, k].sum()
                tree["episode_length"][last, k] = last + 1 - row
            row = last + 2  # over the void move
    return tree


def cut(tree: Tree, begin: int, end: int, stack: int = 1) -> Tree:
    """The fragment of moves ``begin`` to ``end`` of a history."""
    moves, part = len(tree["reward"]), {}
    for name, leaf in tree.items():
        fragment = name in ("column", "start", "attempt") or name.startswith("carry/")
        more = 0 if fragment else len(leaf) - moves
        part[name] = leaf if fragment else leaf[begin : end + more]
    part["start"] = tree["start"] + (~tree["first"][1 : begin + 1]).sum(0)
    return part


def record(
    run: RunDir,
    tree: Tree,
    borders: Sequence[int] = (),
    attempt: int = 0,
    role: str = "worker",
    index: int = 0,
    spec: Spec = SPEC,
    extras: Mapping[str, Leaf] | None = None,
    keep: Sequence[bool] | None = None,
    leave_out: Sequence[int] = (),
) -> list[Path]:
    """Write a history as segments that begin at move 0 and at each of ``borders``; delete those of ``leave_out``."""
    columns = tree["column"]
    folder = run.trajectories / f"a{attempt}-{role}-{index}"
    kept = np.ones(len(columns), bool) if keep is None else np.array(keep)
    schema = trajectory_schema(spec, extras or {}, {})
    recorder = Recorder(folder, schema, spec, columns, kept, attempt, attributes={"action_repeat": spec.action_repeat})
    edges = [0, *borders, len(tree["reward"])]
    for begin, end in itertools.pairwise(edges):
        middle = (begin + end) // 2  # two fragments in every segment
        for a, b in ((begin, middle), (middle, end)):
            if a < b:
                recorder.write(cut(tree, a, b, spec.stack))
        recorder.roll()
    paths = sorted(folder.glob("segment-*.h5"))
    for number in leave_out:
        paths[number].unlink()
    return paths


def resumed(run: RunDir, attempt: int, steps: Mapping[int, int]) -> None:
    """Provenance of an attempt that went on at these env steps of the columns."""
    run.provenance.mkdir(exist_ok=True)
    start = {"file": "checkpoints/1.h5", "steps": {str(column): step for column, step in steps.items()}}
    (run.provenance / f"{attempt:04d}.json").write_text(json.dumps({"resumed_from": start}))


def metrics(run: RunDir, lines: Sequence[tuple[int, Mapping[str, float]]], name: str = "worker-0") -> None:
    """Metric lines (env steps of the job, values) of a rank."""
    writer = Metrics(run.metrics, name)
    for step, values in lines:
        writer.write(step, dict(values))
    writer.close()


def valid(tree: Tree) -> Array:
    """[N, b] bool: the moves that happened."""
    flags: Array = ~tree["first"][1:]
    return flags


def steps(tree: Tree) -> Array:
    """[N, b] int64: each move's env-step number in its column, by counting."""
    numbers = np.zeros(tree["reward"].shape, np.int64)
    for k in range(numbers.shape[1]):
        step = int(tree["start"][k])
        for row in range(len(numbers)):
            numbers[row, k] = step
            step += not tree["first"][row + 1, k]
    return numbers
