"""Metrics survive a torn line and are read without reading everything."""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from hpc_rl.storage.metrics import Metrics, last, rows


def test_rows(tmp_path: Path) -> None:
    to = Metrics(tmp_path, "learner-0")
    to.write(10, {"loss": 0.5, "return": math.nan, "norm": float(np.float32(2.0)), "count": 3})
    to.write(20, {"loss": 0.25})
    found = rows(tmp_path / "learner-0.jsonl")  # without close: each line is flushed
    assert [row["step"] for row in found] == [10, 20]
    assert found[0]["return"] is None and found[0]["norm"] == 2.0 and abs(found[0]["time"] - time.time()) < 60
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
    found = last(tmp_path)
    assert list(found) == ["long"] and found["long"] == {"x" * 100_000: 1.0}


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
