"""`hpc-rl submit` and `resume`: run folders and scripts for the batch system. No torch, no MPI."""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hpc_rl import job as jobs
from hpc_rl.job import BadJob
from hpc_rl.launchers import limits, slurm
from hpc_rl.launchers.attempt import job_ids, note_job
from hpc_rl.launchers.options import Options, changed, dependency, load_saved
from hpc_rl.launchers.script import for_array, for_run, render
from hpc_rl.resume import again
from hpc_rl.run_folders import single
from hpc_rl.storage.run_dir import BadRun, RunDir, create, write_json, write_text
from hpc_rl.storage.untrusted import read_text
from hpc_rl.sweep import Task


def _ignore(text: str) -> None:
    """Drops a warning."""


@dataclass(frozen=True)
class Part:
    """Tasks that SLURM gets as one job, and the script of that job."""

    tasks: tuple[Task, ...]
    script: str


def parts(tasks: Sequence[Task], folder: Path, options: Options, array: bool) -> list[Part]:
    """One job, or as many arrays as the site's limit on the size of one requires.

    Raises BadJob; also where the tasks do not need the same ranks.
    """
    first = tasks[0].job
    plans = [jobs.plan(task.job) for task in tasks]
    if len({(len(plan.ranks), task.job.resources) for plan, task in zip(plans, tasks, strict=True)}) > 1:
        raise BadJob(
            "--sweep varies the ranks or a key of [resources], but the tasks of an array share one allocation; "
            "submit them one by one"
        )
    resolved = slurm.resolved(options, first.resources.tolerate_lost_actors)
    if not array:
        return [Part(tuple(tasks), render(for_run(first, folder), first, plans[0], resolved))]
    size = limits.largest_array() or len(tasks)
    pieces = []
    for start in range(0, len(tasks), size):
        group = tuple(tasks[start : start + size])
        script = for_array(first, folder, len(group), options.parallel, start)
        pieces.append(Part(group, render(script, first, plans[0], resolved)))
    return pieces


def submit(
    tasks: Sequence[Task], folder: Path, options: Options, array: bool, warn: Callable[[str], None] = _ignore
) -> list[str]:
    """Make the run folder(s), keep the scripts and the choices in them, send the scripts; the jobs' ids.

    Raises:
        BadJob, BadRun: before anything is written. Refused: what was made is removed again. SlurmError: it stays, for
            a job may have been queued.
    """
    limits.check_time(options, warn)
    pieces = parts(tasks, folder, options, array)
    if array and (folder / "job.toml").exists():
        raise BadRun(f"{folder} holds a single run, so no array can be made in it; choose another --out")
    runs: list[RunDir] = []
    try:
        for task in tasks:
            runs.append(create(folder / f"{task.index:04d}" if array else folder, jobs.dumps(task.job)))
        scripts = _keep(folder, [piece.script for piece in pieces], options)
        if array:
            lines = [json.dumps({"task": t.index, "run": f"{t.index:04d}", "changes": list(t.changes)}) for t in tasks]
            write_text(folder / "submit" / "tasks.jsonl", "\n".join(lines) + "\n")
            _link(folder, pieces)
    except BaseException:
        _unmake(folder, runs)
        raise
    try:
        ids = _send(scripts, pieces, {task.index: run for task, run in zip(tasks, runs, strict=True)}, options, array)
    except slurm.Refused as error:
        _unmake(folder, runs)
        if "job array" in str(error):
            limit = f"{len(runs)} tasks may be more than this site's MaxArraySize (scontrol show config)"
            raise slurm.Refused(f"{error}; {limit}: submit the seeds in several parts") from None
        raise
    limits.check_granted(ids[0], options, warn)
    return ids


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
    ids: list[str] = []
    try:
        for script, piece in zip(scripts, pieces, strict=True):
            arguments = ["--hold"] if len(pieces) > 1 else []
            if ids and options.parallel:  # the limit is one of all tasks, and SLURM knows it of one array alone
                arguments.append(f"--dependency={dependency((*options.after, f'any:{ids[-1]}'))}")
            ids.append(slurm.sbatch(script, *arguments))
            for place, task in enumerate(piece.tasks):
                note_job(runs[task.index], f"{ids[-1]}_{place}" if array else ids[-1])
        if len(ids) > 1:
            slurm.release(ids)
    except slurm.SlurmError as error:
        if len(ids) == len(pieces) or not isinstance(error, slurm.Refused):
            hint = f"; jobs {','.join(ids)} are held (scontrol release {','.join(ids)})" if ids else ""
            raise slurm.SlurmError(f"{error}{hint}") from None
        slurm.cancel(ids)
        if ids:
            raise slurm.Refused(f"{error}; array {len(ids) + 1} of {len(pieces)}, so none is queued") from None
        raise
    return ids


def resume(
    folder: Path, overrides: Sequence[str], cluster: str | None, option_values: dict[str, Any],
    warn: Callable[[str], None] = _ignore,
) -> str:  # fmt: skip
    """Send a run that is stopped, failed or out of restarts again, from its newest checkpoint; the job's id.

    Raises:
        BadRun: it is still queued or running, or done. BadJob: a change that a resumed run may not make.
        SlurmError: SLURM refused, and the run's state is as before; or it did not answer.
    """
    run = single(folder)
    folder = run.path  # a job's id may have named it
    active = [status for status in slurm.query(job_ids(run)).values() if status.active]
    if active:
        raise BadRun(f"{folder} is still {active[0].state.lower()} as job {active[0].job}; cancel that first")
    job = again(run, overrides)
    options = changed(_options(run), cluster, option_values)
    limits.check_time(options, warn)
    plan = jobs.plan(job)
    text = render(for_run(job, folder), job, plan, slurm.resolved(options, job.resources.tolerate_lost_actors))
    submitted = run.path / "submit"
    originals = {
        file: read_text(file) if file.exists() else None
        for file in (run.job_file, run.state_file, submitted / "job.sbatch", submitted / "options.json")
    }
    write_text(run.job_file, jobs.dumps(job))
    (script,) = _keep(folder, [text], options)
    run.clear_stop()
    run.write_state(state="pending", reason="submitted again")  # not after sbatch: the job may have begun by then
    try:
        job_id = slurm.sbatch(script)
    except slurm.Refused as error:
        for file, content in originals.items():
            write_text(file, content) if content is not None else file.unlink(missing_ok=True)
        if job_ids(run):
            raise
        here = f"hpc-rl run {shlex.quote(str(run.job_file))} --out {shlex.quote(str(run.path))} --resume"
        raise slurm.Refused(f"{error}; SLURM never had this run: on this machine it goes on by {here}") from None
    note_job(run, job_id)
    limits.check_granted(job_id, options, warn)
    return job_id


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
            return replace(load_saved(path), after=(), parallel=None)
    return Options()


def _unmake(home: Path, runs: Sequence[RunDir]) -> None:
    """Remove the folders of a submission that was refused: a second try finds them free."""
    for run in runs:
        shutil.rmtree(run.path)
    shutil.rmtree(home / "submit", ignore_errors=True)
    with contextlib.suppress(OSError):  # other things lie in it, or it was the run itself
        home.rmdir()
