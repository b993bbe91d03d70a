"""Recorded moves as a store: every item against rows that a loop takes from the arrays that were written to segments.

The columns' rows are made up here, with stacked frames, void moves between episodes, a terminated end and a truncated
one, and steps that a second attempt made again; storage/ writes and reads them.

Mutations seen to fail: the older frames of a stack one row off; padding with zeros where the first frame repeats; an
item that goes on into the next episode; a block's last items cut at its end; pools put together alike in every round;
the pass of one pool drawn with replacement; a held-out episode that is learned from; a split by the order of episodes;
ranks that hold the same blocks.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpc_rl.experience import Items
from hpc_rl.fragments import trajectory, trajectory_schema
from hpc_rl.replay.recorded import Recorded, Share, move_bytes, split
from hpc_rl.replay.room import Unreplayable
from hpc_rl.sources import RecordedExperience, Source
from hpc_rl.storage import provenance, run_dir
from hpc_rl.storage.archive import Archive, BadSource, archive
from hpc_rl.storage.trajectories import Recorder
from hpc_rl.types import Actions, Array, Spec, Tree

SPEC = Spec("stacked", (2,), "float32", Actions("discrete", (4,)), stack=3)
COLUMNS, T, AGAIN = 3, 7, 40  # AGAIN: env step of column 2 from which a second attempt made its steps again
LENGTHS = ((5, 12, 1, 9, 30), (40, 2, 8), (20, 33, 6, 4))  # moves of the episodes of each column
TERMINATED = {(0, 0), (0, 3), (1, 0), (2, 1)}  # (column, episode)


def rows_of(column: int, version: int = 0) -> Tree:
    """A column's rows as they were played: an episode of L moves is L + 1 rows, the last of which leads nowhere."""
    parts: dict[str, list[Any]] = {name: [] for name in ("first", "reward", "discount", "length", "step")}
    step = 0
    for episode, moves in enumerate(LENGTHS[column]):
        for row in range(moves + 1):
            over = row == moves - 1
            parts["first"].append(row == 0)
            parts["length"].append(moves if over else 0)
            parts["discount"].append(0.0 if over and (column, episode) in TERMINATED else 1.0)
            parts["step"].append(step)
            parts["reward"].append(1.0 + episode)
            step += row < moves
    tree = {name: np.array(x) for name, x in parts.items()}
    number = np.arange(len(tree["first"]))
    tree["frame"] = np.stack([1000.0 * column + number, np.full(len(number), version)], -1).astype(np.float32)
    tree["action"] = (number * (column + 1) + version) % 4
    return tree


def fragments(spec: Spec, column: int, first_row: int = 0, version: int = 0) -> list[Tree]:
    """Its rows from one on, as fragments of T moves of this column alone; the rest that fills none is not recorded."""
    rows, out = rows_of(column, version), []
    for begin in range(first_row, len(rows["first"]) - T, T):
        at = slice(begin, begin + T)
        frames = np.arange(begin - spec.stack + 1, begin + T + 1).clip(0)
        ended = rows["length"][at] > 0
        out.append(
            {name: rows[name][at, None] for name in ("action", "discount")}
            | {
                "observation": rows["frame"][frames, None],
                "first": rows["first"][begin : begin + T + 1, None],
                "reward": rows["reward"][at, None].astype(np.float32),
                "version": np.full((T, 1), version),
                "episode_return": np.where(ended, rows["reward"][at] * rows["length"][at], np.nan)[:, None],
                "episode_success": np.full((T, 1), np.nan),
                "episode_length": rows["length"][at, None],
                "column": np.array([column], np.int32),
                "start": rows["step"][begin : begin + 1].astype(np.int64),
                "attempt": np.array([version], np.int32),
            }
        )
    return out


def schema_of(spec: Spec) -> Any:
    return trajectory_schema(spec, {}, {})


