"""The end of a run: summary.json, the last state, one sentence."""

from __future__ import annotations

import time
from typing import Any

from hpc_rl.runtime.checkpoint_writer import CheckpointWriter
from hpc_rl.runtime.context import RankContext
from hpc_rl.runtime.counters import Counters
from hpc_rl.runtime.reporter import Reporter
from hpc_rl.samplers.base import ACTIVITIES, Timings
from hpc_rl.storage.run_dir import write_json

WARM_UP_S = 20.0  # of a run is left out of the steady rate


def steady(counters: Counters, started: float) -> None:
    """Mark this update: the steady rate is counted from the first after the warm-up to the last."""
    counters.latest = (time.monotonic(), counters.env_steps)
    if counters.steady is None and counters.latest[0] - started > WARM_UP_S:
        counters.steady = counters.latest


def _rate(context: RankContext, counters: Counters) -> float:
    """Env steps per second of training; of a run without a steady time, from the start of this attempt on."""
    begun = (context.started, context.resume[1]["env_steps"] if context.resume else 0)
    until, steps = counters.latest or begun
    since, before = counters.steady if counters.steady and counters.steady != counters.latest else begun
    return float((steps - before) / max(until - since, 1e-9))


def finish(
    context: RankContext,
    counters: Counters,
    reason: str,
    reporter: Reporter,
    writer: CheckpointWriter,
    timings: Timings,
    others: list[dict[str, Any]],
    greedy: dict[str, Any],
) -> None:
    """Write summary.json and state.json. ``others`` are the last words of the other ranks, ``greedy`` figures of the
    games that the last policy played.
    """
    wall = time.monotonic() - context.started
    peaks = {context.rank_spec.name: reporter.peak}
    splits = {context.rank_spec.name: dict(timings.seconds)}
    for other in others:
        rank = context.plan.ranks[other["rank"]]
        peaks[rank.name] = int(other["peak_rss_bytes"])
        name = f"{rank.name}/inference" if rank.role == "learner" else rank.name  # a server in its learner's process
        splits[name] = dict(zip(ACTIVITIES, other["split_s"], strict=True))
    summary = {
        "name": context.job.name,
        "reason": reason,
        "env_steps": counters.env_steps,
        "frames": counters.env_steps * context.spec.action_repeat,
        "updates": counters.updates,
        "episodes": counters.episodes,
        "wall_s": wall,
        "env_steps_per_s": _rate(context, counters),
        "roofline_share": None,
        "mean_return_100": counters.mean_return,
        **greedy,
        "evaluated_return": counters.evaluated,
        "best": None if counters.best == float("-inf") else counters.best,
        "policy_lag": sum(counters.lags) / max(len(counters.lags), 1),
        "peak_rss_bytes": peaks,
        "split_s": splits,
        "checkpoint_longest_s": writer.longest_s,
        "attempt": context.attempt,
    }
    write_json(context.run.summary_file, summary)
    state = reason.split(":", maxsplit=1)[0]
    context.run.write_state(
        state=state, reason=reason, env_steps=counters.env_steps, updates=counters.updates, attempt=context.attempt
    )
    reporter.close()
