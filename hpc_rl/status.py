"""`hpc-rl status`, `logs` and `submit --wait`: what a run says of itself, then what SLURM knows: one query for all."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

from hpc_rl import job as jobs
from hpc_rl.launchers import causes, reasons, slurm
from hpc_rl.launchers.batch import job_ids
from hpc_rl.launchers.slurm import Seen
from hpc_rl.storage.metrics import CHIEFS, last_line, rate
from hpc_rl.storage.run_dir import BadRun, RunDir
from hpc_rl.storage.untrusted import MOST_LINE_BYTES, Unreadable, opened, printable, read_end, read_lines

RUNS = Path("runs")  # where commands that make a run put it, and `status` looks
OVER = ("stopped", "done", "failed", "lost", "unreadable")
TAIL_BYTES = 4096
ASK_EVERY = 20  # looks at the files, one a second, for each question to SLURM
FIRST_S, LATER_S = 5.0, 60.0  # between looks of `watch` and `wait`, which grow
REPORT_S = 600.0  # `wait` reports at least so often
_TASK = {"run": str, "changes": list[str]}
_JOB = re.compile(r"[0-9]+(_[0-9]+)?")


@dataclass(frozen=True)
class Status:
    """One line. ``state`` is the run's own word, or lost: SLURM ended the job and nobody could write down why.

    ``changes`` are what tells this task of an array from the others; ``mean_return`` is that of the last 100 episodes;
    ``waits`` is SLURM's reason in plain words; ``elapsed_s`` and ``left_s`` are of this start of its job; ``end`` is
    when the budget would be used at the present rate. ``over``: run and SLURM agree that nothing goes on. ``cause`` is
    why the latest attempt ended, in a word or two, ``next`` the command that goes on with the run.
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
    waits: str = ""
    elapsed_s: int | None = None
    left_s: int | None = None
    nodes: str = ""
    env_steps_per_s: float | None = None
    end: str = ""
    over: bool = False
    cause: str = ""
    next: str = ""


def runs(paths: Sequence[Path]) -> list[RunDir]:
    """The runs of these folders; an array's folder, or a folder of runs and arrays, stands for all; a job's id for its
    own. Raises BadRun, SlurmError.
    """
    found: list[RunDir] = []
    for path in paths:
        if _JOB.fullmatch(str(path)) and not path.exists():
            found += _of_job(str(path))
        elif (path / "job.toml").is_file():
            found.append(RunDir(path))
        elif below := _below(path):
            found += below
        else:
            raise BadRun(f"{path} holds no run and no runs; `hpc-rl submit JOB --out DIR` makes one")
    return found


def _below(path: Path) -> list[RunDir]:
    return [RunDir(p) for p in sorted(p.parent for depth in ("*", "*/*") for p in path.glob(f"{depth}/job.toml"))]


def _of_job(job: str) -> list[RunDir]:
    """The runs of a SLURM job, or of all tasks of an array: among ./runs, else where SLURM has its script from."""
    script = Path(slurm.script_of(job) or "/")
    for known in (_below(RUNS), [RunDir(script.parents[1]), *_below(script.parents[1])] if script.name else []):
        if found := [run for run in known if any(re.fullmatch(rf"{job}(_\d+)?", one) for one in job_ids(run))]:
            return found
    raise BadRun(f"job {job} belongs to no run below {RUNS}, and SLURM does not know where it is; name its folder")


def single(path: Path) -> RunDir:
    """The one run of this folder, or of a job's id. Raises BadRun, naming one of several."""
    if (path / "job.toml").is_file():
        return RunDir(path)
    found = runs([path])
    if len(found) == 1 and not path.exists():
        return found[0]
    raise BadRun(f"{path} holds {len(found)} run(s); name one, like {found[0].path}")


def status(paths: Sequence[Path], warn: Callable[[str], None]) -> list[Status]:
    """`states` of all runs of these folders or jobs. Raises BadRun."""
    return states(runs(paths), warn)


def states(found: Sequence[RunDir], warn: Callable[[str], None]) -> list[Status]:
    """State of every run; where SLURM does not answer, ``warn`` gets that and the runs' own word stands.

    A chain has two jobs of interest, its waiting successor and the one that runs.
    """
    ids = {run.path: job_ids(run)[-2:] for run in found}
    seen, known = look_up([job for jobs in ids.values() for job in jobs], warn)
    return [_line(run, [seen[job] for job in ids[run.path] if job in seen], ids[run.path], known) for run in found]


def look_up(ids: Sequence[str], warn: Callable[[str], None]) -> tuple[Mapping[str, Seen], bool | None]:
    """What SLURM knows, and whether it was asked: False without SLURM, None where it did not answer."""
    try:
        return slurm.look(ids), slurm.here()
    except slurm.SlurmError as error:
        warn(f"{error}; what SLURM knows is left out")
        return {}, None


