"""A slice of an evaluation lasts as long as training since the last one: half of the time is the games'.

Before, a slice of an IMPALA learner on Pong ended after 0.2 s where an update takes 0.7 s, and 16 games took three
minutes in place of one and a half. Mutations seen to fail: a slice of `Slice.seconds` alone; the time of the games
themselves counted as training.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch

from hpc_rl.runtime import evaluation
from hpc_rl.runtime.counters import Counters
from hpc_rl.runtime.evaluation import Evaluation, Judge, Slice
from hpc_rl.settings import Evaluate


@pytest.mark.parametrize(
    ("seconds", "training", "lasts"), [(0.2, 0.7, 1.4), (0.2, 0.05, 0.2), (0.2, 3.0, 6.0), (math.inf, 0.7, 9.0)]
)
def test_a_slice_lasts_twice_as_long_as_training_since_the_last(
    monkeypatch: pytest.MonkeyPatch, seconds: float, training: float, lasts: float
) -> None:
    now, slices = 100.0, []
    monkeypatch.setattr(evaluation.time, "monotonic", lambda: now)

    def advance(rows: int, give_up: Callable[[], bool]) -> None:
        nonlocal now
        begin = now
        while not give_up() and now < begin + 9:
            now += 0.01
        slices.append(now - begin)

    judge = Judge(lambda *_: None, advance, lambda: None)
    evaluated = Evaluation(Evaluate(every_steps=1), None, Counters(2), lambda: judge, Slice(4, seconds), lambda: False)
    evaluated.begin(cast(Any, torch.zeros(1)))
    for _ in range(3):
        now += training
        assert evaluated.step() is None
    assert slices == pytest.approx([lasts] * 3, abs=0.02)
