from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(path)], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip("mounting a small tmpfs is not permitted here, so a full disk cannot be made")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)
