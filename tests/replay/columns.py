"""Columns of a made-up environment, their whole history, and the fragments that a sampler would make of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from hpc_rl.fragments import allocate, trajectory_schema
from hpc_rl.optim.flat import StateDict
from hpc_rl.replay.ring import Ring
from hpc_rl.replay.saving import Saver
from hpc_rl.storage.packing import from_bytes, to_bytes
from hpc_rl.types import Actions, Leaf, Spec, Tree

FRAME = (2, 3)
EXTRAS = {"opens": Leaf((), "bool"), "closes": Leaf((), "bool"), "q": Leaf((2,), "float32")}


def spec_of(stack: int, padding: str = "zeros") -> Spec:
    return Spec("made-up", FRAME, "uint8", Actions("discrete", (4,)), stack, padding)  # type: ignore[arg-type]


def schema_of(spec: Spec) -> dict[str, Leaf]:
    return dict(trajectory_schema(spec, EXTRAS, {}))


class Folder(dict[str, bytes]):
    """Files of replays in memory: name -> content."""

    def saver(self, attempt: int = 0) -> Saver:
        return Saver(f"a{attempt}", self.write, lambda name: from_bytes(self[name]))

    def write(self, name: str, state: StateDict) -> None:
        assert name not in self, "a file is written once"
        self[name] = to_bytes(state)


def saved(rings: Sequence[Ring]) -> list[StateDict]:
    """Their parts of a checkpoint, with all files written."""
    parts = [from_bytes(to_bytes(ring.state())) for ring in rings]
    for ring in rings:
        assert ring.saver is not None
        ring.saver.flush()
    return parts


@dataclass
class Row:
    """An observation as the environment stacks it, and the move that leaves it; ``action`` counts the rows."""

    stack: list[np.ndarray]
    first: bool
    start: int  # env steps of the column before it
    action: int
    reward: float = 0.0
    discount: float = 1.0
    opens: bool = False
    closes: bool = False
    ended: bool = False


@dataclass
class Column:
    """Next-step autoreset with episodes of random length, whose frames are random bytes and never alike."""

    spec: Spec
    number: int
    draw: np.random.Generator
    mean: float = 5.0  # moves of an episode
    rows: list[Row] = field(default_factory=list)
    action: int = 0

    def __post_init__(self) -> None:
        self.reset(0)

    def reset(self, start: int) -> None:
        """Open an episode as the next row."""
        frame = self.draw.integers(1, 256, FRAME).astype(np.uint8)
        old = frame if self.spec.padding == "repeat" else np.zeros(FRAME, np.uint8)
        self._append([*[old] * (self.spec.stack - 1), frame], True, start)

    def _append(self, stack: list[np.ndarray], first: bool, start: int) -> None:
        self.rows.append(Row(stack, first, start, self.action))
        self.action += 1

    def move(self) -> None:
        """From the newest row to the next one."""
        row = self.rows[-1]
        if row.ended:  # LAST -> FIRST
            self.reset(row.start)
            return
        row.reward, row.opens, row.closes = self.draw.normal(), self.draw.random() < 0.3, self.draw.random() < 0.2
        end = self.draw.random() < 1 / self.mean
        row.discount = 0.0 if end and self.draw.random() < 0.5 else 1.0
        self._append([*row.stack[1:], self.draw.integers(1, 256, FRAME).astype(np.uint8)], False, row.start + 1)
        self.rows[-1].ended = end


def fragment(columns: list[Column], steps: int, version: int = 0) -> Tree:
    """The next ``steps`` moves of all columns."""
    spec = columns[0].spec
    tree = allocate(schema_of(spec), steps, len(columns), spec.stack)
    tree["episode_return"][:] = np.nan
    for k, column in enumerate(columns):
        row = column.rows[-1]
        tree["column"][k], tree["start"][k] = column.number, row.start
        for j in range(spec.stack - 1):
            tree["observation"][j, k] = row.stack[j]
        for t in range(steps + 1):
            row = column.rows[-1]
            tree["observation"][t + spec.stack - 1, k], tree["first"][t, k] = row.stack[-1], row.first
            if t == steps:
                break
            column.move()
            tree["action"][t, k], tree["reward"][t, k], tree["discount"][t, k] = row.action, row.reward, row.discount
            tree["extras/opens"][t, k], tree["extras/closes"][t, k] = row.opens, row.closes
            tree["extras/q"][t, k] = row.action + 0.25
            if column.rows[-1].ended:
                tree["episode_length"][t, k], tree["episode_return"][t, k] = 1, 0.0
    tree["version"][:] = version
    return tree


def columns_of(spec: Spec, width: int, mean: float = 5.0, seed: int = 0) -> list[Column]:
    """Columns 10, 11, … of the job."""
    return [Column(spec, 10 + k, np.random.default_rng([seed, k]), mean, action=10_000 * k) for k in range(width)]
