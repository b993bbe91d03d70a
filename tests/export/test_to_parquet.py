"""Tables of metrics and episodes hold what the run's own readers give, with unit and meaning of each field.

Mutations seen to fail: lines of an attempt that were given up kept, the names of the first rank alone, step as a
float, no unit of bytes, fields without their texts, an empty table written, a torn segment not named.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pandas as pd
import pytest
from pyarrow.parquet import read_schema

from hpc_rl.cli import main
from hpc_rl.export.base import NotExported
from hpc_rl.export.to_parquet import export
from hpc_rl.storage.run_dir import RunDir
from tests.export.played import Played, new_run


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """Attempt 1 went on from step 20, so the line at step 30 of attempt 0 does not count."""
    run = new_run(tmp_path / "run", "environment.columns=3")
    lines = {
        "worker-0": [
            {"step": 10, "time": 1.5, "attempt": 0, "attempt_from": 0, "loss": 0.5},
            {"step": 30, "time": 2.5, "attempt": 0, "attempt_from": 0, "loss": 0.4},
            {"step": 25, "time": 9.5, "attempt": 1, "attempt_from": 20, "loss": None, "rss_bytes": 7},
        ],
        "actor-3": [{"step": 4, "time": 3.0, "attempt": 1, "attempt_from": 0, "wait_s": 0.25}],
    }
    for name, rows in lines.items():
        (run.metrics / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def test_metrics_are_the_lines_that_count(run: RunDir, tmp_path: Path) -> None:
    result = export(run.path, tmp_path / "out")
    file = tmp_path / "out" / "metrics.parquet"
    assert result.files == {file: 3} and not result.faults  # nothing was recorded
    table = pd.read_parquet(file)
    assert table.columns.tolist() == ["rank", "step", "time", "attempt", "attempt_from", "loss", "rss_bytes", "wait_s"]
    assert table["rank"].tolist() == ["actor-3", "worker-0", "worker-0"]
    assert table["step"].tolist() == [4, 10, 25] and table["step"].dtype == "int64"
    assert table["loss"].isna().tolist() == [True, False, True] and table["loss"][1] == 0.5
    fields = read_schema(file)
    units = {name: fields.field(name).metadata[b"unit"].decode() for name in table.columns}
    assert units == {"rank": "", "step": "env step", "time": "unix s", "attempt": "", "attempt_from": "", "loss": "",
                     "rss_bytes": "byte", "wait_s": "s"}  # fmt: skip


def test_episodes_are_the_games(run: RunDir, tmp_path: Path) -> None:
    played = Played()
    played.record(run.path, [0, 33, 80, 120])
    result = export(run.path, tmp_path / "out")
    table = pd.read_parquet(tmp_path / "out" / "episodes.parquet")
    assert result.files[tmp_path / "out" / "episodes.parquet"] == len(table)
    for column, games in played.whole().items():
        own = table[table["column"] == column]
        assert own["length"].tolist() == [len(game.reward) for game in games]
        assert own["start"].tolist() == [game.start for game in games]
        assert own["return"].to_numpy() == pytest.approx([game.reward.sum() for game in games])
    fields = read_schema(tmp_path / "out" / "episodes.parquet")
    assert all(fields.field(name).metadata[b"doc"] for name in table.columns)
    assert fields.field("lag").metadata[b"unit"] == b"update"


def test_bad_input_is_one_sentence(run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotExported, match="neither metrics nor episodes"):
        export(new_run(tmp_path / "empty").path, tmp_path / "none")
    assert not list((tmp_path / "none").iterdir())
    export(run.path, tmp_path / "out")
    with pytest.raises(NotExported, match=r"metrics\.parquet exists; choose another --out"):
        export(run.path, tmp_path / "out")
    (path,) = Played().record(run.path, [0, 60])
    path.write_bytes(b"torn")
    result = export(run.path, tmp_path / "again")
    assert [file.name for file in result.files] == ["metrics.parquet"]
    assert len(result.faults) == 1 and str(path) in result.faults[0]
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(NotExported, match="install it with pip install 'pyarrow'"):
        export(run.path, tmp_path / "third")


def test_the_command_names_the_files(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["hpc-rl", "export", str(run.path), "--to", "parquet"])
    with pytest.raises(SystemExit) as end:
        main()
    texts = capsys.readouterr()
    assert end.value.code == 0 and texts.out == f"{run.path / 'export'}\n"
    assert f"{run.path / 'export' / 'metrics.parquet'}: 3 rows" in texts.err
