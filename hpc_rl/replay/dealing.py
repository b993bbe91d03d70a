"""What several ranks saved of their replays, dealt out again by column, so that a run may go on with other ranks.

Rings that learn together insert fragments of the same length, each of its own columns. Their rows are put side by side
by their distance from the newest one: a gap that one ring has and another has not shifts what lies before it.
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


def dealt(held: Sequence[tuple[StateDict, int]], columns: Array) -> StateDict:
    """The state of a `Ring` of these ``columns``: the saved one of just them, or one made of those that hold them.

    ``held`` is each column's, and its place in it.
    """
    head, _ = held[0]
    if np.array_equal(np.asarray(head["column"]), np.asarray(columns)):
        return head
    end = max(int(part["end"]) for part, _ in held)
    shifts = [end - int(part["end"]) for part, _ in held]
    return {
        "column": np.array(columns, np.int32),
        "env_steps": np.array([int(part["env_steps"][k]) for part, k in held], np.int64),
        "updates": max(int(part["updates"]) for part, _ in held),
        "low": min(int(part["low"]) + shift for (part, _), shift in zip(held, shifts, strict=True)),
        "end": end,
        "items": {name: _items(held, shifts, name) for name in head["items"]},
    }


def _items(held: Sequence[tuple[StateDict, int]], shifts: Sequence[int], name: str) -> StateDict:
    """What is known of one kind of items; rows between the oldest and the newest decision are decided once more."""
    kinds = [(part["items"][name], k, shift) for (part, k), shift in zip(held, shifts, strict=True)]
    notes: dict[str, Array] = {}
    for kind, _, _ in kinds:
        notes |= {note: np.zeros_like(np.asarray(x)[:, 0]) for note, x in kind["notes"].items()}
    masses = [(kind["priorities"]["mass"], k, shift) for kind, k, shift in kinds if kind["priorities"]]
    largest = max((float(kind["priorities"]["largest"]) for kind, _, _ in kinds if kind["priorities"]), default=1.0)
    return {
        "lengths": np.stack([np.roll(np.asarray(kind["lengths"])[:, k], shift) for kind, k, shift in kinds], 1),
        "priorities": {
            "mass": np.stack([np.roll(np.asarray(mass)[:, k], shift) for mass, k, shift in masses], 1),
            "largest": largest,
        }
        if masses
        else {},
        "checked": min(int(kind["checked"]) + shift for kind, _, shift in kinds),
        "notes": {
            note: np.stack(
                [
                    np.roll(np.asarray(kind["notes"][note])[:, k], shift) if note in kind["notes"] else blank
                    for kind, k, shift in kinds
                ],
                1,
            )
            for note, blank in notes.items()
        },
    }
