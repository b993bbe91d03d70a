"""Which checkpoint is the best, and when one is written.

Mutations seen to fail: the score of the last evaluation for any later policy; a policy that was judged saved whenever
it beats what is on disk; the best policy dropped at the end; no new interval after a checkpoint that was not finite;
the first evaluation counted from 0 again; the best score taken from the checkpoint; the state or the figures at the end
of the games saved for those at their begin; state.json set back by the best policy; a replay in best.h5; a policy not
judged that is due at the end, or judged where the run was told to stop; a checkpoint written before the files of its
replay are there.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from hpc_rl import job as jobs
from hpc_rl.envs.make import describe
from hpc_rl.plan import Plan, RankSpec
from hpc_rl.run_files import run_files
from hpc_rl.runtime.checkpoints import CheckpointScheduler, CheckpointWriter
from hpc_rl.runtime.counters import Counters, Limits
from hpc_rl.runtime.evaluation import Evaluation, Judgement, Slice
from hpc_rl.storage import checkpoint, replay_files
from hpc_rl.storage.run_dir import create
from hpc_rl.types import NonFinite

TABLE = {
    "algorithm": "impala",
    "topology": "actor_learner",
    "environment": {"id": "toy/catch", "columns": 2},
    "resources": {"ranks": 2},
    "budget": {"env_steps": 1000},
}


class ShardServer:
    """A learner's bookkeeping without a learner: policies are numbers, and so are their scores."""

    def __init__(self, folder: Path, every: int, resume: Any = None, interval_s: float = 1e9, keep: int = 3) -> None:
        changes = {"evaluate": {"every_steps": every}, "checkpoint": {"interval_s": interval_s, "keep": keep}}
        job = jobs.parse({**TABLE, **changes}, "test")
        run = create(folder, jobs.dumps(job)) if resume is None else checkpoint.RunDir(folder)
        plan = Plan("actor_learner", (), 1, 2, 2)
        files = run_files(run, job, describe("toy/catch", {}), RankSpec(0, "learner", 0, range(0), 1), 0)
        limits = Limits(lambda: False)
        self.run, self.counters = run, Counters(2)
        if resume:
            self.counters.restore(resume[1])
        self.saver = CheckpointWriter(self.counters, files, job, {"attempt": 0}, limits)
        self.evaluation = Evaluation(job.evaluate, None, self.counters, cast(Any, None), Slice(1), limits.requested)
        self.snapshots = CheckpointScheduler(self.saver, self.evaluation, plan, True, lambda number, save: None)

    def state(self) -> dict[str, Any]:
        return {"weights": torch.tensor([float(self.counters.updates)])}

    def update(self, closed: bool = False) -> None:
        """Ten env steps, as the learner's loop goes; with ``closed`` every segment is closed."""
        self.counters.env_steps += 10
        wanted = self.snapshots.due()
        self.counters.updates += 1
        self.counters.through[:] = self.counters.env_steps // 2
        if wanted.save or wanted.judge:
            self.snapshots.begin(self.state)
        if closed:
            self.snapshots.closed[:] = 10**9
        self.snapshots.write()

    def best(self) -> tuple[float, float] | None:
        """(number of the update, score) of best.h5."""
        path = self.run.checkpoints / "best.h5"
        if not path.exists():
            return None
        note = json.loads((self.run.checkpoints / "best.json").read_text())
        return float(checkpoint.load(path)[0]["weights"]), note["score"]

    def finish(self, reason: str = "stopped: asked to stop") -> None:
        self.snapshots.finish(self.state(), reason)


class Scores(list[float]):
    """What the next evaluations find, in order, each after that many slices of its games."""

    slices = 1
    played = 0

    def begin(self, weights: torch.Tensor, episodes: int, purpose: str) -> None:
        self.played = 0

    def advance(self, rows: int, give_up: Any) -> Judgement | None:
        self.played += 1
        return Judgement((self.pop(0),), (math.nan,)) if self.played >= self.slices else None


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> Scores:
    score_list = Scores()
    monkeypatch.setattr(Evaluation, "own_judge", lambda evaluation: score_list)
    return score_list


