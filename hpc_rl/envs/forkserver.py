"""The process that forks environment processes on request: one per rank, started before MPI.

A process forked from a rank would inherit the threads, locks and mapped memory of MPI and CUDA, and one that carries
the variables of a launcher takes itself for a rank as soon as anything in it initialises MPI. Python's fork server is
neither. Here it is only started right: without those variables, with one thread for each numerical library, ignoring
the signals by which a run is asked to stop, which SLURM sends to every process of a step.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker, set_forkserver_preload
from multiprocessing.util import get_temp_dir

from hpc_rl.envs.base import BadEnvironment
from hpc_rl.launcher_variables import ANY_MPI, TASK

STOPS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
SOCKET_VARIABLE = "HPC_RL_SOCKET_FOLDER"
# Once, not in every child.
_LOADED = ("hpc_rl.envs.socket_folder", "hpc_rl.envs.child", "hpc_rl.envs.make", "gymnasium.vector")
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def start() -> None:
    """Start the server of this process unless it runs; it ends by itself after this process and all its children.

    Raises:
        BadEnvironment: the server's socket cannot be made below TMPDIR.
    """
    set_forkserver_preload(list(_LOADED))
    try:
        # One by one: the tracker's start lifts the block from SIGTERM and SIGINT when it is done.
        for begin in (resource_tracker.ensure_running, forkserver.ensure_running):
            with _launcher_hidden(), _stops_blocked():
                begin()
    except OSError as error:
        raise BadEnvironment(
            f"environment.processes: their server cannot be started ({error}); set TMPDIR to a short local path"
        ) from error


@contextmanager
def _launcher_hidden() -> Iterator[None]:
    """Set the environment that children inherit, and give this process its own back."""
    given = {**dict.fromkeys(_THREADS, "1"), SOCKET_VARIABLE: get_temp_dir()}
    before = dict(os.environ)
    for name in before:
        if name.startswith((*ANY_MPI, *TASK)):
            del os.environ[name]
    os.environ.update(given)
    try:
        yield
    finally:
        for name in given:
            del os.environ[name]
        os.environ.update(before)


@contextmanager
def _stops_blocked() -> Iterator[None]:
    """A block is inherited and loses nothing: what arrives meanwhile reaches this process right after."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
