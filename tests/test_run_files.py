"""What one attempt writes into its run: nothing once another has begun, the summary with its state, chosen columns.

Mutations seen to fail: no look at the newest attempt before a checkpoint, before the best one; the reason as the state;
columns chosen by their place on a rank; a replay in best.h5.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpc_rl import job as jobs
from hpc_rl.envs.make import describe
from hpc_rl.plan import RankSpec
from hpc_rl.run_files import Superseded, recorded_columns, run_files
from hpc_rl.runtime.files import RunFiles
from hpc_rl.storage import checkpoint
from hpc_rl.storage.run_dir import RunDir, create
from hpc_rl.types import Actions, Spec

TABLE = {"algorithm": "a2c", "topology": "solo", "environment": {"id": "toy/catch", "columns": 2}}
STATE = {"weights": torch.zeros(3)}
META: dict[str, Any] = {"updates": 4, "env_steps": 40, "score": 1.0}


@pytest.fixture
def attempt(tmp_path: Path) -> tuple[RunDir, RunFiles]:
    """The files of attempt 0."""
    job = jobs.parse(TABLE, "test")
    run = create(tmp_path / "run", jobs.dumps(job))
    rank_spec = RankSpec(0, "worker", 0, range(2), 1, learns=True)
    return run, run_files(run, job, describe("toy/catch", {}), rank_spec, 0)


def test_an_attempt_writes_nothing_once_another_has_begun(attempt: tuple[RunDir, RunFiles]) -> None:
    run, files = attempt
    files.save_checkpoint(STATE, META, True)
    assert run.read_state()["updates"] == 4 and files.best_score() == 1.0
    run.write_state(attempt=1)
    before = sorted(path.name for path in run.checkpoints.iterdir())
    with pytest.raises(Superseded, match=r"attempt 1 .* attempt 0 writes no more"):
        files.save_checkpoint(STATE, {**META, "updates": 5}, False)
    with pytest.raises(Superseded):
        files.save_best(STATE, {**META, "score": 2.0})
    assert sorted(path.name for path in run.checkpoints.iterdir()) == before and files.best_score() == 1.0


def test_the_best_checkpoint_holds_no_replay(attempt: tuple[RunDir, RunFiles]) -> None:
    """Replays are large, and no policy plays by them; without one the best is a link to the numbered checkpoint."""
    run, files = attempt
    for updates, stores in ((4, [{}]), (5, [{"rows": torch.zeros(7)}, {}])):
        files.save_checkpoint({**STATE, "stores": stores}, {**META, "updates": updates, "score": updates}, True)
        numbered, best = run.checkpoints / f"{updates:09d}.h5", run.checkpoints / "best.h5"
        assert best.samefile(numbered) == (updates == 4) and files.best_score() == updates
    state, meta = checkpoint.load(best)
    assert state.keys() == {"weights"} and meta["updates"] == 5
    assert torch.equal(checkpoint.load(numbered)[0]["stores"][0]["rows"], torch.zeros(7))


def test_the_summary_sets_the_state_of_the_run(attempt: tuple[RunDir, RunFiles]) -> None:
    run, files = attempt
    summary = {"reason": "done: budget of 40 env steps used", "env_steps": 40, "updates": 4, "attempt": 0, "best": 1.0}
    files.write_summary(summary)
    assert json.loads(run.summary_file.read_text()) == summary
    state = run.read_state()
    assert (state["state"], state["reason"], state["updates"]) == ("done", summary["reason"], 4)


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 1.0])
def test_the_recorded_columns_are_the_same_on_any_rank(fraction: float) -> None:
    mask = recorded_columns(np.arange(12), 12, fraction)
    parts = [recorded_columns(np.arange(low, low + 4), 12, fraction) for low in (0, 4, 8)]
    assert np.array_equal(np.concatenate(parts), mask) and mask.sum() == int(12 * fraction)


def test_only_the_chief_role_of_rank_0_says_that_it_is_ready(
    attempt: tuple[RunDir, RunFiles], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread of inference beside a learner is rank 0, too: both wrote usage.json at once, and one found no file."""
    run, _ = attempt
    job, spec, calls = jobs.load("seed_cartpole"), Spec("x", (4,), "float32", Actions("discrete", (2,))), []
    monkeypatch.setattr("hpc_rl.usage.ready", lambda *arguments: calls.append(arguments))
    learner = jobs.plan(job).ranks[0]
    for seat in (learner, replace(learner, role="actor")):
        run_files(run, job, spec, seat, 0).metrics(0).close()
    assert learner.role == "learner" and len(calls) == 1
