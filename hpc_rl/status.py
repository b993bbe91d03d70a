"""`hpc-rl status` and `logs`: what a run says of itself, then what SLURM knows: one query for all runs."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hpc_rl.launchers import slurm
from hpc_rl.launchers.batch import job_ids
from hpc_rl.launchers.slurm import Seen
from hpc_rl.storage.metrics import CHIEFS, last_line
from hpc_rl.storage.run_dir import BadRun, RunDir
from hpc_rl.storage.untrusted import MOST_LINE_BYTES, Unreadable, opened, printable, read_end, read_lines

OVER = ("stopped", "done", "failed", "lost", "unreadable")
TAIL_BYTES = 4096
_TASK = {"run": str, "changes": list[str]}
ASK_EVERY = 20  # looks at the files, one a second, for each question to SLURM


@dataclass(frozen=True)
class Status:
    """One line. ``state`` is the run's own word, or lost: SLURM ended the job and nobody could write down why.

    ``changes`` are what tells this task of an array from the others; ``mean_return`` is that of the last 100 episodes.
    """

    run: str
    changes: str
    state: str
    job: str
    slurm: str
    env_steps: int
    mean_return: float | None
    attempt: int
    start: str
    reason: str


def runs(paths: Sequence[Path]) -> list[RunDir]:
    """The runs of these folders; an array's folder, or a folder of runs and arrays, stands for all. Raises BadRun."""
    found: list[RunDir] = []
    for path in paths:
        if (path / "job.toml").is_file():
            found.append(RunDir(path))
            continue
        below = sorted(p.parent for depth in ("*", "*/*") for p in path.glob(f"{depth}/job.toml"))
        if not below:
            raise BadRun(f"{path} holds no run and no runs; `hpc-rl submit JOB --out DIR` makes one")
        found += [RunDir(p) for p in below]
    return found


def single(path: Path) -> RunDir:
    """The one run of this folder. Raises BadRun, naming one of several."""
    if (path / "job.toml").is_file():
        return RunDir(path)
    found = runs([path])
    raise BadRun(f"{path} holds {len(found)} run(s); name one, like {found[0].path}")


def status(paths: Sequence[Path], warn: Callable[[str], None]) -> list[Status]:
    """State of every run; where SLURM does not answer, ``warn`` hears it and the runs' own word stands. Raises BadRun.

    A chain has two jobs of interest, its waiting successor and the one that runs.
    """
    found = runs(paths)
    ids = {run.path: job_ids(run)[-2:] for run in found}
    try:
        seen, known = slurm.look([job for jobs in ids.values() for job in jobs]), slurm.here()
    except slurm.SlurmError as error:
        warn(f"{error}; what SLURM knows is left out")
        seen, known = {}, False
    return [_line(run, [seen[job] for job in ids[run.path] if job in seen], ids[run.path], known) for run in found]


def render(lines: Sequence[Status]) -> str:
    """A table; below a row what it changes and why it is so, which may be long."""
    rows = [("run", "state", "job", "slurm", "env steps", "return", "attempt")]
    notes = [""]
    for line in lines:
        mean = "–" if line.mean_return is None else f"{line.mean_return:.2f}"
        rows.append((line.run, line.state, line.job, line.slurm, f"{line.env_steps:,}", mean, str(line.attempt)))
        start = f"starts about {line.start}" if line.start and line.slurm == "PENDING" else ""
        notes.append("; ".join(text for text in (line.changes, start, line.reason) if text))
    widths = [max(len(row[k]) for row in rows) for k in range(7)]
    text = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    both = zip(map(printable, text), map(printable, notes), strict=True)
    return "\n".join(row + (f"\n    {note}" if note else "") for row, note in both)


def as_json(lines: Sequence[Status]) -> str:
    return json.dumps([asdict(line) for line in lines], indent=1)


