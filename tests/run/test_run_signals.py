"""Whatever asks a run to stop: it saves, exits with 0 and can be resumed. A second signal aborts at once.

The launcher answers every way alike, before any MPI has a part in it (test_launcher.py): a second MPI is asked in two.
"""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.run.program import (
    BOTH_MPIS,
    HARD_LIMIT_S,
    checkpoints,
    command,
    ended,
    environment,
    hpc_rl,
    learning,
    leftovers,
    processes,
    started,
    state,
    wait_for,
    write_job,
)

STOP_S = 30.0  # two to four seconds where nothing else runs; a bound that says it does not hang
WAYS: list[tuple[str, Callable[[subprocess.Popen[str], Path], None]]] = [
    ("SIGTERM", lambda process, run: process.send_signal(signal.SIGTERM)),
    ("SIGINT", lambda process, run: process.send_signal(signal.SIGINT)),
    ("SIGUSR1", lambda process, run: process.send_signal(signal.SIGUSR1)),
    ("STOP", lambda process, run: (run / "STOP").touch()),
]


@pytest.mark.parametrize("python", BOTH_MPIS)
def test_each_way_to_ask_saves_and_stops(python: str, tmp_path: Path) -> None:
    """One run, asked several times in as many ways: each attempt takes up what the one before has saved."""
    job, run, steps = write_job(tmp_path, "impala", 3), tmp_path / "run", 0
    for attempt, (name, ask) in enumerate(WAYS if python == sys.executable else WAYS[-2:]):
        again = ["--resume"] if attempt else []
        with started("run", job, "--out", run, *again, python=python) as process:
            wait_for(lambda attempt=attempt: learning(run, 3, attempt), process)
            ask(process, run)
            request_s = time.monotonic()
            result = ended(process)
        assert result.code == 0, (name, result.err)
        assert result.at - request_s < STOP_S, (name, result.err)
        now = state(run)
        assert now["state"] == "stopped" and now["attempt"] == attempt and now["env_steps"] > steps, name
        steps = now["env_steps"]
        assert checkpoints(run)[-1].stem == f"{now['updates']:09d}", name
        assert leftovers(run) == [], name


def at_a_terminal(job: Path, run: Path, python: str) -> tuple[int, int]:
    """`hpc-rl run` in a terminal of its own: its process, and the other end of that terminal."""
    child, terminal = pty.fork()
    if child == 0:
        os.environ.update(environment())
        line = command("run", job, "--out", run, python=python)
        os.execv(line[0], line)
    return child, terminal


@pytest.mark.parametrize("python", BOTH_MPIS)
def test_ctrl_c_at_a_terminal(python: str, tmp_path: Path) -> None:
    job, run = write_job(tmp_path, "ppo", 2), tmp_path / "run"
    child, terminal = at_a_terminal(job, run, python)
    screen, limit = b"", time.monotonic() + HARD_LIMIT_S
    request_s = 0.0
    code = None
    while time.monotonic() < limit and code is None:
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                screen += os.read(terminal, 65536)
            except OSError:  # the other end is closed
                code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if not request_s and learning(run, 2):
            os.write(terminal, b"\x03")
            request_s = time.monotonic()
    took = time.monotonic() - request_s
    os.close(terminal)
    assert code == 0, screen[-2000:].decode(errors="replace")
    assert took < STOP_S
    assert state(run)["state"] == "stopped" and checkpoints(run)
    assert b"\x1b[?25h" in screen.rsplit(b"\x1b[?25l", 1)[-1]  # the cursor is back
    assert leftovers(run) == []


@pytest.mark.parametrize("python", BOTH_MPIS)
def test_a_terminal_that_is_closed_is_a_stop(python: str, tmp_path: Path) -> None:
    """Seen: SIGHUP killed the launcher, and its ranks trained on without it."""
    job, run = write_job(tmp_path, "ppo", 2), tmp_path / "run"
    child, terminal = at_a_terminal(job, run, python)
    limit = time.monotonic() + HARD_LIMIT_S
    while not learning(run, 2) and time.monotonic() < limit:
        if select.select([terminal], [], [], 0.1)[0]:
            os.read(terminal, 65536)
    os.close(terminal)
    code = None
    while code is None and time.monotonic() < limit:
        pid, status = os.waitpid(child, os.WNOHANG)
        code = os.waitstatus_to_exitcode(status) if pid else None
        time.sleep(0.1)
    assert code == 0
    assert state(run)["state"] == "stopped" and checkpoints(run) and leftovers(run) == []


def test_ctrl_c_into_a_pipe_whose_reader_is_gone(tmp_path: Path) -> None:
    """As in `hpc-rl run … 2>&1 | tee log`: the same Ctrl-C ends tee, and every word after it is a broken pipe."""
    job, run = write_job(tmp_path, "ppo", 2), tmp_path / "run"
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = subprocess.Popen(command("run", job, "--out", run), env=environment(), **pipe)  # type: ignore[call-overload]
    try:
        wait_for(lambda: learning(run, 2), process)
        process.stdout.close()
        process.send_signal(signal.SIGINT)
        assert process.wait(HARD_LIMIT_S) == 0
    finally:
        process.kill()
        process.wait()
    assert state(run)["state"] == "stopped" and checkpoints(run) and leftovers(run) == []


@pytest.mark.parametrize("python", BOTH_MPIS)
def test_a_second_signal_aborts(python: str, tmp_path: Path) -> None:
    """An environment that hangs keeps the ranks from stopping; the second signal does not wait for it."""
    struck, run = tmp_path / "struck", tmp_path / "run"
    faulty = f'{{ how = "hang", at = 50, once = "{struck}" }}'
    job = write_job(tmp_path, "ppo", 2, environment="toy/faulty", arguments=faulty)
    with started("run", job, "--out", run, python=python) as process:
        wait_for(struck.exists, process)
        process.send_signal(signal.SIGTERM)
        time.sleep(1.0)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        request_s = time.monotonic()
        result = ended(process)
    assert result.code == 130 and "aborted by a second signal" in result.last
    assert result.at - request_s < 3
    assert state(run)["state"] == "stopped" and leftovers(run) == []


def test_a_signal_while_starting_is_not_lost(tmp_path: Path) -> None:
    job, run = write_job(tmp_path, "impala", 3), tmp_path / "run"
    with started("run", job, "--out", run) as process:
        wait_for((run / "logs" / "ranks.log").exists, process)
        process.terminate()
        result = ended(process)
    assert result.code == 0, result.err
    assert state(run)["state"] == "stopped" and processes(run) == []
    steps = state(run)["env_steps"]
    result = hpc_rl("run", job, "--out", run, "--resume", "--set", f"budget.env_steps={steps + 200}")
    assert result.code == 0, result.err  # also a checkpoint of no updates at all is one to go on from
