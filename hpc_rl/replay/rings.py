"""The replay of one replay rank: a ring for each lane that sends to it, drawn from as if they were one.

A lane are columns that step together; lanes come at their own pace. Of n items each ring gives a number that is drawn
by its mass. The least p^α and the sum of masses are those of the union, so that the learner can weight across ranks.

The limiter is that of `Ring`, for the share of the columns that this rank has: request number k of a learner is
answered once (env steps inserted · shares − min_size) · samples_per_insert / batch_size >= k, and no fragment is taken
while more than two updates and two fragments of every column are waiting to be learned from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from hpc_rl.experience import Experience
from hpc_rl.optim.flat import StateDict
from hpc_rl.replay.kind import Kind
from hpc_rl.replay.rate_limiter import limiters
from hpc_rl.replay.ring import Ring, ring_bytes
from hpc_rl.replay.rows import Annotate
from hpc_rl.replay.saving import Saver
from hpc_rl.samplers.base import PURPOSES
from hpc_rl.types import Array, GoalReward, Schema, Spec, Tree

RING_BITS = 40
RING = 1 << RING_BITS  # a key is the ring's number times this, plus the ring's own


class Rings:
    """Replay of several lanes.

    Args:
        lanes: the columns of each, all as many; ``columns`` are those of the whole job.
        learners: how many learners draw, each its part of every batch.
        in_turn: count moves in place of env steps, so that actors know how many updates belong to a fragment.
    """

    def __init__(
        self,
        experience: Experience,
        schema: Schema,
        spec: Spec,
        lanes: Sequence[range],
        columns: int,
        learners: int,
        seed: int,
        annotate: Annotate | None = None,
        in_turn: bool = False,
        saver: Saver | None = None,
        goal_reward: GoalReward | None = None,
    ) -> None:
        self.experience, self.seed, self.in_turn = experience, seed, in_turn
        count = columns // len(lanes[0])
        one = _of_a_lane(experience, count)
        self.rings = {
            lane.start: Ring(schema, spec, lane, one, count, seed, annotate, saver, goal_reward) for lane in lanes
        }
        self.shares = columns / sum(len(lane) for lane in lanes)
        self.columns = columns
        self.moves = 0  # inserted, those between episodes too
        self.fragments = 0  # inserted in this attempt
        self.answered = [0] * learners
        self.kept = False  # of an attempt before, so that nothing is waited for
        self.saver = saver

    def insert(self, tree: Tree) -> None:
        """Take a fragment of one lane. Raises KeyError where it is of another rank's."""
        ring = self.rings[int(tree["column"][0])]
        ring.insert(tree)
        ring.release()
        self.moves += tree["reward"].size
        self.fragments += 1

    def due(self, learner: int) -> bool:
        """Whether the next request of a learner may be answered."""
        if not all(any(ring.kinds[k].count for ring in self.rings.values()) for k in range(len(self.experience.items))):
            return False
        return updates_allowed(self.experience, self._steps(), self.in_turn and self.kept) > self.answered[learner]

    def open(self) -> bool:
        """Whether a fragment may be taken."""
        if self.in_turn:
            return not any(self.due(learner) for learner in range(len(self.answered)))
        slack, waiting = 2 * self.experience.unroll * self.columns, min(self.answered) + 2
        every = limiters(self.experience, self.experience.min_size, slack)
        return any(limiter.may_insert(self._steps(), waiting) for limiter in every)

    def _steps(self) -> float:
        """Env steps of the whole job, as far as this rank's are a measure of it."""
        steps = self.moves if self.in_turn else sum(int(ring.env_steps.sum()) for ring in self.rings.values())
        return steps * self.shares

    def summary(self) -> Tree:
        """mass [kinds] Σ p^α, smallest [kinds] p^α or infinity, fragments []: for the next shares."""
        kinds, rings = range(len(self.experience.items)), self.rings.values()
        return {
            "mass": np.array([sum(ring.mass(ring.kinds[k]) for ring in rings) for k in kinds]),
            "smallest": np.array([min(_smallest(ring, ring.kinds[k]) for ring in rings) for k in kinds]),
            "fragments": np.array(self.fragments),
        }

    def answer(self, counts: list[int], update: int, learner: int, messages: list[Tree]) -> list[Tree | None]:
        """Items of each kind for a request that is `due`; None where none are asked for.

        Observations are written into those of the ``messages`` of so many items each: they are most of a message, and
        are copied once.
        """
        if any(counts):
            self.answered[learner] += 1
        return [
            self.draw(k, count, update, learner, tree["observation"]) if count else None
            for k, (count, tree) in enumerate(zip(counts, messages, strict=True))
        ]

    def draw(self, k: int, count: int, update: int, learner: int, frames: Array) -> Tree:
        """``count`` items of kind k for an update, with leaves "key" [n] and "chance" [n], here p^α; the observations
        are ``frames``, see `Rows.gather`."""
        generator = _stream(self.seed, update, learner, min(self.rings), k)
        rings = list(self.rings.values())
        mass = np.array([ring.mass(ring.kinds[k]) for ring in rings])
        parts: list[Tree] = []
        begin = 0
        for number, share in enumerate(generator.multinomial(count, mass / mass.sum())):
            if share:
                ring = rings[number]
                own = frames[:, begin : begin + share]
                tree, keys = ring.draw(ring.kinds[k], int(share), generator, own)
                begin += int(share)
                chance = tree.get("chance", np.ones(len(keys))) * ring.smallest(ring.kinds[k])
                del tree["observation"]
                parts.append({**tree, "key": number * RING + keys, "chance": chance})
        ends = ("key", "chance", "column", "start")
        axes = {name: 0 if name in ends or name.startswith("carry/") else 1 for name in parts[0]}
        tree = {name: np.concatenate([part[name] for part in parts], axis) for name, axis in axes.items()}
        return {**tree, "observation": frames}

    def reprioritize(self, keys: Array, priorities: Array) -> None:
        """Hand the priorities on to the rings that the keys are of."""
        numbers = keys >> RING_BITS  # half the time of a division
        for number, ring in enumerate(self.rings.values()):
            (own,) = (numbers == number).nonzero()
            if len(own):
                ring.reprioritize(keys.take(own) - number * RING, priorities.take(own))

    def figures(self) -> dict[str, float]:
        """How much is in it, how often it was drawn from, and the mean of what its rings report."""
        rings = list(self.rings.values())
        items = sum(kind.count for ring in rings for kind in ring.kinds)
        steps = float(sum(int(ring.env_steps.sum()) for ring in rings))
        rows = [ring.figures() for ring in rings]
        means = {name: float(np.mean([row[name] for row in rows if name in row])) for row in rows for name in row}
        return {"items": float(items), "inserted_steps": steps, "batches": float(max(self.answered)), **means}

    def state(self) -> list[StateDict]:
        """Those of the rings, as any rank with a replay saves its own; dealt out again by column. Raises as they do."""
        for ring in self.rings.values():
            ring.updates = min(self.answered)  # of this attempt where in turn
        return [ring.state() for ring in self.rings.values()]

    def load(self, parts: list[StateDict]) -> None:
        """Take up the lanes of this rank, whatever rings had them; nothing without a saver. Raises ValueError."""
        if self.saver is None:
            return
        for ring in self.rings.values():
            ring.load(parts)
        self.kept = True
        if not self.in_turn:
            self.answered = [max(ring.updates for ring in self.rings.values())] * len(self.answered)


def updates_allowed(experience: Experience, steps: float, kept: bool) -> int:
    """Updates that so many env steps are enough for; those after a replay that was ``kept`` wait for no other."""
    return min(limiter.due(steps, 0) for limiter in limiters(experience, 0 if kept else experience.min_size))


def rings_bytes(schema: Schema, spec: Spec, width: int, lanes: int, count: int, experience: Experience) -> int:
    """Memory of ``lanes`` of all ``count`` lanes of ``width`` columns each. Raises Unreplayable."""
    return lanes * ring_bytes(schema, spec, width, _of_a_lane(experience, count), count)


def _of_a_lane(experience: Experience, count: int) -> Experience:
    """What a ring is made for: it draws no batch of its own, which may have fewer items than there are rings."""
    kinds = tuple(replace(items, batch_size=max(items.batch_size, count)) for items in experience.items)
    return replace(experience, items=kinds)


def _smallest(ring: Ring, kind: Kind) -> float:
    return ring.smallest(kind) if kind.count else np.inf


def _stream(seed: int, *key: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(PURPOSES["replay"], *key))))
