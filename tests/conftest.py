"""Which tests watch the clock: `make test` runs them by themselves, after all others have run in three processes.

`make quick` leaves them out, and those that start ranks or take long.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# A shell starts its background jobs with SIGINT ignored, and nohup with SIGHUP, which every child would inherit: tests
# send them to theirs.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def subnormal_numbers() -> Iterator[None]:
    """A test that computes as ranks do leaves subnormal numbers to those behind it, as Hypothesis wants them."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)


ALONE = (
    "tests/envs/test_envs_processes.py",
    "tests/mpi/",
    "tests/run/test_launcher.py",
    "tests/run/test_run_faults.py",
    "tests/run/test_run_signals.py",
    "tests/slurm/test_real.py::test_alone",
)

# Mostly waits; started first, so that the others fill its pauses.
FIRST = "tests/slurm/test_real.py"

SLOW = (
    FIRST,
    "tests/analysis/",
    "tests/bench/",
    "tests/contract/test_devices.py",
    "tests/contract/test_layouts.py",
    "tests/contract/test_witness.py",
    "tests/docs/test_blocks.py",
    "tests/docs/test_read_back.py",
    "tests/fuzz/",
    "tests/package/",
    "tests/replay/test_resumed_replay.py",
    "tests/roles/test_actor_learner.py",
    "tests/roles/test_evaluator_rank.py",
    "tests/roles/test_parameter_server.py",
    "tests/roles/test_replay_ranks.py",
    "tests/run/test_restart.py",
    "tests/run/test_resumed_job.py",
    "tests/run/test_run_broken.py",
    "tests/run/test_run_locks.py",
    "tests/run/test_run_resume.py",
    "tests/run/test_run_train.py",
    "tests/run/test_user_package.py",
    "tests/slurm/test_limits.py",
    "tests/slurm/test_script.py",
    "tests/test_doctor.py",
)

# The file locks of a network file system without a lock service, for processes that are started with it preloaded.
_FLOCK = """
#include <errno.h>
#include <stdlib.h>
int flock(int descriptor, int operation) { errno = atoi(getenv("TEST_FLOCK_ERRNO")); return -1; }
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not item.nodeid.startswith(FIRST))
    for item in items:
        if item.nodeid.startswith(ALONE):
            item.add_marker("alone")
        if item.nodeid.startswith(SLOW):
            item.add_marker("slow")


@pytest.fixture(scope="session")
def flock_shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shared library whose flock always fails."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler here, so a file system without locks cannot be played")
    folder = tmp_path_factory.mktemp("flock")
    (folder / "flock.c").write_text(_FLOCK)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", "flock.so", "flock.c"], cwd=folder, check=True)
    return folder / "flock.so"


@pytest.fixture
def without_locks(flock_shim: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Call it with an errno: in every process started from then on, flock fails with it."""

    def from_now_on(number: int) -> None:
        monkeypatch.setenv("LD_PRELOAD", f"{flock_shim} {os.environ.get('LD_PRELOAD', '')}".strip())
        monkeypatch.setenv("TEST_FLOCK_ERRNO", str(number))

    return from_now_on


@pytest.fixture
def method_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of methods beside the package's; a method foo that is imported from there is forgotten again."""
    import hpc_rl.algorithms
    from hpc_rl import methods

    monkeypatch.setattr(methods, "FOLDER", tmp_path)
    monkeypatch.setattr(hpc_rl.algorithms, "__path__", [str(tmp_path), *hpc_rl.algorithms.__path__])
    yield tmp_path
    sys.modules.pop("hpc_rl.algorithms.foo", None)
