"""The command line. Thin: every command is one call into the package, and heavy imports happen inside commands.

Data goes to stdout, talk to stderr. Exit codes: 0 done, or stopped and saved · 1 failed · 2 bad input · 130 aborted.
"""

from __future__ import annotations

import errno
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hpc_rl import job as jobs
from hpc_rl.launchers.options import Options
from hpc_rl.launchers.options import load as load_options

if TYPE_CHECKING:
    from hpc_rl.doctor import Check
    from hpc_rl.job import Job
    from hpc_rl.storage.run_dir import RunDir
    from hpc_rl.topologies.base import Plan

SUMMARY_FIELDS = {
    "reason": str, "env_steps": int, "wall_s": float, "env_steps_per_s": float, "mean_return_100": float | None,
}  # fmt: skip
ROOFLINE_FROM_S = 120.0  # shorter runs are not worth half a minute of measuring

# A disk that takes nothing more, rights, and something else in the place of a file or folder of ours.
_REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR,
             errno.ENAMETOOLONG, errno.ELOOP, errno.ENXIO)  # fmt: skip


def _talk(text: str) -> None:
    """To stderr. Where nobody reads it any more (a closed terminal, a pipe whose reader ended), nothing changes."""
    with suppress(OSError):
        click.echo(text, err=True)


def _settle() -> None:
    """Before Python ends: what stdout and stderr cannot get rid of any more must not become the exit code."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _warn(text: str) -> None:
    _talk(f"warning: {text}")


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="hpc-rl")
def cli() -> None:
    """Deep reinforcement learning as MPI jobs: `hpc-rl list` shows jobs, `hpc-rl run JOB` trains one."""


def main() -> None:
    """Entry point: expected errors become one sentence and exit code 2; a traceback is for bugs only."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the shell (>&-): a file that is opened later would take its place
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    try:
        code = cli(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except click.Abort:
        sys.exit(130)
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        _talk(f"error: {error.filename or 'a file'} cannot be written or read ({error.strerror})")
        sys.exit(2)
    except Exception as error:
        if not type(error).__module__.startswith("hpc_rl."):  # ours are sentences for the user
            raise
        _talk(f"error: {error}")
        sys.exit(2)
    finally:
        _settle()


def job_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """JOB, -n and --set, shared by the commands that read a job."""
    command = click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of the job.")(
        command
    )
    command = click.option("-n", "ranks", type=click.IntRange(min=1), help="MPI ranks (resources.ranks).")(command)
    return click.argument("job")(command)


def _load(job: str | Path, ranks: int | None, overrides: tuple[str, ...]) -> Job:
    extra = (f"resources.ranks={ranks}",) if ranks else ()
    return jobs.load(job, (*overrides, *extra))


@cli.command()
@job_options
@click.option("--out", type=click.Path(path_type=Path), help="Run directory [default: runs/<job>].")
@click.option("--resume", is_flag=True, help="Go on from the newest checkpoint of --out.")
@click.option("--roofline/--no-roofline", default=None, help="Measure the machine afterwards [after 2 minutes].")
def run(
    job: str, ranks: int | None, overrides: tuple[str, ...], out: Path | None, resume: bool, roofline: bool | None
) -> int:
    """Train JOB (a file, or a name from `hpc-rl list`) on this machine."""
    from hpc_rl.launchers import local
    from hpc_rl.launchers.mpiexec import allocation_hint
    from hpc_rl.resume import again
    from hpc_rl.screen import Screen
    from hpc_rl.storage import run_dir

    name = Path(job).stem
    folder = out or Path("runs") / name
    if resume:
        directory = run_dir.open_run(folder)
        extra = (f"resources.ranks={ranks}",) if ranks else ()
        _same_work(_load(job, ranks, overrides), jobs.load(directory.job_file), folder)
        wanted = again(directory, (*overrides, *extra))
        local.take_over(directory)
    else:
        wanted = _load(job, ranks, overrides)
    plan = jobs.topology(wanted.topology).plan(wanted)
    local.command(folder, wanted.resources.ranks)  # raises where there is no mpiexec
    _check_environment(wanted, plan)
    if resume:
        run_dir.write_text(directory.job_file, jobs.dumps(wanted))
    else:
        directory = run_dir.create(folder, jobs.dumps(wanted))
    if hint := allocation_hint():
        _talk(f"note: {hint}")
    screen = Screen(directory, wanted, plan)
    outcome = local.launch(wanted, directory, screen.tick)
    with suppress(Exception):  # everything is over and saved: what is shown of it decides nothing
        screen.close(outcome.sentence)
    if outcome.code:
        _talk(f"error: {outcome.sentence}")
    else:
        _report(directory, roofline)
    return outcome.code


