"""`hpc-rl submit`, `resume`, `cancel`: run folders and scripts for the batch system. No torch, no MPI."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hpc_rl import curves
from hpc_rl import job as jobs
from hpc_rl.job import BadJob, Job
from hpc_rl.launchers import causes, limits, slurm
from hpc_rl.launchers.batch import job_ids, note_job
from hpc_rl.launchers.options import Options, changed, dependency, kept
from hpc_rl.launchers.script import for_array, for_run, render
from hpc_rl.resume import again
from hpc_rl.status import single
from hpc_rl.storage.run_dir import BadRun, RunDir, create, write_json, write_text
from hpc_rl.storage.untrusted import read_text

MOST_TASKS = 100_000
STOP_S, LOOK_S = 180.0, 2.0  # how long cancel waits for a clean stop, and between its looks


@dataclass(frozen=True)
class Task:
    """One run of a submission: its place in the array, what it changes, its resolved job."""

    index: int
    changes: tuple[str, ...]
    job: Job


def tasks(source: str, overrides: Sequence[str], seeds: str | None, sweeps: Sequence[str]) -> list[Task]:
    """The product of seeds and sweeps over one job; a single task without changes where neither is given.

    Raises:
        BadJob: a range or a sweep that cannot be read, or any of the jobs is wrong.
    """
    axes: list[list[str]] = []
    for item in sweeps:
        key, equals, values = item.partition("=")
        if not equals or not values:
            raise BadJob(f"--sweep {item!r} is not KEY=VALUE,VALUE…")
        axes.append([f"{key}={value}" for value in _split(values)])
    if seeds is not None:
        axes.append([f"seed={seed}" for seed in _seeds(seeds)])
    if (count := math.prod(len(axis) for axis in axes)) > MOST_TASKS:
        raise BadJob(f"{count} tasks are more than {MOST_TASKS}; submit a part of the sweep")
    combined = enumerate(itertools.product(*axes))
    return [Task(k, changes, jobs.load(source, (*overrides, *changes))) for k, changes in combined]


def _unheard(text: str) -> None:
    """Takes a warning that nobody wants."""


@dataclass(frozen=True)
class Part:
    """Tasks that SLURM gets as one job, and the script of that job."""

    tasks: tuple[Task, ...]
    script: str


def parts(found: Sequence[Task], folder: Path, options: Options, array: bool) -> list[Part]:
    """One job, or as many arrays as the site's limit on the size of one asks for.

    Raises BadJob; also where the tasks do not ask for the same ranks.
    """
    first = found[0].job
    plans = [jobs.topology(task.job.topology).plan(task.job) for task in found]
    if len({(len(plan.places), task.job.resources) for plan, task in zip(plans, found, strict=True)}) > 1:
        raise BadJob("the tasks of a sweep must ask SLURM for the same: no key of [resources]; submit them one by one")
    resolved = slurm.resolved(options)
    if not array:
        return [Part(tuple(found), render(for_run(first, folder), first, plans[0], resolved))]
    size = limits.largest_array() or len(found)
    made = []
    for start in range(0, len(found), size):
        group = tuple(found[start : start + size])
        script = for_array(first, folder, len(group), options.parallel, start)
        made.append(Part(group, render(script, first, plans[0], resolved)))
    return made


def submit(
    found: Sequence[Task], folder: Path, options: Options, array: bool, warn: Callable[[str], None] = _unheard
) -> list[str]:
    """Make the run folder(s), keep the scripts and the choices in them, send the scripts; the jobs' ids.

    Raises:
        BadJob, BadRun: before anything is written. Refused: what was made is removed again. SlurmError: it stays, for
            a job may have been queued.
    """
    limits.check_time(options, warn)
    pieces = parts(found, folder, options, array)
    if array and (folder / "job.toml").exists():
        raise BadRun(f"{folder} holds a single run, so no array can be made in it; choose another --out")
    runs: list[RunDir] = []
    try:
        for task in found:
            runs.append(create(folder / f"{task.index:04d}" if array else folder, jobs.dumps(task.job)))
        scripts = _keep(folder, [piece.script for piece in pieces], options)
        if array:
            lines = [json.dumps({"task": t.index, "run": f"{t.index:04d}", "changes": list(t.changes)}) for t in found]
            write_text(folder / "submit" / "tasks.jsonl", "\n".join(lines) + "\n")
            _link(folder, pieces)
    except BaseException:
        _unmake(folder, runs)
        raise
    try:
        sent = _send(scripts, pieces, {task.index: run for task, run in zip(found, runs, strict=True)}, options, array)
    except slurm.Refused as error:
        _unmake(folder, runs)
        if "job array" in str(error):
            limit = f"{len(runs)} tasks may be more than this site's MaxArraySize (scontrol show config)"
            raise slurm.Refused(f"{error}; {limit}: submit the seeds in several parts") from None
        raise
    limits.check_granted(sent[0], options, warn)
    return sent


def _link(folder: Path, pieces: Sequence[Part]) -> None:
    """An output's name knows the place in its array alone: a later array has a folder of links to its runs."""
    for piece in pieces[1:]:
        links = folder / "submit" / f"from-{piece.tasks[0].index:04d}"
        links.mkdir(parents=True)
        for place, task in enumerate(piece.tasks):
            (links / f"{place:04d}").symlink_to(Path("..") / ".." / f"{task.index:04d}")


