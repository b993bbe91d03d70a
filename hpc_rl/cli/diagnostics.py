"""What the commands write to stderr: notes, warnings, errors. Results go to stdout by click.echo."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from hpc_rl.doctor import Check


def note(text: str) -> None:
    """To stderr. Where no reader is left (a closed terminal, a pipe whose reader ended), nothing changes."""
    with suppress(OSError):
        click.echo(text, err=True)


def warn(text: str) -> None:
    note(f"warning: {text}")


def report_checks(checks: Iterable[Check]) -> int:
    """One line per check on stdout as it comes; exit code 1 if any failed."""
    failures = False
    for check in checks:
        mark = {True: "ok  ", False: "FAIL", None: "note"}[check.ok]
        click.echo(f"{mark} {check.name}: {check.text}")
        failures |= check.ok is False
    return int(failures)


def open_closed_streams() -> None:
    """Where the shell has closed stdout or stderr (>&-), a file that is opened later would take its place."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115


def flush_streams() -> None:
    """Before Python ends: what stdout and stderr cannot get rid of any more must not become the exit code."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
