"""How large the networks of this folder are, by plain arithmetic: `hpc-rl show` must start without torch.

A test compares these numbers with the modules themselves.
"""

from __future__ import annotations

from itertools import pairwise
from math import prod

from hpc_rl.types import Leaf, Schema, Spec

SMALLEST = 36  # pixels a side that the strides leave something of; smaller images are taken as vectors
NETWORKS = {  # (channels, kernel, stride) of each convolution, then units of the dense layer
    "nature": (((32, 8, 4), (64, 4, 2), (64, 3, 1)), 512),  # Mnih et al. 2015, Nature 518
    "shallow": (((16, 8, 4), (32, 4, 2)), 256),  # Mnih et al. 2013 and 2016; IMPALA's small network without its LSTM
}


def actor_critic(
    spec: Spec,
    hidden: tuple[int, ...],
    network: str = "nature",
    lstm: int = 0,
    standardize: bool = False,
    values: int = 1,
) -> int:
    """Parameters of ``ActorCritic(spec, hidden, network, lstm, standardize, values=values)``."""
    outputs = prod(spec.actions.sizes) if spec.actions.kind == "box" else sum(spec.actions.sizes)
    log_std = outputs if spec.actions.kind == "box" else 0
    if (shape := image(spec.observation, spec.dtype)) is not None:
        torsos, features = _convolutions(shape, network)[0], NETWORKS[network][1]
    else:
        widths = [prod(spec.observation), *hidden]
        torsos, features = 2 * sum(a * b + b for a, b in pairwise(widths)), widths[-1]
        torsos += 2 * widths[0] * standardize
    if lstm:
        torsos, features = torsos + lstms(spec) * 4 * lstm * (features + 1 + lstm), lstm
    return torsos + (features + 1) * (outputs + values) + log_std


def carried(spec: Spec, lstm: int, filtered: bool) -> Schema:
    """What a policy over ``ActorCritic`` takes from row to row, so that a fragment can be replayed from its start."""
    shape, text = (2 * lstms(spec), lstm), "hidden and cell state of each LSTM before row 0"
    state = {"lstm": Leaf(shape, "float32", "fragment", "", text)} if lstm else {}
    text = "the discounted sum of rewards of the row before row 0"
    return {**state, **({"filtered_return": Leaf((), "float32", "fragment", "", text)} if filtered else {})}


def remembered(extras: Schema, filtered: bool) -> Schema:
    """A method's ``extras``, and the filtered return where its spread scales the rewards."""
    text = "discounted sum of the episode's rewards so far"
    return {**extras, **({"filtered_return": Leaf((), "float32", "step", "", text)} if filtered else {})}


def activations(spec: Spec, hidden: tuple[int, ...], network: str = "nature", lstm: int = 0) -> int:
    """Numbers that ``ActorCritic`` keeps for one sample until its backward pass, its input as float32 included."""
    gates = lstms(spec) * 11 * lstm  # four gates before and after their squashing, both states, the cell's tanh
    if (shape := image(spec.observation, spec.dtype)) is not None:
        return prod(shape) + _convolutions(shape, network)[1] + gates
    return prod(spec.observation) + 2 * sum(hidden) + gates


def image(shape: tuple[int, ...], dtype: str) -> tuple[int, int, int] | None:
    """[C, H, W] of observations that go through a convolutional network: bytes of SMALLEST pixels or more a side.

    All axes before the last two are channels, a stack for example; none is one channel.
    """
    if dtype != "uint8" or len(shape) < 2 or min(shape[-2:]) < SMALLEST:
        return None
    return prod(shape[:-2]), shape[-2], shape[-1]


def images(spec: Spec) -> bool:
    """Whether the observations go through a convolutional network."""
    return image(spec.observation, spec.dtype) is not None


def lstms(spec: Spec) -> int:
    """How many a recurrent network has: policy and value share one over images, as the torso; over vectors not."""
    return 1 if images(spec) else 2


def _convolutions(shape: tuple[int, ...], network: str) -> tuple[int, int]:
    """(parameters, outputs per image) of ``ConvTorso(shape, network)``."""
    layers, features = NETWORKS[network]
    channels, *size = shape
    parameters = outputs = 0
    for width, kernel, stride in layers:
        size = [(pixels - kernel) // stride + 1 for pixels in size]
        parameters += channels * width * kernel**2 + width
        outputs += width * prod(size)
        channels = width
    return parameters + (channels * prod(size) + 1) * features, outputs + features