def _send(
    scripts: Sequence[Path], pieces: Sequence[Part], runs: Mapping[int, RunDir], options: Options, array: bool
) -> list[str]:
    """All jobs or none: several are held until the last one is accepted. Raises Refused, SlurmError."""
    sent: list[str] = []
    try:
        for script, piece in zip(scripts, pieces, strict=True):
            arguments = ["--hold"] if len(pieces) > 1 else []
            if sent and options.parallel:  # the limit is one of all tasks, and SLURM knows it of one array alone
                arguments.append(f"--dependency={dependency((*options.after, f'any:{sent[-1]}'))}")
            sent.append(slurm.sbatch(script, *arguments))
            for place, task in enumerate(piece.tasks):
                note_job(runs[task.index], f"{sent[-1]}_{place}" if array else sent[-1])
        if len(sent) > 1:
            slurm.release(sent)
    except slurm.SlurmError as error:
        if len(sent) == len(pieces) or not isinstance(error, slurm.Refused):
            held = f"; jobs {','.join(sent)} are held (scontrol release {','.join(sent)})" if sent else ""
            raise slurm.SlurmError(f"{error}{held}") from None
        slurm.cancel(sent)
        if sent:
            raise slurm.Refused(f"{error}; array {len(sent) + 1} of {len(pieces)}, so none is queued") from None
        raise
    return sent


def resume(
    folder: Path, overrides: Sequence[str], cluster: str | None, given: dict[str, Any],
    warn: Callable[[str], None] = _unheard,
) -> str:  # fmt: skip
    """Send a run that is stopped, failed or out of restarts again, from its newest checkpoint; the job's id.

    Raises:
        BadRun: it is still queued or running, or done. BadJob: a change that a resumed run may not make.
        SlurmError: SLURM refused, and the run's state is as before; or it did not answer.
    """
    run = single(folder)
    folder = run.path  # a job's id may have named it
    active = [seen for seen in slurm.look(job_ids(run)).values() if seen.active]
    if active:
        raise BadRun(f"{folder} is still {active[0].state.lower()} as job {active[0].job}; cancel that first")
    wanted = again(run, overrides)
    options = changed(_options(run), cluster, given)
    limits.check_time(options, warn)
    plan = jobs.topology(wanted.topology).plan(wanted)
    text = render(for_run(wanted, folder), wanted, plan, slurm.resolved(options))
    submitted = run.path / "submit"
    before = {
        file: read_text(file) if file.exists() else None
        for file in (run.job_file, run.state_file, submitted / "job.sbatch", submitted / "options.json")
    }
    write_text(run.job_file, jobs.dumps(wanted))
    (script,) = _keep(folder, [text], options)
    run.clear_stop()
    run.write_state(state="pending", reason="submitted again")  # not after sbatch: the job may have begun by then
    try:
        job = slurm.sbatch(script)
    except slurm.Refused:
        for file, content in before.items():
            write_text(file, content) if content is not None else file.unlink(missing_ok=True)
        raise
    note_job(run, job)
    limits.check_granted(job, options, warn)
    return job


def cancel(found: Sequence[RunDir], now: bool = False) -> list[str]:
    """Stop the jobs of these runs: waiting ones at once, running ones after they have saved; a sentence for each.

    Raises:
        Unasked: SLURM did not answer; what could be done without it is done.
    """
    try:
        return _cancel(found, now)
    except slurm.SlurmError as error:
        raise Unasked(str(error), [_by_file(run) for run in found]) from None


class Unasked(slurm.SlurmError):
    """SLURM does not answer; ``sentences`` tell for each run what was done nevertheless."""

    def __init__(self, message: str, sentences: list[str]) -> None:
        super().__init__(message)
        self.sentences = sentences


def _by_file(run: RunDir) -> str:
    """The STOP file needs no controller: a rank, or the batch script, finds it."""
    with contextlib.suppress(BadRun):
        if (state := run.read_state()["state"]) not in ("pending", "running"):
            return f"{run.path}: {state} already"
    run.request_stop(_who())
    return f"{run.path}: STOP is written there: a job that runs saves and ends, one that waits ends when it starts"


def _who() -> str:
    return f"cancelled by {causes.user(os.getuid())} with hpc-rl cancel"


