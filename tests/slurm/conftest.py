"""Faked SLURM commands for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.slurm.fake import COMMANDS, answer


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of fake commands, first on PATH; their calls are lines of `calls`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    for name, text in COMMANDS.items():
        answer(folder, name, text)
    return folder
