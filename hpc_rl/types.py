"""The nouns that every room shares: Spec, Schema, Trajectory, Act, Update.

Dimensions:  T time · B environment columns of the job · b columns of this rank · A actions · K uniforms per move.
Units:       env step = one agent decision (valid moves only) · frames = env steps × action repeat ·
             update = one ``Learner.update`` · names of seconds end in ``_s``, of bytes in ``_bytes``.

One termination and one truncation, as they look in a column (next-step autoreset, T = 6)::

    row            0      1      2      3      4      5      6
    first          1      0      0      1      0      0      1     row t opens an episode
    observation   o0     o1    LAST    o0'    o1'   LAST'   o0"    a LAST row is a real observation
    discount           1      0      *      1      1      *        0: the move into LAST terminated; LAST' did not
    valid              1      1      0      1      1      0        not first[1:]: the move LAST -> FIRST never happened

So a time limit bootstraps from V(LAST'), a termination from nothing (its discount is 0), and every recursion is cut at
``valid == 0`` because the following row belongs to another episode. ``*`` may hold any finite number; it is never used.

A move whose reward, or either of whose observations, is not finite is not valid either (`Trajectory.finite`): the moves
before it bootstrap from the last row that is. It stays an env step, and its numbers are 0 for who learns.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # `show`, `list` and `submit` read this file and must start without torch
    import torch
    from torch import Tensor

Array = NDArray[Any]
Tree = dict[str, Array]
"""Leaf name -> array; the fragments that samplers fill, channels carry and segments store."""

Rows = Literal["step", "edge", "frame", "fragment"]


@dataclass(frozen=True)
class Leaf:
    """One named array of a fragment: ``[rows, b, *shape]``, or ``[b, *shape]`` where rows is "fragment"."""

    shape: tuple[int, ...]
    dtype: str
    rows: Rows = "step"
    unit: str = ""
    doc: str = ""

    def array_shape(self, steps: int, columns: int, stack: int) -> tuple[int, ...]:
        """The full shape for ``steps`` = T moves of ``columns`` = b environments whose observations stack frames."""
        rows = {"step": steps, "edge": steps + 1, "frame": steps + stack}
        head = (columns,) if self.rows == "fragment" else (rows[self.rows], columns)
        return head + self.shape


Schema = Mapping[str, Leaf]


def fragment_bytes(schema: Schema, steps: int, columns: int, stack: int) -> int:
    """Bytes of one fragment without padding."""
    leaves = schema.values()
    return sum(prod(leaf.array_shape(steps, columns, stack)) * np.dtype(leaf.dtype).itemsize for leaf in leaves)


@dataclass(frozen=True)
class Actions:
    """What a policy may choose: ``sizes`` are category counts (discrete, multidiscrete) or the box's dimension.

    ``low`` and ``high`` are what the environment takes; where both are finite a policy's −1..1 is scaled to them.
    """

    kind: Literal["discrete", "multidiscrete", "box"]
    sizes: tuple[int, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one action: () for discrete, (choices,) for multidiscrete, (dimension,) for a box."""
        return {"discrete": (), "multidiscrete": (len(self.sizes),), "box": self.sizes}[self.kind]

    @property
    def scaled_to(self) -> tuple[tuple[float, float] | None, ...]:
        """Of each entry of a box the bounds that −1..1 is scaled to; None without two, or where float32 cannot hold
        the distance between them."""
        largest = float(np.finfo(np.float32).max)
        bounds = zip(self.low, self.high, strict=True)
        return tuple((low, high) if high - low <= largest else None for low, high in bounds)

    @property
    def dtype(self) -> str:
        return "float32" if self.kind == "box" else "int64"


@dataclass(frozen=True)
class Spec:
    """What an environment shows and accepts. ``frame`` is the shape of one observation without its stack."""

    id: str
    frame: tuple[int, ...]
    dtype: str
    actions: Actions
    stack: int = 1
    padding: Literal["zeros", "repeat"] = "zeros"  # what fills a stack before an episode has `stack` frames
    action_repeat: int = 1
    cloneable: bool = False  # its exact state can be written into a checkpoint

    @property
    def observation(self) -> tuple[int, ...]:
        """Shape of one observation as the policy sees it."""
        return (self.stack, *self.frame) if self.stack > 1 else self.frame


