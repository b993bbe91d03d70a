"""The best and the worst episode, rebuilt over segments and attempts.

Mutations seen to fail: an episode's moves taken from its last segment only; every second frame counted anew in each
block; abandoned moves taken; the best and the worst exchanged.
"""

from __future__ import annotations

import io
from pathlib import Path

import dask
import numpy as np
import pytest

from hpc_rl.analysis import episode_video, figures, open_runs
from hpc_rl.analysis.sections import NotRecorded
from hpc_rl.types import Actions, Spec
from tests.analysis.histories import history, new_run, record, resumed

PIXELS = Spec("toy/pixels", (12, 12), "uint8", Actions("discrete", (3,)), stack=2)


@pytest.fixture(autouse=True)
def one_process() -> object:
    with dask.config.set(scheduler="synchronous"):
        yield


@pytest.mark.parametrize("every", [1, 3])
def test_an_episode_over_segments_and_attempts(tmp_path: Path, every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Moves 20 on of column 1 were made again by a second attempt, in which the episode went on."""
    monkeypatch.setattr(episode_video, "_ROWS", 4)
    run = new_run(tmp_path / "run")
    old, new = history(0, 60, [0, 1], PIXELS), history(1, 60, [0, 1], PIXELS, start=20)
    for tree in (old, new):
        tree["first"][:] = False  # one episode, so that moves are rows
    record(run, old, [9, 14, 33], spec=PIXELS)
    record(run, new, [7], attempt=1, spec=PIXELS)
    resumed(run, 1, {0: 20, 1: 20})
    (opened,) = open_runs([run.path])
    stretches = episode_video.located(opened, 1, 5, 31)
    expected = np.concatenate([old["observation"][1:][5:20, 1], new["observation"][1:][:11, 1]])
    leaves = episode_video.rows(stretches, ("observation", "action"), every)
    assert len(stretches) == 5
    np.testing.assert_array_equal(leaves["observation"], expected[::every])


def test_the_best_and_the_worst_film(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import Image

    monkeypatch.setattr(episode_video, "MOST_FRAMES", 5)
    run = new_run(tmp_path / "run")
    tree = history(2, 80, [0, 1], PIXELS, longest=14)
    record(run, tree, [31, 50], spec=PIXELS)
    best, worst = episode_video.find(open_runs([run.path]))
    returns = tree["episode_return"][np.isfinite(tree["episode_return"])]
    for clip, side, score in ((best, "best", returns.max()), (worst, "worst", returns.min())):
        assert f"run: {side} recorded episode, return {score:g} in " in clip.title
        with Image.open(io.BytesIO(clip.film or b"")) as film:
            assert film.size == (36, 36) and 1 <= film.n_frames <= 5
    assert best.stem == "best_episode_run" and "frame" in best.title


def test_vectors_are_drawn_and_incomplete_episodes_passed_over(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    tree = history(3, 80, [0, 1], longest=14)
    row, column = np.unravel_index(np.nanargmax(tree["episode_return"]), (80, 2))
    length, middle = int(tree["episode_length"][row, column]), 0
    assert length > 2
    middle = row - 1  # the segment that ends here is lost, and with it the best episode's beginning
    record(run, tree, [middle - 1, middle], leave_out=[1])
    clips = episode_video.find(open_runs([run.path]))
    assert all(clip.film is None and clip.draw is not None and figures.png(clip.draw, dpi=20) for clip in clips)
    assert f"return {np.nanmax(tree['episode_return']):g} in {length} moves" not in clips[0].title


def test_without_episodes(tmp_path: Path) -> None:
    with pytest.raises(NotRecorded, match="no finished episode"):
        episode_video.find(open_runs([new_run(tmp_path / "run").path]))
