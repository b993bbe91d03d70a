"""The Spec of the environment whose steps a segment holds, read from the segment itself: no environment is made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hpc_rl.storage.datasets import Absent, reading
from hpc_rl.storage.segments import BadSegment
from hpc_rl.storage.untrusted import Unreadable, checked
from hpc_rl.types import Actions, ObservationPart, Spec

_SPEC = {"id": str, "frame": list[int], "dtype": str, "actions": dict, "stack": int, "padding": str,
         "action_repeat": int, "parts": dict}  # fmt: skip
_ACTIONS = {"kind": str, "sizes": list[int], "low": list[float], "high": list[float]}
_MOST_LETTERS = 1 << 20
_DTYPES = ("uint8", "int32", "int64", "float32", "float64", "bool")
_PART = {"start": int, "stop": int, "shape": list[int]}


def spec_of(path: Path) -> Spec:
    """What the environment of a segment shows and accepts. Raises BadSegment."""
    try:
        with reading(path) as source:
            text = source.text("spec", most=_MOST_LETTERS)
        return _spec(_table(text), str(path))
    except (FileNotFoundError, Unreadable, Absent) as error:
        raise BadSegment(f"{path} does not say what its environment shows ({error}); move it away") from error


def _table(text: str) -> Any:
    try:
        return json.loads(text)  # with infinite bounds, which strict JSON has not
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"its spec is not JSON: {error}") from None


def _spec(table: Any, name: str) -> Spec:
    values = checked(table, _SPEC, _SPEC, name)
    actions = checked(values["actions"], _ACTIONS, _ACTIONS, name)
    parts = {key: checked(part, _PART, _PART, name) for key, part in values["parts"].items()}
    sizes, bounds = tuple(actions["sizes"]), (tuple(actions["low"]), tuple(actions["high"]))
    sound = (
        actions["kind"] in ("discrete", "multidiscrete", "box")
        and values["padding"] in ("zeros", "repeat")
        and values["dtype"] in _DTYPES
        and min([1, *values["frame"], *sizes]) > 0
        and values["stack"] >= 1
        and (actions["kind"] != "box" or {len(bound) for bound in bounds} == {sizes[0] if len(sizes) == 1 else -1})
    )
    if not sound:
        raise Unreadable("its frame and actions do not fit together")
    return Spec(
        id=values["id"],
        frame=tuple(values["frame"]),
        dtype=values["dtype"],
        actions=Actions(actions["kind"], sizes, *bounds),
        stack=values["stack"],
        padding=values["padding"],
        action_repeat=values["action_repeat"],
        parts={key: ObservationPart(part["start"], part["stop"], tuple(part["shape"])) for key, part in parts.items()},
    )
