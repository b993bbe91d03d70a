"""A test that gives up leaves nothing at work. Seen to fail: only the command killed, only its process group."""

from __future__ import annotations

import secrets
import subprocess
import sys

import pytest

from tests.run import starting
from tests.run.starting import marked, run_to_end

LEAVES_ONE = "import subprocess; subprocess.Popen(['sleep', '60'], start_new_session=True).wait()"


def test_at_the_limit_a_child_in_a_session_of_its_own_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    mark = secrets.token_hex(8)
    monkeypatch.setattr(starting.secrets, "token_hex", lambda size: mark)
    with pytest.raises(subprocess.TimeoutExpired):
        run_to_end([sys.executable, "-c", LEAVES_ONE], 1.0)
    assert marked(mark) == []


def test_a_command_that_ends_gives_its_output() -> None:
    result = run_to_end([sys.executable, "-c", f"import os; print({starting.MARK!r} in os.environ)"], 20.0)
    assert (result.returncode, result.stdout) == (0, "True\n")
