"""`hpc-rl run`: a job's ranks on this machine."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hpc_rl import job as jobs
from hpc_rl.cli.diagnostics import note, warn
from hpc_rl.cli.options import job_options, load_job, name_code, with_ranks

if TYPE_CHECKING:
    from hpc_rl.settings import Job
    from hpc_rl.storage.run_dir import RunDir

SUMMARY_FIELDS = {
    "reason": str, "env_steps": int, "wall_s": float, "env_steps_per_s": float, "mean_return_100": float | None,
    "greedy_return": float | None,
}  # fmt: skip
ROOFLINE_FROM_S = 120.0  # shorter runs are not worth half a minute of measuring


@click.command()
@job_options
@click.option("--out", type=click.Path(path_type=Path), help="Run directory [default: runs/<job>].")
@click.option("--resume", is_flag=True, help="Go on from the newest checkpoint of --out.")
@click.option("--roofline/--no-roofline", default=None, help="Measure the machine afterwards [after 2 minutes].")
def run(
    job: str, ranks: int | None, overrides: tuple[str, ...], out: Path | None, resume: bool, roofline: bool | None
) -> int:
    """Train JOB (a file, or a name from `hpc-rl list`) on this machine."""
    from hpc_rl import local_run
    from hpc_rl.launchers.leftovers import take_over
    from hpc_rl.launchers.mpiexec import allocation_hint
    from hpc_rl.resume import again
    from hpc_rl.storage import run_dir

    folder = out or Path("runs") / Path(job).stem
    if resume:
        directory = run_dir.open_run(folder)
        _check_same_work(load_job(job, ranks, overrides), jobs.load(directory.job_file), folder)
        settings = again(directory, with_ranks(overrides, ranks))
        take_over(directory)
    else:
        settings = load_job(job, ranks, overrides)
    name_code(settings)
    directory = local_run.prepare(settings, folder, resume)
    if hint := allocation_hint():
        note(f"note: {hint}")
    outcome = local_run.train(settings, directory)
    if outcome.code:
        note(f"error: {outcome.sentence}")
    else:
        _report(directory, roofline)
    return outcome.code


def _check_same_work(job: Job, saved: Job, folder: Path) -> None:
    """JOB with its --set names what is resumed; its other keys are those of the first start, saved in the run."""
    for key in ("algorithm", "topology"):
        if getattr(job, key) != getattr(saved, key):
            raise jobs.BadJob(
                f"{key} of {folder} is {getattr(saved, key)!r}, not {getattr(job, key)!r}; resume its own job"
            )
    if job.environment.id != saved.environment.id:
        raise jobs.BadJob(
            f"environment.id of {folder} is {saved.environment.id!r}, not {job.environment.id!r}; resume its own job"
        )


def _report(directory: RunDir, roofline: bool | None) -> None:
    """One line of figures. The run is over and saved: what fails here is a warning."""
    from hpc_rl import efficiency
    from hpc_rl.launchers import causes
    from hpc_rl.storage.run_dir import BadRun
    from hpc_rl.storage.untrusted import Unreadable, read_json

    try:
        summary = read_json(directory.summary_file, SUMMARY_FIELDS, required=SUMMARY_FIELDS)
        share = _roofline(directory, summary, roofline)
        state, mean, greedy = directory.read_state(), summary["mean_return_100"], summary["greedy_return"]
        note(
            f"{state['reason']}; {summary['env_steps']:,} env steps in {summary['wall_s'] / 60:.1f} min, "
            f"{summary['env_steps_per_s']:.0f}/s{share}, mean return of the last 100 episodes "
            f"{'none yet' if mean is None else f'{mean:.2f}'}"
            f"{'' if greedy is None else f', of greedy games afterwards {greedy:.2f}'}"
            f"{'; ' + causes.without(state['lost']) if state['lost'] else ''}"
        )
        if (figures := efficiency.of(directory)) is not None:
            note("\n".join(efficiency.told(figures)))
        if state["next"]:
            note(f"go on with: {state['next']}")
    except (FileNotFoundError, Unreadable, BadRun) as error:
        warn(str(error))
    with suppress(OSError):
        click.echo(directory.path)


def _roofline(directory: RunDir, summary: dict[str, Any], roofline: bool | None) -> str:
    """The share of what these cores could do, measured now that they are free; empty where it is not measured."""
    from hpc_rl.storage.run_dir import write_json

    wanted = roofline or (roofline is None and summary["wall_s"] >= ROOFLINE_FROM_S)
    if not wanted or not summary["env_steps"]:  # recorded moves
        return ""
    from hpc_rl.bench.roofline import measure

    note("the roofline of these cores is measured for half a minute; Ctrl-C skips it …")
    try:
        bound = measure(jobs.load(directory.job_file)).env_steps_per_s
        summary |= {"roofline_env_steps_per_s": bound, "roofline_share": summary["env_steps_per_s"] / bound}
        write_json(directory.summary_file, summary)
    except (Exception, KeyboardInterrupt) as error:  # an environment of the user runs here
        warn(f"the roofline was not measured ({type(error).__name__}: {error}); see hpc-rl bench roofline JOB")
        return ""
    return f" ({summary['roofline_share']:.0%} of the roofline)"
