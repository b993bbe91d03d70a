"""How members share out minibatches: the same ones whatever their number, and equal work for each in every step.

Seen: minibatches of consecutive columns belong to one member after the other, and all wait for the one that has it; two
ranks learned no faster than one.

Mutations seen to fail: slices of neighbours in the place of every count-th; a member's first column left out of either
rule; one permutation over all columns.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from hpc_rl.algorithms.impala import alternate_columns
from hpc_rl.optim.batches import shuffled_columns, shuffled_moves

STEPS, TOTAL = 12, 24


def shares(rule: str, size: int, count: int, total: int = TOTAL) -> list[list[list[int]]]:
    """[minibatch][member] -> the global columns (of moves: numbers of column and time) that it takes."""
    width, members = total // size, []
    for rank in range(size):
        group, draw = SimpleNamespace(rank=rank, size=size), np.random.default_rng(3)
        own = np.arange(width)
        if rule == "alternate":
            parts = [own[part] + rank * width for part in alternate_columns(group, width, count)]
        elif rule == "shuffled columns":
            parts = [part.numpy() + rank * width for part in shuffled_columns(group, draw, width, count)]
        else:
            moves = [part.numpy() for part in shuffled_moves(group, draw, STEPS, width, count)]
            parts = [(x % width + rank * width) * STEPS + x // width for x in moves]
        members.append([sorted(part.tolist()) for part in parts])
    return [[member[k] for member in members] for k in range(count)]


@pytest.mark.parametrize("rule", ["alternate", "shuffled columns", "shuffled moves"])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_members_have_equal_shares_of_the_same_minibatches(rule: str, count: int) -> None:
    alone = [sorted(part) for (part,) in shares(rule, 1, count)]
    everything = TOTAL * (STEPS if rule == "shuffled moves" else 1)
    assert sorted(x for part in alone for x in part) == list(range(everything))
    for size in (2, 4) if TOTAL // 4 % count == 0 else (2,):
        parts = shares(rule, size, count)
        assert [sorted(x for own in part for x in own) for part in parts] == alone
        assert {len(own) for part in parts for own in part} == {everything // size // count}


@pytest.mark.parametrize("rule", ["alternate", "shuffled columns"])
def test_members_with_few_columns_have_none_of_some_minibatches(rule: str) -> None:
    parts = shares(rule, 3, 4, total=6)
    assert [sorted(x for own in part for x in own) for part in parts] == [x for (x,) in shares(rule, 1, 4, total=6)]
    assert all(part for part in parts) and any(not own for part in parts for own in part)


def test_each_round_deals_columns_anew() -> None:
    draw, group = np.random.default_rng(4), SimpleNamespace(rank=0, size=1)
    rounds = [[part.tolist() for part in shuffled_columns(group, draw, 8, 4)] for _ in range(4)]
    assert any(x != rounds[0] for x in rounds)
