"""Starting a command such that nothing of it survives a test that gives up: neither its ranks nor their helpers."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

MARK = "HPC_RL_TEST_MARK"  # inherited by everything that the command starts, in whatever session


def run_to_end(
    command: Sequence[object], limit_s: float, env: Mapping[str, str] = os.environ, check: bool = False, **options: Any
) -> subprocess.CompletedProcess[str]:
    """The command's exit code and output. At the limit, or a Ctrl-C, all its descendants are killed.

    `hpc-rl run` starts its ranks in a session of their own: killing the launcher alone would leave them working. Raises
    TimeoutExpired, and with ``check`` CalledProcessError.
    """
    mark = secrets.token_hex(8)
    words, variables = [str(x) for x in command], {**env, MARK: mark}
    options = {"capture_output": True, "text": True, **options}
    try:
        return subprocess.run(words, timeout=limit_s, env=variables, check=check, **options)
    except BaseException:
        kill_marked(mark)
        raise


def marked(mark: str) -> list[int]:
    """Living processes that carry this mark."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if f"{MARK}={mark}".encode() in path.read_bytes().split(b"\0"):
                pids.append(int(path.parent.name))
    return pids


def kill_marked(mark: str) -> None:
    """SIGKILL until none is left; a process that was forked meanwhile is found in the next look."""
    limit = time.monotonic() + 10
    while living := marked(mark):
        assert time.monotonic() < limit, f"processes {living} cannot be killed"
        for pid in living:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
