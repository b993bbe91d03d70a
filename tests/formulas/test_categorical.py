"""The categorical projection against the loop of algorithm 1 of Bellemare et al. 2017, and what is read off it.

Mutations seen to fail: floor and ceiling as the two atoms, which lose the mass of a place that is an atom; the other
weight for each neighbour; Γ or G left out, or G scaled by Γ; Δ of N atoms instead of N − 1; mass assigned instead of
added where places meet; the log of probabilities instead of the log-softmax; the entropy's sign.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hpc_rl.formulas.categorical import atoms, cross_entropy, edge_mass, entropy, expectation, projected
from hpc_rl.types import Array


def twin(p: Array, total: float, factor: float, z: Array) -> Array:
    """Algorithm 1: each atom's mass walks to its place; l and u are one atom where the place is whole."""
    delta, m = (z[-1] - z[0]) / (len(z) - 1), np.zeros(len(z))
    for j in range(len(z)):
        place = min(max(total + factor * z[j], z[0]), z[-1])
        b = (place - z[0]) / delta
        low, high = math.floor(b), math.ceil(b)
        if low == high:
            m[low] += p[j]
        else:
            m[low] += p[j] * (high - b)
            m[high] += p[j] * (b - low)
    return m


def distributions(seed: int, n: int, count: int) -> torch.Tensor:
    return torch.softmax(2 * torch.randn(n, count, generator=torch.Generator().manual_seed(seed)).double(), -1)


@pytest.mark.parametrize(
    ("low", "high", "count"), [(-10.0, 10.0, 51), (0.0, 100.0, 11), (-3.0, 1.0, 2), (-1.0, 6.0, 8)]
)
def test_the_projection_is_that_of_the_papers_loop(low: float, high: float, count: int) -> None:
    rng, n = np.random.default_rng(count), 40
    z, p = atoms(low, high, count).double(), distributions(count, n, count)
    total = torch.tensor(rng.uniform(low - 2, high + 2, n) / 2)
    factor = torch.tensor(rng.choice([0.0, 0.5, 0.97, 1.0, -0.9], n))
    m = projected(p, total, factor, z)
    for k in range(n):
        assert np.allclose(m[k], twin(p[k].numpy(), float(total[k]), float(factor[k]), z.numpy()), atol=1e-10), k
    assert torch.allclose(m.sum(-1), torch.ones(n).double(), atol=1e-12) and (m >= 0).all()


def test_a_place_on_an_atom_keeps_its_whole_mass() -> None:
    """Exactly: G = k Δ and Γ = 1 shift the distribution by k atoms, and Γ = 0 puts all of it on one."""
    z, p = atoms(-4.0, 4.0, 9), distributions(0, 9, 9).float()
    shift = torch.arange(-4.0, 5.0)
    m = projected(p, shift, torch.ones(9), z)
    for k in range(9):
        moved = torch.zeros(9)
        for j in range(9):
            moved[min(max(j + k - 4, 0), 8)] += p[k, j]
        assert torch.allclose(m[k], moved, atol=1e-6), k
    assert torch.equal(m[4], p[4])
    ended = projected(p, z, torch.zeros(9), z)
    assert torch.allclose(ended, torch.eye(9), atol=1e-6)


def test_what_lies_beyond_the_atoms_goes_to_the_last_one() -> None:
    z, p = atoms(-1.0, 1.0, 5), distributions(1, 2, 5).float()
    m = projected(p, torch.tensor([9.0, -9.0]), torch.ones(2), z)
    assert torch.allclose(m, torch.tensor([[0.0, 0, 0, 0, 1], [1, 0, 0, 0, 0]]), atol=1e-6)
    assert torch.allclose(edge_mass(m), torch.ones(2)) and float(edge_mass(p[:1])) == float(p[0, 0] + p[0, -1])


def test_the_mean_is_kept_inside_the_atoms() -> None:
    """The projection of a distribution that lies between the ends has its mean: G + Γ E Z."""
    z, p = atoms(-10.0, 10.0, 21).double(), distributions(2, 6, 21)
    total, factor = torch.tensor([0.3, -0.4, 0.1, 0.0, 1.7, -2.0]).double(), torch.full((6,), 0.7).double()
    assert torch.allclose(projected(p, total, factor, z) @ z, total + factor * (p @ z), atol=1e-12)


def test_a_number_that_is_none_makes_none() -> None:
    m = projected(distributions(0, 2, 5).float(), torch.tensor([torch.nan, 0.0]), torch.ones(2), atoms(-1.0, 1.0, 5))
    assert m[0].isnan().any() and m[1].isfinite().all()


def test_cross_entropy_entropy_and_mean() -> None:
    logits, m = torch.randn(3, 4).double(), distributions(3, 3, 4)
    m[0] = torch.tensor([0.0, 1.0, 0.0, 0.0])
    z = atoms(-1.0, 2.0, 4).double()
    for k in range(3):
        p = np.exp(logits[k].numpy()) / np.exp(logits[k].numpy()).sum()
        assert float(cross_entropy(logits, m)[k]) == pytest.approx(-(m[k].numpy() * np.log(p)).sum())
        own = -sum(x * math.log(x) for x in m[k].tolist() if x > 0)
        assert float(entropy(m)[k]) == pytest.approx(own) and own >= 0
        assert float(expectation(logits, z)[k]) == pytest.approx((p * z.numpy()).sum())
    assert torch.isfinite(cross_entropy(torch.tensor([[0.0, -1e4]]), torch.tensor([[0.5, 0.5]]))).all()
    assert z.tolist() == [-1.0, 0.0, 1.0, 2.0]
