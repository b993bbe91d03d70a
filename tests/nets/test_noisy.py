"""Noisy layers and the network of Rainbow against slow twins, written out weight by weight.

Mutations seen to fail: f(x) = x, or without its sign; inputs' and outputs' factors swapped; the outputs' left out; σ of
the bias, or the mean, left out; one noise for all rows; a scale that is squared; √q at the start; the advantages' mean
left out, or over atoms; one stream's noise for both.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np
import pytest
import torch

from hpc_rl.nets.noisy import NoisyCategoricalQ, NoisyLinear, factors
from hpc_rl.types import Actions, Array, Spec

VECTOR = Spec("vector", (3,), "float32", Actions("discrete", (4,)))
PIXELS = Spec("pixels", (36, 36), "uint8", Actions("discrete", (4,)), stack=4)


def f(x: float) -> float:
    return (1 if x > 0 else -1 if x < 0 else 0) * sqrt(abs(x))


def twin(x: Array, noise: Array, layer: Any) -> Array:
    """y_i = Σ_j (μ_ij + σ_ij ε_j ε_i) x_j + μ'_i + σ'_i ε_i, ε already those of `factors`."""
    weight, spread, bias, bias_spread = (
        p.detach().double().numpy() for p in (layer.weight, layer.weight_sigma, layer.bias, layer.bias_sigma)
    )
    outputs, inputs = weight.shape
    into, out = noise[:inputs], noise[inputs:]
    y = np.zeros(outputs)
    for i in range(outputs):
        y[i] = bias[i] + bias_spread[i] * out[i]
        for j in range(inputs):
            y[i] += (weight[i, j] + spread[i, j] * out[i] * into[j]) * x[j]
    return y


def randomized(module: Any) -> Any:
    """Every σ and μ another number: at the start all σ of a layer are one, which would hide a transposition."""
    torch.manual_seed(5)
    for p in module.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return module


def test_factors_are_those_of_normal_quantiles() -> None:
    uniform = torch.tensor([[0.5, 0.8413447, 0.1586553, 0.0, 1.0]])
    normal = [0.0, 1.0, -1.0, -4.753, 4.753]
    for scale in (1.0, 0.25):
        expected = [f(scale * z) for z in normal]
        assert np.allclose(factors(uniform, torch.tensor([[scale]]))[0], expected, atol=1e-3)
    assert (factors(torch.rand(4, 9), 0.0) == 0).all() and factors(uniform).dtype == torch.float32


def test_the_products_of_two_factors_are_centred_with_unit_spread() -> None:
    noise = factors(torch.rand(200_000, 2, generator=torch.Generator().manual_seed(0)))
    product = noise[:, 0] * noise[:, 1]
    assert abs(float(product.mean())) < 0.01 and float(product.square().mean()) == pytest.approx(2 / np.pi, rel=0.02)
    assert float(noise[:, 0].square().mean()) == pytest.approx(sqrt(2 / np.pi), rel=0.01)


@pytest.mark.parametrize("shared", [True, False])
def test_a_noisy_layer_is_the_papers(shared: bool) -> None:
    layer = randomized(NoisyLinear(3, 5, 0.5))
    x, noise = torch.randn(4, 3), factors(torch.rand(1 if shared else 4, layer.noise))
    y = layer(x, noise).detach().numpy()
    for k in range(4):
        row = noise[0 if shared else k].double().numpy()
        assert np.allclose(y[k], twin(x[k].double().numpy(), row, layer), atol=1e-5)
    mean = torch.nn.functional.linear(x, layer.weight, layer.bias)
    assert torch.equal(layer(x, torch.zeros(1, layer.noise)), mean)


def test_noise_begins_as_in_the_paper() -> None:
    layer = NoisyLinear(16, 400, 0.5)
    assert (layer.weight_sigma == 0.125).all() and (layer.bias_sigma == 0.125).all()
    for mean in (layer.weight, layer.bias):
        assert 0.24 < float(mean.detach().abs().max()) <= 0.25


def stream(x: Array, noise: Array, module: Any) -> Array:
    split = module.hidden.noise
    return twin(np.maximum(twin(x, noise[:split], module.hidden), 0), noise[split:], module.output)


@pytest.mark.parametrize("dueling", [True, False])
@pytest.mark.parametrize("spec", [VECTOR, PIXELS], ids=["vector", "pixels"])
def test_logits_are_those_of_both_streams(spec: Spec, dueling: bool) -> None:
    net = NoisyCategoricalQ(spec, (6,), "shallow", 5, dueling, 0.5)
    if spec is VECTOR:
        randomized(net)
        x = torch.randn(2, 3)
    else:
        x = torch.randint(0, 255, (2, *spec.observation), dtype=torch.uint8)
    noise = factors(torch.rand(2, net.noise, generator=torch.Generator().manual_seed(1)))
    logits = net(x, noise).detach().numpy()
    assert logits.shape == (2, 4, 5)
    features = net.torso(x if spec is VECTOR else x.reshape(-1, *net.planes)).detach().double().numpy()
    split = net.advantage.noise
    for k in range(2):
        row = noise[k].double().numpy()
        expected = stream(features[k], row[:split], net.advantage).reshape(4, 5)
        if dueling:
            value = stream(features[k], row[split:], net.value)
            expected = value + expected - expected.mean(0)
        assert np.allclose(logits[k], expected, atol=1e-4)
