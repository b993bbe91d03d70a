"""Per-column states of several lanes or ranks as one, and back: so a checkpoint fits any layout."""

from __future__ import annotations

from typing import Any

import torch

from hpc_rl.devices import to_device


def merged(parts: list[Any]) -> Any:
    """Per-column states of several lanes or ranks as one: arrays and lists are joined along the columns; {} of none."""
    if not parts:
        return {}
    head = parts[0]
    if isinstance(head, dict):
        return {name: merged([part[name] for part in parts]) for name in head}
    if isinstance(head, list):
        return [x for part in parts for x in part]
    return None if head is None else torch.cat([to_device(part, "cpu") for part in parts])


def chosen(state: Any, rows: list[int]) -> Any:
    """The columns ``rows`` of a merged state; the inverse of `merged`."""
    if isinstance(state, dict):
        return {name: chosen(x, rows) for name, x in state.items()}
    if isinstance(state, list):
        return [state[row] for row in rows]
    return None if state is None else state[rows]
