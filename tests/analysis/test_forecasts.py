"""forecasts: shares and episodes against loops over the history that was recorded.

Mutations seen to fail: one deviation for two; moves without a prediction counted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest

from hpc_rl.analysis import figures, open_runs, programs
from hpc_rl.analysis.sections import NotRecorded
from hpc_rl.types import Leaf
from tests.analysis.histories import history, new_run, record, valid

EXTRAS = {name: Leaf((2,), "float32") for name in ("predicted_mean", "predicted_std")}


@pytest.fixture(autouse=True)
def one_process() -> object:
    with dask.config.set(scheduler="synchronous"):
        yield


def test_shares_of_each_episode(tmp_path: Path) -> None:
    run, rng = new_run(tmp_path / "run"), np.random.default_rng(0)
    tree: Any = history(0, 120, [0, 1], extras=EXTRAS)
    shape = tree["reward"].shape
    tree["extras/predicted_mean"][:] = tree["observation"][:-1] + rng.normal(size=(*shape, 2))
    tree["extras/predicted_std"][:] = rng.uniform(0.2, 0.8, (*shape, 1))
    tree["extras/predicted_std"][rng.random(shape) < 0.3] = 0
    record(run, tree, [50, 90], extras=EXTRAS)
    section = programs.load("forecasts")(open_runs([run.path]))
    for picture in section.pictures.values():
        assert figures.png(picture, size=(4, 3), dpi=20)
    expected = []
    for k in range(2):
        episode: list[list[bool]] = []
        for t in range(120):
            if tree["first"][t, k] and episode:
                expected.append(episode)
                episode = []
            std = tree["extras/predicted_std"][t, k]
            if valid(tree)[t, k] and std[0] > 0:
                away = np.abs(tree["observation"][t, k] - tree["extras/predicted_mean"][t, k])
                episode.append((away <= 2 * std).tolist())
        expected += [episode] if episode else []
    rows = section.tables["predictions_by_episode"]
    assert rows["moves"].tolist() == [len(x) for x in expected] and len(expected) > 4
    assert rows["within_two_std"].tolist() == pytest.approx([float(np.mean(x)) for x in expected])
    assert section.findings and section.how and programs.as_json(section)


def test_a_method_that_predicts_nothing_is_named(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    record(run, history(2, 50, [0, 1]))
    with pytest.raises(NotRecorded, match="has no predicted observations"):
        programs.load("forecasts")(open_runs([run.path]))