def _same_work(asked: Job, saved: Job, folder: Path) -> None:
    """JOB with its --set names what is resumed; its other keys are those of the first start, kept in the run."""
    for key in ("algorithm", "topology"):
        if getattr(asked, key) != getattr(saved, key):
            raise jobs.BadJob(
                f"{key} of {folder} is {getattr(saved, key)!r}, not {getattr(asked, key)!r}; resume its own job"
            )
    if asked.environment.id != saved.environment.id:
        raise jobs.BadJob(
            f"environment.id of {folder} is {saved.environment.id!r}, not {asked.environment.id!r}; resume its own job"
        )


def _name_code(job: Job) -> None:
    """A job file of somebody else names code, too: what it makes this command import is named before it is."""
    from hpc_rl.envs.targets import notice

    if sentence := notice(job.environment.id):
        _talk(sentence)


def _check_environment(job: Job, plan: Plan) -> None:
    """A missing ROM, package or argument, and too many processes, are found before anything starts."""
    from hpc_rl.envs.make import describe
    from hpc_rl.envs.shares import shares

    _name_code(job)
    describe(job.environment.id, job.environment.arguments)
    for place in plan.places:
        if place.columns:
            shares(job.environment.id, len(place.columns), job.environment.processes)


def _report(directory: RunDir, roofline: bool | None) -> None:
    """One line of figures. The run is over and saved: what fails here is a warning."""
    from hpc_rl.storage.run_dir import BadRun
    from hpc_rl.storage.untrusted import Unreadable, read_json

    try:
        summary = read_json(directory.summary_file, SUMMARY_FIELDS, needed=SUMMARY_FIELDS)
        share = _roofline(directory, summary, roofline)
        state, mean = directory.read_state(), summary["mean_return_100"]
        _talk(
            f"{state['reason']}; {summary['env_steps']:,} env steps in {summary['wall_s'] / 60:.1f} min, "
            f"{summary['env_steps_per_s']:.0f}/s{share}, mean return of the last 100 episodes "
            f"{'none yet' if mean is None else f'{mean:.2f}'}"
        )
        if state["next"]:
            _talk(f"go on with: {state['next']}")
    except (FileNotFoundError, Unreadable, BadRun) as error:
        _talk(f"warning: {error}")
    with suppress(OSError):
        click.echo(directory.path)


def _roofline(directory: RunDir, summary: dict[str, Any], wanted: bool | None) -> str:
    """The share of what these cores could do, measured now that they are free; empty where it is not measured."""
    from hpc_rl.storage.run_dir import write_json

    if not (wanted or (wanted is None and summary["wall_s"] >= ROOFLINE_FROM_S)):
        return ""
    from hpc_rl.bench.roofline import measure

    _talk("measuring what these cores could reach, half a minute; Ctrl-C leaves that out …")
    try:
        bound = measure(jobs.load(directory.job_file)).env_steps_per_s
        summary |= {"roofline_env_steps_per_s": bound, "roofline_share": summary["env_steps_per_s"] / bound}
        write_json(directory.summary_file, summary)
    except (Exception, KeyboardInterrupt) as error:  # an environment of the user runs here
        _talk(f"warning: the roofline was not measured ({type(error).__name__}: {error})")
        return ""
    return f" ({summary['roofline_share']:.0%} of the roofline)"


