"""Which tests watch the clock: `make test` runs them by themselves, after all others have run in two processes."""

from __future__ import annotations

import pytest

ALONE = ("tests/bench/", "tests/mpi/", "tests/run/", "tests/slurm/test_real.py", "tests/envs/test_envs_processes.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.nodeid.startswith(ALONE):
            item.add_marker("alone")
