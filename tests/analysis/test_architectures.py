"""The comparison is drawn from its table, and a missing table is said."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parents[2] / "analysis" / "architectures.py"


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, PROGRAM, *arguments], capture_output=True, text=True, check=False)


def test_it_draws_and_prints_every_row(tmp_path: Path) -> None:
    jobs = ["a2c_latency_step", "impala_latency"]
    rows = [{"job": j, "columns": c, "env_steps_per_s": 10.0 * c, "ideal": 12.5 * c} for j in jobs for c in (8, 32)]
    (tmp_path / "table.json").write_text(json.dumps(rows))
    process = run(tmp_path, "--out", tmp_path / "x.png")
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("80%") == 4 and (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_a_missing_table_is_one_sentence(tmp_path: Path) -> None:
    process = run(tmp_path)
    assert process.returncode == 1 and "measure first" in process.stderr and "Traceback" not in process.stderr