def test_a_better_snapshot_under_way_is_not_replaced_by_a_worse_policy(tmp_path: Path, scores: Scores) -> None:
    desk, scores[:] = ShardServer(tmp_path / "run", every=10), [1.0, 7.0, 5.0]
    for _ in range(3):
        desk.update()
    assert desk.best() is None and not scores  # no segment is closed yet
    scores.append(6.0)
    desk.update(closed=True)
    assert desk.best() == (2.0, 7.0)
    assert desk.counters.best == 7.0


def test_the_last_policy_is_not_the_best_by_an_older_score(tmp_path: Path, scores: Scores) -> None:
    desk, scores[:] = ShardServer(tmp_path / "run", every=20), [7.0]
    for _ in range(3):
        desk.update()
    desk.finish()  # the copy of update 2 waits for segments, which are closed by now
    assert desk.best() == (2.0, 7.0)
    assert sorted(path.name for path in desk.run.checkpoints.glob("0*")) == ["000000003.h5"]
    assert checkpoint.load(desk.run.checkpoints / "000000003.h5")[1]["score"] is None


def test_the_best_at_the_end_survives_keep_one(tmp_path: Path, scores: Scores) -> None:
    desk, scores[:] = ShardServer(tmp_path / "run", every=20, keep=1), [7.0]
    for _ in range(3):
        desk.update()
    desk.finish()
    assert desk.best() == (2.0, 7.0)
    assert [path.name for path in desk.run.checkpoints.glob("0*")] == ["000000003.h5"]


def test_the_last_policy_is_the_best_where_it_was_judged(tmp_path: Path, scores: Scores) -> None:
    desk, scores[:] = ShardServer(tmp_path / "run", every=10), [1.0, 7.0]
    for _ in range(2):
        desk.update()
    desk.finish()
    assert desk.best() == (2.0, 7.0)


def test_without_evaluations_the_mean_of_a_hundred_games_decides(tmp_path: Path) -> None:
    desk = ShardServer(tmp_path / "run", every=0, interval_s=1e-9)
    desk.update(closed=True)
    assert desk.best() is None
    desk.counters.recent.extend([3.0] * 100)
    desk.update(closed=True)
    assert desk.best() == (2.0, 3.0)
    desk.counters.recent.extend([2.0] * 100)
    desk.update(closed=True)
    assert desk.best() == (2.0, 3.0)


def test_after_a_state_that_is_not_finite_the_next_try_waits(tmp_path: Path, scores: Scores) -> None:
    desk, scores[:] = ShardServer(tmp_path / "run", every=10), [7.0, 5.0]
    desk.saver.job.checkpoint.__dict__["interval_s"] = 1e9
    desk.saver.last -= 2e9
    original, desk.state = desk.state, lambda: {"weights": torch.tensor([math.nan])}  # type: ignore[method-assign]
    desk.update(closed=True)
    assert not list(desk.run.checkpoints.iterdir())
    assert not desk.saver.due(), "a save would be tried at every update"
    desk.state = original  # type: ignore[method-assign]
    desk.update(closed=True)  # the policy of score 7 was never written, so this one is the best there is
    assert desk.best() == (2.0, 5.0)
    desk.state = lambda: {"weights": torch.tensor([math.inf])}  # type: ignore[method-assign]
    with pytest.raises(NonFinite):
        desk.finish()


def test_a_resumed_run_evaluates_when_it_is_time(tmp_path: Path, scores: Scores) -> None:
    desk, scores[:] = ShardServer(tmp_path / "run", every=30), [7.0]
    for _ in range(5):
        desk.update(closed=True)
    desk.finish()
    _, state, meta = checkpoint.newest(desk.run, pytest.fail)  # type: ignore[misc]
    assert meta["env_steps"] == 50 and meta["judged_at"] == 30
    again = ShardServer(tmp_path / "run", every=30, resume=(state, meta))
    assert again.counters.evaluated == 7.0 and again.counters.best == 7.0
    scores.append(3.0)
    again.update(closed=True)
    assert scores == [] and again.counters.env_steps == 60
    assert again.best() == (3.0, 7.0)
    del meta["judged_at"], meta["evaluated"]  # written by a version that did not note them
    older = ShardServer(tmp_path / "run", every=30, resume=(state, meta))
    older.update(closed=True)
    assert older.counters.evaluated is None


