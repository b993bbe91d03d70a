"""Observations as an animated GIF."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np

from hpc_rl.types import Array, Spec


def shows(spec: Spec) -> bool:
    """Whether observations are images."""
    return len(spec.frame) >= 2 and spec.dtype == "uint8"


def animated(film: Sequence[Array], duration_ms: int = 67) -> bytes:
    """The file; observations [.., H, W] or [.., 3, H, W] uint8, of a stack the newest frame, three times as large."""
    from PIL import Image

    frames = [Image.fromarray(x).resize((x.shape[1] * 3, x.shape[0] * 3)) for x in map(_picture, film)]
    stream = io.BytesIO()
    frames[0].save(stream, "GIF", save_all=True, append_images=frames[1:], duration=duration_ms, loop=0)
    return stream.getvalue()


def _picture(x: Array) -> Array:
    """[H, W] or [H, W, 3]."""
    while x.ndim > 3 or (x.ndim == 3 and len(x) != 3):
        x = x[-1]
    return np.ascontiguousarray(np.moveaxis(x, 0, -1)) if x.ndim == 3 else np.ascontiguousarray(x)
