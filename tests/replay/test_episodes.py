"""Whole episodes against the history of their columns.

Mutations seen to fail: episodes of two versions kept; a lost fragment taken as the next one; the first stack not
padded; one frame instead of a stack dropped where two parts meet; ``start`` of the fragment, not of the episode;
complete episodes or the expected env step left out of ``state``; complete episodes of all columns dealt to every rank.
"""

from __future__ import annotations

import numpy as np
import pytest

from hpc_rl.fragments import trajectory
from hpc_rl.replay.episodes import Episodes
from hpc_rl.storage.packing import from_bytes, to_bytes
from hpc_rl.types import Leaf, Spec, Tree
from tests.replay.columns import Column, columns_of, fragment, schema_of, spec_of

WIDTH, UNROLL, NOISE = 3, 4, 5
STACKS = [(1, "zeros"), (4, "zeros"), (4, "repeat")]


def store_of(spec: Spec, width: int = WIDTH, low: int = 10) -> Episodes:
    schema = {**schema_of(spec), "noise": Leaf((NOISE,), "float32", "fragment")}
    return Episodes("items", schema, spec, range(low, low + width))


def noisy(columns: list[Column], number: int, version: int) -> Tree:
    tree = fragment(columns, UNROLL, version)
    own = np.array([column.number - 10 for column in columns], np.float32)[:, None]
    tree["noise"] = np.full((len(columns), NOISE), number, np.float32) + own / 8
    return tree


def history(columns: list[Column], stop: int) -> set[tuple[int, int, int]]:
    """(column, first row, moves) of every episode that ended before row ``stop``."""
    spans = set()
    for k, column in enumerate(columns):
        opens = [t for t, row in enumerate(column.rows) if row.first]
        lasts = [t for t, row in enumerate(column.rows[: stop + 1]) if row.ended]
        spans |= {(k, a, b - a) for a, b in zip(opens, lasts, strict=False)}
    return spans


