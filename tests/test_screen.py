"""The screen on fabricated metrics: lines where stderr is a file, a panel of 80 columns where it is a terminal."""

from __future__ import annotations

import io
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hpc_rl import job as jobs
from hpc_rl.job import Job
from hpc_rl.plan import Plan
from hpc_rl.screen import Screen, _checkpoint_age
from hpc_rl.storage import run_dir
from hpc_rl.storage.metrics import Metrics
from hpc_rl.storage.run_dir import RunDir
from hpc_rl.topologies import actor_learner

LINE = {"env_steps_per_s": 500.0, "rss_bytes": 3e8, "time/step": 0.25, "time/infer": 0.5, "time/other": 0.25}
HEAD = {"mean_return_100": 0.5, "episodes": 40.0, "updates": 7.0, "policy_lag": 1.25, "policy_lag_max": 3.0}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def made(folder: Path, ranks: int = 3) -> tuple[RunDir, Job, Plan]:
    environment = {"id": "toy/catch", "columns": 16}
    budget = {"env_steps": 10_000, "stop_at_return": 0.9}
    table: dict[str, Any] = {"algorithm": "impala", "topology": "actor_learner", "name": "small"}
    job = jobs.parse({**table, "environment": environment, "budget": budget, "resources": {"ranks": ranks}})
    return run_dir.create(folder / "run", jobs.dumps(job)), job, actor_learner.plan(job)


def write(run: RunDir, plan: Plan, steps: int) -> None:
    for rank in plan.ranks:
        head = HEAD if rank.rank == 0 else {}
        metrics = Metrics(run.metrics, rank.name)
        metrics.write(steps, {"env_steps": steps, **LINE, **head})
        metrics.close()


@pytest.fixture(autouse=True)
def wide_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")


def test_lines_without_a_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, job, plan = made(tmp_path)
    screen = Screen(run, job, plan)
    screen.tick()
    write(run, plan, 2_500)
    screen.tick()  # too soon for a second line
    screen.close("done: budget used")
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == "" and len(lines) == 2
    assert "3 rank(s) starting" in lines[0]
    assert "2,500/10,000 env steps, 500/s, return 0.50 (40 episodes), lag 1.2 (max 3.0), 7 updates" in lines[1]
    assert lines[1].endswith("; done: budget used")


def test_the_rate_is_taken_between_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, job, plan = made(tmp_path)
    screen = Screen(run, job, plan)
    name, begin = plan.ranks[0].name, time.time()
    for after_s, steps in ((1.0, 1_000), (3.0, 3_000), (5.0, 4_000)):
        figures = screen._figures({name: {"time": begin + after_s, "env_steps": steps, **LINE}})
    assert figures["rate"] == pytest.approx(750)
    assert figures["left_s"] == pytest.approx(6_000 / 750)


def test_lines_of_an_earlier_attempt_do_not_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, job, plan = made(tmp_path)
    write(run, plan, 9_999)
    time.sleep(0.01)
    screen = Screen(run, job, plan)
    screen.tick()
    assert "starting" in capsys.readouterr().err


def test_the_last_games_are_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, job, plan = made(tmp_path)
    run.write_state(state="done", env_steps=9, reason="done: of an earlier attempt")
    time.sleep(0.01)
    screen = Screen(run, job, plan)
    write(run, plan, 10_000)
    screen.tick()
    assert " left" in capsys.readouterr().err
    screen.next = 0.0
    run.write_state(state="done", env_steps=10_000, reason="done: budget used")
    screen.tick()
    line = capsys.readouterr().err
    assert line.endswith("elapsed; done: budget used; the last policy plays its greedy games\n")
    run.state_file.write_text("{")
    screen.next = 0.0
    screen.tick()  # an unreadable state is no concern of the display
    assert " left" in capsys.readouterr().err


@pytest.mark.parametrize(("ranks", "labels"), [(3, ["learner-0", "actor-1"]), (17, ["learner ×1", "actor ×16"])])
def test_panel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: int, labels: list[str]) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    run, job, plan = made(tmp_path, ranks)
    screen = Screen(run, job, plan)
    screen.tick()
    write(run, plan, 2_500)
    (run.checkpoints / "000000007.h5").parent.mkdir(exist_ok=True)
    (run.checkpoints / "000000007.h5").touch()
    screen.close("done: budget used")
    text = terminal.getvalue()
    last = text[text.rindex("╭") : text.rindex("╯")]
    for word in ("2,500 / 10,000 env steps", "25.0%", "target 0.9", "1.2, max 3.0", "286 MiB", "ago", "done", *labels):
        assert word in last, word
    assert "actor-1" in labels or "actor-1" not in last


def test_names_and_sentences_are_no_markup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen: a run directory named [/x] was an error of the display, which killed the ranks."""
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    run, job, plan = made(tmp_path / "[/x]" / "[red]y")
    screen = Screen(run, replace(job, name="[/small]"), plan)
    screen.tick()
    screen.close("failed: hidden = [64.5] is no [/list]")
    text = terminal.getvalue()
    assert "[/small]" in text and "[64.5] is no [/list]" in text


@pytest.mark.parametrize("terminal", [True, False])
def test_files_that_vanish_between_two_looks(
    terminal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ranks prune checkpoints while the screen looks."""
    if terminal:
        monkeypatch.setattr("sys.stderr", Terminal())
    run, job, plan = made(tmp_path)
    write(run, plan, 2_500)
    (run.checkpoints / "000000007.h5").touch()
    (run.checkpoints / "000000008.h5").symlink_to(tmp_path / "gone")
    (run.metrics / "learner-1.jsonl").symlink_to(tmp_path / "gone")
    screen = Screen(run, job, plan)
    screen.tick()
    assert _checkpoint_age(run) == "0:00:00 ago"
    (run.checkpoints / "000000007.h5").unlink()
    assert _checkpoint_age(run) == "none yet"


def test_frames_count_the_action_repeat(tmp_path: Path) -> None:
    run, job, plan = made(tmp_path)
    screen = Screen(run, job, plan)
    screen.repeat = 4
    line = {"time": time.time(), "env_steps": 100, **LINE}
    assert screen._figures({plan.ranks[0].name: line})["frames"] == 400
