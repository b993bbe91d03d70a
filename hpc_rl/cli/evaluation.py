"""`hpc-rl eval` and `play`: games of a run's policy."""

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
@click.option("--opponent", "opponents", multiple=True, metavar="PLAYER", help="Of a game of two: alphabeta:4, …")
@click.option("--lines", is_flag=True, help="Of a game of two: count the lines that lose, also of a large game.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change the job: dqn.epsilon=0.1, …")
@click.option("--json", "as_json", is_flag=True, help="One object: checkpoint, chosen, score, greedy, sampled, …")
def evaluate(
    run: Path,
    episodes: int,
    checkpoint: Path | None,
    video: Path | None,
    opponents: tuple[str, ...],
    lines: bool,
    overrides: tuple[str, ...],
    as_json: bool,
) -> None:
    """Greedy and sampled episodes of RUN's best policy: mean raw returns, 95 % intervals, how many games differ.

    Their seeds were used by neither training nor the evaluations that chose the best. The policy of a game of two
    plays as many matches from each side against each --opponent, else those of evaluate.arguments: points, ratings,
    and, where the game is small, how many lines of play lose.
    """
    from hpc_rl import evaluation, pool
    from hpc_rl.envs.of_rules import game_of_two
    from hpc_rl.storage.run_dir import open_run

    job = jobs.load(open_run(run).job_file, overrides)
    name_code(job)
    if opponents or lines or game_of_two(job.environment.id, job.environment.arguments) is not None:
        if video:
            raise click.UsageError("--video shows observations that are images; `hpc-rl play` shows a game of two")
        result = pool.play_pool(run, episodes, checkpoint, opponents, lines, overrides, warn)
        told = pool.told
    else:
        result = evaluation.evaluate_run(run, episodes, checkpoint, video, warn, overrides)
        told = evaluation.told
    if as_json:
        click.echo(json.dumps(result))
        return
    rows, remarks = told(result)
    click.echo("\n".join(rows))
    for remark in remarks:
        warn(remark)


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--checkpoint", type=click.Path(path_type=Path), help="A file [default: best, else newest].")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change the job, such as its search.")
@click.option("--second", is_flag=True, help="The policy moves first.")
@click.option("--seed", default=1, show_default=True, help="Of what the policy or the game draws.")
def play(run: Path, checkpoint: Path | None, overrides: tuple[str, ...], second: bool, seed: int) -> None:
    """Play against RUN's best policy, in a game of two players."""
    from hpc_rl import play as games
    from hpc_rl.storage.run_dir import open_run

    name_code(jobs.load(open_run(run).job_file, overrides))
    games.play(run, checkpoint, overrides, not second, seed, _answer, click.echo, warn)


def _answer(prompt: str) -> str | None:
    """A line of the person's; None at the end of the input, or for Ctrl-C."""
    try:
        return str(click.prompt(prompt, prompt_suffix="", default="", show_default=False))
    except click.Abort:
        return None
