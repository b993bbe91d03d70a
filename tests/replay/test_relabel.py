"""Relabelled items against whole trajectories with their episode borders, read one row at a time.

Mutations seen to fail: a goal from past the episode's end, or from before the item's first move where it is of the
future; the last row of an episode, of a span or of the ring left out; the achieved goal of s in place of s'; what
ended an episode with its own goal ending it with another one, too; no item relabelled, or all of them; one row of an
item with its old goal; rows that were overwritten; a gap crossed; ``within`` ignored; early rows likelier; spans
forgotten by ``load``.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from hpc_rl.experience import Experience, Items, Relabel, Unsuited
from hpc_rl.fragments import allocate, trajectory, trajectory_schema
from hpc_rl.replay.relabel import check_goals
from hpc_rl.replay.ring import Ring
from hpc_rl.replay.rings import Rings
from hpc_rl.replay.room import Unreplayable, check_room
from hpc_rl.replay.saving import Saver
from hpc_rl.types import Actions, Array, Leaf, ObservationPart, Spec, Trajectory, Tree
from tests.replay.columns import Folder, saved

WIDTH, UNROLL, KEPT = 3, 4, 60
PARTS = {
    "achieved_goal": ObservationPart(0, 2, (2,)),
    "desired_goal": ObservationPart(2, 4, (2,)),
    "observation": ObservationPart(4, 5, (1,)),
}
SPEC = Spec("made-up", (5,), "float32", Actions("discrete", (4,)), parts=PARTS)
EXTRAS = {"opens": Leaf((), "bool"), "goal": Leaf((2,), "float32")}
SCHEMA = dict(trajectory_schema(SPEC, EXTRAS, {}))


def goal_reward(achieved: Array, desired: Array) -> tuple[Array, Array]:
    """Minus the distance; 0 and the end where it is none."""
    distance = np.abs(achieved - desired).sum(-1)
    return -distance, np.where(distance == 0, 0.0, 1.0)


@dataclass
class Row:
    """What was achieved and desired, and the move that leaves it; ``achieved`` is another in every row."""

    achieved: np.ndarray
    desired: np.ndarray
    first: bool
    opens: bool
    start: int
    number: int
    ended: bool = False
    discount: float = 1.0


@dataclass
class Column:
    """Next-step autoreset with episodes of random length, half of which are truncated."""

    number: int
    draw: np.random.Generator
    mean: float = 5.0
    rows: list[Row] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._append(True, 0, self.draw.normal(size=2))

    def _append(self, first: bool, start: int, desired: np.ndarray) -> None:
        count = len(self.rows)
        achieved, opens = np.array([self.number, count], float), first or self.draw.random() < 0.3
        self.rows.append(Row(achieved, desired.astype(np.float32), first, opens, start, count))

    def move(self) -> None:
        row = self.rows[-1]
        if row.ended:
            self._append(True, row.start, self.draw.normal(size=2))
            return
        ended = self.draw.random() < 1 / self.mean
        row.discount = float(not ended or self.draw.random() < 0.5)
        self._append(False, row.start + 1, row.desired)
        self.rows[-1].ended = ended

    def stretch(self, row: int, stop: int, within: bool) -> tuple[int, int]:
        """(first, last) row of the span that a row is of, among the rows 0..stop, of which ``stop`` is the newest."""
        begin = row
        while not (self.rows[begin].first or (within and self.rows[begin].opens)):
            begin -= 1
        last = row
        while last < stop and not self.rows[last + 1].first:
            last += 1
            if within and last < stop and self.rows[last].opens:
                break
        return begin, last


def fragment(columns: list[Column], steps: int = UNROLL) -> Tree:
    tree = allocate(SCHEMA, steps, len(columns), 1)
    tree["episode_return"][:] = np.nan
    for k, column in enumerate(columns):
        tree["column"][k], tree["start"][k] = column.number, column.rows[-1].start
        for t in range(steps + 1):
            row = column.rows[-1]
            tree["observation"][t, k], tree["first"][t, k] = [*row.achieved, *row.desired, row.number], row.first
            if t == steps:
                break
            column.move()
            tree["reward"][t, k], tree["discount"][t, k] = 100 + row.number, row.discount
            tree["action"][t, k], tree["extras/opens"][t, k] = row.number, row.opens
            tree["extras/goal"][t, k] = row.desired
    return tree


def columns_of(width: int = WIDTH, mean: float = 5.0, first: int = 10) -> list[Column]:
    return [Column(first + k, np.random.default_rng([3, k]), mean) for k in range(width)]


def items_of(relabel: Relabel, length: int = 2, batch: int = 64) -> Items:
    complete = "episode" if relabel.strategy in ("final", "episode") and not relabel.within else "length"
    return Items("items", batch, length, complete=complete, relabel=relabel)  # type: ignore[arg-type]


def ring_of(items: Items, saver: Saver | None = None, moves: int = KEPT) -> Ring:
    experience = Experience(UNROLL, (items,), capacity=moves * WIDTH)
    return Ring(SCHEMA, SPEC, range(10, 10 + WIDTH), experience, 1, 7, None, saver, goal_reward)


def rows_allowed(columns: list[Column], k: int, begin: int, stop: int, relabel: Relabel) -> set[tuple[int, int]]:
    """(column, row) whose achieved goal an item of column k from row ``begin`` may have, by the paper's words."""
    low = max(0, stop - KEPT)
    first, last = columns[k].stretch(begin, stop, bool(relabel.within))
    strategies: dict[str, Any] = {
        "future": [(k, row) for row in range(begin + 1, last + 1)],
        "final": [(k, last)],
        "episode": [(k, row) for row in range(max(first, low), last + 1)],
        "random": [(j, row) for j in range(WIDTH) for row in range(low, stop + 1)],
    }
    return set(strategies[relabel.strategy])


