"""Small environments for tests and benchmarks: repeatable from their seeds and cloneable to the bit.

A toy is a value, `Rules`: how an episode begins, what a move does, what is shown. Its memory is a few arrays [b].
`Toy` is the one place that knows about next-step autoreset, frame stacks, sleeping and cloning.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hpc_rl.envs.base import BadEnvironment, Moves
from hpc_rl.types import Actions, Array, Spec

LARGEST = 1000  # of a toy's lengths

Memory = dict[str, Array]
Generators = list[np.random.Generator]
Outcome = tuple[Array, Array, Array]
"""reward, terminated, truncated of the n columns that moved."""


@dataclass(frozen=True)
class Rules:
    """A toy. ``at`` [n] are the columns concerned; only their rows of the memory may be written."""

    spec: Spec
    memory: dict[str, str]  # name -> dtype of one array [b], zero at the start
    begin: Callable[[Memory, Array, Generators], None]
    move: Callable[[Memory, Array, Array, Generators], Outcome]  # memory, at, action [n, *A]
    show: Callable[[Memory], Array]  # newest frames [b, *frame]


class Toy:
    """b columns of one toy; see `Environment`."""

    def __init__(self, rules: Rules, columns: int) -> None:
        self.spec = rules.spec
        self.columns = columns
        self._rules = rules
        self._sent = (np.zeros(0), 0.0)  # action, clock in seconds
        self._generators = [np.random.default_rng(0) for _ in range(columns)]  # until `reset` or `load`
        self._memory: Memory = {}
        self._ended = np.zeros(columns, bool)
        self._shown = np.zeros((columns, *rules.spec.observation), rules.spec.dtype)

    def reset(self, seeds: Array) -> Array:
        """First observations [b, *O]; seed [b] starts each column's own generator."""
        started = time.monotonic()
        self._generators = [np.random.default_rng(int(seed)) for seed in seeds]
        self._memory = {name: np.zeros(self.columns, dtype) for name, dtype in self._rules.memory.items()}
        self._ended = np.zeros(self.columns, bool)
        self._shown = np.zeros((self.columns, *self.spec.observation), self.spec.dtype)
        self._rules.begin(self._memory, np.arange(self.columns), self._generators)
        self._look(np.ones(self.columns, bool))
        self._sleep(started)
        return self._shown

    def send(self, action: Array) -> None:
        """Take action [b]; the clock of a toy that sleeps starts here."""
        self._sent = (np.array(action), time.monotonic())

    def recv(self) -> Moves:
        """Move the columns that play, begin anew those whose last move ended."""
        action, started = self._sent
        first, playing = self._ended, np.flatnonzero(~self._ended)
        reward, terminated, truncated = np.zeros(self.columns, np.float32), first & False, first & False
        self._rules.begin(self._memory, np.flatnonzero(first), self._generators)
        outcome = self._rules.move(self._memory, playing, action[playing], self._generators)
        reward[playing], terminated[playing], truncated[playing] = outcome
        self._ended = terminated | truncated
        self._look(first)
        self._sleep(started)
        return Moves(self._shown, reward, 1 - terminated.astype(np.float32), first, self._ended)

    def _look(self, first: Array) -> None:
        """Take the newest frame in; always into a fresh array, so that what was handed out stays as it was."""
        frame = self._rules.show(self._memory).astype(self.spec.dtype)
        if self.spec.stack == 1:
            self._shown = frame
            return
        self._shown = np.concatenate([self._shown[:, 1:], frame[:, None]], 1)
        self._shown[first, :-1] = 0

    def _sleep(self, started: float) -> None:
        """Until the slowest column is ready, for toys that keep ``busy_s``."""
        if "busy_s" in self._memory:
            time.sleep(max(0.0, started + float(self._memory["busy_s"].max()) - time.monotonic()))

    def state(self) -> dict[str, Any]:
        """Plain values and arrays; large integers in ``generators`` are Python's."""
        return {
            "memory": {name: x.copy() for name, x in self._memory.items()},
            "ended": self._ended.copy(),
            "shown": self._shown.copy(),
            "generators": [dict(generator.bit_generator.state) for generator in self._generators],
        }

    def load(self, state: dict[str, Any]) -> Array:
        """Go on exactly where `state` was taken; current observations [b, *O].

        Raises:
            BadEnvironment: the state has another number of columns.
        """
        if len(state["generators"]) != self.columns:
            raise BadEnvironment(
                f"{self.spec.id}: a state of {len(state['generators'])} columns does not fit {self.columns}; "
                "resume with the layout it was saved with"
            )
        kinds = self._rules.memory
        self._memory = {name: np.asarray(x, kinds[name]).copy() for name, x in state["memory"].items()}
        self._ended = np.asarray(state["ended"], bool).copy()
        self._shown = np.asarray(state["shown"], self.spec.dtype).copy()
        for generator, saved in zip(self._generators, state["generators"], strict=True):
            generator.bit_generator.state = saved
        return self._shown

    def close(self) -> None:
        """Nothing is held."""


