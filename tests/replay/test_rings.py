"""One replay on several ranks draws as one store would: items, weights, priorities, and the limiter of each rank.

Mutations seen to fail: shares equal instead of by mass, between ranks and between the rings of a rank; chances not
divided by the union's least, or of their own ring; the ring's number, or the rank's, left out of the keys; priorities
kept by the learner; the limiter without the rank's share; items of every lane written to the first columns of a
message; frames of one row written to another.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from hpc_rl.experience import Experience, Items
from hpc_rl.replay.desk import Desk
from hpc_rl.replay.items import replay_layouts
from hpc_rl.replay.remote import Remote
from hpc_rl.replay.ring import Ring
from hpc_rl.replay.rings import RING, Rings
from hpc_rl.transport.local import LocalLink, run_threads
from hpc_rl.transport.waiting import Waiting
from hpc_rl.types import Leaf
from tests.replay.columns import columns_of, fragment, schema_of, spec_of

LANES, STEPS, BATCH, DRAWS = 4, 6, 32, 150
SPEC = spec_of(2)
RECORDED = schema_of(SPEC)
SENT = {**RECORDED, "closed": Leaf((), "int64", "fragment")}
EXPERIENCE = Experience(STEPS, (Items("items", BATCH, 3, samples_per_insert=1e6),), capacity=4000)


def rings_of(servers: int, experience: Experience = EXPERIENCE, fill: bool = True) -> list[Rings]:
    """Lanes of one column each, of which lane k has 2 k + 1 fragments, on so many ranks."""
    columns = columns_of(SPEC, LANES)
    lanes = [range(10 + k, 11 + k) for k in range(LANES)]
    each = LANES // servers
    shards = [Rings(experience, RECORDED, SPEC, lanes[s * each : (s + 1) * each], LANES, 1, 7) for s in range(servers)]
    for k in range(LANES if fill else 0):
        for _ in range(2 * k + 1):
            shards[k // each].insert(fragment([columns[k]], STEPS))
    return shards


def priority(items: np.ndarray) -> np.ndarray:
    """[n] of items by their first action; distinct, and in no order."""
    return 0.5 + (items * 7 % 11).astype(float)


def prioritised(servers: int) -> tuple[list[Rings], dict[int, float]]:
    """Shards whose items have `priority`, and p^α of all of them by their first action."""
    items = Items("items", BATCH, 3, samples_per_insert=1e6, alpha=0.6)
    shards, masses = rings_of(servers, Experience(STEPS, (items,), capacity=4000)), {}
    for rings in shards:
        for ring in rings.rings.values():
            lengths = ring.kinds[0].lengths[:, 0]
            rows = np.array([row for row in range(ring.rows.end) if lengths[row % len(lengths)] > 0])
            actions = ring.rows.flat["action"][rows % len(lengths)]
            ring.reprioritize(rows, priority(actions))
            masses |= dict(zip(actions.tolist(), (priority(actions) ** 0.6).tolist(), strict=True))
    return shards, masses


def drawn(
    servers: int, learners: int = 1, filled: list[Rings] | None = None
) -> tuple[Counter[tuple[int, int]], dict[int, float], list[Any]]:
    """(how often each item (first action, column) came, chance by first action, the keys) of `DRAWS` batches."""
    counts: Counter[tuple[int, int]] = Counter()
    chances: dict[int, float] = {}
    keys: list[Any] = []
    shards, done = filled or rings_of(servers), [False]

    def rank(link: LocalLink) -> None:
        waiting = Waiting(20.0)
        layouts = replay_layouts(EXPERIENCE, SENT, SPEC, learners, (STEPS, 1))
        if link.rank:
            desk = Desk(link, waiting, [0], layouts, shards[link.rank - 1], False)
            waiting.until(lambda: not desk.answer() and done[0], "the learner")
            return
        remote = Remote(link, waiting, list(range(1, servers + 1)), layouts, EXPERIENCE, 0, learners, 7, False)
        remote.open(0)
        for update in range(DRAWS):
            waiting.until(lambda: remote.due() == 1, "a batch")
            trees, found = remote.sample(update)["items"]
            keys.append(found)
            for tree in trees:
                counts.update(zip(tree["action"][0].tolist(), tree["column"].tolist(), strict=True))
                chances.update(zip(tree["action"][0].tolist(), tree["chance"].tolist(), strict=True))
            if filled is None:
                remote.reprioritize(found, np.ones(len(found)))
        done[0] = True

    run_threads(servers + 1, rank, 60.0)
    return counts, chances, keys


def items_of(servers: int) -> int:
    return sum(kind.count for rings in rings_of(servers) for ring in rings.rings.values() for kind in ring.kinds)


@pytest.mark.parametrize("servers", [1, 2, 4])
def test_unequal_shards_draw_as_one_store(servers: int) -> None:
    counts, chances, keys = drawn(servers)
    total = items_of(1)
    assert items_of(servers) == total and len(counts) <= total
    expected = DRAWS * BATCH / total
    assert all(len(x) == BATCH for x in keys)
    statistic = sum((n - expected) ** 2 for n in counts.values()) / expected + (total - len(counts)) * expected
    assert statistic < total - 1 + 5 * np.sqrt(2 * (total - 1)), "not every item is as likely"
    assert set(chances.values()) == {1.0}


@pytest.mark.parametrize("servers", [1, 2, 4])
def test_prioritised_shards_draw_and_weigh_as_one_store(servers: int) -> None:
    shards, masses = prioritised(servers)
    counts, chances, _ = drawn(servers, filled=shards)
    total, least = sum(masses.values()), min(masses.values())
    assert masses.keys() == prioritised(1)[1].keys()
    assert all(chances[item] == pytest.approx(masses[item] / least, rel=1e-5) for item in chances)
    by_item = Counter({item: n for (item, _), n in counts.items()})
    expected = {item: DRAWS * BATCH * mass / total for item, mass in masses.items()}
    statistic = sum((by_item[item] - n) ** 2 / n for item, n in expected.items())
    assert statistic < len(masses) - 1 + 5 * np.sqrt(2 * (len(masses) - 1)), "draws are not by p^α over all shards"


def test_priorities_go_to_the_ring_that_the_item_is_of(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int, int]] = []

    def note(ring: Ring, keys: np.ndarray, priorities: np.ndarray) -> None:
        starts = ring.rows.flat["action"].take(ring.rows.at(*np.divmod(keys, ring.rows.width)))
        seen.extend((ring.columns.start, int(start), int(key)) for start, key in zip(starts, keys, strict=True))

    monkeypatch.setattr(Ring, "reprioritize", note)
    counts, _, _ = drawn(2)
    returned = Counter((start, column) for column, start, _ in seen)
    # those of the last two batches were not asked for any more
    assert sum(returned.values()) >= (DRAWS - 2) * BATCH
    assert all(returned[item] <= counts[item] for item in returned), "a key led to another item"


def test_frames_are_written_into_the_message_as_they_are_in_their_rings() -> None:
    (rings,) = rings_of(1)
    layout = replay_layouts(EXPERIENCE, SENT, SPEC, 1, (STEPS, 1)).items[0]
    views = layout.views(layout.buffer(), BATCH - 1)
    tree = rings.draw(0, BATCH - 1, 0, 0, views["observation"])
    assert np.shares_memory(tree["observation"], views["observation"])
    lanes, keys = np.divmod(tree["key"], RING)
    assert len(np.unique(lanes)) == LANES
    for n, (lane, key) in enumerate(zip(lanes.tolist(), keys.tolist(), strict=True)):
        ring = rings.rings[10 + lane]
        length = ring.kinds[0].lengths[key % ring.rows.slots]
        alone = ring.rows.gather(np.array([key]), np.array([0]), length, 3)["observation"]
        assert np.array_equal(views["observation"][:, n], alone[:, 0])


def test_the_limiter_stops_both_sides() -> None:
    items = Items("items", BATCH, 3, samples_per_insert=8.0)
    (rings, _) = rings_of(2, Experience(STEPS, (items,), capacity=4000, min_size=100), fill=False)
    columns = columns_of(SPEC, 2)
    updates = steps = 0
    for _ in range(200):
        while rings.due(0):
            if rings.open():
                break
            rings.answer([4], updates, 0, [{"observation": np.zeros((5, 4, 2, 3), np.uint8)}])
            updates += 1
        if rings.open():
            column = columns[updates % 2]
            rings.insert(fragment([column], STEPS))
        steps = 2 * sum(int(ring.env_steps.sum()) for ring in rings.rings.values())
        assert updates <= max(0, (steps - 100) / 4), "more updates than samples_per_insert allows"
        assert steps - 100 - 4 * updates <= 2 * 4 + 2 * STEPS * LANES + 2 * STEPS, (
            "more was inserted than is learned from"
        )
    assert updates > 50
