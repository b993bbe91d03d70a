"""A rank that fails ends all others, whatever else goes wrong on the way. Seen to fail: each part left unguarded."""

from __future__ import annotations

import io
import json
import signal
import sys
import types
from pathlib import Path

import pytest

import hpc_rl.transport
from hpc_rl import failure
from hpc_rl.storage.run_dir import BadRun


class FullDisk(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")

    def flush(self) -> None:
        raise OSError(28, "No space left on device")


class Unprintable(Exception):
    def __str__(self) -> str:
        raise KeyError("message")


class Left(BaseException):
    """In place of the end of the process."""


@pytest.fixture
def aborted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[int]:
    """The codes that MPI's abort was called with, by a rank of three in ``tmp_path``."""
    codes: list[int] = []
    mpi = types.ModuleType("mpi")
    mpi.abort = codes.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "hpc_rl.transport.mpi", mpi)
    monkeypatch.setattr(hpc_rl.transport, "mpi", mpi, raising=False)
    monkeypatch.setattr(sys, "argv", ["run", str(tmp_path), "3"])
    monkeypatch.setattr(signal, "alarm", lambda seconds: None)

    def leave(code: int) -> None:
        raise Left(code)

    monkeypatch.setattr(failure.os, "_exit", leave)
    (tmp_path / "logs").mkdir()
    return codes


def fail(folder: Path, error: BaseException) -> dict[str, object]:
    before = signal.getsignal(signal.SIGALRM)
    try:
        with pytest.raises(Left):
            failure.end_all(folder, 1, error)
    finally:
        signal.signal(signal.SIGALRM, before)
    path = folder / "logs" / "rank-001.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def test_a_full_disk_does_not_keep_the_others(
    aborted: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen by reading: flushing stdout on a full disk raised before the abort, and the others waited for us."""
    monkeypatch.setattr(sys, "stdout", FullDisk())
    monkeypatch.setattr(sys, "stderr", FullDisk())
    fail(tmp_path, OSError(28, "No space left on device"))
    assert aborted == [1]


def test_an_exception_without_a_text(aborted: list[int], tmp_path: Path) -> None:
    noted = fail(tmp_path, Unprintable())
    assert aborted == [1] and noted["error"] == "Unprintable: (its text cannot be had: KeyError)" and noted["bug"]


def test_a_torn_note_of_before(aborted: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "logs" / "rank-001.json").write_text('{"pid": 7, "ro')
    noted = fail(tmp_path, BadRun("the run is gone"))
    assert aborted == [1] and noted["error"] == "the run is gone" and not noted["bug"]
    assert capsys.readouterr().err == "rank 1: the run is gone\n"


def test_a_run_directory_that_is_gone(aborted: list[int], tmp_path: Path) -> None:
    fail(tmp_path / "gone", RuntimeError("and so is its log"))
    assert aborted == [1]
