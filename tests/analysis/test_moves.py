"""Sums over moves, stages, what followed a move, tallies and sketches against loops over the recorded history.

Mutations seen to fail: a later segment taken for the next one over a gap; a time limit without the prediction; γ in
single precision; the tail's scale left out; stages by the column's own share of steps; abandoned moves kept; sketches
of the largest hashes; the lower edge of a bin for its middle.
"""

from __future__ import annotations

from pathlib import Path

import dask
import numpy as np
import pytest

from hpc_rl.analysis import open_runs, tallies
from hpc_rl.analysis.futures import UNKNOWN, after, endings, returns
from hpc_rl.analysis.moves import Moves, Sums, total
from hpc_rl.analysis.predictions import prediction, unscaled
from hpc_rl.analysis.sections import NotRecorded
from hpc_rl.analysis.stages import STAGES, borders
from hpc_rl.analysis.tallies import Distinct, Tally
from hpc_rl.types import Array, Leaf, Tree
from tests.analysis.histories import history, new_run, record, resumed, steps, valid

VALUE = {"value": Leaf((), "float32")}


@pytest.fixture(autouse=True)
def one_process() -> object:
    with dask.config.set(scheduler="synchronous"):
        yield


def listed(moves: Moves) -> Sums:
    rows, columns = np.nonzero(moves.kept)
    stage = moves.stage()
    return {"all": [(int(moves.column[k]), int(moves.step[r, k]), int(stage[r, k]), float(moves.leaves["reward"][r, k]))
                    for r, k in zip(rows, columns, strict=True)]}  # fmt: skip


def test_every_move_is_summed_once_in_its_stage(tmp_path: Path) -> None:
    """Two actors of other speed, versions that tell the job's env steps, and abandoned moves."""
    run = new_run(tmp_path / "run", columns=2)
    fast, slow = history(0, 300, [0], versions=100), history(1, 90, [1], versions=100)
    slow["version"][:, 0] = np.linspace(0, 9, 90) ** 2  # ever faster: versions pass by more quickly
    record(run, fast, [70, 200], role="actor", index=0)
    record(run, slow, role="actor", index=1)
    late = history(2, 40, [0], start=int(valid(fast).sum()) - 20)
    late["version"][:] += 100
    record(run, late, attempt=1, role="actor", index=0)
    resumed(run, 1, {0: int(late["start"][0]), 1: int(valid(slow).sum())})
    (opened,) = open_runs([run.path])
    (sums,) = dask.compute(total(opened, ["reward"], listed, borders(opened)))
    kept = {0: valid(fast) & (steps(fast) < late["start"][0]), 1: valid(slow), 2: valid(late)}
    trees = [fast, slow, late]
    expected = sorted(
        (int(tree["column"][0]), int(steps(tree)[r, 0]), float(tree["reward"][r, 0]))
        for k, tree in enumerate(trees) for r in np.flatnonzero(kept[k][:, 0])
    )  # fmt: skip
    assert sorted((c, s, x) for c, s, _, x in sums["all"]) == expected
    # A move of version v was made when the job had made at least the moves of earlier versions, at most those of v.
    versions = {(int(t["column"][0]), int(steps(t)[r, 0])): int(t["version"][r, 0])
                for k, t in enumerate(trees) for r in np.flatnonzero(kept[k][:, 0])}  # fmt: skip
    made = np.sort(list(versions.values()))
    for column, step, stage, _ in sums["all"]:
        version = versions[column, step]
        low, high = np.searchsorted(made, version, "left"), np.searchsorted(made, version, "right")
        assert (low - 2) * STAGES / len(made) - 1 < stage <= (high + 2) * STAGES / len(made)


def looped(tree: Tree, reward: Array, gamma: float) -> tuple[Array, Array]:
    """(return that followed, env steps at the episode's end) of each move, NaN and UNKNOWN where not recorded."""
    rows, columns = tree["reward"].shape
    reward, value = reward.astype(float), tree["extras/value"].astype(float)
    later, end = np.full((rows, columns), np.nan), np.full((rows, columns), UNKNOWN)
    for k in range(columns):
        for row in range(rows):
            total_of, factor, at = 0.0, 1.0, row
            while at < rows:
                if tree["first"][at + 1, k]:  # the void move: the row before was a time limit
                    total_of += factor * value[at, k]
                    break
                total_of += factor * reward[at, k]
                factor *= gamma * float(tree["discount"][at, k])
                if factor == 0:
                    break
                at += 1
            else:
                total_of = np.nan
            later[row, k] = total_of
            ends = [r for r in range(row, rows) if tree["episode_length"][r, k] > 0]
            if ends:
                end[row, k] = steps(tree)[ends[0], k] + 1
    return later, end


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_returns_follow_moves_over_segments(tmp_path: Path, clip: float) -> None:
    run = new_run(tmp_path / "run", algorithm="ppo", method={"discount": 0.9, "reward_clip": clip})
    tree = history(3, 90, [0, 1], extras=VALUE, longest=30)
    record(run, tree, [13, 14, 31, 60], extras=VALUE)
    (opened,) = open_runs([run.path])
    values = prediction(opened)
    assert (values.gamma, values.clip) == (0.9, clip)
    behind = after(opened, values.leaves, values, 0.9)
    later, ends, lengths = [], [], []

    def collect(moves: Moves) -> Sums:
        later.append(returns(moves, values, 0.9))
        ends.append(endings(moves)[0])
        lengths.append(endings(moves)[1])
        return {}

    dask.compute(total(opened, [*values.leaves, "episode_length"], collect, None, behind.of))
    learned = np.clip(tree["reward"], -clip, clip) if clip else tree["reward"]
    expected, end = looped(tree, learned, 0.9)
    np.testing.assert_array_equal(np.concatenate(ends), end)
    np.testing.assert_allclose(np.concatenate(later), expected, rtol=1e-9, atol=1e-9)
    assert 0 < np.isnan(expected).sum() < 60
    known = valid(tree) & (end != UNKNOWN)
    assert (np.concatenate(lengths)[known] > 0).all()
    assert behind.low == tree["extras/value"][valid(tree)].min()


