"""Metrics survive a torn line and are read without reading everything."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from hpc_rl.storage.metrics import Metrics, counting, last, rows, series


def test_rows(tmp_path: Path) -> None:
    to = Metrics(tmp_path, "learner-0")
    to.write(10, {"loss": 0.5, "return": math.nan, "norm": float(np.float32(2.0)), "count": 3})
    to.write(20, {"loss": 0.25})
    lines = rows(tmp_path / "learner-0.jsonl")  # without close: each line is flushed
    assert [row["step"] for row in lines] == [10, 20]
    assert lines[0]["return"] is None and lines[0]["norm"] == 2.0 and abs(lines[0]["time"] - time.time()) < 60
    to.close()


def test_a_torn_last_line_is_left_out_and_not_glued(tmp_path: Path) -> None:
    path = tmp_path / "actor-1.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3')
    assert last(tmp_path) == {"actor-1": {"step": 2}}
    path.write_text('{"step": 1}\n{"step": 12}')  # it parses, yet more digits may have been on their way
    assert last(tmp_path)["actor-1"] == {"step": 1}
    to = Metrics(tmp_path, "actor-1")
    to.write(4, {})
    to.close()
    assert [row["step"] for row in rows(path)] == [1, 12, 4]
    assert last(tmp_path)["actor-1"]["step"] == 4


def test_last_reads_the_end_only(tmp_path: Path) -> None:
    (tmp_path / "long.jsonl").write_text('{"step": 1}\n' * 20_000 + json.dumps({"x" * 100_000: 1.0}) + "\n")
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "torn.jsonl").write_text('{"st')
    lines = last(tmp_path)
    assert list(lines) == ["long"] and lines["long"] == {"x" * 100_000: 1.0}


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    to = Metrics(tmp_path, "learner-0", tensorboard=True)
    to.write(10, {"loss": 0.5})
    to.close()
    (path,) = (tmp_path / "tensorboard" / "learner-0").iterdir()
    values = [(event.step, value.tag) for event in EventFileLoader(str(path)).Load() for value in event.summary.value]
    assert values == [(10, "loss")]


def test_without_tensorboard_lines_are_written_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.summary.writer.event_file_writer", None)
    to = Metrics(tmp_path, "x", tensorboard=True)
    to.write(1, {"loss": 1.0})
    to.close()
    assert rows(tmp_path / "x.jsonl")[0]["loss"] == 1.0


def written(folder: Path, tensorboard: bool = False) -> Path:
    """Three attempts: the first two were killed at 300 and 260, and their checkpoints reached 150 and 240."""
    for attempt, begin, steps in ((0, 0, (100, 150, 200, 300)), (1, 150, (190, 230, 240, 260)), (2, 240, (280, 320))):
        to = Metrics(folder, "learner-0", tensorboard, attempt, begin)
        for step in steps:
            to.write(step, {"of": attempt})
        to.close()
    return folder / "learner-0.jsonl"


def test_what_was_lost_is_left_out_of_the_series(tmp_path: Path) -> None:
    path = written(tmp_path)
    steps = [(row["step"], row["attempt"]) for row in series(path)]
    assert steps == [(100, 0), (150, 0), (190, 1), (230, 1), (240, 1), (280, 2), (320, 2)]
    assert len(rows(path)) == 10  # nothing is removed from the file


def test_an_attempt_that_wrote_nothing_yet_takes_nothing_away(tmp_path: Path) -> None:
    path = written(tmp_path)
    Metrics(tmp_path, "learner-0", attempt=3, begin=120).close()
    assert len(series(path)) == 7


def test_an_attempt_that_began_earlier_than_the_one_before(tmp_path: Path) -> None:
    path = written(tmp_path)  # its checkpoint was torn, so the next one went on from 120
    to = Metrics(tmp_path, "learner-0", attempt=3, begin=120)
    to.write(130, {})
    assert [(row["step"], row["attempt"]) for row in series(path)] == [(100, 0), (130, 3)]


def test_lines_of_older_versions_and_strange_ones_never_go_back() -> None:
    old = [{"step": step} for step in (100, 200, 300, 150, 250)]
    assert counting(old) == [True, False, False, True, True]
    strange = [{"step": 5}, {}, {"step": None}, {"step": 7, "attempt": None, "attempt_from": None}]
    assert counting(strange) == [True, False, False, True]
    assert counting([]) == []


def test_tensorboard_forgets_what_was_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.summary.writer import event_file_writer

    # Files of one second and process are read in the order of this number as text; attempts are processes.
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))
    written(tmp_path, tensorboard=True)
    events = EventAccumulator(str(tmp_path / "tensorboard" / "learner-0"))
    events.Reload()
    points = [(event.step, event.value) for event in events.Scalars("of")]
    assert points == [(100, 0), (150, 0), (190, 1), (230, 1), (240, 1), (280, 2), (320, 2)]