@pytest.mark.parametrize(("stack", "padding"), STACKS)
def test_every_episode_comes_once_and_whole(stack: int, padding: str) -> None:
    spec = spec_of(stack, padding)
    columns, store = columns_of(spec, WIDTH), store_of(spec)
    spans: list[tuple[int, int, int]] = []
    for number in range(40):
        store.insert(noisy(columns, number, 0))
        store.release()
        new = history(columns, (number + 1) * UNROLL) - set(spans)
        assert store.due() == int({k for k, _, _ in new} == set(range(WIDTH)))
        if not store.due():
            continue
        ((tree,), keys) = store.sample(number)["items"]
        batch = trajectory([tree], spec)
        assert keys is None and batch.observation.shape[2:] == spec.observation
        for n in range(batch.reward.shape[1]):
            k, begin = int(batch.column[n]) - 10, int(batch.action[0, n]) % 10_000
            moves = int(batch.valid[:, n].sum())
            assert batch.valid[:moves, n].all()
            spans.append((k, begin, moves))
            for t in range(moves + 1):
                row = columns[k].rows[begin + t]
                observation = np.stack(row.stack) if stack > 1 else row.stack[-1]
                assert np.array_equal(batch.observation[t, n].numpy(), observation)
                if t < moves:
                    assert int(batch.action[t, n]) == row.action and float(batch.reward[t, n]) == np.float32(row.reward)
                    assert float(batch.discount[t, n]) == row.discount and bool(batch.first[t, n]) == row.first
            assert int(batch.start[n]) == columns[k].rows[begin].start
            assert batch.noise[n].tolist() == [begin // UNROLL + k / 8] * NOISE, "the fragment that it began in"
    assert len(spans) == len(set(spans)) > 40
    assert set(spans) <= history(columns, 40 * UNROLL) and len(history(columns, 40 * UNROLL)) - len(spans) < 20


def test_an_episode_of_two_versions_is_passed_over() -> None:
    spec = spec_of(1)
    columns, store = columns_of(spec, WIDTH, mean=7.0), store_of(spec)
    for number in range(30):
        store.insert(noisy(columns, number, number // 5))
    ((tree,), _) = store.sample(0)["items"]
    unchanged = {
        (k, begin, moves)
        for k, begin, moves in history(columns, 30 * UNROLL)
        if begin // (5 * UNROLL) == (begin + moves - 1) // (5 * UNROLL)
    }
    drawn = {(int(c) - 10, int(a) % 10_000) for c, a in zip(tree["column"], tree["action"][0], strict=True)}
    assert drawn == {(k, begin) for k, begin, _ in unchanged} and len(unchanged) < len(history(columns, 30 * UNROLL))


@pytest.mark.parametrize("skip", [True, False], ids=["lost fragment", "new episode"])
def test_an_episode_that_breaks_off_is_passed_over(skip: bool) -> None:
    spec = spec_of(1)
    columns, store = columns_of(spec, WIDTH, mean=7.0), store_of(spec)
    for number in range(20):
        if number == 10 and skip:
            fragment(columns, UNROLL)
        if number == 10 and not skip:
            for column in columns:
                column.reset(column.rows[-1].start)
        store.insert(noisy(columns, number, 0))
    ((tree,), _) = store.sample(0)["items"]
    for n in range(tree["reward"].shape[1]):
        moves = tree["action"][:, n][~tree["first"][1:, n]]
        rows = columns[int(tree["column"][n]) - 10].rows
        assert (np.diff(moves) == 1).all() and rows[moves[0] % 10_000].first and rows[moves[-1] % 10_000 + 1].ended
        assert not any(row.first for row in rows[moves[0] % 10_000 + 1 : moves[-1] % 10_000 + 1])


@pytest.mark.parametrize("fragments", [0, 1, 7])
def test_a_resumed_store_goes_on_with_the_same_bits(fragments: int) -> None:
    spec = spec_of(4)
    columns, uninterrupted, resumed = columns_of(spec, WIDTH), store_of(spec), store_of(spec)
    for number in range(fragments):
        tree = noisy(columns, number, 0)
        tree["reward"][0, 0] = np.nan
        uninterrupted.insert(tree)
    resumed.load([from_bytes(to_bytes(uninterrupted.state()))])
    for number in range(fragments, 20):
        tree = noisy(columns, number, 0)
        uninterrupted.insert(tree)
        resumed.insert(tree)
        assert uninterrupted.due() == resumed.due()
    one, other = (store.sample(0)["items"][0][0] for store in (uninterrupted, resumed))
    assert one.keys() == other.keys()
    for name, x in one.items():
        assert x.tobytes() == other[name].tobytes() and x.dtype == other[name].dtype, name


@pytest.mark.parametrize(("before", "after"), [((1, 2), (3,)), ((3,), (2, 1)), ((1, 2), (2, 1))], ids=str)
def test_episodes_are_dealt_out_again_by_column(before: tuple[int, ...], after: tuple[int, ...]) -> None:
    """Other ranks go on with what the ranks before had: all together they give the same episodes."""
    spec = spec_of(4)
    columns, whole = columns_of(spec, WIDTH), store_of(spec)
    stores = {True: _stores(spec, before), False: _stores(spec, after)}
    for number in range(20):
        if number == 7:
            parts = [from_bytes(to_bytes(store.state())) for store in stores[True]]
            for store in stores[False]:
                store.load(parts)
        tree = noisy(columns, number, 0)
        whole.insert(tree)
        for store in stores[number < 7]:
            store.insert(_of_columns(tree, [c - 10 for c in store.columns]))
    expected = _episodes(whole)
    assert len(expected) > 10
    assert sorted(x for store in stores[False] for x in _episodes(store)) == expected


def _stores(spec: Spec, widths: tuple[int, ...]) -> list[Episodes]:
    return [store_of(spec, width, 10 + sum(widths[:k])) for k, width in enumerate(widths)]


def _of_columns(tree: Tree, keep: list[int]) -> Tree:
    ends = ("column", "start", "attempt", "noise")
    return {name: x[keep] if name in ends else x[:, keep] for name, x in tree.items()}


def _episodes(store: Episodes) -> list[tuple[int, int, bytes]]:
    """(column, start, all bytes of its moves) of each complete episode."""
    moves = ("action", "reward", "observation", "first", "noise")
    keyed = [(int(x["column"][0]), int(x["start"][0]), b"".join(x[m].tobytes() for m in moves)) for x in store.complete]
    return sorted(keyed)


def test_a_column_that_nobody_saved_is_refused() -> None:
    store = store_of(spec_of(1))
    with pytest.raises(ValueError, match="none of the 1 saved replays has column 12"):
        store.load([store_of(spec_of(1), 2).state()])
    with pytest.raises(RuntimeError, match="no episode"):
        store.sample(0)
