"""`hpc-rl submit` and `resume`: run folders and scripts for the batch system. No torch, no MPI."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hpc_rl import job as jobs
from hpc_rl.job import BadJob
from hpc_rl.launchers import limits, slurm
from hpc_rl.launchers.attempt import job_ids, note_job
from hpc_rl.launchers.options import Options, changed, dependency, kept
from hpc_rl.launchers.script import for_array, for_run, render
from hpc_rl.resume import again
from hpc_rl.run_folders import single
from hpc_rl.storage.run_dir import BadRun, RunDir, create, write_json, write_text
from hpc_rl.storage.untrusted import read_text
from hpc_rl.sweep import Task


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
    plans = [jobs.plan(task.job) for task in found]
    if len({(len(plan.ranks), task.job.resources) for plan, task in zip(plans, found, strict=True)}) > 1:
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
    active = [seen for seen in slurm.query(job_ids(run)).values() if seen.active]
    if active:
        raise BadRun(f"{folder} is still {active[0].state.lower()} as job {active[0].job}; cancel that first")
    wanted = again(run, overrides)
    options = changed(_options(run), cluster, given)
    limits.check_time(options, warn)
    plan = jobs.plan(wanted)
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
