"""`hpc-rl eval`: games of a run's best policy, greedy and sampled, on seeds that neither trained nor chose it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hpc_rl import job as jobs
from hpc_rl.agent import agent_of
from hpc_rl.envs.make import describe_sets, make
from hpc_rl.gif import animated, shows
from hpc_rl.opponents import with_opponent
from hpc_rl.runtime.games import Game, Games, MakeEnvironment
from hpc_rl.saved_policy import saved_policy
from hpc_rl.settings import Job
from hpc_rl.storage import checkpoint
from hpc_rl.storage.run_dir import BadRun, open_run
from hpc_rl.types import Array, Spec

LEVEL = 0.95  # of the intervals


def evaluate_run(
    run: Path,
    episodes: int,
    file: Path | None,
    video: Path | None,
    warn: Callable[[str], None] = lambda text: None,
    overrides: Sequence[str] = (),
) -> dict[str, Any]:
    """Games of a run's best (else newest) checkpoint, or of ``file``: greedy ones, and as many that sample actions.

    ``overrides`` change the job. Seeds are those of neither training nor evaluation, alike for both. ``video`` gets the
    first greedy game as a GIF. What `hpc-rl eval --json` prints::

        checkpoint, env_steps     the file, and how long its policy had trained
        chosen                    "best", "newest" or "named"
        score, scored_by          the run's own figure of it, and of which games; null: none
        level                     of the intervals, Student's t over games
        greedy, sampled           {mean, low, high, games, distinct_games, distinct_returns, returns, success, sets}
        low, high                 null where there is one game
        success                   the part of the games that reached their goal, null where that is not known
        sets                      of each of the job's evaluate.arguments: {arguments, mean, success}, games of each

    Where the best is damaged, ``warn`` gets a sentence and the newest good one is played.

    Raises:
        BadRun, NoUsableCheckpoint, CorruptCheckpoint, IncompatibleCheckpoint: no run, no checkpoint that can be read,
            or one of another job.
    """
    directory = open_run(run)
    job = jobs.load(directory.job_file, overrides)
    agent = agent_of(job)
    describe_sets(job.environment.id, job.environment.arguments, job.evaluate.arguments, agent.spec)
    if video:
        check_video(video, agent.spec)
    policy, path, meta = saved_policy(directory, job, agent, file, warn)
    film: list[Array] = []
    results = {}
    for name, exploration in (("greedy", 0.0), ("sampled", 1.0)):
        sets: list[list[Game]] = []
        for changes in job.evaluate.arguments or ({},):
            watch = film.append if video and name == "greedy" and not sets else None
            games = Games(maker(job, changes), policy, job.seed, episodes, exploration, "report", watch)
            games.advance()
            sets.append(games.games)
        results[name] = _figures(sets, job.evaluate.arguments)
    if video:
        video.write_bytes(animated(film))
    return {**about(path, file, meta), **results}


def about(path: Path, file: Path | None, meta: Mapping[str, Any]) -> dict[str, Any]:
    """The first keys of a result: which policy was judged, and why that one; ``file`` is the one that was named."""
    choice = "named" if file is not None else "best" if path.name == checkpoint.BEST else "newest"
    figures = {name: meta.get(name) for name in ("env_steps", "score", "scored_by")}
    return {"checkpoint": str(path), "chosen": choice, **figures, "level": LEVEL}


def mean_interval(values: Sequence[float], level: float) -> tuple[float, float | None, float | None]:
    """(mean, low, high) of n values: x̄ ± t s/√n, Student's t at n − 1 degrees of freedom; None where n = 1."""
    from scipy import stats

    n, mean = len(values), float(np.mean(values))
    if n == 1:
        return mean, None, None
    half = float(stats.t.ppf((1 + level) / 2, n - 1) * np.std(values, ddof=1) / n**0.5)
    return mean, mean - half, mean + half


def maker(job: Job, changes: Mapping[str, Any]) -> MakeEnvironment:
    """The job's environments, with these changes of its arguments."""
    arguments = with_opponent(job.environment.id, {**job.environment.arguments, **changes})
    return lambda columns, threads: make(job.environment.id, arguments, columns, threads)


def _figures(sets: list[list[Game]], arguments: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What is said about some games, those of each set of ``arguments``; a game is distinct by what was seen and done
    in it.
    """
    games = [game for group in sets for game in group]
    returns = [game.total for game in games]
    mean, low, high = mean_interval(returns, LEVEL)
    distinct = {"distinct_games": len({game.digest for game in games}), "distinct_returns": len(set(returns))}
    each = [
        {"arguments": dict(changes), "mean": float(np.mean([x.total for x in group])), "success": _success(group)}
        for changes, group in zip(arguments, sets, strict=False)  # without arguments there is one group
    ]
    figures = {"mean": mean, "low": low, "high": high, "games": len(games), **distinct, "returns": returns}
    return {**figures, "success": _success(games), "sets": each}


def _success(games: Sequence[Game]) -> float | None:
    """The part of the games that reached their goal; None where one does not tell."""
    mean = float(np.mean([game.success for game in games]))
    return None if math.isnan(mean) else mean


def told(result: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """(lines of data, remarks) on what `evaluate_run` found."""
    lines = [
        f"mean raw return and {100 * result['level']:.0f} % interval (Student's t) of {result['checkpoint']},"
        f" {result['env_steps']:,} env steps"
    ]
    remarks = []
    for name in ("greedy", "sampled"):
        figures = result[name]
        interval = "" if figures["low"] is None else f" [{figures['low']:.2f}, {figures['high']:.2f}]"
        games, distinct = figures["games"], figures["distinct_games"]
        counts = f"{games} games, {distinct} distinct; {figures['distinct_returns']} distinct returns"
        lines.append(f"{name:<8} {figures['mean']:.2f}{interval}  {counts}{_reached(figures)}")
        lines += [f"  {row['arguments']}: {row['mean']:.2f}{_reached(row)}" for row in figures["sets"]]
        if distinct < games:
            remarks.append(
                f"only {distinct} of the {games} {name} games differ: this environment leaves little to chance, and "
                "games that repeat others are no further evidence"
            )
    if result["chosen"] == "best" and result["score"] is not None:
        by = result["scored_by"] or "games of its run"
        lines.append(f"chosen as the best by {by}: {result['score']:.2f}; the games above are others")
    else:
        lines.append(
            f"{'newest checkpoint' if result['chosen'] == 'newest' else 'checkpoint'}, not chosen by its return"
        )
    return lines, remarks


def _reached(row: Mapping[str, Any]) -> str:
    return "" if row["success"] is None else f"; success {100 * row['success']:.0f} %"


def check_video(path: Path, spec: Spec) -> None:
    """Raise BadRun, before anything is played, where no GIF could be written to ``path``."""
    if not shows(spec):
        raise BadRun(
            f"observations of {spec.id} are {spec.dtype} {list(spec.frame)}, not images; --video cannot show them"
        )
    if path.suffix.lower() != ".gif" or not path.parent.is_dir():
        raise BadRun(f"--video {path} cannot be written; name a file that ends in .gif in a folder that exists")
