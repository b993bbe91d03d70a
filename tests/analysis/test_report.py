"""The page about runs: what is on it, that it needs nothing else, and what happens where programs do not apply.

Mutations seen to fail: a section's table left out of the page; autoescape off; a damaged segment not set aside; a
program without data ending the report; pictures linked in place of embedded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hpc_rl.analysis import open_runs, programs, report
from hpc_rl.analysis.runs import RecordedRun
from hpc_rl.analysis.sections import NotRecorded, Section
from hpc_rl.storage.recorded import moves
from tests.analysis.recordings import made, record


def rewards(runs: Sequence[RecordedRun]) -> Section:
    """A program that reads every segment."""
    total = [float(sum(moves(s, "reward").sum() for s in run.segments)) for run in runs]
    table = pd.DataFrame({"run": [run.name for run in runs], "rewards": total, "none": [np.nan] * len(runs)})

    def draw(figure: Any) -> None:
        figure.subplots().plot(total)

    return Section(
        "Rewards", ("<b>sum</b>",), "The sum.", {"sum_of_rewards": draw}, {"sums": table}, {"a_film": b"GIF89a"}
    )


def absent(runs: Sequence[RecordedRun]) -> Section:
    raise NotRecorded("there is no moon in these runs")


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "ORDER", ("rewards", "absent"))
    monkeypatch.setattr(programs, "load", {"rewards": rewards, "absent": absent}.__getitem__)


@pytest.mark.usefixtures("two")
def test_the_page_has_everything_and_needs_nothing(tmp_path: Path) -> None:
    run = made(tmp_path / "mine")
    record(run, [1.0, 2.0])
    result = report.make(open_runs([run.path]))
    page = report.write(result, tmp_path / "out").read_text()
    assert "&lt;b&gt;sum&lt;/b&gt;" in page and "Sum of rewards" in page and "there is no moon in these runs" in page
    assert "<td>mine</td><td>6</td><td>–</td>" in page
    assert not re.findall(r"<script|<link|src=\"(?!data:)|srcset=\"(?!data:)", page)
    assert page.count("data:image/png;base64,") == 2  # light and dark
    assert page.count("data:image/gif;base64,R0lGODlh") == 1 and "A film" in page
    saved = json.loads((tmp_path / "out" / "rewards.json").read_text())
    assert saved["tables"]["sums"] == [{"run": "mine", "rewards": 6.0, "none": None}]
    assert sorted(x.name for x in (tmp_path / "out").iterdir()) == [
        "a_film.gif", "index.html", "rewards.json", "sum_of_rewards.png", "sums.csv",
    ]  # fmt: skip


@pytest.mark.usefixtures("two")
def test_a_segment_that_is_damaged_inside_is_named_and_the_rest_is_analysed(tmp_path: Path) -> None:
    run = made(tmp_path / "mine")
    record(run, [1.0])
    record(run, [2.0], 5)
    broken = run.trajectories / "a0-worker-0" / "segment-000001.h5"
    runs = open_runs([run.path])
    data = broken.read_bytes()
    at = data.index(b"\x28\xb5\x2f\xfd")  # the head of a packed chunk
    for place in [m.start() for m in re.finditer(rb"\x28\xb5\x2f\xfd", data)]:
        data = data[: place + 4] + b"\xff" * 8 + data[place + 12 :]
    broken.write_bytes(data)
    result = report.make(runs)
    assert at and [segment.number for segment in result.runs[0].segments] == [0]
    assert str(broken) in result.runs[0].skipped[0] and str(broken) in report.html(result)


def test_without_anything_to_report_the_first_reason_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(programs, "ORDER", ("absent",))
    monkeypatch.setattr(programs, "load", lambda name: absent)
    run = made(tmp_path / "mine")
    with pytest.raises(NotRecorded, match="moon"):
        report.make(open_runs([run.path]))


@pytest.mark.parametrize(
    ("value", "text"),
    [(np.nan, "–"), (None, "–"), (3, "3"), (12345.6, "12,346"), (0.123456, "0.1235"), (2.0, "2"), (True, "True"),
     ("a", "a"), (float("inf"), "inf"), (1234567, "1,234,567")],
)  # fmt: skip
def test_cells(value: Any, text: str) -> None:
    assert report._cell(value) == text