def test_nothing_is_known_over_a_gap(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", algorithm="ppo")
    tree = history(4, 60, [0, 1], extras=VALUE)
    paths = record(run, tree, [20, 40], extras=VALUE, leave_out=[1])
    (opened,) = open_runs([run.path])
    values = prediction(opened)
    behind = after(opened, values.leaves, values, 0.99).of[str(paths[0])]
    assert (behind["end"] == UNKNOWN).all() and np.isnan(behind["value"]).all()


def test_predictions_in_their_units(tmp_path: Path) -> None:
    """Rescaled values against the method's own formula, distributions by their mean; and runs that have none."""
    import torch

    from hpc_rl.formulas.q_learning import unscaled as of_method

    x = np.linspace(-30, 40, 29)
    np.testing.assert_allclose(unscaled(x, 1e-3), of_method(torch.from_numpy(x), 1e-3).numpy(), rtol=1e-9)
    logits = {"value": Leaf((5,), "float32")}
    run = new_run(tmp_path / "rainbow", algorithm="rainbow", method={"atoms": 5, "v_min": -1.0, "v_max": 3.0})
    tree = history(5, 20, [0, 1], extras=logits)
    record(run, tree, extras=logits)
    values = prediction(open_runs([run.path])[0])
    share = np.exp(tree["extras/value"].astype(float))
    expected = (share * np.array([-1.0, 0, 1, 2, 3])).sum(-1) / share.sum(-1)
    np.testing.assert_allclose(values.moves(tree), expected, rtol=1e-6)
    plain = new_run(tmp_path / "impala")
    record(plain, history(6, 20, [0, 1]))
    with pytest.raises(NotRecorded, match="impala records no predicted values"):
        prediction(open_runs([plain.path])[0])
    scaled = new_run(tmp_path / "ppo", algorithm="ppo", method={"normalize_reward": True})
    record(scaled, history(7, 20, [0, 1], extras=VALUE), extras=VALUE)
    with pytest.raises(NotRecorded, match=r"ppo\.normalize_reward = false"):
        prediction(open_runs([scaled.path])[0])


def test_tallies() -> None:
    chance = np.random.default_rng(0)
    few, stage = chance.integers(-2, 3, 500).astype(float), chance.integers(0, STAGES, 500)
    few[3] = np.nan
    tally = Tally.of(few[:100], stage[:100]) + Tally.of(few[100:], stage[100:])
    for place, value in enumerate(tally.values):
        assert tally.counts[:, place].tolist() == [((few == value) & (stage == k)).sum() for k in range(STAGES)]
    many = chance.normal(size=5000) * 10.0 ** chance.integers(-3, 3, 5000)
    stage = chance.integers(0, STAGES, 5000)
    tally = Tally.of(many[:10], stage[:10]) + Tally.of(many[10:], stage[10:])
    assert tally.many and tally.binned.sum() == 5000
    shares = np.array([0.05, 0.5, 0.95])
    for k in range(STAGES):
        exact = np.quantile(many[stage == k], shares, method="inverted_cdf")
        np.testing.assert_allclose(tally.quantiles(shares)[k], exact, rtol=0.03)


def test_distinct(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = np.random.default_rng(1)
    rows, stage = chance.integers(0, 40, (4000, 2)), np.sort(chance.integers(0, STAGES, 4000))
    sketch = Distinct.of(tallies.hashes(rows[:900]), stage[:900]) + Distinct.of(tallies.hashes(rows[900:]), stage[900:])
    own, until = sketch.counts()
    for k in range(STAGES):
        assert own[k] == len(np.unique(rows[stage == k], axis=0))
        assert until[k] == len(np.unique(rows[stage <= k], axis=0))
    monkeypatch.setattr(tallies, "KEPT", 256)
    states = chance.integers(0, 60_000, (50_000, 1))
    _, until = Distinct.of(tallies.hashes(states), np.zeros(50_000, int)).counts()
    assert until[0] == pytest.approx(len(np.unique(states)), rel=0.2)
    bits = np.unpackbits(tallies.hashes(np.arange(3000)[:, None]).view(np.uint8)).reshape(3000, 64)
    assert abs(bits.mean(0) - 0.5).max() < 0.05  # uniform
