"""Whether a checkpoint can be taken up: tried by one rank before the others hear of it, while older ones are at hand.

A checksum tells that a file is as it was written, not that the right things were.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from hpc_rl.agent import Agent
from hpc_rl.algorithms.base import Learner, Policy
from hpc_rl.optim.alone import Alone
from hpc_rl.optim.flat import StateDict, flatten
from hpc_rl.runtime.checkpoints import learner_state, load_columns, load_learner
from hpc_rl.storage import checkpoint
from hpc_rl.storage.checkpoint import CorruptCheckpoint
from hpc_rl.storage.untrusted import checked

_META = {
    "env_steps": int, "updates": int, "episodes": int, "recent": list[float], "best": float | None,
    "score": float | None, "steps": dict[str, int], "attempt": int, "fingerprint": dict,
}  # fmt: skip
_RAISED = (KeyError, IndexError, AttributeError, TypeError, ValueError, RuntimeError, ArithmeticError)

Check = Callable[[StateDict, Mapping[str, Any]], None]


def playable(agent: Agent, expected: Mapping[str, Any]) -> Check:
    """A check for `checkpoint.newest` that the weights are those of this job's policy; no learner is needed to play.

    The check raises:
        CorruptCheckpoint: weights are missing, or of another shape or kind.
        IncompatibleCheckpoint: it was written by another job.
    """

    def check(state: StateDict, meta: Mapping[str, Any]) -> None:
        _check_meta(expected, meta)
        with torch.random.fork_rng(devices=[]):
            weights = flatten(agent.make_policy().net)
        try:
            _alike(weights.data, state["weights"], "weights")
        except _RAISED as error:
            raise CorruptCheckpoint(_said(error)) from error

    return check


def usable(agent: Agent, expected: Mapping[str, Any], columns: int | None = None) -> Check:
    """A check of state and meta for `checkpoint.newest`: figures are there, a learner like ours takes the state.

    ``expected`` is what the job must agree on; ``columns`` are those whose samplers the checkpoint has to hold, if any.

    The check raises:
        CorruptCheckpoint: something is missing, or has another shape or kind.
        IncompatibleCheckpoint: it was written by another job.
    """

    def check(state: StateDict, meta: Mapping[str, Any]) -> None:
        _check_meta(expected, meta)
        with torch.random.fork_rng(devices=[]):  # what is drawn later must not depend on this trial
            policy = agent.make_policy()
            learn = agent.make_learner(policy, Alone())
        try:
            ours = _whole(learn)
            for part in ("weights", "learner"):
                _alike(ours[part], state[part], part)
            load_learner(learn, state)
            load_columns(learn, state["columns"], range(expected["environment"]["columns"]))
            if columns is not None:
                _lanes(state["sampler"], policy, columns)
        except _RAISED as error:
            raise CorruptCheckpoint(_said(error)) from error

    return check


def _check_meta(expected: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
    try:
        checked(meta, _META, _META, "meta")
        columns = {str(column) for column in range(expected["environment"]["columns"])}
        if bad_columns := [name for name, step in meta["steps"].items() if name not in columns or step < 0]:
            raise ValueError(f"steps of column {bad_columns[0]!r}")
    except _RAISED as error:
        raise CorruptCheckpoint(_said(error)) from error
    checkpoint.check_compatible(expected, meta["fingerprint"])


def _whole(learn: Learner) -> StateDict:
    """The state of a learner that has stepped once, by nothing: an optimiser has no moments before."""
    for optimizer in learn.optimizers.values():
        optimizer.step()
    return learner_state(learn)


def _alike(expected: Any, saved: Any, key: str) -> None:
    """Shapes and kinds where both have a key. Keys that only one has are for `load` to judge. Raises ValueError."""
    if isinstance(expected, torch.Tensor):
        form = (saved.dtype, tuple(saved.shape)) if isinstance(saved, torch.Tensor) else type(saved).__name__
        if form != (expected.dtype, tuple(expected.shape)):
            raise ValueError(f"{key} is {form}, this job needs {expected.dtype}, {tuple(expected.shape)}")
    elif isinstance(expected, dict):
        if not isinstance(saved, dict):
            raise ValueError(f"{key} is a {type(saved).__name__}")
        for name in expected.keys() & saved.keys():
            _alike(expected[name], saved[name], f"{key}/{name}")
    elif isinstance(expected, int | float) and not isinstance(saved, int | float):
        raise ValueError(f"{key} is a {type(saved).__name__}")


def _lanes(state: Mapping[str, Any], policy: Policy, columns: int) -> None:
    """Every column has its stream or key, its steps and, where environments were saved, what its policy saw last."""
    if sorted(int(column) for column in state["columns"]) != list(range(columns)):
        raise ValueError(f"sampler does not hold the columns 0 to {columns - 1}")
    for name in ("steps", "first", "reward", "running_return", "running_length", "bad_rows"):
        if tuple(state[name].shape) != (columns,):
            raise ValueError(f"sampler/{name} is {tuple(state[name].shape)}, this job needs ({columns},)")
    draws = state["keys" if "keys" in state else "streams"]
    if len(draws) != columns:
        raise ValueError(f"sampler holds {len(draws)} random streams of {columns}")
    for saved in draws if "streams" in state else ():
        np.random.PCG64(0).state = saved
    if state["environment"] is not None:
        if absent := policy.carry.keys() - state["carry"].keys():
            raise ValueError(f"sampler/carry has no {min(absent)!r}")
        _alike(policy.initial_carry(columns), state["carry"], "sampler/carry")


def _said(error: BaseException) -> str:
    return f"there is no {error}" if isinstance(error, KeyError) else str(error)
