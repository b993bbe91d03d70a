"""The learning-curve program on segments made by hand."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpc_rl import job as jobs
from hpc_rl.fragments import allocate, trajectory_schema
from hpc_rl.storage import run_dir
from hpc_rl.storage.metrics import Metrics
from hpc_rl.storage.run_dir import RunDir
from hpc_rl.storage.trajectories import Recorder
from hpc_rl.types import Actions, Spec

PROGRAM = jobs.data_folder("analysis") / "learning_curve.py"
SPEC = Spec("toy/catch", (2,), "float32", Actions("discrete", (2,)))
COLUMNS, EPISODE = 2, 5  # moves per episode


def program() -> Any:
    spec = importlib.util.spec_from_file_location("learning_curve", PROGRAM)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def made(folder: Path) -> RunDir:
    job = {"algorithm": "impala", "topology": "solo", "environment": {"id": "toy/catch", "columns": COLUMNS}}
    return run_dir.create(folder, jobs.dumps(jobs.parse(job)))


def record(run: RunDir, attempt: int, start: int, returns: list[float]) -> None:
    """One segment: every column plays one episode of five moves for each return, and the void move after it."""
    steps = len(returns) * (EPISODE + 1)
    schema = trajectory_schema(SPEC, {}, {})
    columns = np.arange(COLUMNS, dtype=np.int32)
    recorder = Recorder(
        run.trajectories / f"a{attempt}-worker-0", schema, SPEC, columns, np.ones(COLUMNS, bool), attempt
    )
    tree = allocate(schema, steps, COLUMNS, 1)
    tree["column"][:], tree["start"][:] = columns, start
    tree["episode_return"][:] = np.nan
    for k, score in enumerate(returns):
        tree["first"][k * (EPISODE + 1)] = True
        tree["episode_return"][k * (EPISODE + 1) + EPISODE - 1] = score
    tree["first"][steps] = True
    recorder.write(tree)
    recorder.close()


def run_program(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROGRAM), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_picture_and_table_leave_out_abandoned_steps(tmp_path: Path) -> None:
    run = made(tmp_path / "mine")
    record(run, 0, 0, [0.0] * 60 + [-99.0] * 20)  # the last twenty were made again
    record(run, 1, 60 * EPISODE, [20.0] * 60)
    started = {"resumed_from": {"file": "checkpoints/1.h5", "steps": {str(c): 60 * EPISODE for c in range(COLUMNS)}}}
    run.provenance.mkdir(exist_ok=True)
    (run.provenance / "0001.json").write_text(json.dumps(started))
    metrics = Metrics(run.metrics, "worker-0")
    for step in (100, 600, 1200):
        metrics.write(step, {})
    metrics.close()
    process = run_program(run.path, "--out", tmp_path / "curve.png", "--target", 15)
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    name, episodes, steps, last, *first = process.stdout.splitlines()[1].split()
    assert (name, episodes, steps, last) == ("mine", "240", "1,200", "20.00")
    # 75 of 100 episodes at 20: 38 episodes of both columns into the second attempt.
    assert first == [f"{(60 + 38) * EPISODE * COLUMNS:,}"]


def test_running_mean_and_target() -> None:
    made_program = program()
    returns = np.arange(6.0)
    slow = [returns[max(0, i - 2) : i + 1].mean() for i in range(6)]
    assert made_program.running_mean(returns, 3) == pytest.approx(slow)
    short = {"steps": np.arange(50), "returns": np.full(50, 20.0)}
    assert made_program.reached(short, 18) is None  # fewer than 100 episodes
    long = {"steps": np.arange(150), "returns": np.full(150, 20.0)}
    assert made_program.reached(long, 18) == 99


def test_a_mixture_has_a_curve_for_each_environment(tmp_path: Path) -> None:
    """Mutation seen to fail: columns shared out in blocks, [0, 1] and [2, 3]."""
    environment = {"id": "mixture", "columns": 4, "arguments": {"ids": ["CartPole-v1", "CartPole-v0"]}}
    job = {"algorithm": "impala", "topology": "solo", "environment": environment}
    run = run_dir.create(tmp_path / "two", jobs.dumps(jobs.parse(job)))
    part = {"column": np.arange(4), "end": np.array([10, 8, 6, 4]), "return": np.array([1.0, 2.0, 3.0, 4.0])}
    first, second = program().in_order(run.path, [part])
    assert (first["name"], second["name"]) == ("two: CartPole-v1", "two: CartPole-v0")
    assert (first["steps"].tolist(), first["returns"].tolist()) == ([24, 40], [3.0, 1.0])
    assert (second["steps"].tolist(), second["returns"].tolist()) == ([16, 32], [4.0, 2.0])


def test_clock_leaves_out_pauses_and_what_was_made_again(tmp_path: Path) -> None:
    run = made(tmp_path / "run")
    rows = [(0, 0.0), (100, 30.0), (200, 60.0), (100, 1060.0), (200, 1090.0), (300, 1120.0)]
    lines = [json.dumps({"step": step, "time": now}) + "\n" for step, now in rows]
    run.metrics.mkdir(exist_ok=True)
    (run.metrics / "learner-0.jsonl").write_text("".join(lines))
    steps, minutes = program().clock({"path": run.path})
    assert steps.tolist() == [0, 100, 200, 300]
    assert minutes.tolist() == [0, 0.5, 1.0, 2.0]


@pytest.mark.parametrize("case", ["absent", "empty"])
def test_errors_are_one_sentence(tmp_path: Path, case: str) -> None:
    if case == "empty":
        made(tmp_path / "empty")
    process = run_program(tmp_path / case)
    assert process.returncode == 1
    assert process.stderr.startswith("error: ") and len(process.stderr.splitlines()) == 1
