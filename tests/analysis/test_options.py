"""options: attempts and successes by goal and stage against loops over the history that was recorded.

Mutations seen to fail: options that end in the row of the last observation left out; all rows counted; successes of
options that did not end; the stage left out; goals that have no number told apart.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest

from hpc_rl.analysis import figures, open_runs, programs
from hpc_rl.analysis.sections import NotRecorded
from hpc_rl.analysis.stages import NAMES
from hpc_rl.types import Leaf, Tree
from tests.analysis.histories import history, new_run, record, valid
from tests.analysis.test_programs_over_moves import staged

EXTRAS = {"ended": Leaf((), "bool"), "reached": Leaf((), "bool"), "pursued": Leaf((), "int64")}


@pytest.fixture(autouse=True)
def one_process() -> object:
    with dask.config.set(scheduler="synchronous"):
        yield


def told(run: Any) -> Any:
    section = programs.load("options")(open_runs([run.path]))
    for picture in section.pictures.values():
        assert figures.png(picture, size=(4, 3), dpi=20)
    assert section.findings and section.how and programs.as_json(section)
    return section


def with_options(tree: Tree, goals: int) -> Tree:
    rng = np.random.default_rng(4)
    shape = tree["reward"].shape
    tree["extras/ended"][:], tree["extras/reached"][:] = rng.random(shape) < 0.5, rng.random(shape) < 0.4
    if goals:
        tree["extras/pursued"][:] = rng.integers(0, goals, shape)
    return tree


def test_attempts_and_successes_of_each_goal(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    tree = with_options(history(0, 300, [0, 1], extras=EXTRAS, versions=50), 3)
    record(run, tree, [90, 200], extras=EXTRAS)
    rows = told(run).tables["success_by_goal"]
    stage, ended, reached = staged(run, tree), tree["extras/ended"], tree["extras/reached"]
    assert (ended & ~valid(tree)).any(), "some end in the row that no move leaves"
    attempts: dict[tuple[str, str], int] = {}
    successes: dict[tuple[str, str], int] = {}
    for t, k in np.argwhere(ended):
        key = (str(tree["extras/pursued"][t, k]), NAMES[stage[t, k]])
        attempts[key] = attempts.get(key, 0) + 1
        successes[key] = successes.get(key, 0) + int(reached[t, k])
    assert len(rows) == len(attempts) > 20
    for row in rows.to_dict("records"):
        key = (row["goal"], row["stage"])
        assert (row["attempts"], row["successes"]) == (attempts[key], successes[key])
        assert row["success"] == pytest.approx(successes[key] / attempts[key])


def test_goals_without_a_number_are_one(tmp_path: Path) -> None:
    run, extras = new_run(tmp_path / "run"), {name: EXTRAS[name] for name in ("ended", "reached")}
    extras["pursued"] = Leaf((2,), "float32")
    tree = history(1, 120, [0, 1], extras=extras)
    record(run, with_options(tree, 0), extras=extras)
    rows = told(run).tables["success_by_goal"]
    assert set(rows["goal"]) == {"all"} and rows["attempts"].sum() == tree["extras/ended"].sum()


def test_a_method_without_goals_is_named(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    record(run, history(2, 50, [0, 1]))
    with pytest.raises(NotRecorded, match="has no recorded options"):
        programs.load("options")(open_runs([run.path]))
