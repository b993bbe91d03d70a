"""Several environments side by side for one policy: ``id = "mixture"``, ``arguments = { ids = ["…", "…"], … }``.

Column k plays ``ids[k mod n]``, whatever rank it belongs to, as in IMPALA's multi-task agents (Espeholt et al. 2018,
section 5.3). The other arguments go to every one of them. Who plays what is not shown to the policy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np

from hpc_rl.envs.base import BadEnvironment, Environment, Resumed, TimeSteps
from hpc_rl.envs.column_shares import split_columns
from hpc_rl.types import Array, Spec

ID = "mixture"


def ids_of(id: str, arguments: dict[str, Any]) -> list[str]:
    """The environments behind a job's ``id``: itself, or those that a mixture names.

    Raises:
        BadEnvironment: a mixture without ids, or of mixtures.
    """
    if id != ID:
        return [id]
    ids = arguments.get("ids")
    if not isinstance(ids, (list, tuple)) or not ids or not all(isinstance(x, str) and x != ID for x in ids):
        raise BadEnvironment(
            f'{ID}: ids = {ids!r} is refused; name its environments: arguments = {{ ids = ["ALE/Pong-v5", …] }}'
        )
    return list(ids)


def without_ids(arguments: dict[str, Any]) -> dict[str, Any]:
    """What each of them is made with."""
    return {name: value for name, value in arguments.items() if name != "ids"}


def check_shares(id: str, arguments: dict[str, Any], columns: int, processes: int) -> None:
    """Refuse what `split_columns` does, and a mixture whose environments a rank of ``columns`` would not share evenly:
    elsewhere a column would play another one.

    Raises:
        BadEnvironment: as said, or a mixture in child processes.
    """
    ids = ids_of(id, arguments)
    if columns % len(ids):
        raise BadEnvironment(
            f"{ID} of {len(ids)} environments cannot share the {columns} columns of a rank evenly; set "
            f"environment.columns so that every rank has a multiple of {len(ids)}"
        )
    if id == ID and processes:
        raise BadEnvironment(f"environment.processes = {processes} has no effect on a {ID}; leave processes out")
    split_columns(id, columns, processes)


def described(specs: Sequence[Spec]) -> Spec:
    """The Spec that they share.

    Raises:
        BadEnvironment: observations or actions differ.
    """
    head = specs[0]
    for spec in specs[1:]:
        for item in fields(Spec):
            ours, theirs = getattr(head, item.name), getattr(spec, item.name)
            if item.name != "id" and ours != theirs:
                remedy = "; full_action_space = true gives games of Atari the same" if item.name == "actions" else ""
                raise BadEnvironment(
                    f"{ID}: one policy cannot play {head.id} with {item.name} {ours} and {spec.id} with {theirs}"
                    f"{remedy}"
                )
    return replace(head, id=f"{ID} of {', '.join(spec.id for spec in specs)}")


class Mixture:
    """b columns of n environments in turn; see `Environment`."""

    rules_state = None

    def __init__(self, ids: Sequence[str], columns: int, make: Callable[[str, int], Environment]) -> None:
        """``make(id, columns)`` makes each of them; fewer columns than environments play the first ones.

        Raises:
            BadEnvironment: as `described` and ``make``.
        """
        self.columns, self._turns = columns, len(ids)
        self._parts = [make(id, len(range(k, columns, len(ids)))) for k, id in enumerate(ids[:columns])]
        self.spec = described([part.spec for part in self._parts])

    def reset(self, seeds: Array) -> Array:
        """First observations [b, *O] from 31-bit seeds [b]."""
        return self._merged([part.reset(x) for part, x in zip(self._parts, self._split(seeds), strict=True)])

    def send(self, action: Array) -> None:
        """Start moving all columns with action [b, *A]."""
        for part, x in zip(self._parts, self._split(action), strict=True):
            part.send(x)

    def recv(self) -> TimeSteps:
        """Wait for all columns."""
        answers = [part.recv() for part in self._parts]
        return TimeSteps(*(self._merged([getattr(x, item.name) for x in answers]) for item in fields(TimeSteps)))

    def state(self) -> None:
        """A state is one row of each column, and these differ from environment to environment: resumed episodes are
        new."""

    def load(self, state: dict[str, Any]) -> Resumed:
        raise NotImplementedError(f"{self.spec.id} gave no state")

    def close(self) -> None:
        for part in self._parts:
            part.close()

    def _split(self, x: Array) -> list[Array]:
        return [np.ascontiguousarray(x[k :: self._turns]) for k in range(len(self._parts))]

    def _merged(self, parts: list[Array]) -> Array:
        whole = np.empty((self.columns, *parts[0].shape[1:]), parts[0].dtype)
        for k, x in enumerate(parts):
            whole[k :: self._turns] = x
        return whole