def _cancel(found: Sequence[RunDir], now: bool) -> list[str]:
    ids = {run.path: job_ids(run) for run in found}
    seen = slurm.look([job for jobs_of_run in ids.values() for job in jobs_of_run])
    active = {run.path: [seen[job] for job in ids[run.path] if job in seen and seen[job].active] for run in found}
    for run in found:
        if active[run.path]:
            run.request_stop(_who())  # first, so that a job that begins right now ends itself
    waiting = [item.job for jobs_of_run in active.values() for item in jobs_of_run if item.state == "PENDING"]
    at_work = [item.job for jobs_of_run in active.values() for item in jobs_of_run if item.state != "PENDING"]
    ended = curves.cancel(found)  # before its runs end, for that would start it
    slurm.cancel(waiting)
    late = at_work if now else _outlast(at_work)
    slurm.cancel(late)
    ended_runs = [
        _cancelled(run, [item.job for item in active[run.path]], set(waiting), set(late), now) for run in found
    ]
    return [*ended_runs, *ended]


def _outlast(running: Sequence[str]) -> list[str]:
    """Those of the jobs that are still there when the time for a clean stop is over."""
    left, deadline = list(running), time.monotonic() + STOP_S
    while left and time.monotonic() < deadline:
        time.sleep(LOOK_S)
        seen = slurm.look(left)
        left = [job for job in left if job in seen and seen[job].active]
    return left


def _cancelled(run: RunDir, ended: Sequence[str], waiting: set[str], late: set[str], now: bool) -> str:
    if not ended and (not job_ids(run) or not slurm.here()) and run.read_state()["state"] == "running":
        return _by_file(run)  # of hpc-rl run, or seen from a host without SLURM
    if not ended:
        return f"{run.path}: no job is queued or running"
    if waiting.issuperset(ended):
        sentence = f"{_who()} while it waited"
    elif late.isdisjoint(ended):
        state = run.read_state()
        command = causes.pasted(state["next"])
        return f"{run.path}: {state['reason']}" + (f"; go on with {command}" if command else "")
    elif now:
        sentence = f"{_who()} --now, without saving; the last checkpoint stands"
    else:
        sentence = f"{_who()}, and did not stop within {STOP_S:.0f} s; the last checkpoint stands"
    command = causes.go_on(run, "cancelled")
    run.write_state(state="stopped", reason=f"stopped: {sentence}", cause="cancelled", next=command)
    return f"{run.path}: {sentence}; go on with {command}"


def _keep(home: Path, scripts: Sequence[str], options: Options) -> list[Path]:
    """submit/job.sbatch as sent (job-1.sbatch … of further arrays), and submit/options.json: resume sends the same."""
    folder = home / "submit"
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / (f"job-{k}.sbatch" if k else "job.sbatch") for k in range(len(scripts))]
    for file, text in zip(files, scripts, strict=True):
        write_text(file, text)
    write_json(folder / "options.json", asdict(options))
    return files


def _options(run: RunDir) -> Options:
    """The options of the submission; those of an array lie one folder above. What it waited for is over."""
    for home in (run.path, run.path.parent):
        path = home / "submit" / "options.json"
        if path.exists():
            return replace(kept(path), after=(), parallel=None)
    return Options()


def _unmake(home: Path, runs: Sequence[RunDir]) -> None:
    """Nothing was queued, so nothing stays: a second try finds the folder free."""
    for run in runs:
        shutil.rmtree(run.path)
    shutil.rmtree(home / "submit", ignore_errors=True)
    with contextlib.suppress(OSError):  # other things lie in it, or it was the run itself
        home.rmdir()


def _seeds(text: str) -> list[int]:
    """``0-4`` or ``1,3,5-7``. Raises BadJob; of too many before any of them is made."""
    found: list[int] = []
    for part in text.split(","):
        bounds = re.fullmatch(r"([0-9]{1,18})(?:-([0-9]{1,18}))?", part)
        if not bounds:
            raise BadJob(f"--seeds {text!r} is not understood; write 0-4 or 1,3,5")
        seeds = range(int(bounds[1]), int(bounds[2] or bounds[1]) + 1)
        if len(found) + len(seeds) > MOST_TASKS:
            raise BadJob(f"--seeds {text!r} names more than {MOST_TASKS} seeds; submit a part of them")
        found += seeds
    if not found or len(set(found)) != len(found):
        raise BadJob(f"--seeds {text!r} names {'no seed' if not found else 'a seed twice'}")
    return found


def _split(values: str) -> list[str]:
    """Values between commas; a TOML array keeps its own: ``[64, 64],[128]``."""
    parts, depth, here = [], 0, ""
    for letter in values:
        depth += {"[": 1, "]": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            parts.append(here)
            here = ""
        else:
            here += letter
    return [*parts, here]