def test_a_run_that_fell_back_keeps_the_best_of_the_time_after(tmp_path: Path, scores: Scores) -> None:
    desk, scores[:] = ShardServer(tmp_path / "run", every=10, interval_s=1e-9), [5.0, 10.0]
    for _ in range(2):
        desk.update(closed=True)
    older = checkpoint.load(desk.run.checkpoints / "000000001.h5")
    again, scores[:] = ShardServer(tmp_path / "run", every=10, resume=older), [7.0]
    again.update(closed=True)
    assert again.best() == (2.0, 10.0)


def test_saved_is_the_policy_that_was_judged_and_not_the_one_at_the_end_of_its_games(
    tmp_path: Path, scores: Scores
) -> None:
    desk, scores[:] = ShardServer(tmp_path / "run", every=20, interval_s=1e-9), [7.0]
    scores.slices = 4
    for _ in range(4):
        desk.update(closed=True)
    assert desk.best() is None and desk.counters.evaluated is None
    assert desk.saver.meta()["judged_at"] == 0, "a resumed run would think that it was judged"
    desk.update(closed=True)
    assert desk.best() == (2.0, 7.0) and desk.counters.judged_at == 20
    meta = checkpoint.load(desk.run.checkpoints / "best.h5")[1]
    assert (meta["updates"], meta["env_steps"], meta["score"], meta["judged_at"]) == (2, 20, 7.0, 20)
    assert desk.run.read_state()["updates"] == 5, "state.json was set back by the best policy"
    _, _, newest = checkpoint.newest(desk.run, pytest.fail)  # type: ignore[misc]
    assert newest["updates"] == 5, "a resumed run would go on from the best policy"


def test_the_best_policy_costs_no_replay(tmp_path: Path, scores: Scores) -> None:
    """It is judged at an update that is saved, too: the checkpoint keeps what is replayed, best.h5 has none of it."""
    desk, scores[:] = ShardServer(tmp_path / "run", every=10, interval_s=1e-9), [7.0]
    plain = desk.state
    desk.state = lambda: {**plain(), "stores": [{"rows": torch.ones(3)}]}  # type: ignore[method-assign]
    desk.update(closed=True)
    assert desk.best() == (1.0, 7.0)
    assert "stores" not in checkpoint.load(desk.run.checkpoints / "best.h5")[0]
    assert "stores" in checkpoint.load(desk.run.checkpoints / "000000001.h5")[0]


def test_a_checkpoint_follows_the_files_of_its_replay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_files, "POLL_S", 0.0)
    desk = ShardServer(tmp_path / "run", every=0, interval_s=1e-9)
    plain, part = desk.state, {"column": torch.arange(2), "file": "a0-c0-s1.h5", "rows": []}
    desk.state = lambda: {**plain(), "stores": [part]}  # type: ignore[method-assign]
    for _ in range(3):
        desk.update(closed=True)
        assert not list(desk.run.checkpoints.glob("*.h5"))
    replay_files.write(desk.run, "a0-c0-s1.h5", {})
    desk.update(closed=True)
    assert [path.name for path in desk.run.checkpoints.glob("0*.h5")] == ["000000001.h5"]


def test_a_policy_that_becomes_due_at_the_end_is_judged(tmp_path: Path, scores: Scores) -> None:
    desk, scores[:] = ShardServer(tmp_path / "run", every=20), [7.0]
    desk.update(closed=True)
    desk.counters.env_steps += 10
    desk.finish("done: budget used")
    assert desk.evaluation.begun and desk.best() is None
    desk.snapshots.write()
    assert desk.best() == (1.0, 7.0)


def test_a_run_that_is_told_to_stop_judges_nothing_more(tmp_path: Path, scores: Scores) -> None:
    desk = ShardServer(tmp_path / "run", every=20)
    desk.update(closed=True)
    desk.counters.env_steps += 10
    desk.finish("stopped: asked to stop")
    assert desk.evaluation.begun is None
