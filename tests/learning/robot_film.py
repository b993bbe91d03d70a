"""A greedy game of a run of `warp/…`, drawn by MuJoCo: a GIF.

MUJOCO_GL=egl python -m tests.learning.robot_film RUN film.gif [--moves 200] [--seed 1]
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
from PIL import Image

from hpc_rl.api import open_run
from hpc_rl.envs.warp.worlds import model_of

WIDTH, HEIGHT, EVERY = 200, 150, 3  # moves for each picture


def film(run: Path, moves: int, seed: int) -> tuple[list[Image.Image], float]:
    """Pictures of one game at most, seen from the side, and its return."""
    opened = open_run(run)
    environment: Any = opened.environment()  # made of Rules
    policy, shown = opened.policy(), environment.reset(np.array([seed]))
    model = model_of(opened.job.environment.id)
    data, drawn = mujoco.MjData(model), list[Any]()
    camera = mujoco.MjvCamera()
    camera.type, camera.trackbodyid = mujoco.mjtCamera.mjCAMERA_TRACKING, 1
    camera.distance, camera.elevation, camera.azimuth = 3.0, -8.0, 90.0
    total = 0.0
    with mujoco.Renderer(model, HEIGHT, WIDTH) as renderer:
        for move in range(moves):
            if move % EVERY == 0:
                data.qpos[:] = environment.rules_state["qpos"][0]
                mujoco.mj_forward(model, data)
                renderer.update_scene(data, camera)
                drawn.append(Image.fromarray(renderer.render()))
            environment.send(policy.act(shown))
            after = environment.recv()
            shown, total = after.observation, total + float(after.reward[0])
            if after.ended[0]:
                break
    return drawn, total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("gif", type=Path)
    parser.add_argument("--moves", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    pictures, total = film(arguments.run, arguments.moves, arguments.seed)
    colours = [x.quantize(32) for x in pictures]
    stream = io.BytesIO()
    colours[0].save(stream, "GIF", save_all=True, append_images=colours[1:], duration=45, loop=0)
    arguments.gif.write_bytes(stream.getvalue())
    print(f"{len(pictures)} pictures, {len(stream.getvalue()) / 1e3:.0f} kB; a return of {total:.1f} so far")


if __name__ == "__main__":
    main()
