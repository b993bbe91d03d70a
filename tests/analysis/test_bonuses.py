"""Intrinsic beside extrinsic returns, from metrics made by hand.

Mutations seen to fail: the streams exchanged; stages by the number of lines; lines without either counted as 0.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from hpc_rl.analysis.sections import NotRecorded
from tests.analysis.recordings import analysed, made, record, write_metrics


def test_streams_by_tenths_of_the_env_steps(tmp_path: Path) -> None:
    run = made(tmp_path / "new")
    record(run, [1.0, 2.0])
    lines = [
        {"step": step, "time": float(step), "updates": step / 10, "intrinsic_return": 8.0 - k, "extrinsic_return": k,
         "bonus": 0.5, "policy_lag": 0.0}
        for k, step in enumerate((10, 20, 30, 500, 1000))
    ]  # fmt: skip
    write_metrics(run, [*lines[:2], {"step": 25, "time": 25.0, "updates": 2.5}, *lines[2:]])
    section = analysed("bonuses", run.path)
    table = section.tables["streams_by_stage"]
    assert table["stage"].tolist() == ["0-10 %", "50-60 %", "90-100 %"]
    assert table["intrinsic_return"].tolist() == [7.0, 5.0, 4.0]
    assert table["extrinsic_return"].tolist() == [1.0, 3.0, 4.0] and table["bonus"].tolist() == [0.5] * 3
    (text,) = section.findings
    assert "is 4 in the last stage, 57% of its largest" in text and "from 1 to 4" in text


def test_without_novelty_it_says_what_it_looked_for(tmp_path: Path) -> None:
    run = made(tmp_path / "plain")
    record(run, [1.0])
    write_metrics(run, [{"step": 10, "time": 1.0, "updates": 1.0}])
    with pytest.raises(NotRecorded, match="no intrinsic return; run a method that pays for novelty, as rnd"):
        analysed("bonuses", run.path)
