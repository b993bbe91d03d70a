"""Jobs before they run: `hpc-rl list` and `hpc-rl show`."""

from __future__ import annotations

import json

import click

from hpc_rl import job as jobs
from hpc_rl.cli.options import job_options, load_job, name_code


@click.command("list")
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


@click.command()
@job_options
@click.option("--nodes", default=1, show_default=True, type=click.IntRange(min=1), help="Nodes that the ranks fill.")
def show(job: str, ranks: int | None, overrides: tuple[str, ...], nodes: int) -> None:
    """Networks, ranks, message sizes, memory and files of JOB, before anything starts."""
    from hpc_rl.show import render

    settings = load_job(job, ranks, overrides)
    name_code(settings)
    click.echo(render(settings, nodes))
