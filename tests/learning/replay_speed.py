"""Samples, priority updates and bytes of a replay of Atari frames, beside those of other libraries on the same data.

    python tests/learning/replay_speed.py [--peer cpprb|tianshou] [--transitions 200000] [--batches 100]

Without a peer it times this package's ring, else that library, which must be installed in the Python that runs it. Run
them in turn on one core; batches are of 512 with α = 0.6, stacks of 4 frames of 84×84 before and after each move.
Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np

BATCH, ALPHA, STACK, EPISODE, POOL = 512, 0.6, 4, 1000, 2000
Draw = Callable[[int], Any]
"""Number of the batch -> whatever `Update` takes."""
Update = Callable[[Any, Any], None]


def frames_of(generator: np.random.Generator) -> Any:
    return generator.integers(0, 256, (POOL, 84, 84), dtype=np.uint8)


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def ours(transitions: int, frames: Any, generator: np.random.Generator) -> tuple[Draw, Update]:
    from hpc_rl.experience import Experience, Items
    from hpc_rl.fragments import allocate, trajectory, trajectory_schema
    from hpc_rl.replay.ring import Ring
    from hpc_rl.types import Actions, Spec

    spec, width, steps = Spec("frames", (84, 84), "uint8", Actions("discrete", (6,)), STACK), 8, 20
    schema = trajectory_schema(spec, {}, {})
    experience = Experience(steps, (Items("items", BATCH, 1, alpha=ALPHA),), transitions)
    ring = Ring(schema, spec, range(width), experience, 1, 0)
    tree = allocate(schema, steps, width, STACK)
    tree["column"][:] = np.arange(width)
    for fragment in range(transitions // (width * steps)):
        row = fragment * steps
        at = (np.arange(steps + STACK)[:, None] + row + 211 * np.arange(width)) % POOL
        tree["observation"][:] = frames[at]
        tree["start"][:] = row
        ring.insert(tree)
        ring.release()

    def draw(number: int) -> Any:
        (trees, keys) = ring.sample(number)["items"]
        return trajectory(trees, spec), keys

    def update(batch: Any, priorities: Any) -> None:
        ring.reprioritize(batch[1], priorities)

    return draw, update


def cpprb(transitions: int, frames: Any, generator: np.random.Generator) -> tuple[Draw, Update]:
    from cpprb import PrioritizedReplayBuffer  # type: ignore[import-not-found]

    shapes = {"obs": {"shape": (84, 84, STACK), "dtype": np.uint8}, "act": {"dtype": np.int64}}
    shapes |= {"rew": {"dtype": np.float32}, "done": {"dtype": np.float32}}
    buffer = PrioritizedReplayBuffer(transitions, shapes, alpha=ALPHA, next_of="obs", stack_compress="obs")
    stacks, last = np.moveaxis(frames, 0, -1), POOL - 2 * STACK
    for k in range(transitions):
        j, done = k % last, float(k % EPISODE == EPISODE - 1)
        now, then = stacks[..., j : j + STACK], stacks[..., j + 1 : j + 1 + STACK]
        buffer.add(obs=now, act=1, rew=0.5, next_obs=then, done=done)
        if done:
            buffer.on_episode_end()
    return (
        lambda _: buffer.sample(BATCH, beta=0.4),
        lambda batch, priorities: buffer.update_priorities(batch["indexes"], priorities),
    )


def tianshou(transitions: int, frames: Any, generator: np.random.Generator) -> tuple[Draw, Update]:
    from tianshou.data import Batch, PrioritizedReplayBuffer  # type: ignore[import-not-found]

    kept = {"stack_num": STACK, "ignore_obs_next": True, "save_only_last_obs": True}
    buffer = PrioritizedReplayBuffer(transitions, alpha=ALPHA, beta=0.4, **kept)
    for k in range(transitions):
        done = k % EPISODE == EPISODE - 1
        now, then = frames[k % POOL][None], frames[(k + 1) % POOL][None]
        buffer.add(Batch(obs=now, act=1, rew=0.5, terminated=done, truncated=False, obs_next=then, info={}))
    return lambda _: buffer.sample(BATCH), lambda batch, priorities: buffer.update_weight(batch[1], priorities)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--peer", choices=["cpprb", "tianshou"])
    parser.add_argument("--transitions", type=int, default=200_000)
    parser.add_argument("--batches", type=int, default=100)
    options = parser.parse_args()
    generator = np.random.default_rng(0)
    frames, fill = frames_of(generator), {"cpprb": cpprb, "tianshou": tianshou, None: ours}[options.peer]
    fill(1600, frames, generator)  # whatever it imports
    before = resident_bytes()
    draw, update = fill(options.transitions, frames, generator)
    held = (resident_bytes() - before) / options.transitions
    priorities = [generator.exponential(size=BATCH) for _ in range(64)]
    for k in range(20):
        update(draw(k), priorities[k])
    begin = time.perf_counter()
    for k in range(options.batches):
        draw(k)
    sampled = time.perf_counter() - begin
    batches = [draw(k) for k in range(4)]
    begin = time.perf_counter()
    for k in range(20 * options.batches):
        update(batches[k % 4], priorities[k % 64])
    updated = time.perf_counter() - begin
    figures = {
        "samples_per_s": round(BATCH * options.batches / sampled),
        "updates_per_s": round(20 * BATCH * options.batches / updated),
        "bytes_per_transition": round(held),
    }
    print(json.dumps({"replay": options.peer or "hpc_rl", **figures}))


if __name__ == "__main__":
    main()
