"""Order of the files: those that mostly wait come first, so that two processes end together."""

from __future__ import annotations

import pytest

LONG = ("tests/slurm/test_real.py", "tests/run/test_run_faults.py", "tests/run/test_run_signals.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        file = item.nodeid.split("::")[0]
        return LONG.index(file) if file in LONG else len(LONG)

    items.sort(key=place)