def tail(path: Path, follow: bool, pause: Callable[[float], None] = time.sleep) -> Iterator[str]:
    """The newest lines of the batch script's latest output and of the ranks; with ``follow`` until the run is over."""
    run = single(path)
    at: dict[Path, int] = {}
    asked = False
    looks = 0
    while True:
        state = run.read_state()["state"]
        if follow and looks % ASK_EVERY == 0 and state not in OVER:  # SLURM may have ended what still says running
            asked = status([path], lambda text: None)[0].state in OVER
        over = asked or state in OVER
        for file in filter(Path.exists, (*_talking(run, at), run.logs / "ranks.log")):
            lines, at[file] = _fresh(file, at.get(file, _near_the_end(file) if looks == 0 else 0))
            yield from lines
        if not follow or over:
            return
        looks += 1
        pause(1.0)


def _talking(run: RunDir, known: Container[Path]) -> list[Path]:
    """The script's outputs that are followed; at first the latest alone."""
    scripts = sorted(run.logs.glob("slurm-*.out"), key=lambda file: file.stat().st_mtime)
    return [file for file in scripts if file in known or file == scripts[-1]]


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
    whole = data if len(data) == MOST_LINE_BYTES else data[: data.rfind(b"\n") + 1]
    return whole.decode(errors="replace").splitlines(), at + len(whole)


def _line(run: RunDir, seen: Sequence[Seen], ids: Sequence[str], known: bool) -> Status:
    try:
        state = run.read_state()
    except BadRun as error:  # one such run among many
        return Status(str(run.path), "", "unreadable", ids[-1] if ids else "", "", 0, None, 0, "", str(error))
    active = [item for item in seen if item.active]
    candidates = active or list(seen)
    shown = next((item for item in active if item.state != "PENDING"), candidates[-1] if candidates else None)
    word, reason = state["state"], state["reason"]
    if word in ("running", "pending") and ids and not active and known:
        said = f"SLURM ended job {shown.job}: {shown.state}" if shown else f"SLURM no longer knows job {ids[-1]}"
        word = "stopped" if shown and shown.state == "CANCELLED" else "lost"  # by scancel, which the run cannot see
        reason = f"{said}{_last_words(run)}; go on with hpc-rl resume {run.path}"
    elif word == "stopped" and shown is not None and shown.state == "CANCELLED":  # it saw scancel's signal and saved
        reason = f"{reason}; go on with hpc-rl resume {run.path}"
    elif not reason and shown is not None and shown.active:
        reason = shown.reason
    live, changes = _live(run), _tasks(run.path.parent).get(run.path.name, "")
    done = max(state["env_steps"], live.get("env_steps", 0)) if word == "running" else state["env_steps"]
    return Status(
        str(run.path), changes, word, shown.job if shown else (ids[-1] if ids else ""),
        shown.state if shown else "", done, live.get("mean_return_100"), state["attempt"],
        shown.start if shown else "", reason,
    )  # fmt: skip


def _live(run: RunDir) -> dict[str, Any]:
    """Rank 0's newest metrics, which are younger than the last checkpoint."""
    files = (run.metrics / f"{name}.jsonl" for name in CHIEFS)
    with contextlib.suppress(FileNotFoundError, Unreadable):
        return next((last_line(file) or {} for file in files if file.exists()), {})
    return {}


@cache
def _tasks(folder: Path) -> dict[str, str]:
    """Run -> what it changes, of an array's folder; of any other folder nothing."""
    try:
        tasks = list(read_lines(folder / "submit" / "tasks.jsonl", _TASK, needed=_TASK))
    except (FileNotFoundError, Unreadable):
        return {}
    return {task["run"]: " ".join(task["changes"]) for task in tasks}


def _last_words(run: RunDir) -> str:
    """The end of the batch script's output: there a shell says what it could not find."""
    scripts = _talking(run, ())
    lines: list[str] = []
    with contextlib.suppress(FileNotFoundError, Unreadable):
        lines = read_end(scripts[-1], TAIL_BYTES).split("\n") if scripts else []
    said = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f" after it said: {said[:160]}" if said else ""
