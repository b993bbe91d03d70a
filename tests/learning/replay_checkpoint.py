"""How long a checkpoint holds a learner up whose ring has 200 000 transitions of Pong, none of them on disk yet.

    python tests/learning/replay_checkpoint.py [--transitions 200000] [--batch 32] [--reuse 8] [--folder /tmp]

A round is what a learner does between two looks at its checkpoints, without its networks: insert a fragment, draw
``reuse`` samples for each of its env steps in batches. The insertion and each draw are timed before, while and after
the rows are written; so are the snapshot and the checkpoint itself, for which training stops. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpc_rl.envs.make import make
from hpc_rl.experience import Experience, Items
from hpc_rl.fragments import allocate, trajectory, trajectory_schema
from hpc_rl.replay.ring import Ring
from hpc_rl.replay.saving import Saver
from hpc_rl.storage import checkpoint, replay_files
from hpc_rl.storage.run_dir import RunDir, create
from hpc_rl.types import Actions, Array, Spec, Tree

STACK, WIDTH, STEPS, POOL, PARAMETERS = 4, 8, 20, 2000, 1_700_000


def pong_frames() -> Array:
    """[POOL, 84, 84] of random play."""
    env, generator = make("ALE/Pong-v5", {}, WIDTH, 1), np.random.default_rng(0)
    frames = [env.reset(np.arange(WIDTH))[:, -1]]
    while len(frames) * WIDTH < POOL:
        env.send(generator.integers(0, 6, WIDTH))
        frames.append(env.recv().observation[:, -1])
    pool: Array = np.concatenate(frames).reshape(-1, 84, 84)[:POOL]
    return pool


class Rounds:
    """The ring, its next fragments, and how long each round took."""

    def __init__(self, run: RunDir, transitions: int, batch: int, reuse: float) -> None:
        self.draws = max(1, int(WIDTH * STEPS * reuse / batch))
        self.spec = Spec("frames", (84, 84), "uint8", Actions("discrete", (6,)), STACK)
        schema = trajectory_schema(self.spec, {}, {})
        experience = Experience(STEPS, (Items("items", batch, 1, alpha=0.6),), transitions)
        self.saver = Saver("a0", partial(replay_files.write, run), partial(replay_files.read, run))
        self.ring = Ring(schema, self.spec, range(WIDTH), experience, 1, 0, None, self.saver)
        self.tree, self.frames, self.number = allocate(schema, STEPS, WIDTH, STACK), pong_frames(), 0
        self.tree["column"][:] = np.arange(WIDTH)

    def insert(self) -> Tree:
        row = self.number * STEPS
        at = (np.arange(STEPS + STACK)[:, None] + row + 211 * np.arange(WIDTH)) % POOL
        self.tree["observation"][:], self.tree["start"][:] = self.frames[at], row
        self.ring.insert(self.tree)
        self.ring.release()
        self.number += 1
        return self.tree

    def round(self) -> list[float]:
        """Seconds of the insertion, and of each draw."""
        times = [time.perf_counter()]
        self.insert()
        times.append(time.perf_counter())
        for _ in range(self.draws):
            trajectory(self.ring.sample(self.number)["items"][0], self.spec)
            times.append(time.perf_counter())
        return np.diff(times).tolist()


def longest(rounds: list[list[float]]) -> dict[str, float]:
    return {"insertion_s": max(x[0] for x in rounds), "draw_s": max(max(x[1:]) for x in rounds), "rounds": len(rounds)}


def measured(folder: Path, transitions: int, batch: int, reuse: float) -> dict[str, Any]:
    run = create(folder / "run", "")
    rounds = Rounds(run, transitions, batch, reuse)
    for _ in range(transitions // (WIDTH * STEPS)):
        rounds.insert()
    before = [rounds.round() for _ in range(50)]
    begin = time.perf_counter()
    state = {"weights": torch.randn(PARAMETERS), "stores": [rounds.ring.state()]}
    snapshot_s = time.perf_counter() - begin
    written, during = replay_files.written(run, state, 1e9), list[list[float]]()
    while not written():
        during.append(rounds.round())
    writing_s, begin = time.perf_counter() - begin, time.perf_counter()
    checkpoint.save(run, 1, replay_files.sized(run, state), {})
    replay_files.prune(run)
    save_s = time.perf_counter() - begin
    after = [rounds.round() for _ in range(50)]
    begin = time.perf_counter()
    rounds.ring.state()
    rounds.saver.flush()
    files = list(replay_files.folder(run).iterdir())
    return {
        "snapshot_s": snapshot_s,
        "checkpoint_s": save_s,
        "longest": {"before": longest(before), "while_writing": longest(during), "after": longest(after)},
        "writing_s": writing_s,
        "next_writing_s": time.perf_counter() - begin,
        "rows_bytes": sum(x.nbytes for x in rounds.ring.rows.data.values()),
        "files": len(files),
        "file_bytes": sum(path.stat().st_size for path in files),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--transitions", type=int, default=200_000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--reuse", type=float, default=8.0)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(dir=arguments.folder))
    try:
        print(json.dumps(measured(folder, arguments.transitions, arguments.batch, arguments.reuse)))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
