"""What several ranks saved of their replays, dealt out again by column, so that a run may go on with other ranks.

Rings that learn together insert fragments of the same length, each of its own columns. Their rows are put side by side
by their distance from the newest one: a gap that one ring has and another has not shifts what lies before it. A ring
that keeps fewer moves of a column than those before, as a replay per worker does with fewer workers, takes the newest.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hpc_rl.optim.flat import StateDict
from hpc_rl.types import Array


def owners(parts: Sequence[StateDict], columns: Sequence[int]) -> list[tuple[StateDict, int]]:
    """For each of the global ``columns`` the part that holds it and its place there, by the parts' leaf "column".

    Raises:
        ValueError: none holds it.
    """
    places = {int(column): (part, k) for part in parts for k, column in enumerate(np.asarray(part["column"]))}
    if absent := [column for column in columns if column not in places]:
        raise ValueError(f"none of the {len(parts)} saved replays has column {absent[0]}")
    return [places[column] for column in columns]


def dealt(held: Sequence[tuple[StateDict, int]], columns: Array, slots: int, kept: int) -> StateDict:
    """The state of a `Ring` of these ``columns``: the saved one of just them, or one made of those that hold them.

    ``held`` is each column's, and its place in it. The ring has so many ``slots``, and items begin among the newest
    ``kept`` rows. One that was made has no "updates": how many belong to it follows from "used", env steps of a column.
    """
    head, _ = held[0]
    if np.array_equal(np.asarray(head["column"]), np.asarray(columns)):
        return head
    end = max(int(part["end"]) for part, _ in held)
    shifts = [end - int(part["end"]) for part, _ in held]
    low = min(int(part["low"]) + shift for (part, _), shift in zip(held, shifts, strict=True))
    low = max(low, end - kept)
    return {
        "column": np.array(columns, np.int32),
        "env_steps": np.array([int(part["env_steps"][k]) for part, k in held], np.int64),
        "used": float(np.mean([float(part["used"]) for part, _ in held])),
        "low": low,
        "end": end,
        "items": {name: _items(held, shifts, name, range(low, end), slots) for name in head["items"]},
    }


def _items(
    held: Sequence[tuple[StateDict, int]], shifts: Sequence[int], name: str, rows: range, slots: int
) -> StateDict:
    """What is known of one kind of items that begin in these ``rows``.

    Rows between the oldest and the newest decision are decided once more.
    """
    kinds = [(part["items"][name], k, shift) for (part, k), shift in zip(held, shifts, strict=True)]

    def moved(leaves: Sequence[Array]) -> Array:
        """[slots, b] of each column's leaf [slots of its ring before, b of that]; 0 for other rows."""
        columns = np.zeros((slots, len(kinds)), np.asarray(leaves[0]).dtype)
        at = np.arange(rows.start, rows.stop)
        for j, (leaf, (_, k, shift)) in enumerate(zip(leaves, kinds, strict=True)):
            own = at[at - shift >= max(rows.stop - shift + 1 - len(leaf), 0)]
            columns[own % slots, j] = np.asarray(leaf)[(own - shift) % len(leaf), k]
        return columns

    def noted(name: str, dtype: np.dtype) -> list[Array]:
        return [kind["notes"].get(name, np.zeros(np.shape(kind["lengths"]), dtype)) for kind, _, _ in kinds]

    dtypes = {name: np.asarray(x).dtype for kind, _, _ in kinds for name, x in kind["notes"].items()}
    priorities: StateDict = {}
    if kinds[0][0]["priorities"]:
        priorities["mass"] = moved([kind["priorities"]["mass"] for kind, _, _ in kinds])
        priorities["largest"] = max(float(kind["priorities"]["largest"]) for kind, _, _ in kinds)
    return {
        "lengths": moved([kind["lengths"] for kind, _, _ in kinds]),
        "priorities": priorities,
        "checked": min(int(kind["checked"]) + shift for kind, _, shift in kinds),
        "notes": {name: moved(noted(name, dtype)) for name, dtype in dtypes.items()},
    }
