"""Dask arrays over moves against the histories that were recorded.

Mutations seen to fail: columns listed column by column; "kept" without limits of attempts; the oldest frame of a stack
taken; blocks that begin one row late.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from hpc_rl.analysis import arrays, open_runs
from hpc_rl.storage.run_dir import BadRun
from hpc_rl.types import Actions, Spec
from tests.analysis.histories import cut, history, new_run, record, resumed, steps, valid

PIXELS = Spec("toy/pixels", (64, 64), "uint8", Actions("discrete", (3,)), stack=3)


def flat(parts: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([part.reshape(-1, *part.shape[2:]) for part in parts])


def test_every_leaf_has_a_row_for_every_move(tmp_path: Path) -> None:
    """Two attempts, the first of which is abandoned from its 20th env step on, and two actors of other speed."""
    run = new_run(tmp_path / "run", columns=3)
    old, other = history(0, 60, [0, 2]), history(1, 25, [1])
    new = history(2, 30, [0, 2], start=20)
    record(run, old, [17, 33], role="actor", index=0)
    record(run, other, role="actor", index=1)
    record(run, new, [11], attempt=1, role="actor", index=0)
    resumed(run, 1, {0: 20, 1: 25, 2: 20})
    leaves = {name: x.compute(scheduler="synchronous") for name, x in arrays(open_runs([run.path])).items()}
    order = [old, other, new]
    for name in ("reward", "action", "version", "discount", "episode_return"):
        np.testing.assert_array_equal(leaves[name], flat([tree[name] for tree in order]))
    np.testing.assert_array_equal(leaves["observation"], flat([tree["observation"][:-1] for tree in order]))
    np.testing.assert_array_equal(leaves["step"], flat([steps(tree) for tree in order]))
    np.testing.assert_array_equal(
        leaves["column"], np.concatenate([np.tile(t["column"], len(t["reward"])) for t in order])
    )
    assert leaves["attempt"].tolist() == [0] * (120 + 25) + [1] * 60
    kept = [valid(old) & (steps(old) < 20), valid(other), valid(new)]
    np.testing.assert_array_equal(leaves["kept"], flat(kept))
    assert set(leaves["run"].tolist()) == {0}


@pytest.mark.parametrize("block_bytes", [1, 1 << 20, 64 << 20])
def test_blocks_of_any_size_hold_the_newest_frames(
    tmp_path: Path, block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["hpc_rl.analysis.arrays"], "BLOCK_BYTES", block_bytes)
    run = new_run(tmp_path / "run")
    tree = history(3, 300, [0, 1], PIXELS)
    record(run, tree, [150], spec=PIXELS)
    (opened,) = open_runs([run.path])
    lazy = arrays([opened], ["observation", "kept", "step"])
    frames = lazy["observation"].compute(scheduler="synchronous")
    np.testing.assert_array_equal(frames, flat([tree["observation"][2:-1]]))
    np.testing.assert_array_equal(lazy["kept"].compute(scheduler="synchronous"), flat([valid(tree)]))
    assert lazy["kept"].chunks[0] == lazy["observation"].chunks[0]
    if block_bytes == 1:
        assert len(lazy["observation"].chunks[0]) == 4  # two chunks of 128 rows in each segment


def test_runs_of_unlike_leaves_and_columns(tmp_path: Path) -> None:
    """output.record < 1 leaves columns out; leaves that do not look alike are left out."""
    one, two = new_run(tmp_path / "one"), new_run(tmp_path / "two")
    tree = history(4, 40, [0, 1])
    record(one, tree, keep=[False, True])
    record(two, history(5, 40, [0, 1], PIXELS), spec=PIXELS)
    runs = open_runs([one.path, two.path])
    assert runs[0].columns == [1]
    leaves = arrays(runs)
    assert "observation" not in leaves and len(leaves["reward"]) == 40 + 80
    own = arrays(runs[:1], ["reward"])["reward"].compute(scheduler="synchronous")
    np.testing.assert_array_equal(own, tree["reward"][:, 1])
    with pytest.raises(BadRun, match=r"no leaf 'rewrad'; there are .*reward"):
        arrays(runs, ["rewrad"])


def test_nothing_recorded(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    with pytest.raises(BadRun, match="no closed segments; record it"):
        arrays(open_runs([run.path]))


def test_cutting_a_history_keeps_its_steps() -> None:
    tree = history(6, 30, [0, 1])
    part = cut(tree, 13, 30)
    np.testing.assert_array_equal(steps(part), steps(tree)[13:])
