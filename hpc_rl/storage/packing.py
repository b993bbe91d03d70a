"""A state as bytes and back, for gathering ranks' parts of a checkpoint: JSON and raw arrays, never a pickle."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np

from hpc_rl.devices import to_device
from hpc_rl.storage.states import Arrays, decode, encode


def to_bytes(state: dict[str, Any]) -> bytes:
    """Nested dicts and lists of tensors, arrays, numbers, strings and None as one byte string."""
    arrays: Arrays = {}
    text = json.dumps(encode(state, "", arrays))
    stream = io.BytesIO()
    leaves: dict[str, Any] = {key: x for key, (x, _) in arrays.items()}
    np.savez(stream, text=np.frombuffer(text.encode(), np.uint8), **leaves)
    return stream.getvalue()


def from_bytes(data: bytes) -> dict[str, Any]:
    """The inverse; arrays come back as tensors. Raises ValueError on anything that would need a pickle."""
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        state: dict[str, Any] = decode(json.loads(file["text"].tobytes()), lambda key: to_device(file[key], "cpu"))
    return state
