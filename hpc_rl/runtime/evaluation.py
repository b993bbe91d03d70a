"""Evaluation during training: which policy is judged when, by whom, and what its greedy games returned.

Rank 0 judges itself, a slice of moves after each of its updates, or has the evaluator rank do it. A slice is a fixed
number of moves where ranks step their columns in lock-step, so that a run repeats itself bit for bit.
"""

from __future__ import annotations

import time

from torch import Tensor

from hpc_rl.algorithms.base import Policy
from hpc_rl.optim.flat import StateDict
from hpc_rl.runtime.context import RankContext
from hpc_rl.runtime.counters import Counters
from hpc_rl.runtime.evaluator_client import EvaluatorClient
from hpc_rl.runtime.judge import Judge, Judgement
from hpc_rl.samplers.base import EVALUATED_TOGETHER

SLICE_S, SLICE_ROWS = 0.2, 64  # the longest slice, in seconds (free-running ranks) and moves of all columns


def weights_of(state: StateDict) -> Tensor:
    """The weights that act, of a checkpoint's state: what is judged is what is saved."""
    weights: Tensor = state["weights"]
    return weights


class Evaluation:
    """Of one learning rank; all but rank 0 never find one due."""

    def __init__(self, context: RankContext, policy: Policy, counters: Counters) -> None:
        self.context, self.policy, self.counters = context, policy, counters
        self.every = context.job.evaluate.every_steps if context.rank_spec.rank == 0 else 0
        self.evaluator = EvaluatorClient(context, policy) if self.every and context.plan.evaluator is not None else None
        self.judge: Judge | None = None
        self.begun: tuple[int, float] | None = None  # (env steps, time) of the evaluation under way
        self.reached = False  # the target of the budget, by the last evaluation

    def due(self) -> bool:
        """A policy is to be judged now. Does not depend on the clock."""
        if not self.every or self.begun or self.counters.env_steps < self.counters.judged_at + self.every:
            return False
        return self.evaluator is None or self.evaluator.ready()

    def begin(self, weights: Tensor) -> None:
        """Judge ``weights``, which are copied, from now on."""
        self.begun = (self.counters.env_steps, time.monotonic())
        if self.evaluator is not None:
            self.evaluator.begin(weights, self.begun[0])
        else:
            self.own_judge().begin(weights, self.context.job.evaluate.episodes, "evaluate")

    def step(self) -> Judgement | None:
        """Go on with the evaluation under way; its judgement at the end. Once after every update.

        Raises:
            Deadline: the evaluator rank has been silent for too long.
        """
        judgement = self.evaluator.poll() if self.evaluator is not None else self._slice() if self.begun else None
        if judgement is None or self.begun is None:
            return None
        (env_steps, begin), self.begun = self.begun, None
        counters, target, games = (
            self.counters,
            self.context.job.budget.stop_at_return,
            self.context.job.evaluate.episodes,
        )
        counters.evaluated, counters.judged_at, counters.greedy = judgement.score, env_steps, judgement.figures()
        self.reached = target is not None and judgement.score >= target
        took = f"{games * len(judgement.returns)} games, {time.monotonic() - begin:.1f} s"
        print(f"evaluation at {env_steps} env steps: {judgement.score:.2f} in {took}", flush=True)
        return judgement

    def own_judge(self) -> Judge:
        """Made when it is first needed: it holds a copy of the weights."""
        if self.judge is None:
            job = self.context.job
            self.judge = Judge(self.policy, self.context.make_evaluation, job.evaluate.arguments, job.seed)
        return self.judge

    def _slice(self) -> Judgement | None:
        """About as many moves as an update learns from: then an evaluation costs at most as much as the training."""
        plan, context = self.context.plan, self.context
        moves = plan.steps * plan.learning_columns
        rows = moves // min(EVALUATED_TOGETHER, context.job.evaluate.episodes)
        free, end = not context.rank_spec.columns and context.job.schedule == "free", time.monotonic() + SLICE_S
        give_up = (lambda: context.stop() or time.monotonic() > end) if free else context.stop
        return self.own_judge().advance(max(1, min(SLICE_ROWS, rows)), give_up)
