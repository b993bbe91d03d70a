"""Which tests watch the clock: `make test` runs them by themselves, after all others have run in two processes."""

from __future__ import annotations

import pytest

ALONE = (
    "tests/envs/test_envs_processes.py",
    "tests/mpi/",
    "tests/run/test_run_faults.py",
    "tests/run/test_run_resume.py",
    "tests/run/test_run_signals.py",
    "tests/slurm/test_real.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.nodeid.startswith(ALONE):
            item.add_marker("alone")
