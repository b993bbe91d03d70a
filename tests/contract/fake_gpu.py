"""A second device on a machine without one: tensors in memory that the host may not touch, as a GPU's.

They are tensors of the host whose storage is marked. While a `FakeGpu` is entered, marked tensors call themselves
``cuda:K``, refuse ``numpy()``, and refuse to be computed with tensors of another device, as a GPU's do: scalars and the
index in brackets excepted. Every number is real. A mode belongs to its thread.

Mutations seen to fail: a mark that views lose; scalars refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_leaves

CROSSING = {"copy_", "to", "cpu", "type", "__getitem__", "__setitem__", "_has_compatible_shallow_copy_type"}
HOST_ONLY = {"numpy", "__array__"}
SHARED: dict[int, tuple[torch.UntypedStorage, str]] = {}  # held, so that no other tensor takes the address


def fake_of(x: Tensor) -> str | None:
    """The device that this tensor's storage is marked with."""
    fake = SHARED.get(x.untyped_storage()._cdata)
    return fake[1] if fake else None


def mark(x: Tensor, device: str) -> None:
    storage = x.untyped_storage()
    SHARED[storage._cdata] = (storage, device)


class FakeGpu(TorchFunctionMode):
    """``with FakeGpu():`` "cuda:0", "cuda:1" … are devices of this thread."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        tensors = list(_tensors((*args, *kwargs.values())))
        devices = [fake_of(x) for x in tensors] if SHARED else [None] * len(tensors)
        fake = next(filter(None, devices), None)
        if name == "__get__" and getattr(func, "__self__", None) is Tensor.device:
            return torch.device(fake or "cpu")
        if name in HOST_ONLY and fake:
            raise TypeError(f"can't convert {fake} device type tensor to numpy. Use Tensor.cpu()")
        if fake and name not in CROSSING and name != "__set__" and any(device != fake for device in devices):
            marks = {device for x, device in zip(tensors, devices, strict=True) if x.dim()}
            if len(marks) > 1:
                called = resolve_name(func) or name
                raise RuntimeError(f"{called}: expected all tensors to be on the same device, found {marks}")
        target, args = self._wanted(name, args, kwargs)
        out = func(*args, **kwargs)
        if target is not None and tensors and name in ("to", "cpu"):
            return self._moved(tensors[0], out, target)
        device = target if target is not None else (fake or "cpu")
        if device != "cpu" and name != "__set__":
            for x in _tensors(out):
                if fake_of(x) is None:
                    mark(x, str(device))
        return out

    def _wanted(self, name: str, args: Any, kwargs: dict[str, Any]) -> tuple[str | None, Any]:
        """The device that a call asks for, and the call's arguments with the host in its place."""
        if name == "cpu":
            return "cpu", args
        if name == "to":
            places = [k for k, x in enumerate(args) if k and isinstance(x, torch.device | str)]
            target = str(args[places[0]]) if places else None
            if "device" in kwargs and kwargs["device"] is not None:
                target = str(kwargs["device"])
                kwargs["device"] = "cpu"
            return target, tuple("cpu" if k in places else x for k, x in enumerate(args))
        if kwargs.get("device") is not None:
            target = str(kwargs["device"])
            kwargs["device"] = "cpu"
            return target, args
        return None, args

    def _moved(self, x: Tensor, out: Tensor, target: str) -> Tensor:
        """What ``x.to(wanted)`` is: x itself where it lies there, else a copy."""
        if str(fake_of(x) or "cpu") == target:
            if out is not x and target != "cpu":
                mark(out, target)
            return out
        copy: Tensor = torch.Tensor.clone(out) if out.untyped_storage()._cdata == x.untyped_storage()._cdata else out
        SHARED.pop(copy.untyped_storage()._cdata, None)
        if target != "cpu":
            mark(copy, target)
        return copy


def _tensors(out: Any) -> Iterator[Tensor]:
    if isinstance(out, Tensor):
        yield out
    elif isinstance(out, list | tuple):
        for x in out:
            yield from _tensors(x)


def lying_on(state: Any) -> Iterable[str]:
    """The devices of all tensors of a nested state."""
    return {fake_of(x) or "cpu" for x in tree_leaves(state) if isinstance(x, Tensor)}
