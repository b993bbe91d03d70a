"""What a run was given and what it used of it, over attempts that ended in order and others that were killed.

Mutations seen to fail: the metric line at the checkpoint's own step not kept, the end of an attempt taken from its
start, lines of another attempt counted, no report of a rank taken, nodes "(x2)" counted once, cores of two hosts
taken for one, GPUs that ranks share summed, the first start called a restart, the largest memory instead of the
fullest, a start that never came to learning forgotten, SLURM's mark for "unknown" as energy, days of TotalCPU, steps
summed with allocations, efficiency of each of several runs, children, their children, and those that ended not
counted.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from hpc_rl import efficiency, usage
from hpc_rl import job as jobs
from hpc_rl import status as states
from hpc_rl.launchers.accounting import summed
from hpc_rl.runtime.reporter import cpu_s
from hpc_rl.storage.run_dir import RunDir, create
from tests.docs.pages import page
from tests.slurm.fake import answer, calls

ROWS = [{"host": "a", "cores": [0, 1], "gpus": 0}, {"host": "a", "cores": [1, 2], "gpus": 0}]
GIB = 1 << 30


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return create(tmp_path / "run", jobs.dumps(jobs.load("ppo_cartpole")))


def lines(run: RunDir, rank: str, attempt: int, *rows: tuple[float, int, float, int]) -> None:
    """Metric lines of (time, step, CPU seconds, peak bytes)."""
    with (run.metrics / f"{rank}.jsonl").open("a") as file:
        for at, step, cpu, peak in rows:
            row = {"step": step, "time": at, "cpu_s": cpu, "peak_rss_bytes": peak, "attempt": attempt}
            file.write(json.dumps(row) + "\n")


@pytest.fixture
def three(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """Killed at 1041 after step 300; goes on from step 200, stops in order; a third one that is at work.

    hours × cores: attempt 0 41 s × 3, attempt 1 60 s × 3, attempt 2 40 s × 8.
    """
    now = [0.0]
    monkeypatch.setattr(usage, "_process_start", lambda: now[0])
    monkeypatch.setattr(usage, "_host_bytes", lambda: 16 * GIB)
    monkeypatch.setattr(time, "time", lambda: now[0])
    for name in list(os.environ):
        if name.startswith("SLURM_"):
            monkeypatch.delenv(name)
    now[0] = 1000.0
    usage.begin(run, 0, ROWS, False, 0)
    now[0] = 1010.0
    usage.ready(run, 0)
    lines(run, "worker-0", 0, (1020, 100, 5, GIB), (1030, 200, 10, GIB), (1040, 300, 20, 2 * GIB))
    lines(run, "worker-1", 0, (1041, 150, 30, GIB))
    now[0] = 1100.0
    usage.begin(run, 1, ROWS, False, 200)
    now[0] = 1130.0
    usage.ready(run, 1)
    lines(run, "worker-0", 1, (1140, 300, 8, GIB), (1150, 350, 9, GIB))
    lines(run, "worker-1", 1, (1150, 300, 20, GIB))
    now[0] = 1160.0
    usage.end(run, 1, {"worker-0": 12.0}, {"worker-0": GIB})
    now[0] = 1200.0
    monkeypatch.setenv("SLURM_JOB_CPUS_PER_NODE", "4(x2)")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    monkeypatch.setenv("SLURM_MEM_PER_NODE", "2048")
    usage.begin(run, 2, ROWS, False, 350)
    lines(run, "worker-0", 2, (1240, 400, 60, 3 * GIB))
    return run


def test_hours_are_summed_over_attempts(three: RunDir) -> None:
    figures = efficiency.of(three)
    assert figures is not None and figures["attempts"] == 3
    core_s = 41 * 3 + 60 * 3 + 40 * 8
    cpu = (20 + 30) + (12 + 20) + 60
    expected = {
        "wall_hours": 141,
        "core_hours": core_s,
        "gpu_hours": 0,
        "made_again_hours": 1041 - 1030,
        "restarting_hours": 30 + 40,  # the third has not begun to learn
        "lost_hours": 11 + 70,
        "lost_core_hours": 11 * 3 + 30 * 3 + 40 * 8,
        "cpu_hours": cpu,
    }
    assert {name: round(3600 * figures[name], 6) for name in expected} == expected
    assert figures["cores_used"] == pytest.approx(cpu / core_s) and figures["cores"] == 8
    assert figures["peak_rss_bytes"] == 3 * GIB and figures["memory_bytes"] == 4 * GIB  # the fullest, not the largest
    assert figures["memory_used"] == 0.75 and figures["asked_of"] == "SLURM"


def test_a_killed_attempt_is_closed_by_the_next(three: RunDir) -> None:
    first, second, third = json.loads(three.usage_file.read_text())["attempts"]
    assert (first["end"], first["cpu_s"], first["peak_rss_bytes"], first["again_s"]) == (1041, 50, 3 * GIB, 11)
    assert (second["end"], second["cpu_s"], second["again_s"]) == (1160, 32, 0)
    assert third["end"] is None and usage.usage(three)[-1]["end"] == 1240
    assert first["cores"] == 3 and first["memory_bytes"] == 16 * GIB and first["asked_of"] == "the machine"


@pytest.mark.parametrize(
    ("variables", "asked"),
    [
        ({}, {"cores": 3, "gpus": 2, "memory_bytes": 2 * GIB, "asked_of": "the machine"}),
        ({"SLURM_JOB_CPUS_PER_NODE": "2,3(x2)", "SLURM_JOB_NUM_NODES": "3", "SLURM_MEM_PER_CPU": "1024",
          "SLURM_GPUS_ON_NODE": "4"}, {"cores": 8, "gpus": 12, "memory_bytes": 8 * GIB, "asked_of": "SLURM"}),
        ({"SLURM_JOB_CPUS_PER_NODE_HET_GROUP_0": "1", "SLURM_JOB_CPUS_PER_NODE_HET_GROUP_1": "4(x2)"},
         {"cores": 9, "gpus": 2, "memory_bytes": 2 * GIB, "asked_of": "the machine"}),
        ({"SLURM_JOB_CPUS_PER_NODE": "?", "SLURM_MEM_PER_NODE": "0", "SLURM_JOB_NUM_NODES": "1"},
         {"cores": 3, "gpus": 2, "memory_bytes": 2 * GIB, "asked_of": "the machine"}),
    ],
)  # fmt: skip
def test_what_was_asked_for(variables: dict[str, str], asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "_host_bytes", lambda: GIB)
    rows = [{"host": "a", "cores": [0, 1], "gpus": 1}, {"host": "b", "cores": [0], "gpus": 1}]
    assert usage.given(rows, True, variables) == {"hosts": 2, **asked}


def test_gpus_count_where_they_are_used() -> None:
    rows = [{"host": "a", "cores": [0], "gpus": 4}, {"host": "a", "cores": [0], "gpus": 4}]
    assert [usage.given(rows, cuda, {})["gpus"] for cuda in (True, False)] == [4, 0]


SACCT = """12|100|4|00:03:20|||
12.batch|100|4|00:00:01|2048K|
12.0|99|4|00:03:19|1.5G|7200000
12|1000|2|1-00:00:10||18446744073709551614
12.extern|1000|2|00:00.010|12|"""


def test_the_account_of_sacct() -> None:
    assert summed(SACCT) == {
        "cpu_s": 200 + 86410, "core_s": 400 + 2000, "largest_rss_bytes": 3 * GIB // 2, "energy_j": 7.2e6,
    }  # fmt: skip
    assert summed("12|100|4|10:00||36|\n12.0|100|4|10:00|1|30|\n")["energy_j"] == 36  # type: ignore[index]
    assert summed("") is None and summed("sacct: no such job") is None


def test_status_of_one_run_shows_it(three: RunDir, slurm: Path, tmp_path: Path) -> None:
    (three.path / "submit").mkdir()
    (three.path / "submit" / "jobs").write_text("12\n")
    answer(slurm, "sacct", SACCT)
    (line,) = states.status([three.path], print)
    assert line.efficiency is not None and line.efficiency["slurm"]["core_s"] == 2400
    text = states.render([line])
    assert "3 attempts: 0.173 core-hours; 1.3 min lost to restarts (11 s of steps made again, 1.2 min of" in text
    assert "cores used: 23% of 8" in text and "memory used: 75%, at most 3.0 GiB in all ranks, of 4.0 GiB asked" in text
    assert "SLURM's account: 24.1 CPU-hours in 0.667 core-hours, the largest task 1.5 GiB, 2 kWh" in text
    assert all(row.startswith("    ") for row in text.splitlines()[2:])
    assert json.loads(states.as_json([line]))[0]["efficiency"] == json.loads(json.dumps(asdict(line)["efficiency"]))
    other = create(tmp_path / "other", jobs.dumps(jobs.load("ppo_cartpole")))
    before = len(calls(slurm))
    assert [line.efficiency for line in states.status([three.path, other.path], print)] == [None, None]
    assert sum("TotalCPU" in call for call in calls(slurm)[before:]) == 0
    assert [line.efficiency for line in states.status([other.path], print)] == [None]  # it has recorded none


def test_an_account_that_cannot_be_had_is_left_out(three: RunDir, slurm: Path) -> None:
    (three.path / "submit").mkdir()
    (three.path / "submit" / "jobs").write_text("12\n")
    answer(slurm, "sacct", "no database", code=1)
    warnings: list[str] = []
    (line,) = states.status([three.path], warnings.append)
    assert line.efficiency is not None and line.efficiency["slurm"] is None
    assert len(warnings) == 1 and "left out" in warnings[0]


def test_a_file_that_is_something_else_counts_as_none(run: RunDir) -> None:
    for text in ("[]", '{"attempts": [{"attempt": 0}]}', '{"attempts": [1]}'):
        run.usage_file.write_text(text)
        assert efficiency.of(run) is None


def test_the_page_names_every_figure(three: RunDir) -> None:
    spans = {text for _, text in page("docs/run-directory.md").spans}
    figures = efficiency.of(three)
    assert figures is not None and not {*figures, "slurm"} - spans
    assert not set(usage.usage(three)[0]) - spans


def test_cpu_time_counts_children_that_live() -> None:
    code = "import time\nwhile time.process_time() < 0.15: pass\nprint(flush=True)\ninput()"
    before = cpu_s()
    own = time.process_time()
    command = ["sh", "-c", f"{shlex.quote(sys.executable)} -S -c {shlex.quote(code)}; true"]  # a child of a child
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert cpu_s() - before - (time.process_time() - own) > 0.1
        child.communicate(b"\n")
    assert cpu_s() - before - (time.process_time() - own) > 0.1
