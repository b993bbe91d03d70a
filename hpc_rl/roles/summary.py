"""The end of a run: summary.json, the last state, one sentence."""

from __future__ import annotations

import time
from typing import Any

from hpc_rl.roles.base import Seat
from hpc_rl.roles.reporter import Reporter
from hpc_rl.roles.saving import Saver
from hpc_rl.runtime.tally import Tally
from hpc_rl.samplers.base import ACTIVITIES, Split
from hpc_rl.storage.run_dir import write_json

WARM_UP_S = 20.0  # of a run is left out of the steady rate


def steady(tally: Tally, started: float) -> None:
    """Mark this update: the steady rate is counted from the first after the warm-up to the last."""
    tally.latest = (time.monotonic(), tally.env_steps)
    if tally.steady is None and tally.latest[0] - started > WARM_UP_S:
        tally.steady = tally.latest


def _rate(seat: Seat, tally: Tally) -> float:
    """Env steps per second of training; of a run without a steady time, from the start of this attempt on."""
    begun = (seat.started, seat.resume[1]["env_steps"] if seat.resume else 0)
    until, steps = tally.latest or begun
    since, before = tally.steady if tally.steady and tally.steady != tally.latest else begun
    return float((steps - before) / max(until - since, 1e-9))


def finish(
    seat: Seat,
    tally: Tally,
    reason: str,
    reporter: Reporter,
    saver: Saver,
    split: Split,
    others: list[dict[str, Any]],
    greedy: dict[str, Any],
) -> None:
    """Write summary.json and state.json. ``others`` are the last words of the other ranks, ``greedy`` figures of the
    games that the last policy played.
    """
    wall = time.monotonic() - seat.started
    peaks = {seat.place.name: reporter.peak}
    splits = {seat.place.name: dict(split.seconds)}
    for other in others:
        rank = seat.plan.ranks[other["rank"]]
        peaks[rank.name] = int(other["peak_rss_bytes"])
        name = f"{rank.name}/inference" if rank.role == "learner" else rank.name  # a server in its learner's process
        splits[name] = dict(zip(ACTIVITIES, other["split_s"], strict=True))
    summary = {
        "name": seat.job.name,
        "reason": reason,
        "env_steps": tally.env_steps,
        "frames": tally.env_steps * seat.spec.action_repeat,
        "updates": tally.updates,
        "episodes": tally.episodes,
        "wall_s": wall,
        "env_steps_per_s": _rate(seat, tally),
        "roofline_share": None,
        "mean_return_100": tally.mean_return,
        **greedy,
        "evaluated_return": tally.evaluated,
        "best": None if tally.best == float("-inf") else tally.best,
        "policy_lag": sum(tally.lags) / max(len(tally.lags), 1),
        "peak_rss_bytes": peaks,
        "split_s": splits,
        "checkpoint_longest_s": saver.longest_s,
        "attempt": seat.attempt,
    }
    write_json(seat.run.summary_file, summary)
    state = reason.split(":", maxsplit=1)[0]
    seat.run.write_state(
        state=state, reason=reason, env_steps=tally.env_steps, updates=tally.updates, attempt=seat.attempt
    )
    reporter.close()
