"""Arguments and options that several commands share, and the job that they name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hpc_rl import job as jobs
from hpc_rl.checking import hints_of, kind_of
from hpc_rl.cli.diagnostics import note
from hpc_rl.launchers.options import Options

if TYPE_CHECKING:
    from hpc_rl.settings import Job


def job_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """JOB, -n and --set, shared by the commands that read a job."""
    command = click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of the job.")(
        command
    )
    command = click.option("-n", "ranks", type=click.IntRange(min=1), help="MPI ranks (resources.ranks).")(command)
    return click.argument("job")(command)


def slurm_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Every field of `launchers.options.Options` as an option, and --cluster."""
    for item in reversed(fields(Options)):
        flag, text = "--" + item.name.replace("_", "-"), item.metadata["help"]
        if item.default is False:
            command = click.option(flag, is_flag=True, default=None, help=text)(command)
        elif item.default == ():
            command = click.option(flag, multiple=True, help=text)(command)
        else:
            help_text = f"{text[:-1]} [{item.default}]." if item.default is not None else text
            command = click.option(flag, type=kind_of(hints_of(Options)[item.name]), help=help_text)(command)
    return click.option("--cluster", metavar="NAME", help="Site profile: defaults for all of these.")(command)


def positive_seconds(context: click.Context, parameter: click.Parameter, value: float) -> float:
    """A click callback. Raises BadParameter unless the value is finite and above 0."""
    if not 0 < value < float("inf"):  # nan is neither
        raise click.BadParameter(f"{value} is not a number of seconds above 0")
    return value


def with_ranks(overrides: tuple[str, ...], ranks: int | None) -> tuple[str, ...]:
    """The overrides, with -n as the last of them."""
    return (*overrides, f"resources.ranks={ranks}") if ranks else overrides


def load_job(job: str | Path, ranks: int | None, overrides: tuple[str, ...]) -> Job:
    """JOB with -n and --set. Raises BadJob."""
    return jobs.load(job, with_ranks(overrides, ranks))


def name_code(job: Job) -> None:
    """A stranger's job file names code, too: what it makes this command import is named on stderr before it is."""
    from hpc_rl.envs.mixture import ids_of
    from hpc_rl.envs.targets import notice

    for id in ids_of(job.environment.id, job.environment.arguments):
        if sentence := notice(id):
            note(sentence)
