"""The end of a run on rank 0: the evaluation under way is ended, and the last policy plays games that chose nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from hpc_rl.optim.flat import StateDict
from hpc_rl.runtime.context import RankContext
from hpc_rl.runtime.evaluation import Evaluation, weights_of
from hpc_rl.transport.waiting import Heartbeat

REPORT_GAMES, REPORT_S = 20, 300.0  # greedy games of each set of arguments, at least; given up after so long
SLICE_ROWS = 64  # moves of all columns between two signs of life


def conclude(
    evaluation: Evaluation, reason: str, state: StateDict, write: Callable[[], None]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(greedy figures for the summary, the evaluator's last words), once all other ranks have done their work.

    Only where the run is done, and until something asks it to stop. ``write`` is called as after every update. The
    figures are None where the games were not played, or not to their end.
    """
    context, evaluator, done = evaluation.context, evaluation.evaluator, reason.startswith("done")
    called, hold = _Called(context), _Hold(context)
    while done and evaluation.begun and not called():
        if evaluator is not None:
            evaluator.wait(called)
        write()
        hold()
    words = evaluator.release() if evaluator is not None else []
    figures = _last_games(evaluation, weights_of(state), called, hold) if done and evaluation.counters.episodes else {}
    return {name: figures.get(name) for name in ("greedy_return", "greedy_success")}, words


def _last_games(evaluation: Evaluation, weights: Tensor, called: _Called, hold: _Hold) -> dict[str, float]:
    """Figures of the last policy; none where its games end too late, or their environment fails."""
    episodes, limit = max(REPORT_GAMES, evaluation.context.job.evaluate.episodes), time.monotonic() + REPORT_S
    judge = evaluation.own_judge()
    judge.close()
    try:
        judge.begin(weights, episodes, "report")
        while not called() and time.monotonic() < limit:
            if (judgement := judge.advance(SLICE_ROWS, called)) is not None:
                print(f"last policy: mean return {judgement.score:.2f} in greedy games", flush=True)
                return judgement.figures()
            hold()
        judge.close()
        print("warning: the greedy games of the last policy were given up before their end", flush=True)
    except Exception as error:  # the environment's, and the run is done and saved
        print(f"warning: the greedy games of the last policy failed: {type(error).__name__}: {error}", flush=True)
    return {}


@dataclass
class _Called:
    """Whether something asks the run to end, or its time is over."""

    context: RankContext

    def __call__(self) -> bool:
        context, limit = self.context, self.context.job.budget.time_limit_s
        return context.stop() or context.out_of_time() or (bool(limit) and time.monotonic() - context.started > limit)


@dataclass
class _Hold:
    """Keeps the other ranks, which wait for rank 0 to leave with them, from taking it for lost."""

    context: RankContext
    beat: Heartbeat = field(init=False)

    def __post_init__(self) -> None:
        self.beat = Heartbeat(self.context.ports.waiting.deadline_s / 4)

    def __call__(self) -> None:
        if self.beat.due():
            self.context.ports.hold(range(self.context.ports.link.size))
