"""The columns of a rank in child processes of it, for Python environments that take longer than a message."""

from __future__ import annotations

import atexit
import os
import random
import signal
import socket
import struct
import time
from multiprocessing import get_context
from multiprocessing.connection import wait
from threading import Thread
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc_rl.envs import forkserver
from hpc_rl.envs.base import BadEnvironment, Resumed, TimeSteps
from hpc_rl.envs.child import Maker, serve
from hpc_rl.envs.column_shares import Processes, joined, split_columns
from hpc_rl.patience import Patience
from hpc_rl.types import Array, Spec

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

LOOK_S = 1.0  # between two looks at the clock while answers are awaited
GRACE_S = 5.0  # for the environments' own close, then SIGKILL
_INHERITED = ("CUDA_VISIBLE_DEVICES",)  # decided after the server started


class SubprocessEnvironment:
    """b columns shared out over processes; see `Environment`. Each column moves as it would in this process."""

    rules_state = None  # it would have to be sent with every move

    def __init__(self, make: Maker, id: str, arguments: dict[str, Any], columns: int, processes: Processes) -> None:
        """Start the processes and make every environment in them, by ``make``, a function of a module.

        Raises:
            BadEnvironment: as `shares`, `forkserver.start` and `make.make`; or a process dies or takes too long.
        """
        self.columns = columns
        self._id = id
        self._deadline_s, self._patience = processes.deadline_s, Patience(processes.deadline_s)
        self._shares = split_columns(id, columns, processes.count)
        self._pipes: list[Connection[Any, Any]] = []
        self._processes: list[Any] = []
        forkserver.start()
        atexit.register(self.close)  # runs before multiprocessing's own handler, which would wait for ever
        try:
            self._start_in_time(make, arguments)
            self.spec: Spec = self._answers()[0]
        except BaseException:
            self.close()
            raise

    def _start_in_time(self, make: Maker, arguments: dict[str, Any]) -> None:
        """`_start` in a thread that can be given up: Python waits for the fork server without a deadline."""
        self._begin("its making")
        failures: list[Exception] = []
        thread = Thread(target=self._start, args=(make, arguments, failures), daemon=True)
        thread.start()
        thread.join(self._deadline_s)
        if thread.is_alive():
            raise BadEnvironment(f"{self._id}: the server of its processes has not answered for {self._deadline_s:g} s")
        if failures:
            raise failures[0]

    def _start(self, make: Maker, arguments: dict[str, Any], failures: list[Exception]) -> None:
        try:
            self._start_all(make, arguments)
        except Exception as error:
            failures.append(error)

    def _start_all(self, make: Maker, arguments: dict[str, Any]) -> None:
        context = get_context("forkserver")
        seed = random.getrandbits(63)  # of this rank's stream: other children each time, and the same in every run
        variables = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        for share in self._shares:
            ours, theirs = context.Pipe()
            _limit(ours, self._deadline_s)
            # Not a daemon: those may not start processes themselves, and an environment might.
            given = (theirs, make, self._id, arguments, share, variables, seed)
            process = context.Process(target=serve, args=given, daemon=False)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def reset(self, seeds: Array) -> Array:
        """First observations [b, *O] from 31-bit seeds [b]. Raises as `recv`."""
        self._order("reset", [seeds[c : c + 1] for c in range(self.columns)])
        observation: Array = np.concatenate(self._answers())
        return observation

    def send(self, action: Array) -> None:
        """Start stepping in every process with action [b, *A]; returns at once."""
        self._order("step", [action[c : c + 1] for c in range(self.columns)])

    def recv(self) -> TimeSteps:
        """Wait for every process.

        Raises:
            BadEnvironment: a column raised something, or a process died or is late; columns count from 0 on this rank.
        """
        moves: TimeSteps = joined(self._answers())
        return moves

    def state(self) -> dict[str, Any]:
        """As of the same columns in one process. Raises as `recv`."""
        self._order("state", [None] * self.columns)
        merged: dict[str, Any] = _merged([state for answer in self._answers() for state in answer])
        return merged

    def load(self, state: dict[str, Any]) -> Resumed:
        """Go on exactly where `state` was taken. Raises as `recv`."""
        self._order("load", [_cut(state, c) for c in range(self.columns)])
        resumed: Resumed = joined(self._answers())
        return resumed

    def close(self) -> None:
        """Let every process close its environments and end, within `GRACE_S`."""
        atexit.unregister(self.close)
        for pipe in self._pipes:
            pipe.close()
        end = time.monotonic() + GRACE_S
        for process in self._processes:
            process.join(max(0.0, end - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join(1)
        self._pipes, self._processes = [], []

    def _begin(self, doing: str) -> None:
        self._doing = doing
        self._patience.restart()

    def _order(self, order: str, values: list[Any]) -> None:
        self._begin(order)
        for pipe, share in zip(self._pipes, self._shares, strict=True):
            try:
                pipe.send((order, values[share.start : share.stop]))
            except OSError:
                continue  # its end is reported where answers are awaited

    def _answers(self) -> list[Any]:
        found: dict[int, Any] = {}
        while len(found) < len(self._pipes):
            missing = [k for k in range(len(self._pipes)) if k not in found]
            ready = wait([self._pipes[k] for k in missing], min(LOOK_S, self._deadline_s / 8))
            if not ready and self._patience.over():
                raise BadEnvironment(
                    f"{self._id}: {' and '.join(self._name(k) for k in missing)} still in {self._doing} after "
                    f"{self._deadline_s:g} s; it hangs, or resources.deadline_s must be raised"
                )
            for k in missing:
                if self._pipes[k] in ready:
                    found[k] = self._answer(k)
        return [found[k] for k in range(len(self._pipes))]

    def _answer(self, k: int) -> Any:
        try:
            fine, value = self._pipes[k].recv()
        except (EOFError, OSError):
            self._processes[k].join(1)
            raise BadEnvironment(
                f"{self._id}: {self._name(k)} died in {self._doing} ({_cause(self._processes[k].exitcode)}); "
                "its last words, if any, are in the log of the ranks"
            ) from None
        if not fine:
            raise BadEnvironment(value)
        return value

    def _name(self, k: int) -> str:
        share, pid = self._shares[k], self._processes[k].pid
        which = f"column {share.start}" if len(share) == 1 else f"columns {share.start} to {share.stop - 1}"
        return f"process {pid} with {which} of this rank"


def _limit(pipe: Connection[Any, Any], seconds: float) -> None:
    """Bound a message that stops half-way too: one read or write may take so long, then it is an OSError."""
    span = struct.pack("ll", int(seconds), int(seconds % 1 * 1e6))
    with socket.socket(fileno=os.dup(pipe.fileno())) as end:
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            end.setsockopt(socket.SOL_SOCKET, option, span)


def _cause(code: int | None) -> str:
    if code is None:
        return "it closed its pipe"
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"


def _merged(parts: list[Any]) -> Any:
    """States of single columns as one of all: arrays and lists have a row per column."""
    if isinstance(parts[0], dict):
        return {name: _merged([part[name] for part in parts]) for name in parts[0]}
    return np.concatenate(parts) if isinstance(parts[0], np.ndarray) else [x for part in parts for x in part]


def _cut(state: Any, column: int) -> Any:
    if isinstance(state, dict):
        return {name: _cut(value, column) for name, value in state.items()}
    return state[column : column + 1]
