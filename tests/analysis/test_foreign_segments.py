"""Segments and run directories of strangers: the reader and the programs of analysis/ answer with a sentence.

Mutations seen to fail: shapes of leaves not compared; steps not compared with moves; the job file read as it comes.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from hpc_rl.analysis import programs
from hpc_rl.storage import segments as closed
from hpc_rl.storage.recorded import ends
from hpc_rl.storage.run_dir import RunDir
from hpc_rl.storage.segments import BadSegment, describe, kept_from, segments
from tests.analysis.recordings import made, program, record


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    signal.alarm(30)
    yield
    signal.alarm(0)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = made(tmp_path / "run")
    record(run, [1.0, 2.0])
    return run


def replaced(name: str, data: Any, **options: Any) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        del file[name]
        file.create_dataset(name, data=data, **options)

    return change


def removed(name: str) -> Callable[[Any], None]:
    return lambda file: file.__delitem__(name)


def linked(name: str) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        del file[name]
        file[name] = h5py.ExternalLink("other.h5", "/x")

    return change


def huge(name: str) -> Callable[[Any], None]:
    def change(file: Any) -> None:
        del file[name]
        file.create_dataset(name, (1 << 40, 2), "f4", chunks=(1 << 16, 2))

    return change


def attribute(name: str, value: Any) -> Callable[[Any], None]:
    return lambda file: file.attrs.__setitem__(name, value)


WRONG = {
    "no columns": removed("column"),
    "columns elsewhere": linked("column"),
    "columns of another shape": replaced("column", np.zeros((2, 2), np.int32)),
    "columns that are text": replaced("column", "x"),
    "no returns": removed("episode_return"),
    "returns elsewhere": linked("episode_return"),
    "huge returns": huge("episode_return"),
    "fewer returns": replaced("episode_return", np.zeros((3, 2), np.float32)),
    "returns of another kind": replaced("episode_return", np.zeros((12, 2), np.int32)),
    "flat returns": replaced("episode_return", np.zeros(24, np.float32)),
    "fewer successes": replaced("episode_success", np.zeros((3, 2), np.float32)),
    "successes elsewhere": linked("episode_success"),
    "no lengths": removed("episode_length"),
    "no beginnings": removed("first"),
    "beginnings of another kind": replaced("first", np.zeros((13, 2), np.float32)),
    "beginnings of other columns": replaced("first", np.zeros((13, 3), bool)),
    "no steps": lambda file: file.attrs.__delitem__("first_step"),
    "steps that are text": attribute("first_step", "now"),
    "steps below 0": attribute("first_step", np.array([-5, 0])),
    "steps of other columns": attribute("last_step", np.array([1, 2, 3])),
    "steps that the moves do not make": attribute("last_step", np.array([7, 8])),
    "a format that is text": attribute("format", "1"),
    "a later format": attribute("format", 99),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_segment_is_named(run: RunDir, fault: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    (path,) = segments(run.path)
    os.mkfifo(path.parent / "other.h5")
    with h5py.File(path, "r+") as file:
        WRONG[fault](file)
    with pytest.raises(BadSegment, match=str(path)):
        ends(describe(path), kept_from(run.path))
    monkeypatch.setattr("sys.argv", ["learning_curve.py", str(run.path)])
    with pytest.raises(SystemExit, match="error: ") as ended:
        programs.main(program("learning_curve").analyze, "Curves.")
    assert str(path) in str(ended.value) + capsys.readouterr().err


@pytest.mark.parametrize("kind", ["pipe", "folder", "noise", "empty", "gone"])
def test_what_is_no_segment(run: RunDir, kind: str) -> None:
    (path,) = segments(run.path)
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind != "gone":
        path.write_bytes(b"\x89HDF\r\n\x1a\n" * 1000 if kind == "noise" else b"")
    for read in (describe, lambda file: closed.read(file, "reward")):
        with pytest.raises(BadSegment, match=str(path)):
            read(path)


def test_names_that_are_no_numbers(run: RunDir) -> None:
    folder = segments(run.path)[0].parent
    for name in ("segment-x.h5", "segment-.h5", "segment-²3.h5", "segment-1.2.h5"):
        (folder / name).touch()
    for name in ("0x.json", "²3.json"):
        (run.provenance / name).touch()
    assert [path.name for path in segments(run.path)] == ["segment-000000.h5"]
    assert kept_from(run.path) == {}
    record(run, [3.0], 10)
    assert [path.name for path in segments(run.path)] == ["segment-000000.h5", "segment-000001.h5"]


@pytest.mark.parametrize("text", ["[]", "3", "{", '{"resumed_from": []}', '{"resumed_from": {"file": 1, "steps": {}}}',
                                  '{"resumed_from": {"file": null, "steps": {"a": 1}}}', "[" * 9999])  # fmt: skip
def test_provenance_of_another_kind_tells_nothing(run: RunDir, text: str) -> None:
    record(run, [5.0], 4, attempt=1)
    (run.provenance / "0001.json").write_text(text)
    assert kept_from(run.path) == {(0, 0): 4, (0, 1): 4}


@pytest.mark.parametrize("text", ["", "environment = 3", "[environment]\ncolumns = 'x'", "a = " + "[" * 5000])
def test_a_job_of_another_kind(run: RunDir, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run.job_file.write_text(text)
    monkeypatch.setattr("sys.argv", ["learning_curve.py", str(run.path)])
    with pytest.raises(SystemExit, match=r"job\.toml"):
        programs.main(program("learning_curve").analyze, "Curves.")


_ROW = {"job": "a3c_latency", "columns": 1, "env_steps_per_s": 1, "ideal": 1}


@pytest.mark.parametrize("row", [3, {}, {"job": 1}, {**_ROW, "ideal": 0}, {**_ROW, "job": "other"}])
def test_a_table_of_another_kind(tmp_path: Path, row: Any) -> None:
    module = program("architectures")
    (tmp_path / "table.json").write_text(json.dumps([row]))
    with pytest.raises(SystemExit, match="measure again"):
        module.read(tmp_path)
