"""The end of a run on rank 0, after every role: the last games, summary.json, one sentence.

The evaluation under way is ended, and the last policy plays games that chose nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hpc_rl.optim.flat import StateDict
from hpc_rl.runtime.checkpoints import Outcome
from hpc_rl.runtime.context import RankContext
from hpc_rl.runtime.counters import Counters, Limits
from hpc_rl.runtime.evaluation import Evaluation
from hpc_rl.runtime.messages import FinalReport
from hpc_rl.samplers.base import ACTIVITIES
from hpc_rl.transport.ports import Ports
from hpc_rl.transport.waiting import Heartbeat

REPORT_GAMES, REPORT_S = 20, 300.0  # greedy games of each set of arguments, at least; given up after so long
GREEDY = ("greedy_return", "greedy_success")  # of the last policy; null where it played no games to their end
SLICE_ROWS = 64  # moves of all columns between two signs of life


def conclude(context: RankContext, outcome: Outcome) -> None:
    """Write summary.json and state.json; where the run is done, play the last games and add what they returned.

    The run is written as ended before they are played: foreign code that crashes in them must not cost it that.
    """
    evaluation, limits, hold = outcome.scheduler.evaluation, context.limits, _Hold(context.ports)
    evaluator, budget_used = evaluation.evaluator, outcome.reason.startswith("done")
    while budget_used and evaluation.begun and not limits.reached():
        if evaluator is not None:
            evaluator.wait(limits.reached)
        outcome.scheduler.write()
        hold()
    reports = [*outcome.reports, *(evaluator.release() if evaluator is not None else [])]
    summary = _summary(context, outcome, reports)
    context.files.write_summary(summary)
    if budget_used and (outcome.counters.episodes > 0 or not context.plan.acts):
        figures = _last_games(evaluation, outcome.state, limits, hold)
        context.files.write_summary(summary | {name: figures.get(name) for name in GREEDY})


def _last_games(evaluation: Evaluation, state: StateDict, limits: Limits, hold: Callable[[], None]) -> dict[str, float]:
    """Figures of the last policy; none where its games end too late, or their environment fails."""
    episodes, end = max(REPORT_GAMES, evaluation.evaluate.episodes), time.monotonic() + REPORT_S
    judge = evaluation.own_judge()
    judge.close()
    try:
        judge.begin(state["weights"], episodes, "report")
        while not limits.reached() and time.monotonic() < end:
            if (judgement := judge.advance(SLICE_ROWS, limits.reached)) is not None:
                print(f"last policy: mean return {judgement.score:.2f} in greedy games", flush=True)
                return judgement.figures()
            hold()
        judge.close()
        print("warning: the greedy games of the last policy were given up before their end", flush=True)
    except Exception as error:  # the environment's, and the run is done and saved
        print(f"warning: the greedy games of the last policy failed: {type(error).__name__}: {error}", flush=True)
    return {}


@dataclass
class _Hold:
    """Keeps the other ranks, which wait for rank 0 to leave with them, from taking it for lost."""

    ports: Ports
    beat: Heartbeat = field(init=False)

    def __post_init__(self) -> None:
        self.beat = Heartbeat(self.ports.waiting.deadline_s / 4)

    def __call__(self) -> None:
        if self.beat.due():
            self.ports.hold(range(self.ports.link.size))


def _summary(context: RankContext, outcome: Outcome, reports: Sequence[FinalReport]) -> dict[str, Any]:
    """What summary.json holds before the last games."""
    counters, rank_spec = outcome.counters, context.rank_spec
    peaks, splits = {rank_spec.name: outcome.own.peak_rss_bytes}, {rank_spec.name: _split(outcome.own)}
    cpu = {rank_spec.name: outcome.own.cpu_s}
    for report in reports:
        rank = context.plan.ranks[report.rank]
        peaks[rank.name], cpu[rank.name] = report.peak_rss_bytes, report.cpu_s
        name = f"{rank.name}/inference" if rank.role == "learner" else rank.name  # a server in its learner's process
        splits[name] = _split(report)
    begin = context.resume[1]["env_steps"] if context.resume else 0
    return {
        "name": context.job.name,
        "reason": outcome.reason,
        "env_steps": counters.env_steps,
        "frames": counters.env_steps * context.method.spec.action_repeat,
        "updates": counters.updates,
        "episodes": counters.episodes,
        "wall_s": time.monotonic() - context.limits.started,
        "env_steps_per_s": _rate(counters, context.limits.started, begin),
        "roofline_share": None,
        "mean_return_100": counters.mean_return,
        **dict.fromkeys(GREEDY),
        "evaluated_return": counters.evaluated,
        "best": None if counters.best == float("-inf") else counters.best,
        "policy_lag": sum(counters.lags) / max(len(counters.lags), 1),
        "peak_rss_bytes": peaks,
        "cpu_s": cpu,
        "split_s": splits,
        "lost_actors": [context.plan.ranks[rank].name for rank in sorted(context.ports.waiting.lost())],
        "checkpoint_longest_s": outcome.scheduler.writer.longest_s,
        "attempt": context.attempt,
    }


def _split(report: FinalReport) -> dict[str, float]:
    return dict(zip(ACTIVITIES, report.split_s, strict=True))


def _rate(counters: Counters, started: float, begin: int) -> float:
    """Env steps per second of training; of a run without a steady time, from the start of this attempt on."""
    until, steps = counters.latest or (started, begin)
    steady = counters.steady if counters.steady != counters.latest else None
    since, before = steady or (started, begin)
    return float((steps - before) / max(until - since, 1e-9))
