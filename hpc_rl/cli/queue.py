"""Runs and the queue: `hpc-rl submit`, `status`, `logs`, `cancel` and `resume`."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from hpc_rl.cli.diagnostics import note, warn
from hpc_rl.cli.options import job_options, slurm_options, with_ranks
from hpc_rl.launchers.options import Options
from hpc_rl.launchers.options import load as load_options


@click.command()
@job_options
@click.option("--out", type=click.Path(path_type=Path), help="Run directory [default: runs/<job>].")
@click.option("--seeds", metavar="0-4", help="One run per seed, as a job array.")
@click.option("--sweep", "sweeps", multiple=True, metavar="KEY=A,B", help="One run per value, as a job array.")
@click.option("--then-analyze", is_flag=True, help="A job that waits for the end and writes a report.")
@click.option("--analysis-tasks", default=1, show_default=True, type=click.IntRange(1), help="Of it: 1, or at least 3.")
@click.option("--wait", is_flag=True, help="Report until all is over; the exit code is then that of the run.")
@click.option("--dry-run", is_flag=True, help="Print the script; write and send nothing.")
@slurm_options
def submit(
    job: str, ranks: int | None, overrides: tuple[str, ...], out: Path | None, seeds: str | None,
    sweeps: tuple[str, ...], then_analyze: bool,
    analysis_tasks: int, wait: bool, dry_run: bool, cluster: str | None, **option_values: Any,
) -> int:  # fmt: skip
    """Send JOB to SLURM; prints the job's id. It saves before its time is over, is requeued, and goes on."""
    from hpc_rl import submit as submission
    from hpc_rl.sweep import tasks
    from hpc_rl.then_analyze import LEAST_SPREAD

    options = load_options(cluster, option_values)
    task_list = tasks(job, with_ranks(overrides, ranks), seeds, sweeps)
    array = seeds is not None or bool(sweeps)
    folder = out or Path("runs") / Path(job).stem
    if then_analyze and options.resume_mode == "chain":
        raise click.UsageError("--then-analyze waits for one job, and a chain is many; use --resume-mode requeue")
    if 1 < analysis_tasks < LEAST_SPREAD:
        raise click.UsageError(
            f"--analysis-tasks {analysis_tasks} leaves no worker; use 1, or {LEAST_SPREAD} and more over several nodes"
        )
    if dry_run:
        pieces = submission.parts(task_list, folder, options, array)
        if len(pieces) > 1:
            note(f"{len(pieces)} arrays of at most {len(pieces[0].tasks)} tasks, this site's limit; here is the first")
        click.echo(pieces[0].script, nl=False)
        return 0
    ids = submission.submit(task_list, folder, options, array, warn)
    home, first = shlex.quote(str(folder)), shlex.quote(str(folder / "0000" if array else folder))
    note(f"{folder}: job {', '.join(ids)}, {len(task_list)} run(s); hpc-rl status {home} · hpc-rl logs -f {first}")
    click.echo("\n".join(ids))
    runs = [folder / f"{task.index:04d}" for task in task_list] if array else [folder]
    if then_analyze:
        _analyze_after(ids, runs, options, folder, analysis_tasks)
    return _wait(folder, runs) if wait else 0


def _analyze_after(ids: Sequence[str], runs: Sequence[Path], options: Options, folder: Path, tasks: int) -> None:
    """The runs are queued whatever becomes of it."""
    from hpc_rl.launchers.slurm import SlurmError
    from hpc_rl.then_analyze import REPORT, analyze_after

    try:
        job = analyze_after(ids, runs, options, folder, tasks)
        note(f"analysis: job {job}, writes {folder}/{REPORT}")
    except SlurmError as error:
        later = f"later: hpc-rl analyze {shlex.join(map(str, runs))}"
        warn(f"the runs are queued, but their analysis is not: {error}; {later}")


def _wait(folder: Path, folders: Sequence[Path]) -> int:
    from hpc_rl.follow import wait
    from hpc_rl.run_folders import runs_of

    try:
        return wait(runs_of(folders), note)
    except KeyboardInterrupt:
        note(f"{folder}: no longer watched; the job goes on, see hpc-rl status {shlex.quote(str(folder))}")
        raise


@click.command()
@click.argument("runs", nargs=-1, type=click.Path(path_type=Path))
@click.option("--watch", is_flag=True, help="Again every 5 s, later every minute, until all are over.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def status(runs: tuple[Path, ...], watch: bool, as_json: bool) -> None:
    """State of RUNS, or of every run up to two folders below: what each recorded, then SLURM's.

    RUNS are folders or ids of jobs [default: the folder runs].
    """
    from hpc_rl import status as states
    from hpc_rl import then_analyze
    from hpc_rl.follow import FIRST_S, LATER_S
    from hpc_rl.run_folders import RUNS

    paths = runs or (RUNS,)
    pause = FIRST_S
    while True:
        lines = [*states.status(paths, warn), *then_analyze.analyses(paths, warn)]
        click.echo(states.as_json(lines) if as_json else states.render(lines))
        if not watch or all(line.over for line in lines):
            return
        time.sleep(pause)
        pause = min(LATER_S, pause * 1.5)


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("-f", "--follow", is_flag=True, help="Go on until the run is over.")
def logs(run: Path, follow: bool) -> None:
    """The newest lines that the batch script and the ranks of RUN printed."""
    from hpc_rl.follow import tail

    for line in tail(run, follow, report=note):
        click.echo(line)


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--now", is_flag=True, help="Do not wait for a checkpoint.")
def cancel(runs: tuple[Path, ...], now: bool) -> int:
    """Stop the SLURM jobs of RUNS, or of every run up to two folders below: those that run save first."""
    from hpc_rl.cancel import Unasked, cancel_runs
    from hpc_rl.run_folders import runs_of

    directories = runs_of(runs)
    if len(directories) > len(runs) and sys.stdin.isatty():
        click.confirm(f"Stop the jobs of all {len(directories)} runs below?", abort=True, err=True)
    try:
        sentences, code = cancel_runs(directories, now), 0
    except Unasked as error:
        sentences, code = [*error.sentences, f"error: {error}"], 1
    for sentence in sentences:
        note(sentence)
    return code


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("-n", "ranks", type=click.IntRange(min=1), help="MPI ranks (resources.ranks).")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change what may change then.")
@slurm_options
def resume(run: Path, ranks: int | None, overrides: tuple[str, ...], cluster: str | None, **option_values: Any) -> None:
    """Send RUN to SLURM again, from its newest checkpoint, with its earlier options and these changes."""
    from hpc_rl import submit as submission

    click.echo(submission.resume(run, with_ranks(overrides, ranks), cluster, option_values, warn))
