"""Episodes of a data set as fragments of one column, each led in by the move that never happened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpc_rl.envs.spaces import Observations, chosen
from hpc_rl.export.base import NotExported
from hpc_rl.fragments import trajectory_schema
from hpc_rl.types import Array, Leaf, Schema, Spec, Tree

SUCCESS = ("is_success", "success")  # names in infos


@dataclass(frozen=True)
class Form:
    """What the episodes of a data set become."""

    id: str  # of the data set
    shown: Observations
    action_space: Any
    spec: Spec
    schema: Schema


def form(id: str, shown: Observations, action_space: Any, spec: Spec, episode: Any, leaves: Any) -> Form:
    """As the first episode is; ``leaves`` of the metadata has units and meanings of what a policy remembered."""
    extras = {}
    for name, rows in _extras(episode.infos).items():
        text = leaves.get(f"infos/extras/{name}") if isinstance(leaves, dict) else None
        unit, doc = (str(text.get(key, "")) if isinstance(text, dict) else "" for key in ("unit", "doc"))
        extras[name] = Leaf(rows.shape[1:], rows.dtype.name, "step", unit, doc)
    return Form(id, shown, action_space, spec, trajectory_schema(spec, extras, {}))


def fragment(form: Form, episode: Any, start: int, tail: Array | None) -> tuple[Tree, Array]:
    """An episode of T moves, and the tail of its frames for the next one.

    ``tail`` [stack, *frame] are the last frames of the episode before: its last observation is row 0 here, and the move
    from there to the first observation never happened. ``start`` is the column's env-step number at row 0.

    Raises:
        NotExported: its arrays do not fit together.
    """
    try:
        steps, frames = _rows(form, episode)
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise NotExported(
            f"an episode of data set {form.id} does not fit its spaces or the others: {error!r}"
        ) from error
    moves = len(episode.rewards)
    lengths = {name: len(rows) for name, rows in steps.items()} | {"observation": len(frames) - 1}
    if set(lengths.values()) != {moves}:
        raise NotExported(f"an episode of data set {form.id} has {moves} rewards and other numbers of moves: {lengths}")
    return laid(form.spec, steps, frames, start, tail)


def laid(spec: Spec, steps: Tree, frames: Array, start: int, tail: Array | None) -> tuple[Tree, Array]:
    """`fragment` of leaves [T, …] and frames [T + 1, *frame]."""
    moves, before = len(frames) - 1, _padding(spec, frames) if tail is None else tail
    first = np.arange(moves + 1) == 0
    if tail is not None:
        steps = {name: np.concatenate([np.full_like(rows[:1], _void(name)), rows]) for name, rows in steps.items()}
        first = np.concatenate([[False], first])
    shown = np.concatenate([before, frames])
    tree = {name: rows[:, None] for name, rows in steps.items()} | {
        "observation": shown[:, None],
        "first": first[:, None],
        "column": np.zeros(1, np.int32),
        "start": np.full(1, start, np.int64),
        "attempt": np.zeros(1, np.int32),
    }
    return tree, shown[-spec.stack :]


def _rows(form: Form, episode: Any) -> tuple[Tree, Array]:
    """Leaves with a row for each move, and frames [T + 1, *frame]."""
    moves, extras = len(episode.rewards), _extras(episode.infos)
    steps = {
        "action": chosen(episode.actions, form.action_space, form.spec.actions),
        "reward": np.asarray(episode.rewards, np.float32),
        "discount": 1 - np.asarray(episode.terminations, np.float32),
        "version": _versions(episode.infos, moves),
        **ending(moves, np.sum(episode.rewards), _success(episode.infos)),
    }
    for name in form.schema:
        if name.startswith("extras/"):
            steps[name] = extras[name.removeprefix("extras/")].reshape(moves, *form.schema[name].shape)
    return steps, form.shown.rows(episode.observations)


def ending(moves: int, score: float, success: float) -> Tree:
    """The leaves [T] that say where an episode ends."""
    return {
        "episode_return": _last(moves, score, np.nan, np.float32),
        "episode_success": _last(moves, success, np.nan, np.float32),
        "episode_length": _last(moves, moves, 0, np.int32),
    }


def _void(name: str) -> float:
    """What the move that never happened has."""
    return {"episode_return": np.nan, "episode_success": np.nan}.get(name, 0)


def _padding(spec: Spec, frames: Array) -> Array:
    """The older frames in the stack of an episode's first observation."""
    older = np.repeat(frames[:1], spec.stack - 1, 0)
    return older if spec.padding == "repeat" else np.zeros_like(older)


def _last(moves: int, value: Any, other: float, dtype: Any) -> Array:
    rows = np.full(moves, other, dtype)
    rows[-1] = value
    return rows


def _versions(infos: Mapping[str, Any] | None, moves: int) -> Array:
    rows = np.asarray((infos or {}).get("version", np.zeros(moves)))
    return rows.astype(np.int64) if rows.shape == (moves,) and rows.dtype.kind in "iu" else np.zeros(moves, np.int64)


def _success(infos: Mapping[str, Any] | None) -> float:
    """Of the last move; NaN where it is not known."""
    for name in SUCCESS:
        rows = np.asarray((infos or {}).get(name, []))
        if rows.ndim == 1 and len(rows) and rows.dtype.kind in "biuf":
            return float(rows[-1])
    return float("nan")


def _extras(infos: Mapping[str, Any] | None) -> dict[str, Array]:
    """What a policy of this package remembered, by name, "outer/inner" of groups."""
    found: dict[str, Array] = {}

    def add(prefix: str, table: Mapping[str, Any]) -> None:
        for name, value in table.items():
            if isinstance(value, Mapping):
                add(f"{prefix}{name}/", value)
            else:
                found[f"{prefix}{name}"] = np.asarray(value)

    remembered = (infos or {}).get("extras")
    add("", remembered if isinstance(remembered, Mapping) else {})
    return found
