"""What this machine and this cluster can do: `hpc-rl doctor`, `selftest` and `bench`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import click

from hpc_rl.cli.diagnostics import report_checks
from hpc_rl.cli.options import job_options, load_job, name_code, positive_seconds, slurm_options
from hpc_rl.launchers.options import load as load_options


@click.command()
def doctor() -> int:
    """Check MPI, a 2-rank exchange, HDF5 locking, cores and devices of this machine."""
    from hpc_rl.doctor import examine

    return report_checks(examine())


@click.command()
@click.option("-n", "ranks", default=3, show_default=True, type=click.IntRange(min=2), help="MPI ranks.")
@click.option("--out", type=click.Path(path_type=Path), help="Run directory [default: runs/selftest-<time>].")
@click.option(
    "--wait", "queue_s", default=600.0, callback=positive_seconds, show_default=True,
    help="Longest wait in the queue, s.",
)  # fmt: skip
@slurm_options
def selftest(ranks: int, out: Path | None, queue_s: float, cluster: str | None, **option_values: Any) -> int:
    """A two-minute job on this cluster: ranks, signal, save, requeue, resume, stop, HDF5 locks."""
    from hpc_rl.selftest import selftest as checks

    folder = out or Path("runs") / time.strftime("selftest-%m%d-%H%M%S")
    options = load_options(cluster, {**option_values, "time": option_values["time"] or "10"})
    return report_checks(checks(folder, options, ranks, queue_s))


@click.group()
def bench() -> None:
    """Measure this machine."""


@bench.command()
@job_options
@click.option("--seconds", default=12.0, callback=positive_seconds, show_default=True, help="Measuring time.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def roofline(job: str, ranks: int | None, overrides: tuple[str, ...], seconds: float, as_json: bool) -> None:
    """Env steps per second that this machine's cores could reach on JOB if nothing were lost."""
    from dataclasses import asdict

    from hpc_rl.bench.roofline import measure, render

    settings = load_job(job, ranks, overrides)
    name_code(settings)
    measured = measure(settings, seconds)
    figures = {**asdict(measured), "env_steps_per_s": measured.env_steps_per_s}
    click.echo(json.dumps(figures) if as_json else render(measured))


@bench.command()
@job_options
@click.option("--seconds", default=250.0, callback=positive_seconds, show_default=True, help="Measuring time.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def share(job: str, ranks: int | None, overrides: tuple[str, ...], seconds: float, as_json: bool) -> None:
    """What part of its roofline a run of JOB reaches, both in turn on these cores."""
    from dataclasses import asdict

    from hpc_rl.bench.share import measure, render

    settings = load_job(job, ranks, overrides)
    name_code(settings)
    blocks = measure(settings, seconds)
    click.echo(json.dumps([asdict(block) | {"share": block.share} for block in blocks]) if as_json else render(blocks))


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

    rows = measure()
    click.echo(json.dumps(rows) if as_json else render(rows))


@bench.command()
@job_options
@click.option("--columns", multiple=True, type=click.IntRange(min=1), help="Numbers of columns; repeat it.")
@click.option("--seconds", default=0.5, callback=positive_seconds, show_default=True, help="Of each measurement.")
@click.option("--stepping-only", is_flag=True, help="Without training.")
@click.option("--plot", "picture", type=click.Path(path_type=Path), help="Also draw it, as PNG, PDF or SVG.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def env(
    job: str,
    ranks: int | None,
    overrides: tuple[str, ...],
    columns: tuple[int, ...],
    seconds: float,
    stepping_only: bool,
    picture: Path | None,
    as_json: bool,
) -> None:
    """Moves per second of JOB's device sampler against its columns: stepping, with inference, with training."""
    from dataclasses import asdict

    from hpc_rl.bench.env import WIDTHS, measure, plot, render

    settings = load_job(job, ranks, overrides)
    rows = measure(settings, columns or WIDTHS, seconds, not stepping_only)
    click.echo(json.dumps([asdict(row) for row in rows]) if as_json else render(rows))
    if picture is not None:
        plot(rows, f"{settings.environment.id}, one core", picture)


@bench.command()
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def counters(as_json: bool) -> None:
    """What counting one update costs, by columns and moves per fragment."""
    from hpc_rl.bench.counters import measure, render

    rows = measure()
    click.echo(json.dumps(rows) if as_json else render(rows))


@bench.command()
@click.option("--transitions", type=click.IntRange(min=10_000), default=200_000, show_default=True, help="Of Atari.")
@click.option("--seconds", default=2.0, callback=positive_seconds, show_default=True, help="Of each block and way.")
@click.option("--whole-stacks", is_flag=True, help="Also Tianshou's buffer of whole stacks, 57 kB a transition.")
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def replay(transitions: int, seconds: float, whole_stacks: bool, as_json: bool) -> None:
    """Samples and priority updates a second of the replay; beside cpprb and Tianshou where they are installed."""
    from dataclasses import asdict

    from hpc_rl.bench.replay import measure, render

    rows = measure(transitions, seconds, whole_stacks)
    click.echo(json.dumps([asdict(row) for row in rows]) if as_json else render(rows, transitions))
