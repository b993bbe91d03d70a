"""Episodes of a policy: whole games, raw returns, seeds that training never uses.

Games that choose the best checkpoint ("evaluate") and games that tell how good it is ("report") have seeds of their
own: the best of many means over the same games is too high for them, and for no others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpc_rl import job as jobs
from hpc_rl.algorithms.base import Policy
from hpc_rl.envs.base import Environment
from hpc_rl.envs.generators import seed_shared, shared_kept
from hpc_rl.envs.make import describe, make
from hpc_rl.fragments import allocate, trajectory_schema
from hpc_rl.optim.flat import StateDict, flatten
from hpc_rl.roles.fit import fit
from hpc_rl.runtime.restoring import Check, playable
from hpc_rl.samplers.base import PURPOSES, Split, episode_seeds, streams
from hpc_rl.samplers.lanes import Lane
from hpc_rl.samplers.vector import Vector
from hpc_rl.storage import checkpoint
from hpc_rl.storage.run_dir import BadRun, RunDir, open_run
from hpc_rl.types import Array, Spec

MAX_COLUMNS = 16
LEVEL = 0.95  # of the intervals
BEST = "best.h5"


@dataclass(frozen=True)
class Game:
    """One whole game: its raw return, and what tells it from others, a digest of all that was seen and done in it."""

    total: float
    digest: bytes


def greedy_returns(
    make_environment: Callable[[int, int], Environment],
    policy: Policy,
    seed: int,
    episodes: int,
    exploration: float = 0.0,
    watch: Callable[[Array], None] | None = None,
    max_moves: int = 200_000,
) -> list[float]:
    """Raw returns of games that `played` plays, the ones that choose the best checkpoint."""
    games = played(make_environment, policy, seed, episodes, exploration, "evaluate", watch, max_moves)
    return [game.total for game in games]


def played(
    make_environment: Callable[[int, int], Environment],
    policy: Policy,
    seed: int,
    episodes: int,
    exploration: float,
    purpose: str,
    watch: Callable[[Array], None] | None = None,
    max_moves: int = 200_000,
) -> list[Game]:
    """``episodes`` whole games, each the first game of its own column, so that long games count as well.

    ``purpose`` names the seeds: "evaluate" or "report". ``watch`` is called with every observation [*O] of the first
    game, its last one included. A game longer than ``max_moves`` is cut.
    """
    games: list[Game] = []
    for low in range(0, episodes, MAX_COLUMNS):
        columns = range(low, min(low + MAX_COLUMNS, episodes))
        with shared_kept():
            seed_shared(seed, PURPOSES[purpose], low)
            games += _first_games(
                make_environment, policy, seed, columns, exploration, purpose, None if low else watch, max_moves
            )
    return games


def _first_games(
    make_environment: Callable[[int, int], Environment],
    policy: Policy,
    seed: int,
    columns: range,
    exploration: float,
    purpose: str,
    watch: Callable[[Array], None] | None,
    max_moves: int,
) -> list[Game]:
    environment = make_environment(len(columns), 1)
    try:
        lane = Lane(environment, policy, np.array(columns), streams(seed, f"{purpose}_act", columns, 0))
        lane.exploration.fill_(exploration)
        lane.start(episode_seeds(seed, purpose, columns, 0))
        vector = Vector([lane], Split())
        schema = trajectory_schema(environment.spec, policy.extras, policy.carry, policy.fragment_noise)
        tree = allocate(schema, 1, len(columns), environment.spec.stack)
        found = np.full(len(columns), np.nan)
        digests = [hashlib.blake2b(x.tobytes(), digest_size=8) for x in lane.observation]
        if watch is not None:
            watch(lane.observation[0])
        for _ in range(max_moves):
            vector.collect(tree, lambda: 0)
            if watch is not None and np.isnan(found[0]):
                watch(lane.observation[0])
            for column in np.flatnonzero(np.isnan(found)):
                digests[column].update(tree["action"][0, column].tobytes())
                digests[column].update(tree["observation"][-1, column].tobytes())
            ended = np.isnan(found) & np.isfinite(tree["episode_return"][0])
            found[ended] = tree["episode_return"][0][ended]
            if np.isfinite(found).all():
                break
        totals = np.where(np.isnan(found), lane.running_return, found)
        return [Game(float(x), digest.digest()) for x, digest in zip(totals, digests, strict=True)]
    finally:
        environment.close()


def evaluate_run(
    run: Path, episodes: int, file: Path | None, video: Path | None, warn: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Games of a run's best (else newest) checkpoint, or of ``file``: greedy ones, and as many that sample actions.

    Their seeds are those of neither training nor evaluation, alike for both. ``video`` gets the first greedy game as a
    GIF. What `hpc-rl eval --json` prints::

        checkpoint, env_steps     the file, and how long its policy had trained
        chosen                    "best", "newest" or "named"
        score, scored_by          the run's own figure of it, and of which games; null: none
        level                     of the intervals, Student's t over games
        greedy, sampled           {mean, low, high, games, distinct_games, distinct_returns, returns}; low, high null
                                  where there is one game

    Where the best is damaged, ``warn`` gets a sentence and the newest good one is played.

    Raises:
        BadRun, NoUsableCheckpoint, Torn, Misfit: no run, no checkpoint that can be read, or one of another job.
    """
    directory = open_run(run)
    job = jobs.load(directory.job_file)
    spec = describe(job.environment.id, job.environment.arguments)
    if video:
        check_video(video, spec)
    algorithm, config = jobs.algorithm(job.algorithm), jobs.method_config(job)
    path, state, meta = _checkpoint(directory, file, playable(algorithm, config, spec, fit(job, spec)), warn)
    policy = algorithm.policy(config, spec)
    flatten(policy.net).data.copy_(state["weights"])
    film: list[Array] = []

    def make_environment(columns: int, threads: int) -> Environment:
        return make(job.environment.id, job.environment.arguments, columns, threads)

    found = {}
    for name, exploration in (("greedy", 0.0), ("sampled", 1.0)):
        watch = film.append if video and name == "greedy" else None
        found[name] = _figures(played(make_environment, policy, job.seed, episodes, exploration, "report", watch))
    if video:
        write_gif(video, film)
    chosen = "named" if file is not None else "best" if path.name == BEST else "newest"
    about = {name: meta.get(name) for name in ("env_steps", "score", "scored_by")}
    return {"checkpoint": str(path), "chosen": chosen, **about, "level": LEVEL, **found}


