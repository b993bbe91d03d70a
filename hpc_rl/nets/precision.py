"""Which precision the torso computes in. Parameters, logits, values and losses are float32 whatever is chosen here."""

from __future__ import annotations

import time
from copy import deepcopy

import torch
from torch import nn

from hpc_rl.nets.boards import ResidualTorso
from hpc_rl.nets.torsos import ConvTorso, image
from hpc_rl.types import Spec

_MIN_GAIN = 1.1  # bf16 loses digits, so it has to be worth it


def flush_subnormals() -> None:
    """Take numbers nearer to 0 than 1.2e-38 for 0, on this thread and those that it starts from now on.

    A moment of Adam whose gradients are 0 shrinks to such a number and stays one, and arithmetic with one takes thirty
    times as long. Other processors than x86 may not offer it.
    """
    torch.set_flush_denormal(True)


def set_precision(module: nn.Module, precision: str) -> None:
    """Make every torso of ``module`` that can compute in ``precision`` ("fp32" or "bf16")."""
    for torso in _torsos(module):
        torso.compute = torch.bfloat16 if precision == "bf16" else torch.float32


def has_choice(module: nn.Module) -> bool:
    """Whether a part of it is a convolutional torso, whose precision may be chosen."""
    return bool(_torsos(module))


def is_image(spec: Spec) -> bool:
    """Whether the observations are images, whose torsos use several threads well."""
    return image(spec.observation, spec.dtype) is not None


def faster_precision(module: nn.Module, device: str, batch: int = 128) -> str:
    """ "bf16" where forward and backward of its first torso gain a tenth by it there, else "fp32"; takes about 1 s."""
    if not has_choice(module):
        return "fp32"
    torso = deepcopy(_torsos(module)[0]).to(device)
    pixels = torch.randint(0, 255, (batch, *torso.shape), dtype=torch.uint8, device=device)
    observation = pixels if isinstance(torso, ConvTorso) else (pixels % 2).float()
    took = {}
    for precision in ("fp32", "bf16"):
        set_precision(torso, precision)
        times = []
        for _ in range(4):
            begin = time.perf_counter()
            torso(observation).sum().backward()
            if torch.device(device).type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - begin)
        took[precision] = min(times[1:])
    return "bf16" if took["bf16"] * _MIN_GAIN < took["fp32"] else "fp32"


def _torsos(module: nn.Module) -> list[ConvTorso | ResidualTorso]:
    return [child for child in module.modules() if isinstance(child, (ConvTorso, ResidualTorso))]
