"""Running statistics against NumPy over everything seen, however it was split.

Mutations seen to fail: the shift of the squares left out; means of means; the count of this rank alone.
"""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from hpc_rl.nets.normalizers import LIMIT, Normalizers, RunningMoments, Standardize
from hpc_rl.transport.group import AllReduce
from hpc_rl.transport.local import LocalLink, run_threads
from hpc_rl.transport.ports import Ports
from hpc_rl.transport.waiting import Waiting


def batches(rounds: int, rows: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(1000 + 3 * k, 1 + k, (rows, 3)).astype(np.float32) for k in range(rounds)]


def alone(x: torch.Tensor) -> torch.Tensor:
    return x


def test_merged_rounds_are_the_statistics_of_all_rows() -> None:
    running, rows = RunningMoments((3,)), batches(5, 12)
    for x in rows:
        running.add(torch.from_numpy(x), alone)
    every = np.concatenate(rows).astype(np.float64)
    assert running.count == len(every)
    assert np.allclose(running.mean.numpy(), every.mean(0), rtol=1e-12)
    assert np.allclose(running.scale.numpy(), 1 / np.sqrt(every.var(0) + 1e-8), rtol=1e-10)


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_of_unequal_size_hold_the_same_exact_statistics(ranks: int) -> None:
    rows, lock = batches(4, 12), threading.Lock()
    moments: dict[int, RunningMoments] = {}

    def rank(link: LocalLink) -> None:
        group, running = AllReduce(Ports(link, Waiting(20.0)), range(ranks)), RunningMoments((3,))
        for x in rows:
            edges = [0, *(12 - ranks + k for k in range(1, ranks)), 12]
            running.add(torch.from_numpy(x[edges[link.rank] : edges[link.rank + 1]]), group.sum)
        with lock:
            moments[link.rank] = running

    run_threads(ranks, rank, 30.0)
    every = np.concatenate(rows).astype(np.float64)
    for running in moments.values():
        assert np.allclose(running.mean.numpy(), every.mean(0), rtol=1e-12)
        assert np.allclose(running.squares.numpy(), ((every - every.mean(0)) ** 2).sum(0), rtol=1e-9)


def test_the_network_sees_the_statistics_clipped() -> None:
    standardize = Standardize((3,))
    running = RunningMoments((3,))
    running.add(torch.from_numpy(batches(1, 50)[0]), alone)
    running.write(standardize)
    out = standardize(torch.tensor(batches(1, 50)[0]))
    assert out.mean(0).abs().max() < 1e-3 and (out.std(0) - 1).abs().max() < 0.05
    assert standardize(torch.full((3,), 1e9)).max() == LIMIT


def test_a_loaded_state_goes_on_alike() -> None:
    one, other = Normalizers(Standardize((3,)), True), Normalizers(Standardize((3,)), True)
    assert one.seen is not None and one.returns is not None and other.seen is not None
    one.seen.add(torch.from_numpy(batches(1, 5)[0]), alone)
    one.returns.add(torch.arange(5.0), alone)
    other.load(one.state())
    assert torch.equal(other.seen.mean, one.seen.mean) and other.seen.count == 5
    assert other.returns is not None and torch.equal(other.returns.scale, one.returns.scale)
