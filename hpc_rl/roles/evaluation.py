"""Evaluation during training: which policy is judged when, by whom, and what its greedy games returned.

Rank 0 judges itself, a slice of moves after each of its updates, or has the evaluator rank do it. A slice is a fixed
number of moves where ranks step their columns in lock-step, so that a run repeats itself bit for bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from torch import Tensor

from hpc_rl.algorithms.base import Policy
from hpc_rl.optim.flat import StateDict
from hpc_rl.roles.base import Seat
from hpc_rl.roles.evaluator_rank import EvaluatorRank
from hpc_rl.runtime.judge import Judge, Judgement
from hpc_rl.runtime.tally import Tally
from hpc_rl.samplers.base import EVALUATED_TOGETHER
from hpc_rl.transport.waiting import Heartbeat

SLICE_S, SLICE_ROWS = 0.2, 64  # the longest slice, in seconds (free-running ranks) and moves of all columns
REPORT_GAMES, REPORT_S = 20, 300.0  # of the last policy, at the end of a run; given up after so long


def weights_of(state: StateDict) -> Tensor:
    """The weights that act, of a checkpoint's state: what is judged is what is saved."""
    weights: Tensor = state["weights"]
    return weights


class Evaluation:
    """Of one learning rank; all but rank 0 never find one due."""

    def __init__(self, seat: Seat, policy: Policy, tally: Tally) -> None:
        self.seat, self.policy, self.tally = seat, policy, tally
        self.every = seat.job.evaluate.every_steps if seat.place.rank == 0 else 0
        self.evaluator = EvaluatorRank(seat, policy) if self.every and seat.plan.evaluator is not None else None
        self.judge: Judge | None = None
        self.begun: tuple[int, float] | None = None  # (env steps, time) of the evaluation under way
        self.reached = False  # the target of the budget, by the last evaluation

    def due(self) -> bool:
        """A policy is to be judged now. Does not depend on the clock."""
        if not self.every or self.begun or self.tally.env_steps < self.tally.judged_at + self.every:
            return False
        return self.evaluator is None or self.evaluator.ready()

    def begin(self, weights: Tensor) -> None:
        """Judge ``weights``, which are copied, from now on."""
        self.begun = (self.tally.env_steps, time.monotonic())
        if self.evaluator is not None:
            self.evaluator.begin(weights, self.begun[0])
        else:
            self._own_judge().begin(weights, self.seat.job.evaluate.episodes, "evaluate")

    def step(self) -> Judgement | None:
        """Go on with the evaluation under way; its judgement at the end. Once after every update.

        Raises:
            Deadline: the evaluator rank has been silent for too long.
        """
        judgement = self.evaluator.poll() if self.evaluator is not None else self._slice() if self.begun else None
        if judgement is None or self.begun is None:
            return None
        (env_steps, begin), self.begun = self.begun, None
        tally, target, games = self.tally, self.seat.job.budget.stop_at_return, self.seat.job.evaluate.episodes
        tally.evaluated, tally.judged_at, tally.greedy = judgement.score, env_steps, judgement.figures()
        self.reached = target is not None and judgement.score >= target
        took = f"{games * len(judgement.returns)} games, {time.monotonic() - begin:.1f} s"
        print(f"evaluation at {env_steps} env steps: {judgement.score:.2f} in {took}", flush=True)
        return judgement

    def conclude(self, reason: str, state: StateDict, write: Callable[[], None]) -> tuple[dict[str, Any], list[Any]]:
        """The end of a run, on rank 0, with every other rank done: (greedy figures for the summary, last words).

        Where the run is done and nobody asks it to stop meanwhile, the evaluation under way is ended, by ``write`` as
        after an update, and the last policy plays games whose seeds chose nothing.
        """
        done, words = reason.startswith("done"), list[Any]()
        beat = Heartbeat(self.seat.ports.waiting.deadline_s / 4)
        while done and self.begun and not self._called():
            if self.evaluator is not None:
                self.evaluator.wait(self._called)
            write()
            self._hold(beat)
        if self.judge is not None:
            self.judge.close()
        if self.evaluator is not None:
            words = self.evaluator.release()
        figures = self._report(weights_of(state), beat) if done and self.tally.episodes else {}
        return {name: figures.get(name) for name in ("greedy_return", "greedy_success")}, words

    def _report(self, weights: Tensor, beat: Heartbeat) -> dict[str, float]:
        """Greedy games of the last policy; nothing where they end too late, or their environment fails."""
        limit = time.monotonic() + REPORT_S
        try:
            judge = self._own_judge()
            judge.begin(weights, max(REPORT_GAMES, self.seat.job.evaluate.episodes), "report")
            while not self._called() and time.monotonic() < limit:
                if (judgement := judge.advance(SLICE_ROWS, self._called)) is not None:
                    return judgement.figures()
                self._hold(beat)
            judge.close()
            print(f"warning: the games of the last policy were given up, at the latest after {REPORT_S:.0f} s", flush=True)
        except Exception as error:  # an environment's, and by now the run is done and saved
            print(f"warning: the games of the last policy failed: {type(error).__name__}: {error}", flush=True)
        return {}

    def _own_judge(self) -> Judge:
        """Made when it is first needed: it holds a copy of the weights."""
        if self.judge is None:
            job = self.seat.job
            self.judge = Judge(self.policy, self.seat.make_evaluation, job.evaluate.arguments, job.seed)
        return self.judge

    def _slice(self) -> Judgement | None:
        """About as many moves as an update learns from: then an evaluation costs at most as much as the training."""
        plan, seat = self.seat.plan, self.seat
        moves = plan.steps * plan.learning_columns
        rows = moves // min(EVALUATED_TOGETHER, seat.job.evaluate.episodes)
        free, end = not seat.place.columns and seat.job.schedule == "free", time.monotonic() + SLICE_S
        give_up = (lambda: seat.stop() or time.monotonic() > end) if free else seat.stop
        return self._own_judge().advance(max(1, min(SLICE_ROWS, rows)), give_up)

    def _called(self) -> bool:
        """Somebody asks the run to end, or its time is over."""
        seat, limit = self.seat, self.seat.job.budget.time_limit_s
        return seat.stop() or seat.out_of_time() or (bool(limit) and time.monotonic() - seat.started > limit)

    def _hold(self, beat: Heartbeat) -> None:
        """Keep the others, who wait for rank 0 to leave with them, from taking it for lost."""
        if beat.due():
            self.seat.ports.hold(range(self.seat.ports.link.size))
