"""Fragments: their schema, their memory, and the `Trajectory` that a learner sees of them."""

from __future__ import annotations

import json
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from hpc_rl.devices import to_device
from hpc_rl.types import ENDS, Actions, Leaf, Rows, Schema, Spec, Trajectory, Tree

if TYPE_CHECKING:
    from torch import Tensor

_DISCOUNT = "0 where the move terminated the episode, -1 where the other player moves next, else 1"


def fragment_bytes(schema: Schema, steps: int, columns: int, stack: int) -> int:
    """Bytes of one fragment without padding."""
    leaves = schema.values()
    return sum(prod(leaf.array_shape(steps, columns, stack)) * np.dtype(leaf.dtype).itemsize for leaf in leaves)


def trajectory_schema(spec: Spec, extras: Schema, carry: Schema, fragment_noise: int = 0) -> Schema:
    """Every leaf of a fragment; the one source of buffers, messages and HDF5 datasets.

    ``fragment_noise`` is the M of a policy that draws uniforms once for each fragment.
    """
    rows: Rows = "frame" if spec.stack > 1 else "edge"
    schema = {
        "observation": Leaf(spec.frame, spec.dtype, rows, "", "single frames; stacks are rebuilt by `stacked`"),
        "first": Leaf((), "bool", "edge", "", "this observation opens an episode"),
        "action": Leaf(spec.actions.shape, spec.actions.dtype, "step", "", _chosen(spec.actions)),
        "reward": Leaf((), "float32", "step", "", "raw reward of the move, as it came"),
        "discount": Leaf((), "float32", "step", "", _DISCOUNT),
        "version": Leaf((), "int64", "step", "update", "learner update of the acting weights"),
        "episode_return": Leaf((), "float32", "step", "", "raw return of the whole episode this move ended, else NaN"),
        "episode_success": Leaf((), "float32", "step", "", "success, 0..1, of the episode this move ended, else NaN"),
        "episode_length": Leaf((), "int32", "step", "env step", "moves of the episode that this move ended, else 0"),
        "column": Leaf((), "int32", "fragment", "", "global number of the environment column"),
        "start": Leaf((), "int64", "fragment", "env step", "the column's env-step number at row 0"),
        "attempt": Leaf((), "int32", "fragment", "", "how often the job had been started before"),
    }
    if fragment_noise:
        text = "uniforms that the policy drew once for this fragment"
        schema["noise"] = Leaf((fragment_noise,), "float32", "fragment", "", text)
    schema |= {f"extras/{name}": leaf for name, leaf in extras.items()}
    schema |= {f"carry/{name}": leaf for name, leaf in carry.items() if not leaf.local}
    return schema


def _chosen(actions: Actions) -> str:
    """What a reader of recorded actions must know."""
    text = "what the policy chose"
    if actions.kind != "box":
        return text
    bounds = [list(span) if span else None for span in actions.scaled_to]
    return f"{text}; the environment got its −1..1 scaled to {json.dumps(bounds)}, null as it was"


def allocate(schema: Schema, steps: int, columns: int, stack: int) -> Tree:
    """Zeroed arrays of every leaf for T = ``steps`` and b = ``columns``."""
    return {name: np.zeros(leaf.array_shape(steps, columns, stack), leaf.dtype) for name, leaf in schema.items()}


def part(tree: Tree, prefix: str) -> Tree:
    """The leaves below ``prefix/`` under their short names."""
    return {name.removeprefix(prefix + "/"): x for name, x in tree.items() if name.startswith(prefix + "/")}


def stacked(frames: Tensor, first: Tensor, stack: int, padding: str) -> Tensor:
    """Observations [T+1, b, stack, *frame] from frames [T+stack, b, *frame] and first [T+1, b].

    Row 0 keeps the environment's own stack (its frames were copied as they stood). From row 1 on, a frame from before
    the episode's first row is replaced by what the environment pads with: zeros, or the episode's first frame. Where no
    episode opens behind row 0 it is a view of ``frames``, a part of the bytes: to be read only.
    """
    import torch

    rows, opens = first.shape[0], first[1:].nonzero().tolist()
    if not opens:
        return frames.unfold(0, stack, 1).movedim(-1, 2)
    out = torch.stack([frames[k : k + rows] for k in range(stack)], 2)
    for row, column in opens:
        for later in range(row + 1, min(row + stack, rows)):
            if later > row + 1 and bool(first[later, column]):
                break
            padded = stack - 1 - (later - row - 1)
            out[later, column, :padded] = frames[row + stack, column] if padding == "repeat" else 0
    return out


def trajectory(trees: list[Tree], spec: Spec, device: str = "cpu") -> Trajectory:
    """One learner's view of fragments side by side on the column axis, on its device; ``chance`` is 1 where not given.

    Raises:
        KeyError: a tree lacks a leaf of ``trajectory_schema``.
    """
    import torch

    def joined(name: str) -> Tensor:
        axis = 0 if name.startswith("carry/") or name in ENDS else 1
        parts = [to_device(tree[name], "cpu") for tree in trees]
        return to_device(parts[0] if len(parts) == 1 else torch.cat(parts, axis), device)

    def family(prefix: str) -> dict[str, Tensor]:
        return {name: joined(f"{prefix}/{name}") for name in part(trees[0], prefix)}

    first, observation = joined("first"), joined("observation")
    if spec.stack > 1:
        observation = stacked(observation, first, spec.stack, spec.padding)
    plain = {name: joined(name) for name in ("action", "discount", "version", "column", "start")}
    observation, reward, finite = _cleaned(observation, joined("reward"))
    rows = {"observation": observation, "first": first, "reward": reward, "finite": finite}
    columns = len(plain["column"])
    noise = joined("noise") if "noise" in trees[0] else torch.zeros(columns, 0, device=device)
    ends = {"chance": joined("chance") if "chance" in trees[0] else torch.ones(columns, device=device), "noise": noise}
    return Trajectory(**rows, extras=family("extras"), carry=family("carry"), **plain, **ends)


def _cleaned(observation: Tensor, reward: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """observation [T+1, b, *O] and reward [T, b] with 0 for what is not finite; [T, b] which moves needed none."""
    finite = reward.isfinite()
    if observation.is_floating_point():
        row = observation.isfinite().flatten(2).all(2)
        finite = finite & row[:-1] & row[1:]
    if not finite.all():
        observation, reward = (x.nan_to_num(0.0, 0.0, 0.0) for x in (observation, reward))
    return observation, reward, finite