def render(lines: Sequence[Status]) -> str:
    """A table without its empty columns; below a row what it changes and why it is so, which may be long."""
    rows = [("run", "state", "job", "slurm", "elapsed", "left", "nodes", "env steps", "/s", "end", "return", "attempt")]
    notes = [""]
    for line in lines:
        mean = "–" if line.mean_return is None else f"{line.mean_return:.2f}"
        speed = "" if line.env_steps_per_s is None else f"{line.env_steps_per_s:,.0f}"
        times = (_clock(line.elapsed_s), _clock(line.left_s), line.nodes)
        rows.append((line.run, line.state, line.job, line.slurm, *times, f"{line.env_steps:,}", speed, line.end, mean,
                     str(line.attempt)))  # fmt: skip
        start = f"starts about {line.start}" if line.start and line.slurm == "PENDING" else ""
        waits = f"waits: {line.waits}" if line.waits else ""
        notes.append("; ".join(text for text in (line.changes, waits, start, line.reason) if text))
    shown = [k for k, title in enumerate(rows[0]) if len(rows) == 1 or any(row[k] for row in rows[1:])]
    widths = [max(len(row[k]) for row in rows) for k in shown]
    text = ["  ".join(row[k].ljust(w) for k, w in zip(shown, widths, strict=True)).rstrip() for row in rows]
    both = zip(map(printable, text), map(printable, notes), strict=True)
    return "\n".join(row + (f"\n    {note}" if note else "") for row, note in both)


def as_json(lines: Sequence[Status]) -> str:
    return json.dumps([asdict(line) for line in lines], indent=1)


def wait(found: Sequence[RunDir], say: Callable[[str], None], pause: Callable[[float], None] = time.sleep) -> int:
    """Report how these runs go until run and SLURM say that all are over; 0 where all are done or stopped, else 1.

    It has no deadline, as a queue has none. Each change is reported, and what stays the same every ten minutes.
    Raises BadRun where a run's folder is removed.
    """
    told: dict[str, str] = {}
    warned: set[str] = set()
    before: list[Status] = []
    nap, silent = FIRST_S, 0.0

    def warn(text: str) -> None:
        if text not in warned:
            say(f"warning: {text}")
        warned.add(text)

    while True:
        _there(found)
        lines = states(found, warn)
        for line in lines:
            word = f"{line.state}{f' as job {line.job}' if line.job else ''}"
            details = "; ".join(text for text in (line.waits, line.reason) if text)
            if told.get(line.run) != word + details:
                say(f"{line.run}: {word}{f': {details}' if details else ''}")
                told[line.run], silent = word + details, 0.0
        # lost twice in a row: between two states of a job there may be a moment in which SLURM knows neither
        if all(line.over and (line.state != "lost" or line in before) for line in lines):
            return int(any(line.state not in ("done", "stopped") for line in lines))
        if silent >= REPORT_S:
            say(", ".join(f"{count} {state}" for state, count in Counter(line.state for line in lines).items()))
            silent = 0.0
        before = lines
        pause(nap)
        silent, nap = silent + nap, min(LATER_S, nap * 1.5)