def _spec(id: str, frame: tuple[int, ...], actions: int, dtype: str = "float32", stack: int = 1) -> Spec:
    return Spec(id, frame, dtype, Actions("discrete", (actions,)), stack, "zeros", cloneable=True)


def _one_hot(index: Array, size: int) -> Array:
    return np.eye(size, dtype=np.float32)[index]


def _within(id: str, **limits: tuple[float, float, float]) -> None:
    """Raise BadEnvironment for the first argument whose (value, lowest, highest) is out of order."""
    for name, (value, low, high) in limits.items():
        if not low <= value <= high:
            raise BadEnvironment(f"{id}: {name} = {value!r} is refused; it must be from {low:g} to {high:g}")


# ---- counter: the witness -------------------------------------------------------------------------------------------


def counter() -> Rules:
    """The witness: rewards are 1, 2, 3, … per column, so that a lost, doubled or reordered step shows in the data.

    Observation [3]: episode number, step within the episode, moves of this column so far. Episode e lasts 5, 7 or 11
    moves in turn (e mod 3) and terminates where e is even, else is truncated. Seeds and actions change nothing.
    """

    def begin(memory: Memory, at: Array, generators: Generators) -> None:
        memory["begun"][at] += 1
        memory["step"][at] = 0

    def move(memory: Memory, at: Array, action: Array, generators: Generators) -> Outcome:
        memory["step"][at] += 1
        memory["total"][at] += 1
        episode = memory["begun"][at] - 1
        over = memory["step"][at] == np.array([5, 7, 11])[episode % 3]
        return memory["total"][at], over & (episode % 2 == 0), over & (episode % 2 == 1)

    def show(memory: Memory) -> Array:
        return np.stack([memory["begun"] - 1, memory["step"], memory["total"]], 1)

    return Rules(_spec("toy/counter", (3,), 2), dict.fromkeys(("begun", "step", "total"), "int64"), begin, move, show)


def faulty(*, at: int = 100, how: str = "raise", once: str = "") -> Rules:
    """The counter, until a column makes its move number ``at``: then "raise" (RuntimeError), "kill" (SIGKILL to this
    process) or "hang" (for ever). With ``once`` = a file name, only the process that creates that file is struck, so
    that one rank of many fails, and not again after a restart.

    Raises:
        BadEnvironment: ``how`` is something else.
    """
    if how not in ("raise", "kill", "hang"):
        raise BadEnvironment(f"toy/faulty: how = {how!r} is none of raise, kill, hang")
    sound = counter()

    def move(memory: Memory, columns: Array, action: Array, generators: Generators) -> Outcome:
        outcome = sound.move(memory, columns, action, generators)
        if (memory["total"][columns] == at).any() and _my_turn(once):
            _strike(how, at)
        return outcome

    return Rules(replace(sound.spec, id="toy/faulty"), sound.memory, sound.begin, move, sound.show)