def check_item(batch: Trajectory, n: int, columns: list[Column], stop: int, relabel: Relabel) -> tuple[int, int] | None:
    """Item n is the oracle's, with the goal that it shows. Returns where that goal was achieved; None for its own."""
    begin, k = int(batch.action[0, n]), int(batch.column[n]) - 10
    rows = columns[k].rows
    shown = batch.observation[:, n].numpy()
    goal = shown[0, 2:4]
    own = rows[begin].desired
    source = None if np.array_equal(goal, own) else (int(goal[0]) - 10, int(goal[1]))
    assert source is None or source in rows_allowed(columns, k, begin, stop, relabel)
    for t in range(len(shown)):
        if t and not bool(batch.valid[t - 1, n]):
            break
        row = rows[begin + t]
        assert shown[t].tolist() == [*row.achieved, *goal, row.number], "all rows of an item have the goal"
        if t == len(shown) - 1 or not bool(batch.valid[t, n]):
            continue
        reward, discount = float(batch.reward[t, n]), float(batch.discount[t, n])
        if source is None:
            assert (reward, discount) == (100 + row.number, row.discount)
            continue
        led_to = rows[begin + t + 1].achieved
        distance = abs(led_to - goal).sum()
        assert reward == pytest.approx(-distance) and discount == float(distance > 0)
    return source


STRATEGIES = ("future", "final", "episode", "random")


