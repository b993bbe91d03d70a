"""How the columns of a rank are shared out over processes; decided and refused before any process is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TypeVar

import numpy as np

from hpc_rl.envs.base import BadEnvironment, Resumed, TimeSteps

Answer = TypeVar("Answer", TimeSteps, Resumed)


@dataclass(frozen=True)
class Processes:
    """How many, and how long an answer of one may take."""

    count: int = 0  # 0 keeps the environments in this process
    deadline_s: float = 60.0


def split_columns(id: str, columns: int, count: int) -> list[range]:
    """The columns of each of ``count`` processes, as even as can be; none for 0.

    Raises:
        BadEnvironment: more processes than columns, or an environment that has threads of its own.
    """
    if count and id.startswith("ALE/"):
        raise BadEnvironment(
            f"environment.processes = {count}, but {id} steps on C++ threads of its own; leave processes out"
        )
    if count > columns:
        raise BadEnvironment(
            f"environment.processes = {count} is more than the {columns} columns of a rank; "
            f"use at most {columns} or raise environment.columns"
        )
    return [range(columns * k // count, columns * (k + 1) // count) for k in range(count)]


def joined(parts: Sequence[Answer]) -> Answer:
    """What several groups of columns answered, as the answer of all of them, in fresh arrays."""
    kind = type(parts[0])
    return kind(*(np.concatenate([getattr(part, item.name) for part in parts]) for item in fields(kind)))
