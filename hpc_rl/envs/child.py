"""A process that holds some columns of a rank: orders come in by a pipe, answers go out, and it ends with the rank."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import parent_process
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc_rl.envs.base import BadEnvironment, Environment
from hpc_rl.envs.column_shares import joined
from hpc_rl.envs.forkserver import STOPS
from hpc_rl.envs.generators import seed_shared

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

Maker = Callable[[str, dict[str, Any], int], Environment]  # environments of (id, arguments, columns)

# What an order does with one column and its value, in rounds: a toy that takes time has its clock started by send.
_ROUNDS: dict[str, tuple[Callable[[Environment, Any], Any], ...]] = {
    "reset": (lambda environment, seed: environment.reset(seed),),
    "step": (lambda environment, action: environment.send(action), lambda environment, _: environment.recv()),
    "state": (lambda environment, _: environment.state(),),
    "load": (lambda environment, state: environment.load(state),),
}


def serve(
    pipe: Connection[Any, Any], make: Maker, id: str, arguments: dict[str, Any], columns: range,
    variables: dict[str, str], seed: int,
) -> None:  # fmt: skip
    """Make one environment per column and carry out orders until the rank closes the pipe.

    Answers are (True, value) or (False, a sentence); whatever an environment raises becomes such a sentence.
    """
    _die_with_the_rank()
    _ignore_stops()
    os.environ.update(variables)
    seed_shared(seed, columns.start)  # what a fork server's child inherits is neither its own nor repeatable
    environments: list[Environment] = []
    try:
        environments += [make(id, arguments, 1) for _ in columns]
        pipe.send((True, environments[0].spec))
    except BadEnvironment as error:
        pipe.send((False, str(error)))
    with suppress(EOFError, OSError):  # the rank has closed the pipe, perhaps without waiting for the last answer
        while True:
            order, values = pipe.recv()
            pipe.send(_carry_out(id, columns, environments, order, values))
    for environment in environments:
        environment.close()


def _carry_out(
    id: str, columns: range, environments: list[Environment], order: str, values: list[Any]
) -> tuple[bool, Any]:
    """An environment's trace goes to stderr, which is the rank's log: the sentence alone would not lead to its line."""
    results: list[Any] = []
    try:
        for work in _ROUNDS[order]:
            results = []
            for environment, value in zip(environments, values, strict=True):
                results.append(work(environment, value))
    except BaseException as error:
        if isinstance(error, BadEnvironment):
            return False, str(error)
        column = columns[len(results)]
        sys.stderr.write(traceback.format_exc())  # at once, so that those of several processes do not mix
        return False, f"{id}: column {column} of this rank failed in {order}: {type(error).__name__}: {error}"
    if order == "state":
        return True, results
    return True, np.concatenate(results) if order == "reset" else joined(results)


def _die_with_the_rank() -> None:
    """Have the kernel kill this process once the rank is gone, however it went and whatever is going on here.

    The rank holds the only write end of the sentinel. A signal at its closing needs no thread of ours, which would
    wait for ever behind foreign code that keeps the GIL. PR_SET_PDEATHSIG would watch the fork server, not the rank.
    """
    parent = parent_process()
    assert parent is not None
    sentinel = int(parent.sentinel)
    fcntl.fcntl(sentinel, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(sentinel, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(sentinel, fcntl.F_SETFL, fcntl.fcntl(sentinel, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([sentinel], [], [], 0)[0]:  # it was gone before
        os._exit(1)


def _ignore_stops() -> None:
    """Stopping is the rank's affair. A handler, not SIG_IGN or the server's block: programs that an environment starts
    would inherit those, and could not be terminated."""
    for number in STOPS:
        signal.signal(number, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