@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize("within", ["", "opens"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_relabelled_items_are_the_oracles(strategy: Any, within: str, length: int) -> None:
    """Over a ring that was filled twice, with episodes that ran on, ended by either, and were partly overwritten."""
    relabel = Relabel(strategy, 0.75, within=within)
    columns, ring = columns_of(), ring_of(items_of(relabel, length))
    sources: list[Any] = []
    for update in range(40):
        ring.insert(fragment(columns))
        ring.release()
        if not ring.kinds[0].count:
            continue
        ((tree,), _) = ring.sample(update)["items"]
        batch = trajectory([tree], SPEC)
        sources += [check_item(batch, n, columns, (update + 1) * UNROLL, relabel) for n in range(64)]
    relabelled = [source for source in sources if source is not None]
    assert len(relabelled) / len(sources) == pytest.approx(0.75, abs=0.03), "the share; a batch unchanged is none"
    assert len(set(relabelled)) > (50 if strategy == "final" else 100)


def test_an_episode_longer_than_the_ring_is_searched_as_far_as_it_is_there() -> None:
    for strategy in STRATEGIES[::2]:
        relabel = Relabel(strategy, 1.0)  # type: ignore[arg-type]
        columns, ring = columns_of(mean=1e9), ring_of(Items("items", 64, 1, relabel=relabel))
        for update in range(50):
            ring.insert(fragment(columns))
            ring.release()
            batch = trajectory([ring.sample(update)["items"][0][0]], SPEC)
            for n in range(64):
                assert check_item(batch, n, columns, (update + 1) * UNROLL, relabel) is not None


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_each_row_is_as_likely(strategy: Any) -> None:
    """χ² of the row drawn, for the items that begin at one row: within what 1 in 10 000 fair draws exceeds."""
    relabel = Relabel(strategy, 1.0)
    columns, ring = columns_of(mean=9.0), ring_of(items_of(relabel, 1, 256))
    for _ in range(12):
        ring.insert(fragment(columns))
        ring.release()
    counts: dict[tuple[int, int], Counter[tuple[int, int]]] = {}
    for update in range(400):
        batch = trajectory([ring.sample(update)["items"][0][0]], SPEC)
        for action, column, goal in zip(
            batch.action[0].tolist(), batch.column.tolist(), batch.observation[0, :, 2:4].tolist(), strict=True
        ):
            counts.setdefault((column - 10, action), Counter())[int(goal[0]) - 10, int(goal[1])] += 1
    statistic, degrees = 0.0, 0
    for (k, begin), counter in counts.items():
        allowed = rows_allowed(columns, k, begin, 12 * UNROLL, relabel)
        assert set(counter) <= allowed
        expected = counter.total() / len(allowed)
        if expected >= 5:
            statistic += sum((counter[row] - expected) ** 2 / expected for row in allowed)
            degrees += len(allowed) - 1
    if strategy == "random":  # too many rows for each item: over all of them together
        whole = sum(counts.values(), Counter())
        expected = whole.total() / (WIDTH * (12 * UNROLL + 1))
        statistic = sum((whole[j, row] - expected) ** 2 / expected for j in range(WIDTH) for row in range(49))
        degrees = WIDTH * (12 * UNROLL + 1) - 1
    assert degrees > 50 or strategy == "final"
    assert statistic <= degrees + 3.72 * np.sqrt(2 * degrees) + 10


def test_a_goal_among_the_extras_is_replaced_and_rewards_are_left() -> None:
    relabel = Relabel("future", 1.0, goal="goal", within="opens")
    columns = columns_of()
    ring = Ring(SCHEMA, SPEC, range(10, 13), Experience(UNROLL, (items_of(relabel),), 180), 1, 7)
    for update in range(20):
        ring.insert(fragment(columns))
        ring.release()
        batch = trajectory([ring.sample(update)["items"][0][0]], SPEC)
        for n in range(64):
            begin, k = int(batch.action[0, n]), int(batch.column[n]) - 10
            goal = batch.extras["goal"][:, n].numpy()
            assert (goal == goal[0]).all() and batch.reward[0, n] == 100 + begin
            assert batch.observation[0, n, 2:4].tolist() == columns[k].rows[begin].desired.tolist()
            source = (int(goal[0, 0]) - 10, int(goal[0, 1]))
            assert source in rows_allowed(columns, k, begin, (update + 1) * UNROLL, relabel)


def test_extras_that_are_not_there_are_named() -> None:
    for relabel, sentence in (
        (Relabel("future", 1.0, goal="goals"), r"names the extra 'goals', which must be \[2\] of each move"),
        (Relabel("future", 1.0, goal="opens"), r"names the extra 'opens', which must be \[2\] of each move"),
        (Relabel("future", 1.0, within="goal"), r"names the extra 'goal', which must be \[\] of each move"),
    ):
        with pytest.raises(ValueError, match=sentence):
            ring_of(items_of(relabel))
    with pytest.raises(ValueError, match="the ring has no goal_reward"):
        Ring(SCHEMA, SPEC, range(10, 13), Experience(UNROLL, (items_of(Relabel("future", 1.0)),), 180), 1, 7)


def test_fragments_that_were_lost_end_what_can_be_reached() -> None:
    relabel = Relabel("future", 1.0)
    columns, ring = columns_of(mean=1e9), ring_of(items_of(relabel, 1))
    ring.insert(fragment(columns))
    fragment(columns)  # never comes
    ring.insert(fragment(columns))
    ring.release()
    for update in range(10):
        batch = trajectory([ring.sample(update)["items"][0][0]], SPEC)
        begin, goal = batch.action[0].numpy(), batch.observation[0, :, 3].numpy()
        last = np.where(begin < UNROLL, UNROLL, 3 * UNROLL)
        assert ((begin < goal) & (goal <= last)).all()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_resumed_ring_draws_the_same_goals(strategy: Any) -> None:
    folder, columns = Folder(), columns_of()
    items = items_of(Relabel(strategy, 0.8))
    whole = ring_of(items, folder.saver())
    for _ in range(23):
        whole.insert(fragment(columns))
        whole.release()
    parts = saved([whole])
    resumed = ring_of(items, folder.saver(1))
    resumed.load(parts)
    for update in range(4):
        ours, theirs = (ring.sample(update)["items"][0][0] for ring in (whole, resumed))
        assert all(ours[name].tobytes() == theirs[name].tobytes() for name in ours), "bit for bit"
        tree = fragment(columns)
        for ring in (whole, resumed):
            ring.insert(tree)
            ring.release()


def test_rings_of_a_replay_rank_relabel_into_the_message() -> None:
    relabel = Relabel("future", 1.0)
    lanes = [columns_of(2, first=10), columns_of(2, first=12)]
    for k, column in enumerate([*lanes[0], *lanes[1]]):
        column.draw = np.random.default_rng([4, k])
    experience = Experience(UNROLL, (items_of(relabel, 1, 32),), 400)
    rings = Rings(experience, SCHEMA, SPEC, [range(10, 12), range(12, 14)], 4, 1, 7, goal_reward=goal_reward)
    for _ in range(6):
        for lane in lanes:
            rings.insert(fragment(lane))
    message = {"observation": np.zeros((2, 32, 5), np.float32)}
    (tree,) = rings.answer([32], 0, 0, [message])
    assert tree is not None and tree["observation"] is message["observation"]
    batch, columns = trajectory([tree], SPEC), [*lanes[0], *lanes[1]]
    sources = {check_item(batch, n, columns, 6 * UNROLL, relabel) for n in range(32)}
    assert None not in sources and {source[0] for source in sources if source} > {1}


def test_what_cannot_be_relabelled_is_refused_in_one_sentence() -> None:
    relabel = Relabel("future", 0.8)
    experience = Experience(4, (Items("items", 8, 1, relabel=relabel),), 100)
    check_goals(experience, SPEC)
    plain = Spec("plain", (5,), "float32", SPEC.actions)
    with pytest.raises(
        Unsuited, match=r'looks for "achieved_goal" and "desired_goal" .*, and plain shows no parts; use'
    ):
        check_goals(experience, plain)
    images = Spec("images", (84, 84), "uint8", SPEC.actions, stack=4, parts=PARTS)
    with pytest.raises(Unsuited, match="parts of an observation that is a row of numbers, and images shows"):
        check_goals(experience, images)
    uneven = Spec("uneven", (5,), "float32", SPEC.actions, parts={**PARTS, "desired_goal": PARTS["observation"]})
    with pytest.raises(Unsuited, match="in uneven they differ in size"):
        check_goals(experience, uneven)
    drawn_by_priority = Experience(4, (Items("items", 8, 1, alpha=0.6, relabel=relabel),), 100)
    with pytest.raises(Unreplayable, match=r"another priority than alpha = 0\.6 draws it by; draw them uniformly"):
        check_room(drawn_by_priority, 4, 1)
    with pytest.raises(Unreplayable, match="used once and cannot be relabelled; give them a length"):
        check_room(Experience(4, (Items("items", 8, relabel=relabel),)), 4, 1)