@dataclass(frozen=True)
class Step:
    """What a policy sees before a move: observation [b, *O], first [b] bool, reward [b] that led here (raw)."""

    observation: Tensor
    first: Tensor
    reward: Tensor


@dataclass(frozen=True)
class Act:
    """What a policy answers: action [b, *A], carry {name: [b, …]}, extras {name: [b, …]} to be remembered."""

    action: Tensor
    carry: dict[str, Tensor]
    extras: dict[str, Tensor]


ROWS = ("observation", "first", "action", "reward", "discount", "extras", "version", "finite")
"""Fields of a Trajectory that have a row per move or observation; the others have one value per column."""


@dataclass(frozen=True)
class Trajectory:
    """T moves of b columns, time-major; see the picture at the top of this file."""

    observation: Tensor  # [T+1, b, *O]
    first: Tensor  # [T+1, b] bool
    action: Tensor  # [T, b, *A]
    reward: Tensor  # [T, b] float32, raw
    discount: Tensor  # [T, b] float32, 0 iff the move terminated (γ belongs to the learner)
    extras: dict[str, Tensor]  # [T, b, …]
    carry: dict[str, Tensor]  # [b, …] before row 0
    version: Tensor  # [T, b] int64, learner update of the acting weights
    finite: Tensor  # [T, b] bool, reward and both observations were finite; what was not is 0 here
    column: Tensor  # [b] int32
    start: Tensor  # [b] int64, the column's env-step number at row 0

    @property
    def valid(self) -> Tensor:
        """[T, b] bool: False for the move LAST -> FIRST, which never happened, and where numbers are missing."""
        return ~self.first[1:] & self.finite

    def columns(self, keep: slice) -> Trajectory:
        """The same moves of some columns only."""
        return Trajectory(
            **{name: getattr(self, name)[:, keep] for name in ROWS if name != "extras"},
            extras={name: x[:, keep] for name, x in self.extras.items()},
            carry={name: x[keep] for name, x in self.carry.items()},
            column=self.column[keep],
            start=self.start[keep],
        )


def to_host(x: Tensor) -> Array:
    """The tensor's numbers as an array, without their graph: its own memory where it lies on the host, else a copy."""
    found: Array = x.detach().cpu().numpy()
    return found


def write_back(host: Array, x: Tensor) -> None:
    """Bring what was changed in ``host`` since `to_host` gave it for x back into x; nothing where it is x's memory."""
    if x.device.type != "cpu":
        x.copy_(to_device(host, x.device))


def to_device(x: Tensor | Array, device: torch.device | str) -> Tensor:
    """A tensor on ``device`` with the numbers of ``x``, whose own memory it is where x lies there already.

    Tensors change device by these three functions and nowhere else (tests/test_import_law.py): what was made on the
    host, what came by a message and what comes from a file has to be moved, and on one device no test would notice.
    """
    import torch

    return (x if isinstance(x, torch.Tensor) else torch.from_numpy(x)).to(device)


def moved(batch: Trajectory, device: torch.device | str) -> Trajectory:
    """The same moves on ``device``."""

    def family(leaves: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: to_device(x, device) for name, x in leaves.items()}

    names = [name for name in vars(batch) if name not in ("extras", "carry")]
    plain: dict[str, Any] = {name: to_device(getattr(batch, name), device) for name in names}
    return Trajectory(extras=family(batch.extras), carry=family(batch.carry), **plain)


def beside(parts: list[Trajectory]) -> Trajectory:
    """Copies of fragments of equal length, side by side on the column axis."""
    import torch

    def joined(found: list[Any]) -> Any:
        if isinstance(found[0], dict):
            return {name: joined([x[name] for x in found]) for name in found[0]}
        return torch.cat(found, 1)

    rows: dict[str, Any] = {name: joined([getattr(part, name) for part in parts]) for name in ROWS}
    carry = {name: torch.cat([part.carry[name] for part in parts]) for name in parts[0].carry}
    ends: dict[str, Any] = {name: torch.cat([getattr(part, name) for part in parts]) for name in ("column", "start")}
    return Trajectory(**rows, carry=carry, **ends)


