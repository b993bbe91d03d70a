"""Action values against a slow twin of the dueling network, written out layer by layer.

Mutations seen to fail: the advantages' mean left out, their largest instead, or their mean over the batch; V left out;
the ReLU of the streams left out; the other torso, or other features.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from hpc_rl.nets.q import QNetwork
from hpc_rl.nets.torsos import ConvTorso
from hpc_rl.types import Actions, Array, Spec

VECTOR = Spec("vector", (3,), "float32", Actions("discrete", (4,)))
PIXELS = Spec("pixels", (36, 36), "uint8", Actions("discrete", (4,)), stack=4)


def network(spec: Spec, dueling: bool, hidden: tuple[int, ...] = (16, 8)) -> QNetwork:
    """With biases, which begin at zero and would hide their loss."""
    torch.manual_seed(0)
    net = QNetwork(spec, hidden, "shallow", dueling)
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    return net


def layers(module: Any) -> list[tuple[Array, Array]]:
    """(weights, bias) of every layer, in order."""
    linear = [x for x in module.modules() if isinstance(x, torch.nn.Linear)]
    return [(x.weight.detach().double().numpy(), x.bias.detach().double().numpy()) for x in linear]


def stream(x: Array, module: Any) -> Array:
    """A ReLU between two layers."""
    for depth, (weight, bias) in enumerate(layers(module)):
        x = weight @ (np.maximum(x, 0) if depth else x) + bias
    return x


def features_of(x: Array, net: QNetwork) -> Array:
    """A ReLU behind every layer."""
    for weight, bias in layers(net.torso):
        x = np.maximum(weight @ x + bias, 0)
    return x


@pytest.mark.parametrize("dueling", [True, False])
def test_q_values_of_vectors_are_the_papers(dueling: bool) -> None:
    """Q(x, a) = V(x) + A(x, a) - 1/|A| Σ_a' A(x, a'), equation 9."""
    net = network(VECTOR, dueling)
    x = torch.randn(5, 2, 3)
    q = net(x)
    assert q.shape == (5, 2, 4)
    for t in range(5):
        for n in range(2):
            features = features_of(x[t, n].double().numpy(), net)
            twin = stream(features, net.advantage)
            if dueling:
                twin = stream(features, net.value)[0] + twin - sum(twin) / len(twin)
            assert np.allclose(q[t, n].detach(), twin, atol=1e-5)


def test_q_values_of_images_are_those_of_the_chosen_network() -> None:
    net = network(PIXELS, True)
    assert isinstance(net.torso, ConvTorso) and net.torso.features == 256
    x = torch.randint(0, 255, (5, 2, 4, 36, 36), dtype=torch.uint8)
    q, features = net(x), net.torso(x.flatten(0, 1)).detach().double().numpy()
    assert q.shape == (5, 2, 4)
    for k, row in enumerate(features):
        twin = stream(row, net.advantage)
        twin = stream(row, net.value)[0] + twin - sum(twin) / len(twin)
        assert np.allclose(q.flatten(0, 1)[k].detach(), twin, atol=1e-4)
