"""Evaluation during training: which policy is judged when, by whom, and what its greedy games returned.

Rank 0 plays the games itself, a slice of moves after each of its updates, or has the evaluator rank play them. A slice
is a fixed number of moves where ranks step their columns in lock-step, so that a run repeats itself bit for bit.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from hpc_rl.runtime.counters import Counters
from hpc_rl.runtime.messages import FinalReport
from hpc_rl.settings import Evaluate
from hpc_rl.transport.waiting import Done
from hpc_rl.types import Clock

SHARE = 2.0
"""Seconds of an evaluation for each second of training meanwhile. Its games cost training the same whenever they are
played; the sooner they are over, the less the policy that they judge is out of date, and the sooner a run that has
reached its target ends."""


@dataclass(frozen=True)
class Judgement:
    """What greedy games say of one policy, set by set."""

    returns: tuple[float, ...]  # mean raw return
    success: tuple[float, ...]  # part of the games that reached their goal; NaN where the environment does not tell

    @property
    def score(self) -> float:
        """Mean raw return over the sets: what picks the best checkpoint."""
        return float(np.mean(self.returns))

    def figures(self) -> dict[str, float]:
        """As metrics: greedy_return, greedy_success where it is known, and each set's own where there are several."""
        figures = {"greedy_return": self.score}
        if not math.isnan(success := float(np.mean(self.success))):
            figures["greedy_success"] = success
        for k, (mean, reached) in enumerate(zip(self.returns, self.success, strict=True)):
            if len(self.returns) > 1:
                figures[f"greedy_return/{k}"] = mean
                figures |= {} if math.isnan(reached) else {f"greedy_success/{k}": reached}
        return figures


@dataclass(frozen=True)
class Judge:
    """Plays greedy games with a copy of the weights, a few moves at a time; runtime/judge.py."""

    begin: Callable[[Tensor, int, str], None]  # weights, games of each set of arguments, purpose of their seeds
    advance: Callable[[int, Done], Judgement | None]  # so many moves of all columns, fewer once the other is true
    close: Callable[[], None]  # gives up the games under way


@dataclass(frozen=True)
class RemoteJudge:
    """The evaluator rank, which plays such games, as rank 0 sees it; runtime/evaluator_client.py."""

    ready: Callable[[], bool]  # it has taken the last weights, and could take new ones without a wait
    begin: Callable[[Tensor, int], None]  # weights, env steps behind them
    poll: Callable[[], Judgement | None]  # one that has arrived; raises Deadline: it was silent for too long
    wait: Callable[[Done], None]  # until there is something to poll, or the other is true
    release: Callable[[], Sequence[FinalReport]]  # it leaves, with this report


@dataclass(frozen=True)
class Slice:
    """How much of its own games a rank plays at a time."""

    rows: int  # moves of all columns
    seconds: float = math.inf  # or `SHARE` times what training took since the last one, if that is longer


class Evaluation:
    """Of one learning rank; where ``evaluate`` is not periodic, as on all ranks but 0, none is ever due.

    ``target`` is the mean return that ends the run, ``make_judge`` makes what plays the games on this rank, and
    ``stop`` gives a slice of them up. With an ``evaluator`` the games are played there.
    """

    def __init__(
        self,
        evaluate: Evaluate,
        target: float | None,
        counters: Counters,
        make_judge: Callable[[], Judge],
        piece: Slice,
        stop: Done,
        evaluator: RemoteJudge | None = None,
    ) -> None:
        self.evaluate, self.target, self.counters, self.make_judge = evaluate, target, counters, make_judge
        self.piece, self.stop, self.evaluator = piece, stop, evaluator
        self.judge: Judge | None = None
        self.begun: tuple[Clock, float] | None = None  # (that of the policy, time) of the evaluation under way
        self.sliced = 0.0  # when its last slice ended
        self.reached = False  # the target of the budget, by the last evaluation

    def due(self) -> bool:
        """A policy is to be judged now. Does not depend on the clock."""
        counters, evaluate = self.counters, self.evaluate
        by_steps = evaluate.every_steps and counters.env_steps >= counters.judged_at + evaluate.every_steps
        by_updates = evaluate.every_updates and counters.updates >= counters.judged_update + evaluate.every_updates
        if self.begun or not (by_steps or by_updates):
            return False
        least = self.evaluate.from_return
        if least is not None and not self.counters.mean_return >= least:  # without games it is NaN
            return False
        return self.evaluator is None or self.evaluator.ready()

    def begin(self, weights: Tensor) -> None:
        """Judge ``weights``, which are copied, from now on."""
        self.sliced = time.monotonic()
        self.begun = (Clock(self.counters.updates, self.counters.env_steps), self.sliced)
        if self.evaluator is not None:
            self.evaluator.begin(weights, self.counters.env_steps)
        else:
            self.own_judge().begin(weights, self.evaluate.episodes, "evaluate")

    def step(self) -> Judgement | None:
        """Go on with the evaluation under way; its judgement at the end. Once after every update.

        Raises:
            Deadline: the evaluator rank has been silent for too long.
        """
        judgement = self.evaluator.poll() if self.evaluator is not None else self._slice() if self.begun else None
        if judgement is None or self.begun is None:
            return None
        (clock, begin), self.begun = self.begun, None
        counters = self.counters
        counters.evaluated, counters.greedy = judgement.score, judgement.figures()
        counters.judged_at, counters.judged_update = clock.env_steps, clock.version
        self.reached = self.target is not None and judgement.score >= self.target
        took = f"{self.evaluate.episodes * len(judgement.returns)} games, {time.monotonic() - begin:.1f} s"
        at = f"{clock.env_steps} env steps" if clock.env_steps else f"{clock.version} updates"
        print(f"evaluation at {at}: {judgement.score:.2f} in {took}{counters.training()}", flush=True)
        return judgement

    def own_judge(self) -> Judge:
        """Made when it is first needed: it holds a copy of the weights."""
        if self.judge is None:
            self.judge = self.make_judge()
        return self.judge

    def _slice(self) -> Judgement | None:
        begin = time.monotonic()
        end = begin + max(self.piece.seconds, SHARE * (begin - self.sliced))
        judgement = self.own_judge().advance(self.piece.rows, lambda: self.stop() or time.monotonic() > end)
        self.sliced = time.monotonic()
        return judgement