def mean_interval(values: Sequence[float], level: float) -> tuple[float, float | None, float | None]:
    """(mean, low, high) of n values: x̄ ± t s/√n, Student's t at n − 1 degrees of freedom; None where n = 1."""
    from scipy import stats

    n, mean = len(values), float(np.mean(values))
    if n == 1:
        return mean, None, None
    half = float(stats.t.ppf((1 + level) / 2, n - 1) * np.std(values, ddof=1) / n**0.5)
    return mean, mean - half, mean + half


def _figures(games: list[Game]) -> dict[str, Any]:
    """What is said about some games; a game is distinct by what was seen and done in it."""
    returns = [game.total for game in games]
    mean, low, high = mean_interval(returns, LEVEL)
    distinct = {"distinct_games": len({game.digest for game in games}), "distinct_returns": len(set(returns))}
    return {"mean": mean, "low": low, "high": high, "games": len(games), **distinct, "returns": returns}


def told(result: dict[str, Any]) -> tuple[list[str], list[str]]:
    """(lines of data, remarks) on what `evaluate_run` found."""
    lines = [
        f"mean raw return and {100 * result['level']:.0f} % interval (Student's t) of {result['checkpoint']},"
        f" {result['env_steps']:,} env steps"
    ]
    remarks = []
    for name in ("greedy", "sampled"):
        own = result[name]
        interval = "" if own["low"] is None else f" [{own['low']:.2f}, {own['high']:.2f}]"
        counts = f"{own['games']} games, {own['distinct_games']} distinct; {own['distinct_returns']} distinct returns"
        lines.append(f"{name:<8} {own['mean']:.2f}{interval}  {counts}")
        if own["distinct_games"] < own["games"]:
            remarks.append(
                f"only {own['distinct_games']} of the {own['games']} {name} games differ: this environment leaves "
                "little to chance, and games that repeat others are no further evidence"
            )
    if result["chosen"] == "best" and result["score"] is not None:
        by = result["scored_by"] or "games of its run"
        lines.append(f"chosen as the best by {by}: {result['score']:.2f}; the games above are others")
    else:
        lines.append(
            f"{'newest checkpoint' if result['chosen'] == 'newest' else 'checkpoint'}, not chosen by its return"
        )
    return lines, remarks


def _checkpoint(
    run: RunDir, file: Path | None, check: Check, warn: Callable[[str], None]
) -> tuple[Path, StateDict, dict[str, Any]]:
    best = run.checkpoints / BEST
    if file is not None:
        return (file, *checkpoint.examined(file, check))
    if best.exists():
        try:
            return (best, *checkpoint.examined(best, check))
        except checkpoint.Torn as error:
            warn(f"{error}; falling back to the newest checkpoint")
    found = checkpoint.newest(run, warn, check=check)
    if found is None:
        raise BadRun(f"{run.path} holds no checkpoint yet; let it train for a while first")
    return found


def check_video(path: Path, spec: Spec) -> None:
    """Raise BadRun, before anything is played, where no GIF could be written to ``path``."""
    if len(spec.frame) < 2 or spec.dtype != "uint8":
        raise BadRun(
            f"observations of {spec.id} are {spec.dtype} {list(spec.frame)}, not images; --video cannot show them"
        )
    if path.suffix.lower() != ".gif" or not path.parent.is_dir():
        raise BadRun(f"--video {path} cannot be written; name a file that ends in .gif in a folder that exists")


def write_gif(path: Path, film: list[Array]) -> None:
    """Observations [.., H, W] or [.., 3, H, W] uint8 as an animated GIF; of a stack the newest frame is shown."""
    from PIL import Image

    frames = [Image.fromarray(x).resize((x.shape[1] * 3, x.shape[0] * 3)) for x in map(_picture, film)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=67, loop=0)


def _picture(x: Array) -> Array:
    """[H, W] or [H, W, 3]."""
    while x.ndim > 3 or (x.ndim == 3 and len(x) != 3):
        x = x[-1]
    return np.ascontiguousarray(np.moveaxis(x, 0, -1)) if x.ndim == 3 else np.ascontiguousarray(x)