@cli.command("list")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def list_jobs(as_json: bool) -> None:
    """Jobs that ship with the package, with method, topology and environment."""
    rows = []
    for name, path in jobs.shipped_jobs().items():
        job = jobs.load(path)
        rows.append(
            {
                "job": name,
                "algorithm": job.algorithm,
                "topology": job.topology,
                "environment": job.environment.id,
                "sampler": job.sampler,
                "ranks": job.resources.ranks,
                "path": str(path),
            }
        )
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    width = {key: max(len(str(row[key])) for row in rows) for key in rows[0]}
    for row in rows:
        names = "  ".join(str(row[key]).ljust(width[key]) for key in ("job", "algorithm", "topology", "sampler"))
        click.echo(f"{names}  {row['ranks']:>{width['ranks']}} rank(s)  {row['environment']}")


@cli.command()
@job_options
@click.option("--nodes", default=1, show_default=True, type=click.IntRange(min=1), help="Nodes that the ranks fill.")
def show(job: str, ranks: int | None, overrides: tuple[str, ...], nodes: int) -> None:
    """Who is which rank, message sizes, memory and files of JOB, before anything starts."""
    from hpc_rl.show import render

    chosen = _load(job, ranks, overrides)
    _name_code(chosen)
    click.echo(render(chosen, nodes))


def slurm_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Every field of `launchers.options.Options` as an option, and --cluster."""
    for item in reversed(fields(Options)):
        flag, text = "--" + item.name.replace("_", "-"), item.metadata["help"]
        if item.default is False:
            command = click.option(flag, is_flag=True, default=None, help=text)(command)
        elif item.default == ():
            command = click.option(flag, multiple=True, help=text)(command)
        else:
            kind = int if "int" in str(item.type) else str
            shown = f"{text[:-1]} [{item.default}]." if item.default is not None else text
            command = click.option(flag, type=kind, help=shown)(command)
    return click.option("--cluster", metavar="NAME", help="Site profile: defaults for all of these.")(command)


@cli.command()
@job_options
@click.option("--out", type=click.Path(path_type=Path), help="Run directory [default: runs/<job>].")
@click.option("--seeds", metavar="0-4", help="One run per seed, as a job array.")
@click.option("--sweep", "sweeps", multiple=True, metavar="KEY=A,B", help="One run per value, as a job array.")
@click.option("--then-analyze", is_flag=True, help="A job that waits for the end and draws the learning curves.")
@click.option("--wait", is_flag=True, help="Report until all is over; the exit code is then that of the run.")
@click.option("--dry-run", is_flag=True, help="Print the script; write and send nothing.")
@slurm_options
def submit(
    job: str, ranks: int | None, overrides: tuple[str, ...], out: Path | None, seeds: str | None,
    sweeps: tuple[str, ...], then_analyze: bool, wait: bool, dry_run: bool, cluster: str | None, **given: Any,
) -> int:  # fmt: skip
    """Send JOB to SLURM; prints the job's id. It saves before its time is over, is requeued, and goes on."""
    from hpc_rl import submit as submission

    options = load_options(cluster, given)
    extra = (f"resources.ranks={ranks}",) if ranks else ()
    found = submission.tasks(job, (*overrides, *extra), seeds, sweeps)
    array = seeds is not None or bool(sweeps)
    folder = out or Path("runs") / Path(job).stem
    if then_analyze and options.resume_mode == "chain":
        raise click.UsageError("--then-analyze waits for one job, and a chain is many; use --resume-mode requeue")
    if dry_run:
        pieces = submission.parts(found, folder, options, array)
        if len(pieces) > 1:
            _talk(f"{len(pieces)} arrays of at most {len(pieces[0].tasks)} tasks, this site's limit; here is the first")
        click.echo(pieces[0].script, nl=False)
        return 0
    sent = submission.submit(found, folder, options, array, _warn)
    home, first = shlex.quote(str(folder)), shlex.quote(str(folder / "0000" if array else folder))
    _talk(f"{folder}: job {', '.join(sent)}, {len(found)} run(s); hpc-rl status {home} · hpc-rl logs -f {first}")
    click.echo("\n".join(sent))
    runs = [folder / f"{task.index:04d}" for task in found] if array else [folder]
    if then_analyze:
        _analyze_after(sent, runs, options, folder)
    return _wait(folder, runs) if wait else 0


