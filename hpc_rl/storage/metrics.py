"""Metrics as JSON lines, one writer per file, readable with any tool; on request as TensorBoard events, too."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpc_rl.storage.run_dir import plain
from hpc_rl.storage.untrusted import MOST_LINE_BYTES, Unreadable, appended, opened, parse_line, read_end, read_lines

CHIEFS = ("learner-0", "parameter_server-0", "worker-0")
"""Names that rank 0 may have, whose metrics are the whole run's; where servers learn, worker-0 is another rank."""
_FIELDS = {"step": int, "time": float, "env_steps": int}


class Metrics:
    """Appends to ``directory``/``name``.jsonl: {"step": …, "time": unix seconds, metric: value or null, "attempt": …}.

    "attempt_from" is ``begin``, the step at which this attempt went on: what earlier ones wrote beyond it was given up
    (see `counting`), and TensorBoard discards it.
    ``tensorboard`` also writes an event file below ``directory``/tensorboard/``name``/, or nothing where the package is
    not installed. Raises OSError, and Unreadable where something else has the file's name.
    """

    def __init__(self, directory: Path, name: str, tensorboard: bool = False, attempt: int = 0, begin: int = 0) -> None:
        self._attempt = {"attempt": attempt, "attempt_from": begin}
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"{name}.jsonl"
        torn = path.exists() and not _ends_with_newline(path)
        self._file = os.fdopen(appended(path), "a", encoding="utf-8")
        if torn:  # the attempt before died in mid-line; this one's line must not become part of it
            self._file.write("\n")
        self._events = _event_writer(directory / "tensorboard" / name) if tensorboard else None
        if self._events is not None and attempt:
            self._events.add_event(_start(begin + 1))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One line for this env step. "step", "time" and the attempt's names are taken: values are overwritten."""
        now = time.time()
        line = {str(name): plain(value) for name, value in values.items()} | {"step": int(step), "time": now}
        self._file.write(json.dumps(line | self._attempt, allow_nan=False) + "\n")
        self._file.flush()
        if self._events is not None:
            self._events.add_event(_event(int(step), now, line))

    def close(self) -> None:
        self._file.close()
        if self._events is not None:
            self._events.close()


def last(directory: Path) -> dict[str, dict[str, Any]]:
    """File name without suffix -> its last whole line, for every file that has one. Reads only the ends of files."""
    lines = {}
    for path in sorted(directory.glob("*.jsonl")):
        with contextlib.suppress(FileNotFoundError, Unreadable):
            lines[path.stem] = last_line(path)
    return {name: row for name, row in lines.items() if row is not None}


def rows(path: Path) -> list[dict[str, Any]]:
    """Every whole line of a file; torn ones are left out. Raises FileNotFoundError, Unreadable."""
    return [_figures(row) for row in read_lines(path, _FIELDS)]


def series(path: Path) -> list[dict[str, Any]]:
    """The lines that count, whose steps never go back. Raises FileNotFoundError, Unreadable."""
    lines = rows(path)
    return [row for row, counts in zip(lines, counting(lines), strict=True) if counts]


def counting(lines: list[dict[str, Any]]) -> list[bool]:
    """Which of a file's lines count: of earlier attempts those up to where every later one began."""
    counts, limit = [], math.inf
    attempt, begin = None, math.inf
    for row in reversed(lines):
        step, attempt_of_row = row.get("step"), row.get("attempt") or 0
        if step is None:
            counts.append(False)
            continue
        limit = limit if attempt_of_row == attempt else min(limit, begin)
        attempt, begin = attempt_of_row, row.get("attempt_from") or 0 if "attempt" in row else step
        counts.append(step <= limit)
        limit = min(limit, step)
    return counts[::-1]


def last_line(path: Path, window: int = 1 << 16) -> dict[str, Any] | None:
    """The last whole line of the file's last MiB, if there is one. Raises FileNotFoundError, Unreadable."""
    with opened(path) as file:
        size = file.seek(0, os.SEEK_END)
        while True:
            file.seek(max(0, size - window))
            lines = file.read(window).splitlines(keepends=True)
            newest_first = reversed(lines if window >= size else lines[1:])
            row = next((row for line in newest_first if (row := parse_line(line, _FIELDS)) is not None), None)
            if row is not None or window >= min(size, MOST_LINE_BYTES):
                return None if row is None else _figures(row)
            window *= 8


def rate(path: Path, attempt: int, span_s: float = 60.0) -> float | None:
    """Env steps per second over the last ``span_s`` seconds of this attempt; None before it has two lines.

    Raises FileNotFoundError, Unreadable.
    """
    lines = read_end(path, 1 << 16).encode().splitlines(keepends=True)
    recent = [
        row for row in (parse_line(line, _FIELDS) for line in lines) if row and {"time", "env_steps"} <= row.keys()
    ]
    first = last = None
    for row in reversed(recent):
        if row.get("attempt", attempt) != attempt or (last and last["time"] - row["time"] > span_s):
            break
        if first and row["env_steps"] > first["env_steps"]:  # of an attempt that had come further
            break
        first, last = row, last or row
    if first is None or last is None or last["time"] <= first["time"]:
        return None
    return float((last["env_steps"] - first["env_steps"]) / (last["time"] - first["time"]))


def _figures(row: dict[str, Any]) -> dict[str, Any]:
    """What of a line can be counted with: numbers, and null for those that were not finite."""
    return {name: value for name, value in row.items() if value is None or isinstance(value, int | float)}


def _ends_with_newline(path: Path) -> bool:
    with opened(path) as file:
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _event_writer(directory: Path) -> Any:
    try:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
    except ImportError:
        return None
    return EventFileWriter(str(directory))


def _start(step: int) -> Any:
    """What makes TensorBoard forget all points from ``step`` on: they belong to work that was lost."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog

    return Event(wall_time=time.time(), step=step, session_log=SessionLog(status=SessionLog.START))


def _event(step: int, now: float, line: Mapping[str, Any]) -> Any:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    values = [
        Summary.Value(tag=name, simple_value=math.nan if value is None else float(value))
        for name, value in line.items()
        if name not in ("step", "time") and (value is None or isinstance(value, int | float))
    ]
    return Event(wall_time=now, step=step, summary=Summary(value=values))
