"""What killed ranks leave in /dev/shm is removed by the next ones, and nothing that is anybody else's or in use.

Mutations seen to fail: the looks at owner, age, name and lease, each left out.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hpc_rl.launchers import shared_memory
from hpc_rl.launchers.leftovers import clean_up
from hpc_rl.storage.run_dir import RunDir, create


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """In place of /dev/shm itself, where files of other tests lie."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        monkeypatch.setattr(shared_memory, "SHARED", Path(name))
        monkeypatch.setattr(shared_memory, "_GONE_S", 0.1)
        yield Path(name)


def leave(folder: Path, name: str, age_s: float = 60.0) -> Path:
    path = folder / name
    path.write_bytes(b"x" * 4096)
    os.utime(path, (time.time() - age_s, time.time() - age_s))
    return path


def test_leftovers_of_killed_ranks_go_and_nothing_else(folder: Path) -> None:
    gone = [leave(folder, "mpich_shm_1f_0"), leave(folder, "hpc_rl-7-0-99-0")]
    stay = [leave(folder, name) for name in ("somebody", "psm_1a2b3c")]
    stay.append(leave(folder, "mpich_shm_2_0", 0.0))
    with leave(folder, "mpich_shm_mapped").open("r+b") as file:
        mapped = mmap.mmap(file.fileno(), 0)
    shared_memory.clear()
    assert not any(path.exists() for path in gone) and all(path.exists() for path in stay)
    assert (folder / "mpich_shm_mapped").exists()
    mapped.close()
    shared_memory.clear()
    assert not (folder / "mpich_shm_mapped").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file of another user")
def test_a_file_of_another_user_stays(folder: Path) -> None:
    paths = {leave(folder, "mpich_shm_1f_0"), leave(folder, "hpc_rl-token-0")}
    for path in paths:
        os.chown(path, 12345, 12345)
    shared_memory.clear()
    shared_memory.remove({"token"}, map(str, paths), paths)
    assert all(path.exists() for path in paths)


def test_a_file_that_cannot_be_removed_changes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen: the clean-up after a good run met another user's file, and the run ended with exit code 2."""
    path = leave(folder, "mpich_shm_1f_0")

    def refuse(self: Path, missing_ok: bool = False) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted", str(self))

    monkeypatch.setattr(Path, "unlink", refuse)
    shared_memory.remove({"token"}, [str(path)], {path})
    shared_memory.clear()
    assert path.exists()


def test_only_files_of_ranks_are_taken_from_what_a_record_names(folder: Path, tmp_path: Path) -> None:
    outside, odd = leave(tmp_path, "mpich_shm_9"), leave(folder, "notes.txt")
    fifo, link = folder / "mpich_shm_fifo", folder / "mpich_shm_link"
    os.mkfifo(fifo)
    link.symlink_to(outside)
    names = [str(outside), str(odd), f"{folder}/../{tmp_path.name}/mpich_shm_9", str(fifo), str(link), "mpich_shm_9"]
    shared_memory.remove(set(), names, {fifo, link, odd})
    assert all(path.exists() for path in (outside, odd, fifo, link))


def test_no_token_takes_nobodys_weights(folder: Path) -> None:
    path = leave(folder, "hpc_rl--0")
    shared_memory.remove({""}, [], ())
    assert path.exists()


HOLD = """
import mmap, sys, time
with open(sys.argv[1], "r+b") as file:
    mapped = mmap.mmap(file.fileno(), 0)
print("mapped", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(shutil.which("unshare") is None or os.geteuid() != 0, reason="needs unshare and root")
def test_what_a_process_of_another_container_maps_stays(folder: Path) -> None:
    """The one who cleans up sits in a process table of its own and cannot see who maps the file; /dev/shm is shared."""
    path = leave(folder, "mpich_shm_1f_0")
    code = (
        "import os, pathlib; from hpc_rl.launchers import shared_memory\n"
        f"assert len(list(pathlib.Path('/proc').glob('[0-9]*'))) < 5\n"
        f"shared_memory.SHARED = pathlib.Path({str(folder)!r})\nshared_memory.clear()\n"
        f"shared_memory.remove(set(), [{str(path)!r}], [pathlib.Path({str(path)!r})])"
    )
    clean = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", code]
    if subprocess.run([*clean[:4], "true"], capture_output=True, check=False).returncode:
        pytest.skip("a process table of its own is not permitted here")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None and holder.stdout.readline() == "mapped\n"
    try:
        subprocess.run(clean, check=True, timeout=60)
        assert path.exists()
    finally:
        holder.communicate("")
    subprocess.run(clean, check=True, timeout=60)
    assert not path.exists()


def test_without_leases_the_process_table_decides(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = fcntl.fcntl

    def refuse(handle: int, order: int, *more: object) -> object:
        if order == fcntl.F_SETLEASE:
            raise OSError(errno.EINVAL, "no leases here")
        return real(handle, order, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    path = leave(folder, "mpich_shm_1f_0")
    monkeypatch.setattr(shared_memory.os, "readlink", lambda path: "pid:[17]")  # a container: others may be hidden
    shared_memory.clear()
    assert path.exists()
    monkeypatch.setattr(shared_memory.os, "readlink", lambda path: shared_memory._INITIAL_PIDS)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0):
        shared_memory.clear()
        assert path.exists()
    shared_memory.clear()
    assert not path.exists()


def test_without_dev_shm_nothing_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shared_memory, "SHARED", tmp_path / "absent")
    assert shared_memory.present() == set()
    shared_memory.clear()
    shared_memory.remove({"token"}, [], ())


def test_the_clean_up_of_a_run_survives_what_it_cannot_remove(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run: RunDir = create(tmp_path / "run", "")
    part = run.trajectories / "a0-worker-0" / "segment-000000.h5.tmp"
    part.parent.mkdir()
    part.touch()

    def refuse(self: Path, missing_ok: bool = False) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        clean_up({"token"}, set(), run)
    assert part.exists()
    clean_up({"token"}, set(), run)
    assert not part.exists()
