"""`hpc-rl eval`: games of a run's policy."""

from __future__ import annotations

import json
from pathlib import Path

import click

from hpc_rl import job as jobs
from hpc_rl.cli.diagnostics import warn
from hpc_rl.cli.options import name_code


@click.command("eval")
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--episodes", default=20, show_default=True, type=click.IntRange(min=1), help="Greedy, and as many more.")
@click.option("--checkpoint", type=click.Path(path_type=Path), help="A file [default: best, else newest].")
@click.option("--video", type=click.Path(path_type=Path), help="Write the first greedy episode as a GIF.")
@click.option("--json", "as_json", is_flag=True, help="One object: checkpoint, chosen, score, greedy, sampled, …")
def evaluate(run: Path, episodes: int, checkpoint: Path | None, video: Path | None, as_json: bool) -> None:
    """Greedy and sampled episodes of RUN's best policy: mean raw returns, 95 % intervals, how many games differ.

    Their seeds were used by neither training nor the evaluations that chose the best.
    """
    from hpc_rl.evaluation import evaluate_run, told
    from hpc_rl.storage.run_dir import open_run

    name_code(jobs.load(open_run(run).job_file))
    result = evaluate_run(run, episodes, checkpoint, video, warn)
    if as_json:
        click.echo(json.dumps(result))
        return
    lines, remarks = told(result)
    click.echo("\n".join(lines))
    for remark in remarks:
        warn(remark)
