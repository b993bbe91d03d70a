"""Whether Rules answer with the tensors that they promise: tried once before a device's first fragment."""

from __future__ import annotations

import torch
from torch import Tensor

from hpc_rl.envs.base import BadEnvironment
from hpc_rl.types import Rules, RulesState

_FLOATS = (torch.float32, torch.float64)
_NUMBERS = (*_FLOATS, torch.int64, torch.int32, torch.bool)


def checked(rules: Rules, state: RulesState, u: Tensor) -> RulesState:
    """The state after one move from ``state`` {name: [b, …]}, with actions of zeros and uniforms u [b, move_uniforms].

    Raises:
        BadEnvironment: an answer is no tensor, or one of another shape, type or device, or had the host wait for a GPU.
    """
    spec, b, device = rules.spec, len(u), u.device
    action = torch.zeros(b, *spec.actions.shape, dtype=getattr(torch, spec.actions.dtype), device=device)
    watched = device.type == "cuda" and torch.cuda.is_available()
    if watched:
        torch.cuda.set_sync_debug_mode("error")
    try:
        after, reward, discount, truncated = rules.move(state, action, u)
    except RuntimeError as error:
        raise BadEnvironment(
            f"{spec.id}: a move on {device} failed: {error}; Rules compute with the array module that they are made "
            "with, and choose by `where`, not by indices that the host would have to wait for"
        ) from error
    finally:
        if watched:
            torch.cuda.set_sync_debug_mode("default")
    if after.keys() != state.keys():
        names, all_names = ", ".join(sorted(after)), ", ".join(sorted(state))
        raise BadEnvironment(
            f"{spec.id}: a state after a move has the names {names}, and one that begins {all_names}; return them all"
        )
    for name, x in after.items():
        _alike(spec.id, f"state[{name!r}]", x, tuple(state[name].shape), _like(state[name].dtype), device)
    _alike(spec.id, "reward", reward, (b,), _NUMBERS, device)
    _alike(spec.id, "discount", discount, (b,), _NUMBERS, device)
    _alike(spec.id, "truncated", truncated, (b,), (torch.bool,), device)
    _alike(spec.id, "a frame", rules.show(after), (b, *spec.frame), _like(getattr(torch, spec.dtype)), device)
    return dict(after)


def _like(dtype: torch.dtype) -> tuple[torch.dtype, ...]:
    return _FLOATS if dtype in _FLOATS else (dtype,)


def _alike(
    id: str, noun: str, x: object, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...], device: torch.device
) -> None:
    """Raise BadEnvironment unless x is a tensor like this."""
    if not isinstance(x, Tensor):
        raise BadEnvironment(
            f"{id}: {noun} is a {type(x).__name__}, not a tensor; mend its Rules, which answer for all games at once "
            "by the array module that they are made with"
        )
    if tuple(x.shape) != shape or x.dtype not in dtypes or x.device != device:
        kind = _name(dtypes[0]) if len(dtypes) == 1 else {_FLOATS: "floats", _NUMBERS: "numbers"}[dtypes]
        raise BadEnvironment(
            f"{id}: {noun} is {list(x.shape)} {_name(x.dtype)} on {x.device}, not {list(shape)} {kind} on {device}; "
            "mend its Rules (docs/write-an-environment.md)"
        )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
