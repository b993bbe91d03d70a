"""Nested states as JSON text and arrays, and back: what checkpoints and messages between ranks are made of.

In the text {"$array": key, "dtype": …} stands for an array; the arrays lie beside it under their keys.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hpc_rl.devices import to_device, to_host
from hpc_rl.storage.untrusted import Unreadable
from hpc_rl.types import Array, NonFinite

_MARK = "$array"
_IN_FLIGHT = "state/sampler/"  # what environments returned last: a record, nothing that was learned
_MAY_BE_NAN = ("episode_return", "episode_success")  # a replayed fragment has NaN where no episode ended

Arrays = dict[str, tuple[Array, str]]  # key -> array, name of its type in torch


def encode(value: Any, key: str, arrays: Arrays) -> Any:
    """``value`` as JSON; arrays go to ``arrays`` under their key."""
    if isinstance(value, np.generic):  # before float: a float64 scalar is both
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        if bad_keys := [name for name in value if not isinstance(name, str) or name in ("", ".", _MARK)]:
            raise TypeError(f"{key} has the key {bad_keys[0]!r}; a checkpoint's keys are non-empty strings")
        return {name: encode(item, f"{key}/{_quoted(name)}", arrays) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode(item, f"{key}/{index}", arrays) for index, item in enumerate(value)]
    arrays[key] = _as_array(value, key)
    return {_MARK: key, "dtype": arrays[key][1]}


def _quoted(name: str) -> str:
    """A key as one part of an HDF5 path, such that {"a/b": x} and {"a": {"b": x}} differ."""
    return name.replace("%", "%25").replace("/", "%2F")


def _as_array(value: Any, key: str) -> tuple[Array, str]:
    """(array, dtype name) of a tensor or array; bfloat16, which NumPy lacks, as int16."""
    import torch

    if not isinstance(value, torch.Tensor | np.ndarray):
        raise TypeError(f"{key} is a {type(value).__name__}; a checkpoint holds arrays, numbers, strings and None")
    tensor = to_device(value, "cpu").detach().contiguous()
    name = str(tensor.dtype).removeprefix("torch.")
    return to_host(tensor.view(torch.int16) if name == "bfloat16" else tensor), name


def decode(value: Any, fetch: Callable[[str], Any]) -> Any:
    """The inverse of `encode`; ``fetch`` gives the array of a key as a tensor."""
    if isinstance(value, list):
        return [decode(item, fetch) for item in value]
    if not isinstance(value, dict):
        return value
    if _MARK not in value:
        return {name: decode(item, fetch) for name, item in value.items()}
    return _true_type(fetch(value[_MARK]), value["dtype"])


def each_once(fetch: Callable[[str], Any]) -> Callable[[str], Any]:
    """Each array stands for one leaf: a text that names one a million times would fill memory."""
    keys = set[str]()

    def checked(key: str) -> Any:
        if key in keys:
            raise Unreadable(f"two leaves name the array {key}")
        keys.add(key)
        return fetch(key)

    return checked


def refuse_non_finite(arrays: Arrays) -> None:
    """Raises NonFinite, naming the first array that must not hold NaN or infinity and does."""
    for key, (array, dtype) in arrays.items():
        if not _may_stand(key, _true_type(to_device(array, "cpu"), dtype)):
            raise NonFinite(
                f"{key} holds NaN or infinity; the checkpoint was not written, the one before is still good"
            )


def _may_stand(key: str, tensor: Any) -> bool:
    free = key.startswith(_IN_FLIGHT) or key.endswith(_MAY_BE_NAN)
    return free or not tensor.is_floating_point() or bool(tensor.isfinite().all())


def refuse_hidden(value: Any, key: str) -> None:
    """Raises Unreadable for NaN behind a right checksum: it would surface ten updates later, as a divergence."""
    if isinstance(value, dict | list):
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            refuse_hidden(item, f"{key}/{name}")
    elif hasattr(value, "isfinite") and not _may_stand(key, value):
        raise Unreadable(f"{key} holds NaN or infinity")


def _true_type(tensor: Any, dtype: str) -> Any:
    import torch

    return tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor
