"""Checkpoints of a run: when one is due, what it says of itself, which one is the best."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

from hpc_rl.optim.flat import StateDict
from hpc_rl.runtime.context import RankContext
from hpc_rl.runtime.counters import Counters
from hpc_rl.storage import checkpoint
from hpc_rl.storage.run_dir import RunDir
from hpc_rl.types import NonFinite


class Superseded(RuntimeError):
    """The controller gave this attempt up, for its node was out of reach, and another one has begun."""


@dataclass
class CheckpointWriter:
    """Writes checkpoints for one rank and remembers how long that blocked the learner."""

    context: RankContext
    counters: Counters
    last: float = field(default_factory=time.monotonic)
    longest_s: float = 0.0
    written: int = 0
    marked: float = -math.inf  # score of best.h5

    def __post_init__(self) -> None:
        self.marked = self.counters.best = checkpoint.best_score(self.context.run)

    def due(self) -> bool:
        return time.monotonic() - self.last >= self.context.job.checkpoint.interval_s

    def meta(self) -> dict[str, Any]:
        """What a checkpoint that is taken now says of itself. If it is the best, later ones must beat it already."""
        score = self.counters.score(self.context.job)
        self.counters.best = max(self.counters.best, -math.inf if score is None else score)
        return self.counters.meta(self.context)

    def save(self, state: StateDict, meta: dict[str, Any], last: bool = False) -> None:
        """Write, mark the best, prune. A state that is not finite is never written: warns, or raises if ``last``."""
        begin, run, score = time.monotonic(), self._run(), meta["score"]
        try:
            path = checkpoint.save(run, meta["updates"], state, meta)
        except NonFinite as error:
            if last:
                raise
            print(f"warning: {error}", flush=True)
            self.counters.best, self.last = self.marked, time.monotonic()  # the next try comes after the usual interval
            return
        if score is not None and score > self.marked:
            checkpoint.mark_best(run, path, score)
            self.marked = score
        checkpoint.prune(run, self.context.job.checkpoint.keep)
        run.write_state(
            state="running", env_steps=meta["env_steps"], updates=meta["updates"], attempt=self.context.attempt
        )
        self.last, self.written = time.monotonic(), self.written + 1
        self.longest_s = self.context.save_s = max(self.longest_s, self.last - begin)

    def save_best(self, state: StateDict, meta: dict[str, Any]) -> None:
        """Write a policy that was judged, while the run has gone on; one that is not finite is warned of."""
        try:
            checkpoint.save_best(self._run(), state, meta, meta["score"])
            self.marked = meta["score"]
        except NonFinite as error:
            print(f"warning: {error}", flush=True)
            self.counters.best = self.marked

    def _run(self) -> RunDir:
        """The run, as long as it is this attempt's. Raises Superseded."""
        run = self.context.run
        if (newest := run.read_state()["attempt"]) > self.context.attempt:
            raise Superseded(f"attempt {newest} of {run.path} has begun; attempt {self.context.attempt} writes no more")
        return run