@dataclass(frozen=True)
class Update:
    """What one optimisation round reports; metrics are finite means over what this learner group saw."""

    metrics: dict[str, float]
    priorities: Tensor | None = None


def trajectory_schema(spec: Spec, extras: Schema, carry: Schema) -> Schema:
    """Every leaf of a fragment; the one source of buffers, messages and HDF5 datasets."""
    rows: Rows = "frame" if spec.stack > 1 else "edge"
    schema = {
        "observation": Leaf(spec.frame, spec.dtype, rows, "", "single frames; stacks are rebuilt by `stacked`"),
        "first": Leaf((), "bool", "edge", "", "this observation opens an episode"),
        "action": Leaf(spec.actions.shape, spec.actions.dtype, "step", "", _chosen(spec.actions)),
        "reward": Leaf((), "float32", "step", "", "raw reward of the move, as it came"),
        "discount": Leaf((), "float32", "step", "", "0 iff the move terminated the episode, else 1"),
        "version": Leaf((), "int64", "step", "update", "learner update of the acting weights"),
        "episode_return": Leaf((), "float32", "step", "", "raw return of the whole episode this move ended, else NaN"),
        "episode_length": Leaf((), "int32", "step", "env step", "moves of the episode that this move ended, else 0"),
        "column": Leaf((), "int32", "fragment", "", "global number of the environment column"),
        "start": Leaf((), "int64", "fragment", "env step", "the column's env-step number at row 0"),
        "attempt": Leaf((), "int32", "fragment", "", "how often the job had been started before"),
    }
    schema |= {f"extras/{name}": leaf for name, leaf in extras.items()}
    schema |= {f"carry/{name}": leaf for name, leaf in carry.items()}
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
    the episode's first row is replaced by what the environment pads with: zeros, or the episode's first frame.
    """
    import torch

    rows = first.shape[0]
    # The stack is innermost in memory: what the convolutions want, and one run of bytes for each sample.
    out = torch.stack([frames[k : k + rows] for k in range(stack)], -1).movedim(-1, 2)
    for row, column in first[1:].nonzero().tolist():
        for later in range(row + 1, min(row + stack, rows)):
            if later > row + 1 and bool(first[later, column]):
                break
            missing = stack - 1 - (later - row - 1)
            out[later, column, :missing] = frames[row + stack, column] if padding == "repeat" else 0
    return out


def trajectory(trees: list[Tree], spec: Spec, device: str = "cpu") -> Trajectory:
    """One learner's view of fragments side by side on the column axis, on its device.

    Raises:
        KeyError: a tree lacks a leaf of ``trajectory_schema``.
    """
    import torch

    def joined(name: str) -> Tensor:
        axis = 0 if name.startswith("carry/") or name in ("column", "start") else 1
        parts = [to_device(tree[name], "cpu") for tree in trees]
        return to_device(parts[0] if len(parts) == 1 else torch.cat(parts, axis), device)

    def family(prefix: str) -> dict[str, Tensor]:
        return {name: joined(f"{prefix}/{name}") for name in part(trees[0], prefix)}

    first = joined("first")
    observation = joined("observation")
    if spec.stack > 1:
        observation = stacked(observation, first, spec.stack, spec.padding)
    plain = {name: joined(name) for name in ("action", "discount", "version", "column", "start")}
    observation, reward, finite = _cleaned(observation, joined("reward"))
    rows = {"observation": observation, "first": first, "reward": reward, "finite": finite}
    return Trajectory(**rows, extras=family("extras"), carry=family("carry"), **plain)


def _cleaned(observation: Tensor, reward: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """observation [T+1, b, *O] and reward [T, b] with 0 for what is not finite; [T, b] which moves needed none."""
    finite = reward.isfinite()
    if observation.is_floating_point():
        row = observation.isfinite().flatten(2).all(2)
        finite = finite & row[:-1] & row[1:]
    if not finite.all():
        observation, reward = (x.nan_to_num(0.0, 0.0, 0.0) for x in (observation, reward))
    return observation, reward, finite