def tail(
    path: Path,
    follow: bool,
    pause: Callable[[float], None] = time.sleep,
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[str]:
    """The newest lines of the batch script's latest output and of the ranks; with ``follow`` until the run is over.

    ``say`` gets what is no line of theirs: that the run waits, and for what.
    """
    run = single(path)
    at: dict[Path, int] = {}
    told = ""
    looks = printed = 0
    while True:
        line = None
        _there([run])
        if follow and (looks % ASK_EVERY == 0 or run.read_state()["state"] in OVER):  # SLURM may have ended what runs
            (line,) = states([run], lambda text: None)
            if line.waits and line.waits != told:
                say(_waiting(line))
                told = line.waits
        for file in filter(Path.exists, (*_talking(run, at), run.logs / "ranks.log")):
            lines, at[file] = _fresh(file, at.get(file, _near_the_end(file) if looks == 0 else 0))
            yield from lines
            printed += len(lines)
        if not follow or (line is not None and line.over):
            break
        looks += 1
        pause(1.0)
    if not printed:
        say(_waiting(*states([run], lambda text: None)))


def _there(found: Sequence[RunDir]) -> None:
    """Raises BadRun where a run's folder is gone: nobody would ever write down its end."""
    for run in found:
        if not run.job_file.is_file():
            raise BadRun(f"{run.path} holds no run any more: somebody removed or moved it, so its end cannot be seen")


def _waiting(line: Status) -> str:
    if not line.waits:
        return f"{line.run} is {line.state}, and has printed nothing" + (f"; {line.reason}" if line.reason else "")
    start = f"; it starts about {line.start}" if line.start else ""
    return f"{line.run} is {line.state}: job {line.job} waits: {line.waits}{start}"


def _talking(run: RunDir, known: Container[Path]) -> list[Path]:
    """The script's outputs that are followed; at first the latest alone."""
    scripts = sorted(run.logs.glob("slurm-*.out"), key=lambda file: file.lstat().st_mtime)
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


def _line(run: RunDir, seen: Sequence[Seen], ids: Sequence[str], known: bool | None) -> Status:
    try:
        state = run.read_state()
    except BadRun as error:  # one such run among many
        return Status(
            str(run.path), "", "unreadable", ids[-1] if ids else "", "", 0, None, 0, "", str(error), over=True
        )
    active = [item for item in seen if item.active]
    candidates = active or list(seen)
    shown = next(
        (item for item in active if item.state != "PENDING"), candidates[-1] if candidates else Seen("", "", False)
    )
    word, reason, cause, command = _why(run, state, shown, bool(ids and not active and known), ids)
    live, changes = _live(run, state["attempt"]), _tasks(run.path.parent).get(run.path.name, "")
    done = max(state["env_steps"], int(live.get("env_steps") or 0)) if word == "running" else state["env_steps"]
    waiting, at_work = shown.state == "PENDING", shown.active and shown.state != "PENDING"
    speed = _rate(run, state["attempt"]) if word == "running" else None
    return Status(
        str(run.path), changes, word, shown.job or (ids[-1] if ids else ""), shown.state, done,
        live.get("mean_return_100"), state["attempt"], shown.start, reason,
        waits=reasons.plain(shown.reason) if waiting and shown.reason else "",
        elapsed_s=shown.elapsed_s if at_work else None,
        left_s=shown.left_s if at_work else None,
        nodes=shown.nodes if at_work else "",
        env_steps_per_s=speed,
        end=_end(run, done, speed, shown.elapsed_s or 0),
        # the ranks of a job that is about to be requeued have stopped already, so their word alone is not enough
        over=word in OVER and not active and (known is not None or word == "done" or not ids),
        cause=cause,
        next=command,
    )  # fmt: skip


def _why(run: RunDir, state: dict[str, Any], shown: Seen, gone: bool, ids: Sequence[str]) -> tuple[str, str, str, str]:
    """(state, reason, cause, next command): the run's own, or what SLURM knows where nobody could write it down."""
    word, reason, cause, command = state["state"], state["reason"], state["cause"], causes.pasted(state["next"])
    if word in ("running", "pending") and gone:
        word = "stopped" if shown.state == "CANCELLED" else "lost"  # by scancel, which the run cannot see
        cause = causes.of_state(shown.state) if shown.job else "unknown"
        reason = f"{_ended(shown) if shown.job else f'SLURM no longer knows job {ids[-1]}'}{_last_words(run)}"
        command = causes.saved_too_late(run) if shown.state == "TIMEOUT" else causes.go_on(run, cause)
    elif word == "running" and shown.state == "PENDING":
        word, cause = "pending", "node lost"
        reason = f"SLURM requeued job {shown.job}: its node was lost, or its script was killed"
    elif word == "stopped" and not cause and shown.state in slurm.ENDED[1:]:
        # its ranks saved in time, but its script was killed before it had found out why
        cause, reason = causes.of_state(shown.state), f"{reason}: {_ended(shown)}"
        command = causes.go_on(run, cause)
    if word in ("stopped", "failed", "lost") and command:
        reason = f"{reason}; go on with {command}"
    return word, reason, cause, command


def _ended(job: Seen) -> str:
    by = re.search(r"by (\d+)", job.reason)
    return f"SLURM ended job {job.job}: {job.state}" + (f" by {causes.user(int(by[1]))}" if by else "")


def _live(run: RunDir, attempt: int) -> dict[str, Any]:
    """Rank 0's newest metrics, which are younger than the last checkpoint.

    Of an attempt before this one they are no env steps: what lies beyond the checkpoint was given up.
    """
    with contextlib.suppress(FileNotFoundError, Unreadable):
        file = _metrics(run)
        row = last_line(file) or {} if file else {}
        return row if row.get("attempt", attempt) == attempt else {**row, "env_steps": None}
    return {}


def _metrics(run: RunDir) -> Path | None:
    files = (run.metrics / f"{name}.jsonl" for name in CHIEFS)
    return next((file for file in files if file.exists()), None)


def _rate(run: RunDir, attempt: int) -> float | None:
    """Env steps per second over the last minute of this attempt; None where that is not known yet."""
    with contextlib.suppress(FileNotFoundError, Unreadable):
        file = _metrics(run)
        return rate(file, attempt) if file else None
    return None


def _end(run: RunDir, env_steps: int, speed: float | None, elapsed_s: int) -> str:
    """When the budget is used at this rate, as SLURM writes times, to the minute."""
    if not speed:
        return ""
    try:
        budget = jobs.load(run.job_file).budget
    except jobs.BadJob:
        return ""
    left = max(0, budget.env_steps - env_steps) / speed
    if budget.time_limit_s:
        left = min(left, max(0.0, budget.time_limit_s - elapsed_s))
    with contextlib.suppress(OverflowError):
        return (datetime.now() + timedelta(seconds=left)).isoformat(timespec="minutes")
    return ""


def _clock(seconds: int | None) -> str:
    return "" if seconds is None else str(timedelta(seconds=seconds))


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
