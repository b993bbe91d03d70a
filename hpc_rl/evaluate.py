"""Greedy episodes with a policy: whole games, raw returns, seeds that training never uses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hpc_rl import job as jobs
from hpc_rl.algorithms.base import Policy, State, flatten
from hpc_rl.envs.base import Environment
from hpc_rl.envs.generators import seed_shared, shared_kept
from hpc_rl.envs.make import describe, make
from hpc_rl.roles.fit import fit
from hpc_rl.roles.restoring import Check, usable
from hpc_rl.samplers.base import PURPOSES, Split, episode_seeds, streams
from hpc_rl.samplers.lanes import Lane
from hpc_rl.samplers.vector import Vector
from hpc_rl.storage import checkpoint
from hpc_rl.storage.run_dir import BadRun, RunDir, open_run
from hpc_rl.types import Array, Spec, allocate, trajectory_schema

MAX_COLUMNS = 16


def greedy_returns(
    make_environment: Callable[[int, int], Environment],
    policy: Policy,
    seed: int,
    episodes: int,
    exploration: float = 0.0,
    watch: Callable[[Array], None] | None = None,
    max_moves: int = 200_000,
) -> list[float]:
    """Raw returns of ``episodes`` whole games, each the first game of its own column, so that long games count as well.

    ``watch`` is called with every observation [*O] of the first game, its last one included. A game longer than
    ``max_moves`` is cut.
    """
    returns: list[float] = []
    for low in range(0, episodes, MAX_COLUMNS):
        columns = range(low, min(low + MAX_COLUMNS, episodes))
        with shared_kept():
            seed_shared(seed, PURPOSES["evaluate"], low)
            returns += _first_games(
                make_environment, policy, seed, columns, exploration, None if low else watch, max_moves
            )
    return returns


def _first_games(
    make_environment: Callable[[int, int], Environment],
    policy: Policy,
    seed: int,
    columns: range,
    exploration: float,
    watch: Callable[[Array], None] | None,
    max_moves: int,
) -> list[float]:
    environment = make_environment(len(columns), 1)
    try:
        lane = Lane(environment, policy, np.array(columns), streams(seed, "evaluate_act", columns, 0))
        lane.exploration.fill_(exploration)
        lane.start(episode_seeds(seed, "evaluate", columns, 0))
        vector = Vector([lane], Split())
        schema = trajectory_schema(environment.spec, policy.extras, policy.carry)
        tree = allocate(schema, 1, len(columns), environment.spec.stack)
        found = np.full(len(columns), np.nan)
        if watch is not None:
            watch(lane.observation[0])
        for _ in range(max_moves):
            vector.collect(tree, lambda: 0)
            if watch is not None and np.isnan(found[0]):
                watch(lane.observation[0])
            ended = np.isnan(found) & np.isfinite(tree["episode_return"][0])
            found[ended] = tree["episode_return"][0][ended]
            if np.isfinite(found).all():
                break
        return [float(x) for x in np.where(np.isnan(found), lane.running_return, found)]
    finally:
        environment.close()


def evaluate_run(
    run: Path, episodes: int, file: Path | None, video: Path | None, warn: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    """Greedy returns of a run's best (else newest) checkpoint, or of ``file``; optionally the first game as a GIF.

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
    path, state, _ = _checkpoint(directory, file, usable(algorithm, config, spec, fit(job, spec)), warn)
    policy = algorithm.policy(config, spec)
    flatten(policy.net).parameter.data.copy_(state["learner"]["parameters"])
    film: list[Array] = []

    def make_environment(columns: int, threads: int) -> Environment:
        return make(job.environment.id, job.environment.arguments, columns, threads)

    returns = np.array(
        greedy_returns(make_environment, policy, job.seed, episodes, watch=film.append if video else None)
    )
    if video:
        write_gif(video, film)
    half = 1.96 * returns.std(ddof=1) / len(returns) ** 0.5 if len(returns) > 1 else float("nan")
    figures = {"mean": float(returns.mean()), "low": float(returns.mean() - half), "high": float(returns.mean() + half)}
    return {**figures, "episodes": len(returns), "returns": returns.tolist(), "checkpoint": str(path)}


def _checkpoint(
    run: RunDir, file: Path | None, check: Check, warn: Callable[[str], None]
) -> tuple[Path, State, dict[str, Any]]:
    best = run.checkpoints / "best.h5"
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
