"""Action values against a slow twin of the dueling network, written out layer by layer.

Mutations seen to fail: the advantages' mean left out, their largest instead, or their mean over the batch; V left out;
the ReLU of the streams left out; the other torso, or other features; observations prepared as of another precision.
Of the recurrent network: the last action or the last reward left out, or not masked where an episode opens; the state
not reset there; the carry of another row.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from hpc_rl.nets.precision import set_precision
from hpc_rl.nets.q import QNetwork, RecurrentQNetwork
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


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_is_prepared_once_serves_every_network_of_its_kind(precision: str) -> None:
    nets, x = [network(PIXELS, False), network(PIXELS, False)], torch.randint(0, 255, (5, 4, 36, 36), dtype=torch.uint8)
    torch.nn.init.normal_(nets[1].advantage.weight)
    for net in nets:
        set_precision(net, precision)
    ready = nets[0].prepared(x)
    assert ready.dtype == (torch.bfloat16 if precision == "bf16" else torch.float32)
    for net in nets:
        assert torch.equal(net(ready), net(x)) and net(ready).shape == (5, 4)
    vectors = torch.randn(5, 3)
    assert network(VECTOR, False).prepared(vectors) is vectors


def sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def test_a_recurrent_networks_q_values_are_the_papers() -> None:
    """Row by row: a ReLU layer, then an LSTM that also takes one-hot action and reward, then two streams."""
    torch.manual_seed(1)
    net, steps = RecurrentQNetwork(VECTOR, (6,), "nature", 5), 7
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    x, reward, carry = torch.randn(steps, 2, 3), torch.randn(steps, 2), torch.randn(2, 2, 5)
    action, first = torch.randint(0, 4, (steps, 2)), torch.rand(steps, 2) < 0.3
    first[0] = torch.tensor([False, True])
    assert first[1:].any()
    q, after = net(x, action, reward, first, carry)
    (into, bias), (hidden, _) = (
        (layer.weight.detach().double().numpy(), None if layer.bias is None else layer.bias.detach().double().numpy())
        for layer in (net.lstm.input, net.lstm.hidden)  # type: ignore[union-attr]
    )
    for k in range(2):
        h, c = carry[k].double().numpy()
        for t in range(steps):
            features = x[t, k].double().numpy()
            for weight, offset in layers(net.torso):
                features = np.maximum(weight @ features + offset, 0)
            led_here = np.append(np.eye(4)[action[t, k]], float(reward[t, k]))
            if first[t, k]:
                h, c, led_here = np.zeros(5), np.zeros(5), np.zeros(5)
            i, f, g, o = np.split(into @ np.append(features, led_here) + bias + hidden @ h, 4)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
            twin = stream(h, net.advantage)
            twin = stream(h, net.value)[0] + twin - sum(twin) / len(twin)
            assert np.allclose(q[t, k].detach(), twin, atol=1e-5)
        assert np.allclose(after[k].detach(), [h, c], atol=1e-5)


def test_a_recurrent_network_takes_images_as_a_torso_does() -> None:
    net = RecurrentQNetwork(PIXELS, (), "shallow", 5)
    x, zeros = torch.randint(0, 255, (3, 2, 4, 36, 36), dtype=torch.uint8), torch.zeros(3, 2)
    carry = torch.zeros(2, 2, 5)
    q, _ = net(x, zeros.long(), zeros, zeros.bool(), carry)
    alone, _ = net(x[:, 1:], zeros[:, 1:].long(), zeros[:, 1:], zeros[:, 1:].bool(), carry[1:])
    assert q.shape == (3, 2, 4) and torch.allclose(q[:, 1:], alone, atol=1e-5)