def _analyze_after(sent: Sequence[str], runs: Sequence[Path], options: Options, folder: Path) -> None:
    """The runs are queued whatever becomes of it."""
    from hpc_rl.curves import analyze_after
    from hpc_rl.launchers.slurm import SlurmError

    try:
        job = analyze_after(sent, runs, options, folder)
        _talk(f"analysis: job {job}, draws {folder}/learning_curve.png")
    except SlurmError as error:
        _warn(f"the runs are queued, but their analysis is not: {error}")


def _wait(folder: Path, runs: Sequence[Path]) -> int:
    from hpc_rl import status as states

    try:
        return states.wait(states.runs(runs), _talk)
    except KeyboardInterrupt:
        _talk(f"no longer waiting; the job goes on, see hpc-rl status {shlex.quote(str(folder))}")
        raise


@cli.command()
@click.argument("runs", nargs=-1, type=click.Path(path_type=Path))
@click.option("--watch", is_flag=True, help="Again every 5 s, later every minute, until all are over.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def status(runs: tuple[Path, ...], watch: bool, as_json: bool) -> None:
    """State of RUNS, or of every run up to two folders below: their own word, then SLURM's.

    RUNS are folders or ids of jobs [default: the folder runs].
    """
    from hpc_rl import curves
    from hpc_rl import status as states

    paths = runs or (states.RUNS,)
    pause = states.FIRST_S
    while True:
        lines = [*states.status(paths, _warn), *curves.analyses(paths, _warn)]
        click.echo(states.as_json(lines) if as_json else states.render(lines))
        if not watch or all(line.over for line in lines):
            return
        time.sleep(pause)
        pause = min(states.LATER_S, pause * 1.5)


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("-f", "--follow", is_flag=True, help="Go on until the run is over.")
def logs(run: Path, follow: bool) -> None:
    """The newest lines that the batch script and the ranks of RUN printed."""
    from hpc_rl.status import tail

    for line in tail(run, follow, say=_talk):
        click.echo(line)


@cli.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--now", is_flag=True, help="Do not wait for a checkpoint.")
def cancel(runs: tuple[Path, ...], now: bool) -> int:
    """Stop the SLURM jobs of RUNS, or of every run up to two folders below: those that run save first."""
    from hpc_rl.status import runs as below
    from hpc_rl.submit import Unasked
    from hpc_rl.submit import cancel as end

    found = below(runs)
    if len(found) > len(runs) and sys.stdin.isatty():
        click.confirm(f"Stop the jobs of all {len(found)} runs below?", abort=True, err=True)
    try:
        sentences, code = end(found, now), 0
    except Unasked as error:
        sentences, code = [*error.sentences, f"error: {error}"], 1
    for sentence in sentences:
        _talk(sentence)
    return code


@cli.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("-n", "ranks", type=click.IntRange(min=1), help="MPI ranks (resources.ranks).")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change what may change then.")
@slurm_options
def resume(run: Path, ranks: int | None, overrides: tuple[str, ...], cluster: str | None, **given: Any) -> None:
    """Send RUN to SLURM again, from its newest checkpoint, with its options of before and these changes."""
    from hpc_rl.submit import resume as again

    extra = (f"resources.ranks={ranks}",) if ranks else ()
    click.echo(again(run, (*overrides, *extra), cluster, given, _warn))


@cli.command("eval")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--episodes", default=20, show_default=True, type=click.IntRange(min=1), help="Greedy, and as many more.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="A file [default: best, else newest].")
@click.option("--video", type=click.Path(path_type=Path), help="Write the first greedy episode as a GIF.")
@click.option("--json", "as_json", is_flag=True, help="One object: checkpoint, chosen, score, greedy, sampled, …")
def evaluate(run: Path, episodes: int, checkpoint: Path | None, video: Path | None, as_json: bool) -> None:
    """Greedy and sampled episodes of RUN's best policy: mean raw returns, 95 % intervals, how many games differ.

    Their seeds were used by neither training nor the evaluations that chose the best.
    """
    from hpc_rl.evaluate import evaluate_run, told
    from hpc_rl.storage.run_dir import open_run

    _name_code(jobs.load(open_run(run).job_file))
    result = evaluate_run(run, episodes, checkpoint, video, lambda text: _talk(f"warning: {text}"))
    if as_json:
        click.echo(json.dumps(result))
        return
    lines, remarks = told(result)
    click.echo("\n".join(lines))
    for remark in remarks:
        _talk(f"warning: {remark}")


