"""`hpc-rl eval --video`: exactly one game, of every kind of image.

Mutations seen to fail: the film goes on after the game; the second batch of columns is filmed; the last frame left out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hpc_rl import job as jobs
from hpc_rl.envs.base import Environment
from hpc_rl.envs.make import describe, make
from hpc_rl.evaluation import check_video
from hpc_rl.gif import animated
from hpc_rl.storage.run_dir import BadRun
from hpc_rl.types import Actions, Spec
from tests.contract.greedy import greedy_returns

SCREEN = """
import gymnasium, numpy as np
from gymnasium.spaces import Box, Discrete

class make(gymnasium.Env):
    '''Every frame is one brighter than the last; its seed says how long a game lasts.'''

    def __init__(self, shape):
        self.observation_space, self.action_space = Box(0, 255, shape, np.uint8), Discrete(2)
        self.brightness, self.games = 0, 0

    def frame(self):
        self.brightness += 10
        return np.full(self.observation_space.shape, self.brightness % 256, np.uint8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(3, 9))
        return self.frame(), {}

    def step(self, action):
        self.left -= 1
        return self.frame(), 1.0, self.left == 0, False, {}
"""


def film_of(id: str, arguments: dict[str, Any], episodes: int) -> tuple[list[Any], list[float]]:
    spec, config = describe(id, arguments), jobs.algorithm("a2c").config()
    torch.manual_seed(0)
    film: list[Any] = []

    def build(columns: int, threads: int) -> Environment:
        return make(id, arguments, columns, threads)

    policy = jobs.algorithm("a2c").policy(config, spec, None)
    return film, greedy_returns(build, policy, 2, episodes, watch=film.append)


@pytest.mark.parametrize("episodes", [1, 3, 20])
@pytest.mark.parametrize(
    "shape", [(40, 48, 3), (40, 48, 1), (40, 48), (3, 40, 48), (4, 40, 48), (4, 40, 48, 3), (7, 9, 3)], ids=str
)
def test_the_film_is_one_game(
    shape: tuple[int, ...], episodes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "their_screen.py").write_text(SCREEN)
    monkeypatch.syspath_prepend(tmp_path)
    film, returns = film_of("their_screen:make", {"shape": shape}, episodes)
    assert len(returns) == episodes and (episodes < 3 or max(returns) > returns[0])
    moves = int(returns[0])
    assert [int(x.max()) for x in film] == [10 * k for k in range(1, moves + 2)]  # the first, and one for each move
    check_video(tmp_path / "out.gif", describe("their_screen:make", {"shape": shape}))
    (tmp_path / "out.gif").write_bytes(animated(film))
    with Image.open(tmp_path / "out.gif") as gif:
        height, width = (shape[0], shape[1]) if len(shape) == 2 else shape[-3:-1] if shape[-1] <= 3 else shape[-2:]
        assert gif.n_frames == moves + 1
        assert gif.size[0] * height == gif.size[1] * width


def test_of_a_stack_the_newest_frame_is_filmed() -> None:
    film, _ = film_of("toy/catch", {"pixels": True, "rows": 6, "stack": 2}, 2)
    assert len(film) == 6
    assert [int(x[-1, :-1].max(1).argmax()) for x in film[:-1]] == [0, 1, 2, 3, 4]  # the row of the ball


def test_colours_stay_colours(tmp_path: Path) -> None:
    red = np.zeros((3, 8, 10), np.uint8)
    red[0] = 255
    (tmp_path / "out.gif").write_bytes(animated([red, 255 - red]))
    with Image.open(tmp_path / "out.gif") as gif:
        assert gif.convert("RGB").getpixel((3, 3)) == (255, 0, 0)


def test_what_cannot_be_filmed_is_refused_before_a_game(tmp_path: Path) -> None:
    image = Spec("some", (3, 8, 8), "uint8", Actions("discrete", (2,)))
    for spec in (Spec("some", (4,), "float32", image.actions), Spec("some", (8, 8), "float32", image.actions)):
        with pytest.raises(BadRun, match="not images"):
            check_video(tmp_path / "out.gif", spec)
    for path in ("out.mp4", "out", "nowhere/out.gif"):
        with pytest.raises(BadRun, match=r"ends in \.gif in a folder that exists"):
            check_video(tmp_path / path, image)
