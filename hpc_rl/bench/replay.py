"""A replay of Atari frames: samples and priority updates a second and bytes, beside other libraries on the same data.

Batches are what a learner takes: stacks of 4 frames of 84×84 bytes before and after each move, drawn with α = 0.6, and
their importance weights. One core; libraries in turn, medians of the blocks. Others take part where they are installed:
`pip install cpprb tianshou`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from statistics import median
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from hpc_rl.bench.cores import pinned
from hpc_rl.experience import Experience, Items
from hpc_rl.formulas.q_learning import importance_weights
from hpc_rl.fragments import allocate, trajectory, trajectory_schema
from hpc_rl.host_memory import return_freed
from hpc_rl.replay.items import replay_layouts
from hpc_rl.replay.rings import Rings
from hpc_rl.types import Actions, Array, Spec, Trajectory

BATCH, ALPHA, BETA, STACK, EPISODE, FRAMES = 512, 0.6, 0.4, 4, 1000, 2000
COLUMNS, UNROLL = 8, 20  # of our own replay
BLOCKS = 5
SPEC = Spec("frames", (84, 84), "uint8", Actions("discrete", (6,)), STACK)

Draw = Callable[[int], Any]
"""Number of the batch -> a batch."""
Update = Callable[[Any, Array], None]
"""A batch and new priorities [n] of it."""


@dataclass(frozen=True)
class Way:
    """One way to draw batches; ``update`` is None where it is another one's."""

    name: str
    draw: Draw
    update: Update | None
    bytes_per_transition: float


@dataclass(frozen=True)
class Figures:
    """Medians over the blocks; 0 where not measured."""

    name: str
    samples_per_s: float
    updates_per_s: float
    bytes_per_transition: float


def measure(transitions: int, seconds: float, whole: bool = False) -> list[Figures]:
    """Figures of every way, ours first. Draws of one way take so many ``seconds`` of a block, updates a quarter.

    ``whole``: also Tianshou's buffer of whole stacks, 57 kB a transition.
    """
    with pinned(min(os.sched_getaffinity(0))):
        ways = _ways(transitions, whole)
        blocks: list[list[tuple[float, float]]] = [[] for _ in ways]
        for block in range(BLOCKS):
            for k in range(len(ways)):
                turn = (block + k) % len(ways)
                blocks[turn].append(_rates(ways[turn], seconds))
    return [
        Figures(way.name, median(x for x, _ in rates), median(x for _, x in rates), way.bytes_per_transition)
        for way, rates in zip(ways, blocks, strict=True)
    ]


def render(rows: list[Figures], transitions: int) -> str:
    lines = [
        f"{transitions:,} transitions, batches of {BATCH} with stacks of {STACK} frames before and after, "
        f"α = {ALPHA:g}, one core; medians of {BLOCKS} blocks in turn",
        f"{'':<40}{'samples/s':>12}{'updates/s':>12}{'bytes':>9}",
    ]
    for row in rows:
        updates = f"{row.updates_per_s:,.0f}" if row.updates_per_s else ""
        lines.append(f"{row.name:<40}{row.samples_per_s:>12,.0f}{updates:>12}{row.bytes_per_transition:>9,.0f}")
    return "\n".join(lines)


def _rates(way: Way, seconds: float) -> tuple[float, float]:
    """(samples, priority updates) a second."""
    samples = _repeated(way.draw, seconds)
    if way.update is None:
        return samples, 0.0
    batches, generator = [way.draw(k) for k in range(4)], np.random.default_rng(0)
    priorities = [generator.exponential(size=BATCH) for _ in range(64)]
    update = way.update
    return samples, _repeated(lambda k: update(batches[k % 4], priorities[k % 64]), seconds / 4)


def _repeated(work: Callable[[int], object], seconds: float) -> float:
    """Items a second, of work on a batch."""
    work(0)
    begin, count, took = time.perf_counter(), 0, 0.0
    while took < seconds:
        count += 1
        work(count)
        took = time.perf_counter() - begin
    return count * BATCH / took


def _ways(transitions: int, whole: bool) -> list[Way]:
    frames = np.random.default_rng(0).integers(0, 256, (FRAMES, 84, 84), dtype=np.uint8)
    ways = _ours(transitions, frames)
    if find_spec("cpprb"):
        ways.append(_cpprb(transitions, frames))
    if find_spec("tianshou"):
        ways += [_tianshou(transitions, frames, kept) for kept in ([False, True] if whole else [False])]
    return ways


def _filled(fill: Callable[[int], Any], transitions: int) -> tuple[Any, float]:
    """What ``fill`` makes of so many transitions, and the bytes of one; a small one before imports what it needs."""
    fill(2 * EPISODE)
    return_freed()
    before = _resident_bytes()
    buffer = fill(transitions)
    return buffer, (_resident_bytes() - before) / transitions


def _resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _first_priorities(transitions: int) -> Array:
    return np.random.default_rng(1).exponential(size=transitions)