def _my_turn(once: str) -> bool:
    try:
        if once:
            os.close(os.open(once, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def _strike(how: str, at: int) -> None:
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    while how == "hang":
        time.sleep(3600)
    raise RuntimeError(f"toy/faulty fails at move {at}, as it was told to")


# ---- chain and latency ----------------------------------------------------------------------------------------------


def chain(*, length: int = 8) -> Rules:
    """``length`` states one-hot; action 1 goes right, 0 left; the right end pays 1 and terminates; a time limit of
    4 × length moves truncates."""
    _within("toy/chain", length=(length, 1, LARGEST))

    def begin(memory: Memory, at: Array, generators: Generators) -> None:
        memory["place"][at] = memory["step"][at] = 0

    def move(memory: Memory, at: Array, action: Array, generators: Generators) -> Outcome:
        memory["step"][at] += 1
        there = _walk(memory, at, action, length)
        return there, there, ~there & (memory["step"][at] == 4 * length)

    def show(memory: Memory) -> Array:
        return _one_hot(memory["place"], length)

    return Rules(_spec("toy/chain", (length,), 2), {"place": "int64", "step": "int64"}, begin, move, show)


def _walk(memory: Memory, at: Array, action: Array, length: int) -> Array:
    """One step on the chain; True [n] where it reached the right end."""
    place: Array = np.clip(memory["place"][at] + np.where(action == 1, 1, -1), 0, length - 1)
    memory["place"][at] = place
    return np.equal(place, length - 1)


def latency(
    *,
    length: int = 8,
    step_s: float = 0.02,
    cv: float = 0.5,
    reset_s: float = 1.0,
    end_probability: float = 1 / 50,
    slow: float = 1.0,
    once: str = "",
) -> Rules:
    """A chain that takes time: a move lasts log-normal seconds (mean ``step_s``, coefficient of variation ``cv``), a
    reset ``reset_s``. Any move terminates with ``end_probability``; the right end pays 1 and ends nothing.

    With ``once`` = a file name, the process that creates that file takes ``slow`` times as long for everything.
    """
    _within("toy/latency", length=(length, 1, LARGEST), end_probability=(end_probability, 0, 1), cv=(cv, 0, 100))
    _within("toy/latency", step_s=(step_s, 1e-9, 3600), reset_s=(reset_s, 0, 3600), slow=(slow, 0, LARGEST))
    times: list[float] = []  # found out at the first reset: whoever only asks for the Spec must not take the turn

    def factor() -> float:
        if not times:
            times.append(slow if once and _my_turn(once) else 1.0)
        return times[0]

    sigma = float(np.sqrt(np.log1p(cv**2)))
    log_mean = float(np.log(step_s)) - sigma**2 / 2

    def begin(memory: Memory, at: Array, generators: Generators) -> None:
        memory["place"][at] = 0
        memory["busy_s"][at] = factor() * reset_s

    def move(memory: Memory, at: Array, action: Array, generators: Generators) -> Outcome:
        memory["busy_s"][at] = [factor() * generators[column].lognormal(log_mean, sigma) for column in at]
        over = np.array([generators[column].random() < end_probability for column in at], bool)
        return _walk(memory, at, action, length), over, np.zeros(len(at), bool)

    def show(memory: Memory) -> Array:
        return _one_hot(memory["place"], length)

    return Rules(_spec("toy/latency", (length,), 2), {"place": "int64", "busy_s": "float64"}, begin, move, show)


# ---- catch ----------------------------------------------------------------------------------------------------------


def catch(*, rows: int = 10, columns: int = 5, pixels: bool = False, stack: int = 1) -> Rules:
    """A ball falls from a random column of the board; the paddle below goes left, stays or goes right (0, 1, 2). The
    last row pays +1 where the paddle is under it, else -1, and terminates: rows - 1 moves an episode.

    Shows float32 [rows × columns] of 0 and 1, or with ``pixels`` uint8 frames [rows, columns] of 0 and 255.

    Raises:
        BadEnvironment: a stack without pixels.
    """
    if stack > 1 and not pixels:
        raise BadEnvironment("toy/catch: stack needs pixels = true")
    _within("toy/catch", rows=(rows, 2, LARGEST), columns=(columns, 1, LARGEST), stack=(stack, 1, 32))

    def begin(memory: Memory, at: Array, generators: Generators) -> None:
        memory["ball"][at] = [generators[column].integers(columns) for column in at]
        memory["row"][at] = 0
        memory["paddle"][at] = columns // 2

    def move(memory: Memory, at: Array, action: Array, generators: Generators) -> Outcome:
        memory["row"][at] += 1
        memory["paddle"][at] = np.clip(memory["paddle"][at] + action - 1, 0, columns - 1)
        over = memory["row"][at] == rows - 1
        caught = np.where(memory["paddle"][at] == memory["ball"][at], 1, -1)
        return np.where(over, caught, 0), over, np.zeros(len(at), bool)

    def show(memory: Memory) -> Array:
        every = np.arange(len(memory["ball"]))
        board = np.zeros((len(every), rows, columns), np.float32)
        board[every, memory["row"], memory["ball"]] = 1
        board[every, -1, memory["paddle"]] = 1
        return board * 255 if pixels else board.reshape(len(every), -1)

    frame, dtype = ((rows, columns), "uint8") if pixels else ((rows * columns,), "float32")
    memory = dict.fromkeys(("ball", "row", "paddle"), "int64")
    return Rules(_spec("toy/catch", frame, 3, dtype, stack), memory, begin, move, show)


TOYS: dict[str, Callable[..., Rules]] = {
    "toy/counter": counter,
    "toy/chain": chain,
    "toy/catch": catch,
    "toy/latency": latency,
    "toy/faulty": faulty,
}
