"""How large the networks of this folder are, by plain arithmetic: `hpc-rl show` must start without torch.

A test compares these numbers with the modules themselves.
"""

from __future__ import annotations

from math import prod

from hpc_rl.types import Spec

_LAYERS = ((32, 8, 4), (64, 4, 2), (64, 3, 1))  # channels, kernel, stride; those of conv.py
_FEATURES = 512


def actor_critic(spec: Spec, hidden: tuple[int, ...]) -> int:
    """Parameters of ``ActorCritic(spec, hidden)``. Raises ValueError where the image is too small for it."""
    outputs = prod(spec.actions.sizes) if spec.actions.kind == "box" else sum(spec.actions.sizes)
    log_std = outputs if spec.actions.kind == "box" else 0
    if images(spec):
        torsos, features = _convolutions(spec.observation)[0], _FEATURES
    else:
        widths = [prod(spec.observation), *hidden]
        torsos, features = 2 * sum(a * b + b for a, b in zip(widths, widths[1:], strict=False)), widths[-1]
    return torsos + features * outputs + outputs + log_std + features + 1


def activations(spec: Spec, hidden: tuple[int, ...]) -> int:
    """Numbers that ``ActorCritic`` keeps for one sample until its backward pass, its input as float32 included."""
    if images(spec):
        return prod(spec.observation) + _convolutions(spec.observation)[1]
    return prod(spec.observation) + 2 * sum(hidden)


def images(spec: Spec) -> bool:
    """Whether the observations go through the Nature network."""
    return len(spec.observation) == 3 and spec.dtype == "uint8"


def _convolutions(shape: tuple[int, ...]) -> tuple[int, int]:
    """(parameters, outputs per image) of ``NatureTorso(shape)``."""
    channels, *size = shape
    parameters = outputs = 0
    for width, kernel, stride in _LAYERS:
        size = [(pixels - kernel) // stride + 1 for pixels in size]
        if min(size) < 1:
            raise ValueError(f"images of shape {shape} are too small for the Nature network; use at least 36×36")
        parameters += channels * width * kernel**2 + width
        outputs += width * prod(size)
        channels = width
    return parameters + (channels * prod(size) + 1) * _FEATURES, outputs + _FEATURES