def _ours(transitions: int, frames: Array) -> list[Way]:
    """In process as the learner takes it, the same with its stacks copied out, and by a replay rank's message."""
    experience = Experience(UNROLL, (Items("items", BATCH, 1, alpha=ALPHA),), transitions)
    schema = trajectory_schema(SPEC, {}, {})

    def fill(count: int) -> Rings:
        rings = Rings(experience, schema, SPEC, [range(COLUMNS)], COLUMNS, 1, 0)
        tree = allocate(schema, UNROLL, COLUMNS, STACK)
        tree["column"][:] = np.arange(COLUMNS)
        for begin in range(0, count // COLUMNS, UNROLL):
            rows = begin + np.arange(UNROLL + STACK)[:, None] - STACK + 1
            tree["observation"][:] = frames[(rows + 211 * np.arange(COLUMNS)) % FRAMES]
            tree["first"][:] = rows[STACK - 1 :] % EPISODE == 0
            tree["start"][:] = begin - begin // EPISODE
            rings.insert(tree)
        return rings

    rings, held = _filled(fill, transitions)
    (ring,) = rings.rings.values()
    (kind,), (layout,) = ring.kinds, replay_layouts(experience, schema, SPEC, 1, (UNROLL, COLUMNS)).items
    begins = np.flatnonzero(kind.lengths)
    ring.reprioritize(begins, _first_priorities(len(begins)))
    buffer = layout.buffer()

    def weighted(batch: Trajectory, keys: Array) -> tuple[Trajectory, Any, Array]:
        return batch, importance_weights(batch.chance, BETA), keys

    def draw(number: int) -> Any:
        (trees, keys) = ring.sample(number)["items"]
        assert keys is not None
        return weighted(trajectory(trees, SPEC), keys)

    def copied(number: int) -> Any:
        batch, weights, _ = draw(number)
        return batch.observation.contiguous(), weights

    def by_message(number: int) -> Any:
        tree = rings.draw(0, BATCH, number, 0, layout.views(buffer)["observation"])
        message, _ = layout.unpack(layout.pack(tree, number, buffer))
        chance = (message["chance"] / rings.summary()["smallest"][0]).astype(np.float32)
        return weighted(trajectory([{**message, "chance": chance}], SPEC), message["key"].copy())

    def update(batch: Any, priorities: Array) -> None:
        ring.reprioritize(batch[2], priorities)
        ring.mass(kind)  # the nodes above the leaves are computed when they are next read

    def returned(batch: Any, priorities: Array) -> None:
        rings.reprioritize(batch[2], priorities)
        ring.mass(kind)

    return [
        Way("hpc_rl, in process", draw, update, held),
        Way("hpc_rl, in process, stacks copied", copied, None, held),
        Way("hpc_rl, replay rank", by_message, returned, held),
    ]


def _cpprb(transitions: int, frames: Array) -> Way:
    """Its smallest: frames kept once, for all stacks before and after moves."""
    from cpprb import PrioritizedReplayBuffer

    shapes: dict[str, Any] = {"obs": {"shape": (84, 84, STACK), "dtype": np.uint8}, "act": {"dtype": np.int64}}
    shapes |= {"rew": {"dtype": np.float32}, "done": {"dtype": np.float32}}
    stacks = np.moveaxis(sliding_window_view(frames, STACK, 0)[: EPISODE + 1], 3, -1)
    one, done = np.ones(EPISODE), np.arange(EPISODE) == EPISODE - 1

    def fill(count: int) -> Any:
        buffer = PrioritizedReplayBuffer(count, shapes, alpha=ALPHA, next_of="obs", stack_compress="obs")
        for _ in range(count // EPISODE):
            buffer.add(obs=stacks[:-1], act=one, rew=one, next_obs=stacks[1:], done=done)
            buffer.on_episode_end()
        return buffer

    buffer, held = _filled(fill, transitions)
    every = np.arange(buffer.get_stored_size())
    buffer.update_priorities(every, _first_priorities(len(every)))
    return Way(
        f"cpprb {version('cpprb')}, compressed",
        lambda _: buffer.sample(BATCH, beta=BETA),
        lambda batch, priorities: buffer.update_priorities(batch["indexes"], priorities),
        held,
    )


def _tianshou(transitions: int, frames: Array, whole: bool) -> Way:
    """Its smallest, of single frames that are stacked when drawn; or of whole stacks."""
    from tianshou.data import Batch, PrioritizedReplayBuffer, ReplayBuffer

    sparing: dict[str, Any] = {"stack_num": STACK, "ignore_obs_next": True, "save_only_last_obs": True}
    kept = {} if whole else sparing

    def fill(count: int) -> Any:
        buffer, episode = PrioritizedReplayBuffer(count, alpha=ALPHA, beta=BETA, **kept), ReplayBuffer(EPISODE, **kept)
        for k in range(EPISODE):
            now, then, done = frames[k : k + STACK], frames[k + 1 : k + 1 + STACK], k == EPISODE - 1
            episode.add(Batch(obs=now, act=1, rew=1.0, terminated=done, truncated=False, obs_next=then, info={}))
        for _ in range(count // EPISODE):
            buffer.update(episode)
        return buffer

    buffer, held = _filled(fill, transitions)
    buffer.update_weight(np.arange(len(buffer)), _first_priorities(len(buffer)))
    return Way(
        f"Tianshou {version('tianshou')}, {'whole stacks' if whole else 'single frames'}",
        lambda _: buffer.sample(BATCH),
        lambda batch, priorities: buffer.update_weight(batch[1], priorities),
        held,
    )