@pytest.fixture(scope="module", params=["zeros", "repeat"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Spec]:
    """A run of three columns in several segments, the last of which a second attempt took up at step `AGAIN`."""
    spec = replace(SPEC, padding=request.param)
    run = run_dir.create(tmp_path_factory.mktemp("run") / "run", 'algorithm = "a2c"\n')
    for column in range(COLUMNS):
        _record(run.trajectories / f"a0-worker-{column}", spec, fragments(spec, column), column, 0)
    rows = rows_of(2, 1)
    again = int(np.flatnonzero(rows["step"] == AGAIN)[0])
    _record(run.trajectories / "a1-worker-2", spec, fragments(spec, 2, again, 1), 2, 1)
    started = {"resumed_from": {"file": "0.h5", "steps": {"0": 10**6, "1": 10**6, "2": AGAIN}}}
    provenance.write(run, 1, provenance.collect(["test"], 1, 1, started))
    return run.path, spec


def _record(folder: Path, spec: Spec, trees: list[Tree], column: int, attempt: int) -> None:
    one = np.array([column], np.int32)
    recorder = Recorder(folder, schema_of(spec), spec, one, np.ones(1, bool), attempt)
    for number, tree in enumerate(trees):
        recorder.write({name: x.astype(schema_of(spec)[name].dtype) for name, x in tree.items()})
        if number % 3 == 2:
            recorder.roll()
    recorder.close()


def whole_episodes(column: int) -> list[tuple[int, int]]:
    """(first step, moves) of the episodes whose end was recorded: that of a truncated one is seen in the row behind."""
    step, out, rows = 0, [], 0
    recorded = (len(rows_of(column)["first"]) - 1) // T * T
    for moves in LENGTHS[column]:
        rows += moves + 1
        if rows - 1 <= recorded:
            out.append((step, moves))
        step += moves
    return out


def store(made: tuple[Path, Spec], rank: int = 0, ranks: int = 1, seed: int = 3, **source: Any) -> Recorded:
    run, spec = made
    length = source.pop("length", 4)
    batch = source.pop("batch", 6)
    wanted = Source(str(run), **source)
    items = [Items("items", batch, length=length)]
    items += [Items("apart", batch, length=length)] if wanted.held_out else []
    moves: Archive = archive(wanted, spec)
    experience = RecordedExperience(1, tuple(items), source=wanted, apart="apart")
    return Recorded(experience, schema_of(spec), spec, moves.episodes, moves.read, Share(rank, ranks, seed))


def drawn(made: Recorded, updates: range, name: str = "items") -> list[tuple[int, int]]:
    """(column, step) of every item, in order."""
    pairs = []
    for update in updates:
        (tree,) = made.sample(update)[name][0]
        pairs += list(zip(tree["column"].tolist(), tree["start"].tolist(), strict=True))
    return pairs


def every_move() -> set[tuple[int, int]]:
    return {(k, step + i) for k in range(COLUMNS) for step, moves in whole_episodes(k) for i in range(moves)}


# ---- items ----------------------------------------------------------------------------------------------------------


def expected(spec: Spec, column: int, start: int, length: int) -> tuple[Array, Array, Array, int]:
    """Stacks [L + 1, stack, 2] of the rows that are there, actions and rewards [l], and whether it opens an episode."""
    version = 1 if column == 2 and start >= AGAIN else 0
    step, moves = next((s, m) for s, m in whole_episodes(column) if s <= start < s + m)
    rows = [rows_of(column, v) for v in (0, 1)]
    first_row = int(np.flatnonzero(rows[0]["step"] == step)[0])
    if not rows[0]["first"][first_row]:
        first_row += 1  # the row before has the same number: it leads nowhere
    row, left = first_row + start - step, min(length, step + moves - start)

    def newest(number: int) -> Array:
        made_again = column == 2 and rows[0]["step"][number] >= AGAIN and number >= _again_row()
        return rows[int(made_again)]["frame"][number]

    stacks = []
    for number in range(row, row + left + 1):
        stack = []
        for back in range(spec.stack - 1, -1, -1):
            if number - back >= first_row:
                stack.append(newest(number - back))
            else:
                stack.append(newest(first_row) if spec.padding == "repeat" else np.zeros(2, np.float32))
        stacks.append(np.stack(stack))
    actions = np.array([rows[int(column == 2 and n >= _again_row())]["action"][n] for n in range(row, row + left)])
    assert version in (0, 1)
    return np.stack(stacks), actions, rows[0]["reward"][row : row + left], row - first_row


def _again_row() -> int:
    return int(np.flatnonzero(rows_of(2)["step"] == AGAIN)[0])


@pytest.mark.parametrize("length", [1, 4])
def test_every_item_is_what_was_recorded(made: tuple[Path, Spec], length: int) -> None:
    spec, moves = made[1], store(made, length=length)
    seen = set()
    for update in range(30):
        (tree,) = moves.sample(update)["items"][0]
        batch = trajectory([tree], spec)
        for k in range(batch.reward.shape[1]):
            column, start = int(batch.column[k]), int(batch.start[k])
            stacks, actions, rewards, before = expected(spec, column, start, length)
            count = len(actions)
            assert batch.valid[:, k].tolist() == [t < count for t in range(length)]
            assert bool(batch.first[0, k]) == (before == 0)
            assert np.array_equal(batch.observation[: count + 1, k].numpy(), stacks), (column, start)
            assert batch.action[:count, k].tolist() == actions.tolist()
            assert batch.reward[:count, k].tolist() == rewards.tolist()
            seen.add((column, start, count))
    assert {count for *_, count in seen} == set(range(1, length + 1)) and {column for column, *_ in seen} == {0, 1, 2}


def test_terminations_come_along(made: tuple[Path, Spec]) -> None:
    ends = {}
    moves = store(made, length=1, batch=20)
    for update in range(20):
        (tree,) = moves.sample(update)["items"][0]
        keys = zip(tree["column"].tolist(), tree["start"].tolist(), strict=True)
        ends |= dict(zip(keys, tree["discount"][0].tolist(), strict=True))
    for column in range(COLUMNS):
        for number, (step, moves_of) in enumerate(whole_episodes(column)):
            assert ends[column, step + moves_of - 1] == (0.0 if (column, number) in TERMINATED else 1.0)


# ---- the order of draws ---------------------------------------------------------------------------------------------


def test_each_round_begins_an_item_with_every_move_once(made: tuple[Path, Spec]) -> None:
    moves = store(made, batch=1)
    total = len(every_move())
    one, two = drawn(moves, range(total)), drawn(moves, range(total, 2 * total))
    assert sorted(one) == sorted(two) == sorted(every_move()) and one != two


def test_a_batch_depends_on_its_number_alone(made: tuple[Path, Spec]) -> None:
    for memory in (1 << 20, 1):
        moves, fresh = store(made, memory_bytes=memory), store(made, memory_bytes=memory)
        for update in range(9):
            moves.sample(update)
        for name, x in moves.sample(9)["items"][0][0].items():
            assert np.array_equal(x, fresh.sample(9)["items"][0][0][name]), name
        assert drawn(store(made, seed=4, memory_bytes=memory), range(9)) != drawn(fresh, range(9))


def test_a_small_memory_holds_a_part_and_comes_to_all(made: tuple[Path, Spec]) -> None:
    spec = made[1]
    size = move_bytes(schema_of(spec), spec)
    moves = store(made, batch=1, memory_bytes=size * 40)
    deck = moves.decks["items"]
    assert deck.pools > 1
    seen: list[set[tuple[int, int]]] = []
    rounds: list[set[frozenset[tuple[int, int]]]] = []
    for turn in range(2):
        places = range(turn * deck.pools, (turn + 1) * deck.pools)
        pools = [frozenset(drawn(moves, range(place * deck.updates, (place + 1) * deck.updates))) for place in places]
        assert max(len(pool) for pool in pools) <= 40
        assert deck.pool is not None and sum(x.nbytes for x in deck.pool.leaves.values()) <= size * 40 * 2
        seen.append(set().union(*pools))
        rounds.append(set(pools))
        assert len(rounds[-1]) == deck.pools
    assert seen == [every_move()] * 2 and rounds[0] != rounds[1]


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_share_the_moves_out(made: tuple[Path, Spec], ranks: int) -> None:
    shares = []
    for rank in range(ranks):
        moves = store(made, rank, ranks, batch=ranks)
        pairs = drawn(moves, range(200))
        shares.append(set(pairs))
        assert moves.decks["items"].batch == 1
    assert set().union(*shares) == every_move() and sum(len(x) for x in shares) == len(every_move())


def test_held_out_episodes_are_not_learned_from(made: tuple[Path, Spec]) -> None:
    moves = store(made, held_out=0.3, batch=10)
    kept, apart = (set(drawn(moves, range(60), name)) for name in ("items", "apart"))
    assert not kept & apart and kept | apart == every_move()
    for column in range(COLUMNS):
        for step, count in whole_episodes(column):
            assert {(column, step + i) for i in range(count)} <= (kept if (column, step) in kept else apart)
    again = store(made, held_out=0.3, seed=99)
    assert set(drawn(again, range(60), "apart")) <= apart


def test_the_split_does_not_follow_the_order_of_episodes(made: tuple[Path, Spec]) -> None:
    episodes = archive(Source(str(made[0])), made[1]).episodes
    _, apart = split(episodes, 0.3)
    assert len(apart) == round(0.3 * len(episodes)) and apart != list(range(len(apart)))
    _, other = split(episodes[::-1], 0.3)
    assert {episodes[k].start for k in apart} == {episodes[::-1][k].start for k in other}
    assert [len(x) for x in split(episodes, 0.0)] == [len(episodes), 0] and len(split(episodes, 1e-9)[1]) == 1


# ---- which episodes -------------------------------------------------------------------------------------------------


def test_the_last_episodes_and_those_of_a_return(made: tuple[Path, Spec]) -> None:
    run, spec = made
    every = archive(Source(str(run)), spec).episodes
    order = [(step + moves, k, step) for k in range(COLUMNS) for step, moves in whole_episodes(k)]
    assert [(x.start + x.length, x.column, x.start) for x in every] == sorted(order)
    assert archive(Source(str(run), episodes=2), spec).episodes == every[-2:]
    good = archive(Source(str(run), least_return=20.0), spec).episodes
    returns = {
        (k, step): moves * (1.0 + number)
        for k in range(COLUMNS)
        for number, (step, moves) in enumerate(whole_episodes(k))
    }
    assert {(x.column, x.start) for x in good} == {key for key, value in returns.items() if value >= 20}


def test_sentences(made: tuple[Path, Spec], tmp_path: Path) -> None:
    run, spec = made
    cases = {
        "names no run of them; set source": (Source(""), spec),
        "nowhere": (Source(str(tmp_path / "nowhere")), spec),
        "returned 1000 or more .the best is 66.; lower least_return": (Source(str(run), least_return=1e3), spec),
        "holds 9 such episodes, not 50; lower episodes": (Source(str(run), episodes=50), spec),
        "recorded in stacked, whose stack is 3, and that of the job's stacked is 1": (
            Source(str(run)), replace(spec, stack=1)
        ),
        "whose id is 'stacked', and that of the job's other is 'other'; learn": (
            Source(str(run)), replace(spec, id="other")
        ),
    }  # fmt: skip
    for words, (source, other) in cases.items():
        with pytest.raises(BadSource, match=words):
            archive(source, other)
    empty = run_dir.create(tmp_path / "empty", 'algorithm = "a2c"\n')
    with pytest.raises(BadSource, match=r"no closed segment of recorded moves; record it with output.record > 0"):
        archive(Source(str(empty.path)), spec)
    _record(empty.trajectories / "a0-worker-1", spec, fragments(spec, 1)[:2], 1, 0)
    with pytest.raises(BadSource, match="holds no whole episode; 1 are cut off by its end"):
        archive(Source(str(empty.path)), spec)


def test_too_little_to_share_out(made: tuple[Path, Spec]) -> None:
    with pytest.raises(Unreplayable, match="of 1 recorded episodes none is held out; use held_out = 0"):
        store(made, episodes=1, held_out=0.1)
    with pytest.raises(Unreplayable, match=r"drawn from .* recorded moves, too few for 90 ranks"):
        store(made, 89, 90, episodes=1, batch=90)


def test_a_segment_that_cannot_be_read_is_passed_over(made: tuple[Path, Spec], tmp_path: Path) -> None:
    import shutil

    run, spec = made
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    broken = copy / "trajectories" / "a0-worker-0" / "segment-000001.h5"
    broken.write_bytes(broken.read_bytes()[:200])
    moves = archive(Source(str(copy)), spec)
    assert len(moves.faults) == 1 and str(broken) in moves.faults[0]
    assert {x.column for x in moves.episodes} >= {1, 2}
