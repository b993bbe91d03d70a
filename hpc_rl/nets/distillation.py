"""Random network distillation: a fixed random network, and one that learns to predict it.

Burda et al. 2018, arXiv 1810.12894. The error is large where the predictor has learned from little alike.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch
from torch import Tensor, nn

from hpc_rl.formulas.returns import filtered
from hpc_rl.nets.normalizers import RunningMoments, Standardize
from hpc_rl.nets.torsos import image, orthogonal
from hpc_rl.types import Spec

CONVOLUTIONS = ((32, 8, 4), (64, 4, 2), (64, 3, 1))  # channels, kernel, stride
SLOPE = 0.2  # of leaky ReLU below 0, TensorFlow's
LIMIT = 5.0  # standard deviations
FLOOR = 1e-3  # the least deviation: an input that never varied would else be as large as the limit at any rounding
DEEPER = 2  # hidden layers that the predictor has more than the target: it must be able to become like it


class Distillation(nn.Module):
    """Frames [.., *frame], standardised, through ``target`` and ``predictor`` -> features [.., F] of each.

    A frame is one observation without its stack. Images go through convolutions, vectors through ``hidden`` layers.
    """

    def __init__(self, spec: Spec, hidden: tuple[int, ...], features: int) -> None:
        super().__init__()
        self.frame, self.stack = spec.frame, spec.stack
        self.standardize = Standardize(spec.frame, LIMIT, FLOOR)
        planes = image(spec.frame, spec.dtype)
        self.entry = planes or (prod(spec.frame),)
        self.target, self.predictor = (_embedding(self.entry, hidden, features, more) for more in (0, DEEPER))

    def newest(self, observation: Tensor) -> Tensor:
        """Frames [.., *frame] of observations [.., *O]: of a stack the last."""
        return observation if self.stack == 1 else observation.select(-1 - len(self.frame), -1)

    def features(self, frame: Tensor) -> Tensor:
        """f(x) [.., F], which nothing changes but the statistics of the frames."""
        return self._through(self.target, frame)

    def error(self, frame: Tensor, features: Tensor) -> Tensor:
        """Mean over the features of (f̂(x) − f(x))² [..], of frames and of what `features` gave for them."""
        return (self._through(self.predictor, frame) - features).square().mean(-1)

    def _through(self, net: nn.Module, frame: Tensor) -> Tensor:
        lead = frame.shape[: frame.dim() - len(self.frame)]
        out: Tensor = net(self.standardize(frame).reshape(-1, *self.entry))
        return out.reshape(*lead, -1)


def _embedding(entry: tuple[int, ...], hidden: tuple[int, ...], features: int, deeper: int) -> nn.Sequential:
    """Layers from images [n, C, H, W] or vectors [n, D] to features [n, F], ``deeper`` layers of F units more."""
    layers: list[nn.Module] = []
    width, *size = entry
    if size:
        for channels, kernel, stride in CONVOLUTIONS:
            layers += [orthogonal(nn.Conv2d(width, channels, kernel, stride), 2**0.5), nn.LeakyReLU(SLOPE)]
            width, size = channels, [(pixels - kernel) // stride + 1 for pixels in size]
        layers.append(nn.Flatten())
        width *= prod(size)
    else:
        for units in hidden:
            layers += [orthogonal(nn.Linear(width, units), 2**0.5), nn.LeakyReLU(SLOPE)]
            width = units
    layers.append(orthogonal(nn.Linear(width, features), 2**0.5))
    for _ in range(deeper):
        layers += [nn.ReLU(), orthogonal(nn.Linear(features, features), 2**0.5)]
    return nn.Sequential(*layers)


class FilteredScale:
    """Divides rewards by the running deviation of their filtered sums, which run along each column without an end.

    The moments are those of all ranks; where a column's sum has come to is known to the rank that has the column.
    """

    def __init__(self, discount: float) -> None:
        self.discount, self.sums = discount, RunningMoments(())
        self.last: dict[str, Tensor] = {}  # "sum" [b] of the last row of each "column" [b]

    def scaled(self, reward: Tensor, weight: Tensor, column: Tensor, total: Callable[[Tensor], Tensor]) -> Tensor:
        """Rewards [T, b] of the next moves of ``column`` [b] over the deviation of all sums, with theirs in it.

        A move of weight 0 never happened. ``total`` sums over all ranks.
        """
        before = torch.zeros_like(reward[0])
        if self.last:
            before = (column[:, None] == self.last["column"]).float() @ self.last["sum"]
        sums = filtered(reward, self.discount, weight, before)
        self.last = {"column": column.clone(), "sum": sums[-1].clone()}
        self.sums.add(sums[weight > 0], total)
        return reward * float(self.sums.scale)