@cli.command()
def doctor() -> int:
    """Check MPI, a 2-rank exchange, HDF5 locking, cores and devices of this machine."""
    from hpc_rl.doctor import examine

    return _say(examine())


def _say(checks: Iterable[Check]) -> int:
    """One line per check as it comes; exit code 1 if any failed."""
    failed = False
    for check in checks:
        mark = {True: "ok  ", False: "FAIL", None: "note"}[check.ok]
        click.echo(f"{mark} {check.name}: {check.text}")
        failed |= check.ok is False
    return int(failed)


def _seconds(context: click.Context, parameter: click.Parameter, value: float) -> float:
    if not 0 < value < float("inf"):  # nan is neither
        raise click.BadParameter(f"{value} is not a number of seconds above 0")
    return value


@cli.command()
@click.option("-n", "ranks", default=3, show_default=True, type=click.IntRange(min=2), help="MPI ranks.")
@click.option("--out", type=click.Path(path_type=Path), help="Run directory [default: runs/selftest-<time>].")
@click.option(
    "--wait", "queue_s", default=600.0, callback=_seconds, show_default=True, help="Longest wait in the queue, s."
)
@slurm_options
def selftest(ranks: int, out: Path | None, queue_s: float, cluster: str | None, **given: Any) -> int:
    """A two-minute job on this cluster: ranks, signal, save, requeue, resume, stop, HDF5 locks."""
    from hpc_rl.selftest import selftest as checks

    folder = out or Path("runs") / time.strftime("selftest-%m%d-%H%M%S")
    return _say(checks(folder, load_options(cluster, {**given, "time": given["time"] or "10"}), ranks, queue_s))


@cli.group()
def bench() -> None:
    """Measure this machine."""


@bench.command()
@job_options
@click.option("--seconds", default=12.0, callback=_seconds, show_default=True, help="Measuring time.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def roofline(job: str, ranks: int | None, overrides: tuple[str, ...], seconds: float, as_json: bool) -> None:
    """Env steps per second that this machine's cores could reach on JOB if nothing were lost."""
    from dataclasses import asdict

    from hpc_rl.bench.roofline import measure, render

    chosen = _load(job, ranks, overrides)
    _name_code(chosen)
    measured = measure(chosen, seconds)
    figures = {**asdict(measured), "env_steps_per_s": measured.env_steps_per_s}
    click.echo(json.dumps(figures) if as_json else render(measured))


@bench.command()
@click.option("-n", "ranks", type=click.IntRange(min=2), default=2, show_default=True, help="MPI ranks.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def mpi(ranks: int, as_json: bool) -> None:
    """The gradient exchange against the raw MPI call on the same bytes."""
    from hpc_rl.bench.mpi import measure, render

    rows = measure(ranks)
    click.echo(json.dumps(rows) if as_json else render(rows, ranks))


@bench.command()
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def samplers(as_json: bool) -> None:
    """Alternating against vector, where inference and stepping take equal time."""
    from hpc_rl.bench.samplers import measure, render

    found = measure()
    click.echo(json.dumps(found) if as_json else render(found))
