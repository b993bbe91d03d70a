"""What a sampler needs of environments: columns that step together, with next-step autoreset."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, Protocol

from hpc_rl.types import Array, RulesState, Spec

SUCCESS = "is_success"  # the one entry of Gymnasium's info that is kept, where an environment gives it


@dataclass(frozen=True)
class TimeSteps:
    """The answer of b columns to one action each.

    Under next-step autoreset the move after a LAST observation ignores its action, has reward 0 and returns the first
    observation of the next episode with ``first`` true. Episode returns belong to whole games, so ``ended`` marks the
    move that finished one, also where ``discount`` is 0 at every lost life.
    """

    observation: Array  # [b, *O]
    reward: Array  # [b] float32, raw
    discount: Array  # [b] float32: 0 the move terminated, −1 the other player moves next, else 1
    first: Array  # [b] bool, this observation opens an episode
    ended: Array  # [b] bool, the whole episode ended with this move (terminated or truncated)
    success: Array  # [b] float32, 0..1, of the episode that ended with this move; NaN where unknown or none ended


@dataclass(frozen=True)
class Resumed:
    """Where b columns go on after `Environment.load`."""

    observation: Array  # [b, *O]
    lost: Array  # [b] str, why the open episode could not be taken up, so that a new one begins; "" where it could


class Environment(Protocol):
    """b environment columns behind one call."""

    spec: Spec
    columns: int

    @property
    def rules_state(self) -> RulesState | None:
        """State {name: [b, …]} after the last answer; None where it is not made of Rules, or not in this process."""
        ...

    def reset(self, seeds: Array) -> Array:
        """Start every column afresh from its 31-bit seed [b]; the first observations [b, *O]."""
        ...

    def send(self, action: Array) -> None: ...

    def recv(self) -> TimeSteps: ...

    def state(self) -> dict[str, Any] | None:
        """Everything `load` needs to go on exactly here; None where open episodes cannot be taken up."""
        ...

    def load(self, state: dict[str, Any]) -> Resumed:
        """Take a state up; never called where `state` gives None."""
        ...

    def close(self) -> None: ...


def close(environment: Any, id: str) -> None:
    """Close it; what its close() raises is a warning on stderr, for by then its work is done."""
    try:
        environment.close()
    except (Exception, SystemExit) as error:
        print(f"warning: {id}: close() raised {type(error).__name__}: {error}", file=sys.stderr, flush=True)


class BadEnvironment(ValueError):
    """The environment cannot be made or used; the message names the id and the remedy."""
