"""What killed ranks leave in /dev/shm is removed by the next ones. Mutations seen to fail: looks at maps and age."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpc_rl.launchers import shared_memory


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """In place of /dev/shm, where files of other tests lie."""
    monkeypatch.setattr(shared_memory, "SHARED", tmp_path)
    monkeypatch.setattr(shared_memory, "_unmapped", lambda paths: {p for p in paths if "mapped" not in p.name})
    yield tmp_path


def leave(folder: Path, name: str, age_s: float = 60.0) -> Path:
    path = folder / name
    path.write_bytes(b"x" * 4096)
    os.utime(path, (time.time() - age_s, time.time() - age_s))
    return path


def test_leftovers_of_killed_ranks_go_and_nothing_else(folder: Path) -> None:
    gone = [leave(folder, "mpich_shm_1f_0"), leave(folder, "hpc_rl-7-0-99-0")]
    stay = [leave(folder, name) for name in ("mpich_shm_mapped", "somebody", "psm_1a2b3c")]
    stay.append(leave(folder, "mpich_shm_2_0", 0.0))
    shared_memory.clear()
    assert not any(path.exists() for path in gone) and all(path.exists() for path in stay)


def test_a_file_of_another_user_stays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = leave(folder, "mpich_shm_1f_0")
    monkeypatch.setattr(shared_memory.os, "getuid", lambda: os.stat(path).st_uid + 1)
    shared_memory.clear()
    assert path.exists()


def test_what_a_process_maps_is_known() -> None:
    path = Path(f"/dev/shm/mpich_test_{os.getpid()}")
    path.write_bytes(b"x" * 4096)
    try:
        assert shared_memory._unmapped({path}) == {path}
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 0):
            assert shared_memory._unmapped({path}) == set()
    finally:
        path.unlink()
