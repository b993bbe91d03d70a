"""Action distributions: inverse-CDF sampling, temperature, and log-probabilities against torch.distributions.

Mutations seen to fail: ``cdf <`` → ``cdf >``; noise column k → 0; logits not divided by the temperature; ``heat`` left
out of the box; no ``where`` at exploration 0; ½ log 2π or Σ over dimensions left out; the entropy's sign.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, Normal

from hpc_rl.nets.actions import ActionDistribution
from hpc_rl.types import Actions

KINDS = {
    "discrete": Actions("discrete", (5,)),
    "multidiscrete": Actions("multidiscrete", (3, 2, 4)),
    "box": Actions("box", (3,), (-1.0,) * 3, (1.0,) * 3),
}
N = 4000


def even_noise(choices: int) -> Tensor:
    """[N, choices] evenly spaced uniforms, in another order for each choice: frequencies are exact to 1/N."""
    rng = np.random.default_rng(0)
    grid = (np.arange(N) + 0.5) / N
    return torch.tensor(np.stack([rng.permutation(grid) for _ in range(choices)], 1), dtype=torch.float32)


def output_of(head: ActionDistribution, rows: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, head.outputs, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("heat", [1.0, 0.4])
def test_samples_follow_the_distribution_at_this_temperature(name: str, heat: float) -> None:
    head = ActionDistribution(KINDS[name])
    output = output_of(head, 1).expand(N, -1)
    action = head.sample(output, even_noise(head.noise), torch.full((N,), heat))
    assert action.shape == (N, *head.actions.shape) and str(action.dtype) == f"torch.{head.actions.dtype}"
    if name == "box":
        mean, log_std = output[0].chunk(2, -1)
        assert torch.allclose(action.mean(0), mean, atol=1e-2)
        assert torch.allclose(action.std(0), heat * log_std.exp(), rtol=1e-2)
        return
    for k, logits in enumerate(torch.split(output[0], head.actions.sizes)):
        picked = action.reshape(N, -1)[:, k]
        frequency = torch.bincount(picked, minlength=len(logits)) / N
        assert torch.allclose(frequency, torch.softmax(logits / heat, -1), atol=1.5 / N)


@pytest.mark.parametrize("name", ["multidiscrete", "box"])
def test_choices_are_independent(name: str) -> None:
    head = ActionDistribution(KINDS[name])
    action = head.sample(output_of(head, 1).expand(N, -1), even_noise(head.noise), torch.ones(N))
    correlation = np.corrcoef(action.numpy().astype(float).T)
    assert np.abs(correlation - np.eye(head.noise)).max() < 0.06


def test_a_uniform_picks_the_category_whose_interval_it_lies_in() -> None:
    output = torch.tensor([0.2, 0.5, 0.3]).log()[None]
    noise = torch.tensor([[0.0], [0.19], [0.21], [0.69], [0.71], [0.9999999]])
    head = ActionDistribution(Actions("discrete", (3,)))
    assert head.sample(output.expand(6, -1), noise, torch.ones(6)).tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("name", KINDS)
def test_temperature_zero_takes_the_most_likely_action(name: str) -> None:
    head = ActionDistribution(KINDS[name])
    output = output_of(head, 64)
    noise = torch.rand(64, head.noise, generator=torch.Generator().manual_seed(1))
    noise[0] = 0  # the first category's interval, however improbable it is
    exploration = torch.tensor([0.0, 1.0]).repeat(32)
    action = head.sample(output, noise, exploration)
    if name == "box":
        best = output.chunk(2, -1)[0]
    else:
        best = torch.stack([x.argmax(-1) for x in torch.split(output, head.actions.sizes, -1)], -1)
    best = best.reshape(action.shape)
    assert torch.equal(action[::2], best[::2])
    assert not torch.equal(action[1::2], best[1::2]), "the columns that explore do not"


@pytest.mark.parametrize("name", KINDS)
def test_extreme_uniforms_give_finite_actions(name: str) -> None:
    head = ActionDistribution(KINDS[name])
    noise = torch.tensor([0.0, 1.0 - 2**-24])[:, None].expand(2, head.noise)
    action = head.sample(output_of(head, 2), noise, torch.ones(2))
    assert torch.isfinite(action.float()).all()


@pytest.mark.parametrize("name", KINDS)
def test_log_probability_and_entropy_are_those_of_torch(name: str) -> None:
    head = ActionDistribution(KINDS[name])
    output = output_of(head, 12).reshape(4, 3, -1)
    flat = output.reshape(12, -1)
    action = head.sample(flat, torch.rand(12, head.noise), torch.ones(12)).reshape(4, 3, *head.actions.shape)
    log_prob, entropy = head.log_prob_entropy(output, action)
    assert log_prob.shape == entropy.shape == (4, 3)
    if name == "box":
        mean, log_std = output.chunk(2, -1)
        twin = Independent(Normal(mean, log_std.exp()), 1)
        expected, expected_entropy = twin.log_prob(action), twin.entropy()
    else:
        parts = [Categorical(logits=x) for x in torch.split(output, head.actions.sizes, -1)]
        picks = action.reshape(4, 3, -1)
        expected = sum(p.log_prob(picks[..., k]) for k, p in enumerate(parts))
        expected_entropy = sum(p.entropy() for p in parts)
    assert torch.allclose(log_prob, expected, atol=1e-5)
    assert torch.allclose(entropy, expected_entropy, atol=1e-5)
