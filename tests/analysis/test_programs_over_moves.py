"""actions, returns and coverage: every figure of their tables against loops over the history that was recorded.

Mutations seen to fail: the spread without its mean; entropy to base 2; −log μ not divided by moves; gains by the stage
of the move; tenths from an episode's end; slope of predictions over returns; cells of a whole standard deviation; a
column of pixels left out of the means; growth of states by the last stage alone.
"""

from __future__ import annotations

import importlib
import itertools
import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pandas as pd
import pytest

from hpc_rl.analysis import figures, open_runs, programs
from hpc_rl.analysis.sections import NotRecorded
from hpc_rl.analysis.stages import NAMES, STAGES, borders
from hpc_rl.types import Actions, Array, Leaf, Spec, Tree
from tests.analysis.histories import history, new_run, record, resumed, steps, valid
from tests.analysis.test_moves import looped

VALUE = {"value": Leaf((), "float32"), "log_prob": Leaf((), "float32")}
BOX = Spec("toy/box", (9,), "float32", Actions("box", (2,), (-2.0, -np.inf), (2.0, np.inf)))


@pytest.fixture(autouse=True)
def one_process() -> object:
    with dask.config.set(scheduler="synchronous"):
        yield


def staged(run: Any, tree: Tree, step: Array | None = None) -> Array:
    """[N, b] the stage of each move, by its column's borders."""
    begins = borders(open_runs([run.path])[0])
    numbers = steps(tree) if step is None else step
    return np.array(
        [[sum(x >= b for b in begins[int(c)]) for x, c in zip(row, tree["column"], strict=True)] for row in numbers]
    )


def section(name: str, *runs: Any) -> Any:
    """The section of a program, whose pictures can be drawn."""
    made = programs.load(name)(open_runs([run.path for run in runs]))
    for draw in made.pictures.values():
        assert figures.png(draw, size=(4, 3), dpi=20)
    assert made.findings and made.how and programs.as_json(made)
    return made


def test_segments_that_were_made_again_count_nowhere(tmp_path: Path) -> None:
    """A run that was killed and resumed from before its last segments, of which no move is kept."""
    runs = [new_run(tmp_path / name) for name in ("all", "without")]
    for run, leave_out in zip(runs, ((), (1, 2)), strict=True):
        record(run, history(0, 200, [0, 1], extras=VALUE, versions=50), [150, 180], extras=VALUE, leave_out=leave_out)
        record(run, history(1, 60, [0, 1], extras=VALUE, start=100), attempt=1, extras=VALUE)
        resumed(run, 1, {0: 100, 1: 100})
    for name in ("actions", "returns", "coverage"):
        made, expected = (section(name, run) for run in runs)
        assert len(made.tables) == len(expected.tables) > 0
        for key, table in made.tables.items():
            unnamed = [x.drop(columns="run", errors="ignore") for x in (table, expected.tables[key])]
            pd.testing.assert_frame_equal(*unnamed)


