"""`hpc-rl logs -f` and `submit --wait`: report what a run prints, and how runs go, until they are over."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path

from hpc_rl.run_folders import check_present, single
from hpc_rl.status import OVER, TAIL_BYTES, Status, script_outputs, states
from hpc_rl.storage.run_dir import RunDir
from hpc_rl.storage.untrusted import MOST_LINE_BYTES, opened

QUERY_EVERY = 20  # looks at the files, one a second, for each query of SLURM
FIRST_S, LATER_S = 5.0, 60.0  # between looks of `status --watch` and `wait`, which grow
REPORT_S = 600.0  # `wait` reports at least so often


def wait(runs: Sequence[RunDir], report: Callable[[str], None], pause: Callable[[float], None] = time.sleep) -> int:
    """Report how these runs go until by run and SLURM all are over; 0 where all are done or stopped, else 1.

    It has no deadline, as a queue has none. Each change is reported, and what stays the same every ten minutes.
    Raises BadRun where a run's folder is removed.
    """
    reported: dict[str, str] = {}
    warned: set[str] = set()
    lines_before: list[Status] = []
    nap, silent = FIRST_S, 0.0

    def warn(text: str) -> None:
        if text not in warned:
            report(f"warning: {text}")
        warned.add(text)

    while True:
        check_present(runs)
        lines = states(runs, warn)
        for line in lines:
            word = f"{line.state}{f' as job {line.job}' if line.job else ''}"
            details = "; ".join(text for text in (line.waits, line.reason) if text)
            if reported.get(line.run) != word + details:
                report(f"{line.run}: {word}{f': {details}' if details else ''}")
                reported[line.run], silent = word + details, 0.0
        # lost twice in a row: between two states of a job there may be a moment in which SLURM knows neither
        if all(line.over and (line.state != "lost" or line in lines_before) for line in lines):
            return int(any(line.state not in ("done", "stopped") for line in lines))
        if silent >= REPORT_S:
            report(", ".join(f"{count} {state}" for state, count in Counter(line.state for line in lines).items()))
            silent = 0.0
        lines_before = lines
        pause(nap)
        silent, nap = silent + nap, min(LATER_S, nap * 1.5)


def tail(
    path: Path,
    follow: bool,
    pause: Callable[[float], None] = time.sleep,
    report: Callable[[str], None] = lambda text: None,
) -> Iterator[str]:
    """The newest lines of the batch script's latest output and of the ranks; with ``follow`` until the run is over.

    ``report`` gets what is no line of theirs: that the run waits, and for what.
    """
    run = single(path)
    at: dict[Path, int] = {}
    reported = ""
    looks = printed = 0
    while True:
        line = None
        check_present([run])
        if follow and (looks % QUERY_EVERY == 0 or run.read_state()["state"] in OVER):  # SLURM may have ended what runs
            (line,) = states([run], lambda text: None)
            if line.waits and line.waits != reported:
                report(_waiting(line))
                reported = line.waits
        for file in filter(Path.exists, (*_followed_outputs(run, at), run.logs / "ranks.log")):
            lines, at[file] = _fresh(file, at.get(file, _near_the_end(file) if looks == 0 else 0))
            yield from lines
            printed += len(lines)
        if not follow or (line is not None and line.over):
            break
        looks += 1
        pause(1.0)
    if not printed:
        report(_waiting(*states([run], lambda text: None)))


def _waiting(line: Status) -> str:
    if not line.waits:
        return f"{line.run} is {line.state}, and has printed nothing" + (f"; {line.reason}" if line.reason else "")
    start = f"; it starts about {line.start}" if line.start else ""
    return f"{line.run} is {line.state}: job {line.job} waits: {line.waits}{start}"


def _followed_outputs(run: RunDir, files: Container[Path]) -> list[Path]:
    """The script's outputs that are followed; at first the latest alone."""
    scripts = script_outputs(run)
    return [file for file in scripts if file in files or file == scripts[-1]]


def _near_the_end(file: Path) -> int:
    """Where the last TAIL_BYTES begin, at the beginning of a line."""
    with opened(file) as stream:
        stream.seek(max(0, stream.seek(0, os.SEEK_END) - TAIL_BYTES - 1))
        if stream.tell():
            stream.readline()
        return stream.tell()


def _fresh(file: Path, at: int) -> tuple[list[str], int]:
    with opened(file) as stream:
        stream.seek(at)
        data = stream.read(MOST_LINE_BYTES)
    text = data if len(data) == MOST_LINE_BYTES else data[: data.rfind(b"\n") + 1]
    return text.decode(errors="replace").splitlines(), at + len(text)
