"""What turns observations into features: convolutions for images, plain layers for vectors, an LSTM behind either."""

from __future__ import annotations

from contextlib import nullcontext
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SMALLEST = 36  # pixels a side that the strides leave something of; smaller images are taken as vectors
BLOCK = 4  # stride of every network's first convolution; its kernel is a multiple
NETWORKS = {  # (channels, kernel, stride) of each convolution, then units of the dense layer
    "nature": (((32, 8, 4), (64, 4, 2), (64, 3, 1)), 512),  # Mnih et al. 2015, Nature 518
    "shallow": (((16, 8, 4), (32, 4, 2)), 256),  # Mnih et al. 2013 and 2016; IMPALA's small network without its LSTM
}


def image(shape: tuple[int, ...], dtype: str) -> tuple[int, int, int] | None:
    """[C, H, W] of observations that go through a convolutional network: bytes of SMALLEST pixels or more a side.

    All axes before the last two are channels, a stack for example; none is one channel.
    """
    if dtype != "uint8" or len(shape) < 2 or min(shape[-2:]) < SMALLEST:
        return None
    return prod(shape[:-2]), shape[-2], shape[-1]


def orthogonal(layer: nn.Linear | nn.Conv2d, gain: float) -> nn.Module:
    """Orthogonal weights of this gain and zero bias: √2 before a ReLU, 0.01 for policy heads, 1 for value heads."""
    nn.init.orthogonal_(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def blocks(image: Tensor) -> Tensor:
    """uint8 [n, C, H, W] -> [n, H/4, W/4, C·16]: a place has BLOCK² pixels, as (C, row, column)."""
    n, _, *size = image.shape
    rows, columns = (pixels // BLOCK for pixels in size)
    image = image[:, :, : rows * BLOCK, : columns * BLOCK]  # without the rim that no kernel reaches
    aligned = image.stride(-1) == 1 and not any(x % BLOCK for x in (image.storage_offset(), *image.stride()[:-1]))
    image = image if aligned else image.clone(memory_format=torch.contiguous_format)
    words = image.view(torch.int32).reshape(n, -1, rows, BLOCK, columns)  # four bytes at a time
    return words.permute(0, 2, 4, 1, 3).reshape(n, rows, columns, -1).contiguous().view(torch.uint8)


def block_kernel(kernel: Tensor) -> Tensor:
    """[out, C, k, k] of stride BLOCK -> [out, C·16, k/4, k/4] of stride 1, which does the same to `blocks`."""
    out, channels, size, _ = kernel.shape
    side = size // BLOCK
    squares = kernel.reshape(out, channels, side, BLOCK, side, BLOCK).permute(0, 1, 3, 5, 2, 4)
    return squares.reshape(out, -1, side, side).contiguous(memory_format=torch.channels_last)


def rounded(p: nn.Parameter) -> Tensor:
    """p in bf16 with its gradient: the same copy while p and the buffer of its `Flat` have one version.

    A pass over a large layer costs as much as its product with a small batch; an actor would make one at every move.
    """
    buffer: Tensor | None = vars(p).get("buffer")
    if buffer is None:
        return p.bfloat16()
    version, kept = (id(buffer), buffer._version, p._version), vars(p).get("rounded")
    if kept is None or kept[0] != version:  # a new copy: a graph may still hold the old one
        kept = vars(p)["rounded"] = (version, p.detach().bfloat16())
    copy: Tensor = _Rounding.apply(p, kept[1])  # type: ignore[no-untyped-call]
    return copy


class _Rounding(torch.autograd.Function):  # the copy as a function of the parameter
    @staticmethod
    def forward(ctx: Any, p: Tensor, copy: Tensor) -> Tensor:
        return copy.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.float(), None


class ConvTorso(nn.Module):
    """uint8 images [.., C, H, W] in 0..255 -> float32 features [n, features].

    ``compute`` is the precision of the layers; their result always leaves as float32, so heads and losses are exact.

    Raises:
        ValueError: the image is too small for the strided convolutions.
    """

    compute: torch.dtype = torch.float32

    def __init__(self, shape: tuple[int, ...], network: str = "nature") -> None:
        super().__init__()
        table, features = NETWORKS[network]
        self.shape, self.text = shape, f"images of {'×'.join(map(str, shape))} through the {network} network"
        channels, *size = shape
        layers: list[nn.Conv2d] = []
        for width, kernel, stride in table:
            size = [(pixels - kernel) // stride + 1 for pixels in size]
            if min(size) < 1:
                raise ValueError(
                    f"images {shape} are too small for the {network} network; use {SMALLEST}×{SMALLEST} or more"
                )
            layers.append(nn.Conv2d(channels, width, kernel, stride))
            orthogonal(layers[-1], 2**0.5)
            channels = width
        self.convolutions = nn.ModuleList(layers)
        self.dense = orthogonal(nn.Linear(channels * prod(size), features), 2**0.5)
        self.features = features
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def extra_repr(self) -> str:
        return self.text

    def forward(self, image: Tensor) -> Tensor:
        """Of images, or of their `pixels`."""
        rough = self.compute == torch.bfloat16
        with torch.autocast(image.device.type, dtype=self.compute) if rough else nullcontext():
            x = image if image.is_floating_point() else self.pixels(image)
            layer: Any = self.convolutions[0]
            kernel = layer.weight / 255  # dividing 32 kernels costs less than dividing every pixel of the batch
            x = F.conv2d(x, block_kernel(kernel), layer.bias) if rough else F.conv2d(x, kernel, layer.bias, BLOCK)
            for layer in self.convolutions[1:]:
                x = layer(F.relu(x, inplace=True))
            # Flat before the last ReLU, whose gradient costs ten times as much where it meets two memory formats.
            x = F.relu(x.flatten(1), inplace=True)
            layer = self.dense  # nearly all of the parameters
            x = F.linear(x, rounded(layer.weight), layer.bias) if rough else layer(x)
            x = F.relu(x, inplace=True)
        return x.float()

    def pixels(self, image: Tensor) -> Tensor:
        """Images as the first convolution takes them; networks of the same shape and precision may share them."""
        image = image.reshape(-1, *self.shape)
        if self.compute == torch.bfloat16:  # few channels leave its matrix units idle; in float32 blocks gain nothing
            return blocks(image).type(self.compute).movedim(-1, 1)
        return image.contiguous(memory_format=torch.channels_last).float()


class Tanh(nn.Module):
    """tanh [..], without gradients as 2 σ(2x) − 1, within 2e-7: 0.7 ns a number on AVX-512 against torch's 2.5."""

    def forward(self, x: Tensor) -> Tensor:
        few = torch.is_grad_enabled() or x.numel() < 16_384 or x.device.type != "cpu"
        return torch.tanh(x) if few else 2 * torch.sigmoid(2 * x) - 1


class MlpTorso(nn.Module):
    """Vectors or small arrays [.., *shape], bytes taken as 0..1 -> float32 features [n, units]; tanh by default."""

    def __init__(self, shape: tuple[int, ...], hidden: tuple[int, ...], squash: type[nn.Module] = Tanh) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = self.inputs = prod(shape)
        small = f" (images are bytes, {SMALLEST} pixels or more a side)" if len(shape) > 1 else ""
        self.text = f"{self.inputs:,} numbers{small}"
        for units in hidden:
            layers += [orthogonal(nn.Linear(width, units), 2**0.5), squash()]
            width = units
        self.layers = nn.Sequential(*layers)
        self.features = width

    def extra_repr(self) -> str:
        return self.text

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, self.inputs).float()
        out: Tensor = self.layers(flat / 255 if x.dtype == torch.uint8 else flat)
        return out


class Lstm(nn.Module):
    """LSTM (Hochreiter and Schmidhuber 1997; gates as in Gers et al. 2000), time-major; ``first`` zeroes its state."""

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.input = orthogonal(nn.Linear(inputs, 4 * units), 1.0)
        self.hidden = orthogonal(nn.Linear(units, 4 * units, bias=False), 1.0)

    def forward(self, x: Tensor, first: Tensor, carry: Tensor) -> tuple[Tensor, Tensor]:
        """x [T, b, F], first [T, b] bool, carry [b, 2, H] before row 0 -> [T, b, H], carry after the last row."""
        gates = self.input(x)  # for all rows at once: only the hidden half has to wait for its predecessor
        keep = (~first).unsqueeze(-1).float()
        h, c = carry.unbind(1)
        rows = []
        for t in range(len(x)):
            into, forget, cell, out = (gates[t] + self.hidden(keep[t] * h)).chunk(4, -1)
            c = forget.sigmoid() * keep[t] * c + into.sigmoid() * cell.tanh()
            h = out.sigmoid() * c.tanh()
            rows.append(h)
        return torch.stack(rows), torch.stack([h, c], 1)
