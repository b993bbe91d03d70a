"""`hpc-rl analyze`: a report about runs from what they recorded."""

from __future__ import annotations

import json
from pathlib import Path

import click

from hpc_rl.cli.diagnostics import note, warn


@click.command()
@click.argument("runs", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the report [RUN/report, of several ./report].")
@click.option("--scheduler", default="", help="Address or file of a Dask scheduler; slurm: the tasks of this srun.")
@click.option("--workers", default=0, type=click.IntRange(min=0), help="Processes on this machine [one a core].")
@click.option("--dashboard", is_flag=True, help="Serve Dask's pages on localhost while it computes.")
@click.option("--performance-report", type=click.Path(path_type=Path), help="Write Dask's performance report there.")
@click.option("--json", "as_json", is_flag=True, help="The sections as one object: findings, how, tables.")
def analyze(runs: tuple[Path, ...], out: Path | None, scheduler: str, workers: int, dashboard: bool,
            performance_report: Path | None, as_json: bool) -> None:  # fmt: skip
    """Write a report about RUNS, one HTML page with its tables and pictures beside it, and print what it found.

    It reads metrics and all closed segments, so that a run may still be going on.
    """
    from hpc_rl.analysis import open_runs, programs, report
    from hpc_rl.analysis.clusters import Where, computing, recorded_bytes
    from hpc_rl.storage.run_dir import open_run

    for run in runs:
        open_run(run)  # before processes start
    folder = out or (runs[0] / "report" if len(runs) == 1 else Path("report"))
    where = Where(scheduler, workers, dashboard, performance_report, folder)
    with computing(where, recorded_bytes(list(runs))) as client:
        if dashboard and client is not None:
            note(f"dashboard: {client.dashboard_link}")
        with report.bar(len(programs.ORDER)) as begin:
            result = report.make(open_runs(runs), begin)
    page = report.write(result, folder)
    for run_read in result.runs:
        for sentence in programs.sentences(run_read):
            warn(sentence)
    if as_json:
        click.echo(json.dumps({name: programs.as_json(section) for name, section in result.sections.items()}))
        return
    for section in result.sections.values():
        click.echo(click.style(section.title, bold=True))
        for finding in section.findings:
            click.echo(f"  {finding}")
    click.echo(f"report: {page}")
