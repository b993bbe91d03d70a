"""An evaluator rank and rank 0 know of each other that they are alive, however long the one has nothing for the other.

Mutations seen to fail: no sign of life from rank 0 to an idle evaluator; none from an evaluator at its games; a silent
evaluator not missed; other ranks that do not wait for the last games, or that rank 0 does not hold.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from hpc_rl import conclusion
from hpc_rl.runtime.evaluator_client import EvaluatorClient
from hpc_rl.runtime.messages import SCORES, WEIGHTS, ControlClient, score_layout, weights_layout
from hpc_rl.transport.base import Inbox, Outbox
from hpc_rl.transport.local import LocalLink, run_threads
from hpc_rl.transport.ports import Ports
from hpc_rl.transport.waiting import Deadline, Waiting
from tests.contract import seats
from tests.contract.seats import run_job

SLOW = """
import time
import gymnasium, numpy as np
from gymnasium.spaces import Box, Discrete

class make(gymnasium.Env):
    def __init__(self, moves=4, seconds=0.01):
        self.observation_space, self.action_space = Box(0, 1, (2,)), Discrete(2)
        self.moves, self.seconds = moves, seconds

    def reset(self, *, seed=None, options=None):
        self.made = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        time.sleep(self.seconds)
        self.made += 1
        return np.zeros(2, np.float32), 1.0, self.made == self.moves, False, {}
"""


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A job of about five seconds whose ranks give each other up after three."""
    (tmp_path / "slow_games.py").write_text(SLOW)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "slow_games", raising=False)
    table = {
        "algorithm": "a2c",
        "topology": "solo",
        "environment": {"id": "slow_games:make", "columns": 2},
        "budget": {"env_steps": 10},
        "a2c": {"unroll": 5, "hidden": [8]},
    }
    run_job(table, tmp_path / "first")  # imports torch's optimisers, which takes as long
    monkeypatch.setattr(seats, "Waiting", lambda deadline_s: Waiting(3.0))
    resources = {"ranks": 2, "threads": 1, "evaluators": 1}
    return {**table, "topology": "allreduce", "budget": {"env_steps": 500}, "resources": resources}


def test_an_idle_evaluator_hears_that_training_goes_on(slow: dict[str, Any], tmp_path: Path) -> None:
    job_run = run_job({**slow, "evaluate": {"every_steps": 100_000}}, tmp_path / "run")
    figures = json.loads(job_run.run.summary_file.read_text())
    assert figures["wall_s"] > 4 and figures["greedy_return"] == 4.0 and figures["evaluated_return"] is None


def test_a_long_evaluation_is_waited_for(slow: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conclusion, "REPORT_GAMES", 6)
    evaluate = {"every_steps": 400, "episodes": 6, "arguments": [{"moves": 70}]}  # 4.2 s
    job_run = run_job({**slow, "evaluate": evaluate}, tmp_path / "run")
    figures = json.loads(job_run.run.summary_file.read_text())
    assert figures["evaluated_return"] == figures["greedy_return"] == 70.0 and figures["best"] == 70.0


def test_a_silent_evaluator_is_named() -> None:
    sentences: list[str] = []

    def rank(link: LocalLink) -> None:
        waiting = Waiting(0.4, hosts=("here", "there"))
        if link.rank == 1:  # as the evaluator begins, and then nothing
            Inbox(link, [0], WEIGHTS, weights_layout(12), waiting, credits=1)
            Outbox(link, 0, SCORES, score_layout(1), waiting)
            ControlClient(link, waiting, 0)
            return
        evaluator = EvaluatorClient(link, waiting, 1, parameters=3, sets=1)
        evaluator.begin(torch.zeros(3), 10)
        with pytest.raises(Deadline, match="rank 1 on there") as error:
            while True:
                assert evaluator.poll() is None
                time.sleep(0.01)
        sentences.append(str(error.value))

    run_threads(2, rank, 20.0)
    assert len(sentences) == 1


def test_the_others_wait_for_the_last_games_of_rank_0() -> None:
    end_times: dict[int, float] = {}

    def rank(link: LocalLink) -> None:
        ports, begin = Ports(link, Waiting(0.4)), time.monotonic()
        if link.rank == 0:
            hold = conclusion._Hold(ports)
            for _ in range(6):
                time.sleep(0.2)
                hold()
            ports.release(range(3))
        else:
            ports.await_release(range(3))
            end_times[link.rank] = time.monotonic() - begin

    run_threads(3, rank, 20.0)
    assert min(end_times[1], end_times[2]) > 1.1


def test_the_others_do_not_wait_for_a_rank_0_that_is_silent() -> None:
    def rank(link: LocalLink) -> None:
        ports = Ports(link, Waiting(0.3))
        if link.rank:
            with pytest.raises(Deadline, match="rank 0 to end the run"):
                ports.await_release(range(2))

    run_threads(2, rank, 20.0)