def test_actions_and_rewards(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    tree = history(0, 200, [0, 1], extras=VALUE, versions=50)
    record(run, tree, [90], extras=VALUE)
    made = section("actions", run)
    stage, kept = staged(run, tree), valid(tree)
    rows, actions = made.tables["rewards_by_stage"], made.tables["actions_by_stage"]
    assert len(rows) == STAGES and len(actions) == 3 * STAGES
    for k in range(STAGES):
        own, row = kept & (stage == k), rows.iloc[k]
        reward = tree["reward"][own].astype(float)
        assert (row["run"], row["stage"], row["moves"]) == ("run", NAMES[k], own.sum())
        assert row["mean_reward"] == pytest.approx(sum(reward) / len(reward))
        assert row["std"] == pytest.approx(np.sqrt(np.mean([(x - np.mean(reward)) ** 2 for x in reward])))
        assert row["not_zero"] == pytest.approx(np.mean([x != 0 for x in reward]))
        for share in (5, 25, 50, 75, 95):
            exact = np.quantile(reward, share / 100, method="inverted_cdf")
            assert row[f"q{share:02}"] == pytest.approx(exact, rel=0.03)
        counts = [int((tree["action"][own] == a).sum()) for a in range(3)]
        assert actions[actions["stage"] == NAMES[k]]["share"].tolist() == pytest.approx([x / own.sum() for x in counts])
        expected = -sum(x / own.sum() * np.log(x / own.sum()) for x in counts if x)
        assert row["entropy_of_shares"] == pytest.approx(expected)
        assert row["mean_minus_log_prob"] == pytest.approx(-tree["extras/log_prob"][own].mean(), rel=1e-5)
    assert set(made.pictures) == {"actions", "rewards", "entropy"}


def test_actions_of_a_box(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    tree = history(1, 150, [0, 1], BOX)
    record(run, tree, spec=BOX)
    made = section("actions", run)
    stage, kept, rows = staged(run, tree), valid(tree), made.tables["actions_by_stage"]
    assert len(rows) == 2 * STAGES
    for row in rows.to_dict("records"):
        own = tree["action"][kept & (stage == NAMES.index(row["stage"]))][:, row["entry"]].astype(float)
        assert (row["mean"], row["std"]) == pytest.approx((own.mean(), own.std()), rel=1e-6)
        assert row["at_the_bounds"] == pytest.approx(np.mean(np.abs(own) >= 0.99))


def test_returns_and_values(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", algorithm="ppo", method={"discount": 0.9})
    tree = history(2, 200, [0, 1], extras=VALUE, versions=40, longest=40)
    record(run, tree, [50, 90, 160], extras=VALUE)
    made = section("returns", run)
    later, end = looped(tree, tree["reward"], 0.9)
    kept = valid(tree) & (end >= 0)
    stage, of_end = staged(run, tree), staged(run, tree, end - 1)
    number = steps(tree)
    lengths = {
        (k, number[r, k] + 1): int(tree["episode_length"][r, k]) for r, k in np.argwhere(tree["episode_length"] > 0)
    }
    gained, lost, episodes = np.zeros((STAGES, 10)), np.zeros((STAGES, 10)), np.zeros(STAGES)
    for row, k in np.argwhere(kept):
        length = lengths[k, end[row, k]]
        tenth = (number[row, k] - (end[row, k] - length)) * 10 // length
        reward = tree["reward"][row, k]
        (gained if reward > 0 else lost)[of_end[row, k], tenth] += reward
        episodes[of_end[row, k]] += number[row, k] + 1 == end[row, k]
    times = made.tables["returns_by_time"]
    assert len(times) == 10 * (episodes > 0).sum()
    for row in times.to_dict("records"):
        k, tenth = NAMES.index(row["stage"]), row["tenth_of_episode"] - 1
        assert row["episodes"] == episodes[k]
        assert row["gained"] == pytest.approx(gained[k, tenth] / episodes[k])
        assert row["lost"] == pytest.approx(lost[k, tenth] / episodes[k])
    for row in made.tables["returns_by_reward"].to_dict("records"):
        count = (tree["reward"][kept] == float(row["reward"])).sum() / episodes.sum()
        assert row["per_episode"] == pytest.approx(count)
        assert row["return_per_episode"] == pytest.approx(count * float(row["reward"]))
    for row in made.tables["value_calibration"].to_dict("records"):
        own = kept & np.isfinite(later) & (stage == NAMES.index(row["stage"]))
        v, g = tree["extras/value"][own].astype(float), later[own]
        assert row["moves"] == len(v)
        assert (row["mean_predicted"], row["mean_return"]) == pytest.approx((v.mean(), g.mean()))
        assert row["mean_error"] == pytest.approx((v - g).mean())
        assert row["mean_absolute_error"] == pytest.approx(np.abs(v - g).mean())
        assert row["root_mean_square_error"] == pytest.approx(np.sqrt(((v - g) ** 2).mean()))
        assert row["slope"] == pytest.approx(np.polyfit(v, g, 1)[0])
        assert row["correlation"] == pytest.approx(np.corrcoef(v, g)[0, 1])
    assert len(made.tables["value_calibration"]) == STAGES


def distinct_rows(made: Any, states: Array, stage: Array, kept: Array) -> None:
    for row in made.tables["coverage"].to_dict("records"):
        k = NAMES.index(row["stage"])
        own, until = ({tuple(x) for x in states[kept & keep]} for keep in (stage == k, stage <= k))
        before = {tuple(x) for x in states[kept & (stage < k)]}
        assert (row["states"], row["states_until_then"]) == (len(own), len(until))
        assert (row["new_states"], row["moves"]) == (len(own - before), (kept & (stage == k)).sum())


def test_coverage_of_vectors_images_and_symbols(tmp_path: Path) -> None:
    pixels = Spec("toy/pixels", (34, 50), "uint8", Actions("discrete", (3,)), stack=2)
    symbols = Spec("toy/symbols", (3,), "float32", Actions("discrete", (3,)))
    for name, spec in (("vector", BOX), ("image", pixels), ("symbol", symbols)):
        run = new_run(tmp_path / name)
        tree = history(3, 150, [0, 1], spec)
        frames = tree["observation"][spec.stack - 1 : -1]
        if name == "symbol":
            frames[:] = frames > 0.5
        if name == "image":
            frames[:] = (frames[:, :, :1, :1] // 10) * 12  # few of them
        record(run, tree, [70], spec=spec)
        made = section("coverage", run)
        if name == "vector":
            spread = [np.std(np.concatenate(frames[:70])[:, k].astype(float)) for k in range(6)]
            states = np.round(frames[..., :6] / (0.5 * np.array(spread)))
        elif name == "image":
            states = np.empty((*frames.shape[:2], 256), int)
            for row, k, i, j in itertools.product(range(150), range(2), range(16), range(16)):
                states[row, k, 16 * i + j] = frames[row, k, 2 * i : 2 * i + 2, 3 * j : 3 * j + 3].mean() // 16
        else:
            states = frames
        distinct_rows(made, states, staged(run, tree), valid(tree))


def test_nothing_recorded_is_a_sentence(tmp_path: Path) -> None:
    runs = open_runs([new_run(tmp_path / "run").path])
    for name in ("actions", "returns", "coverage"):
        with pytest.raises(NotRecorded, match=r"output\.record > 0"):
            programs.load(name)(runs)


def test_functions_of_a_program_travel_to_other_processes() -> None:
    reduce = partial(programs.load("actions").__globals__["sums"], actions=BOX.actions)  # type: ignore[attr-defined]
    command = [sys.executable, "-c", "import pickle, sys; print(pickle.load(sys.stdin.buffer).func.__doc__)"]
    process = subprocess.run(command, input=pickle.dumps(reduce), capture_output=True, timeout=60, check=True)
    assert process.stdout.startswith(b"Of one block")


def test_values_that_never_change_have_no_correlation() -> None:
    row = {"mean_predicted": 0.5, "mean_error": 0.5, "slope": np.nan, "correlation": np.nan}
    text = importlib.import_module("hpc_rl.analysis.pages.returns").value_finding("flat", pd.DataFrame([row]))
    assert "one of the two never changes" in text and "nan" not in text
