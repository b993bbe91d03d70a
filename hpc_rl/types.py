"""The nouns that every room shares: Spec, Rules, Schema, Trajectory, Step, Act, Update.

Dimensions:  T time · B environment columns of the job · b columns of this rank · A actions · K uniforms per move ·
             M uniforms per fragment.
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
A discount of −1 says that the other player moves next: rewards and values are those of the player who moves, so
r − γ V(x') is what a move is worth to that player (negamax).

A move whose reward, or either of whose observations, is not finite is not valid either (`Trajectory.finite`): the moves
before it bootstrap from the last row that is. It stays an env step, and its numbers are 0 for who learns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # `list` and `submit` read this file and must start without torch
    from torch import Tensor

Array = NDArray[Any]
Tree = dict[str, Array]
"""Leaf name -> array; the fragments that samplers fill, channels carry and segments store."""


class NonFinite(ValueError):
    """A state holds NaN or infinity; nothing of it was written."""


Rows = Literal["step", "edge", "frame", "fragment"]


@dataclass(frozen=True)
class Leaf:
    """One named array of a fragment: ``[rows, b, *shape]``, or ``[b, *shape]`` where rows is "fragment"."""

    shape: tuple[int, ...]
    dtype: str
    rows: Rows = "step"
    unit: str = ""
    doc: str = ""
    local: bool = False  # of a carry that stays with its columns and in their checkpoint, in no fragment: a search tree

    def array_shape(self, steps: int, columns: int, stack: int) -> tuple[int, ...]:
        """The full shape for ``steps`` = T moves of ``columns`` = b environments whose observations stack frames."""
        rows = {"step": steps, "edge": steps + 1, "frame": steps + stack}
        head = (columns,) if self.rows == "fragment" else (rows[self.rows], columns)
        return head + self.shape


Schema = Mapping[str, Leaf]


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
class ObservationPart:
    """Where one part of a Dict or Tuple lies in the vector that it was flattened to: entries start..stop − 1."""

    start: int
    stop: int
    shape: tuple[int, ...]  # of the part itself; categories are one-hot vectors


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
    parts: Mapping[str, ObservationPart] = field(default_factory=dict, hash=False)  # "goal", "arm/joints": of a vector

    @property
    def observation(self) -> tuple[int, ...]:
        """Shape of one observation as the policy sees it."""
        return (self.stack, *self.frame) if self.stack > 1 else self.frame


Numbers = Any
"""A NumPy array or a torch tensor: whatever module the Rules were made with."""

RulesState = dict[str, Any]
"""Name -> array [n, …] of that module: everything that decides how n games go on. Nobody writes into it."""

Map = Callable[[Numbers], Numbers]

GoalReward = Callable[[Numbers, Numbers], tuple[Numbers, Numbers]]
"""achieved goal [.., g] of what a move led to, desired goal [.., g] -> reward [..], discount [..] of that move."""


@dataclass(frozen=True)
class Rules:
    """An environment as pure functions of n games at once, so that it can be cloned, searched, and stepped on a device.

    A function of the array module makes them (`envs/toys.py`: ``catch(np, rows=6)``, ``catch(torch)``). They write into
    no argument and draw nothing: all that is random lies in ``u``, standard uniforms [n, K] in float64 (on a device in
    float32). Discounts are those of `Trajectory`; rewards belong to the player who moves.
    """

    spec: Spec
    begin: Callable[[Numbers], RulesState]  # u [n, begin_uniforms] -> the first state of n episodes
    move: Callable[[RulesState, Numbers, Numbers], tuple[RulesState, Numbers, Numbers, Numbers]]
    """state, action [n, *A], u [n, move_uniforms] -> next state, reward [n], discount [n], truncated [n] bool."""
    show: Callable[[RulesState], Numbers]  # newest frames [n, *frame]
    begin_uniforms: int = 0
    move_uniforms: int = 0
    legal: Map | None = None  # state -> [n, A] bool; None: every action is legal in every state
    success: Map | None = None  # state at the end of an episode -> [n], 0..1; None: no such thing
    goal_reward: GoalReward | None = None  # what ``move`` gives, for the parts of its observation; None: no goals
    symmetries: tuple[tuple[Map, Map], ...] = ()
    """(map of frames [.., *frame], map of actions) pairs, after which a game goes on as it would have."""


@dataclass(frozen=True)
class Step:
    """What a policy sees before a move: observation [b, *O], first [b] bool, reward [b] that led here (raw).

    ``state`` {name: [b, …]} is that of the environment's Rules, for policies that search; None where it is not made of
    Rules or runs in another process, as behind central inference.
    """

    observation: Tensor
    first: Tensor
    reward: Tensor
    state: dict[str, Tensor] | None = None


@dataclass(frozen=True)
class ActOutput:
    """What a policy answers: action [b, *A], carry {name: [b, …]}, extras {name: [b, …]} to be remembered."""

    action: Tensor
    carry: dict[str, Tensor]
    extras: dict[str, Tensor]


ROWS = ("observation", "first", "action", "reward", "discount", "extras", "version", "finite")
"""Fields of a Trajectory that have a row per move or observation."""
ENDS = ("column", "start", "chance", "noise")
"""Fields of a Trajectory that have one value or row per column, as the leaves of ``carry`` do."""


@dataclass(frozen=True)
class Trajectory:
    """T moves of b columns, time-major; see the picture at the top of this file."""

    observation: Tensor  # [T+1, b, *O]
    first: Tensor  # [T+1, b] bool
    action: Tensor  # [T, b, *A]
    reward: Tensor  # [T, b] float32, raw
    discount: Tensor  # [T, b] float32: 0 the move terminated, −1 the other player moves next, else 1; without γ
    extras: dict[str, Tensor]  # [T, b, …]
    carry: dict[str, Tensor]  # [b, …] before row 0
    version: Tensor  # [T, b] int64, learner update of the acting weights
    finite: Tensor  # [T, b] bool, reward and both observations were finite; what was not is 0 here
    column: Tensor  # [b] int32
    start: Tensor  # [b] int64, the column's env-step number at row 0
    chance: Tensor  # [b] float32, P(item) / smallest P in the store, 1 for fresh data: weights are chance^(−β)
    noise: Tensor  # [b, M] float32, what the policy drew once for the fragment

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
            **{name: getattr(self, name)[keep] for name in ENDS},
        )


@dataclass(frozen=True)
class Clock:
    """What weights carry with them: the updates behind them, and the env steps of the job when they were made."""

    version: int
    env_steps: int


@dataclass(frozen=True)
class UpdateResult:
    """What one optimisation round reports; metrics are finite means over what this learner group saw."""

    metrics: dict[str, float]
    priorities: Tensor | None = None
