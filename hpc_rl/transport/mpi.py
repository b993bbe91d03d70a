"""The only file that imports mpi4py: `Link` over MPI, non-blocking throughout, buffers only, never a pickle."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Sequence

import numpy as np
from mpi4py import MPI

from hpc_rl.transport.waiting import Done
from hpc_rl.types import Array

_NODE_VARIABLE = "HPC_RL_RANKS_PER_NODE"  # tests pretend several nodes on one host
_SWEEP_AT = 256  # requests held before complete ones are looked for


class WrongWorld(RuntimeError):
    """MPI's world is not the one that the launcher started."""


class TooFewThreads(RuntimeError):
    """The MPI library does not allow calls from several threads at once."""


class Ended(RuntimeError):
    """A rank that the others need has ended, as MPI reports."""


class MpiLink:
    """Point to point on one duplicate of the world, reductions on a communicator per set of members."""

    spin_s = 0.005  # a reduction only moves on while it is tested

    def __init__(self, world: MPI.Intracomm) -> None:
        self.comm = world.Dup()
        self.rank, self.size = world.rank, world.size
        self.tolerated: Collection[int] = ()
        self.failed: set[int] = set()
        # Made at start, which waits for every rank anyway; later, a lost rank would block for ever.
        self._groups: dict[tuple[int, ...], MPI.Intracomm] = {tuple(range(world.size)): world.Dup()}
        self._open: list[tuple[MPI.Request, Array]] = []
        self._lock = threading.Lock()

    def isend(self, data: Array, peer: int, tag: int) -> Done:
        return self._begun(lambda: self.comm.Isend(data, peer, tag), data, peer, True)

    def irecv(self, data: Array, peer: int, tag: int) -> Done:
        return self._begun(lambda: self.comm.Irecv(data, peer, tag), data, peer, False)

    def _begun(self, begin: Callable[[], MPI.Request], data: Array, peer: int, sending: bool) -> Done:
        """Where ends are tolerated, a send to a peer that has ended is done, and a receive never will be."""
        if not self.tolerated:
            return self._held(begin(), data)
        tests: list[Done] = []

        def done() -> bool:
            try:
                if not tests:
                    tests.append(self._held(begin(), data))
                return tests[0]()
            except MPI.Exception as error:
                if error.Get_error_class() not in (MPI.ERR_PROC_FAILED, MPI.ERR_PROC_FAILED_PENDING):
                    raise
            if peer not in self.tolerated:
                raise Ended(f"rank {peer} has ended, and the others cannot go on without it; see logs/ranks.log")
            self.failed.add(peer)
            tests[:] = [lambda: sending]
            return sending

        done()
        return done

    def ireduce(self, data: Array, members: Sequence[int]) -> Done:
        request = self._groups[tuple(members)].Iallreduce(MPI.IN_PLACE, data)
        return self._held(request, data)

    def prepare(self, members: Sequence[int]) -> None:
        key = tuple(members)
        if key not in self._groups and self.rank in key:
            self._groups[key] = self.comm.Create_group(self.comm.group.Incl(list(key)))

    def _held(self, request: MPI.Request, data: Array) -> Done:
        """Hold the request and its buffer until it is complete: a channel may be dropped before, a wait given up.

        mpi4py's request of a reduction in place does not hold its buffer itself.
        """
        with self._lock:  # a learner may serve inference in a thread of its own
            if len(self._open) >= _SWEEP_AT:
                self._open = [(r, x) for r, x in self._open if r != MPI.REQUEST_NULL]
            self._open.append((request, data))
        return request.Test

    def nodes(self) -> list[int]:
        pretend = int(os.environ.get(_NODE_VARIABLE, "0"))
        if pretend:
            return [rank // pretend * pretend for rank in range(self.size)]
        node = self.comm.Split_type(MPI.COMM_TYPE_SHARED)
        lowest = np.array([self.rank], np.int64)
        node.Allreduce(MPI.IN_PLACE, lowest, MPI.MIN)
        everyone = np.empty(self.size, np.int64)
        self.comm.Allgather(lowest, everyone)
        node.Free()
        return [int(rank) for rank in everyone]


def world(expected: int) -> MpiLink:
    """This process's end of MPI.COMM_WORLD.

    Raises:
        WrongWorld: the world's size is not the number of ranks started (usually a PMI mismatch: N singletons).
    """
    size = MPI.COMM_WORLD.size
    if size != expected:
        vendor = MPI.get_vendor()[0]
        raise WrongWorld(
            f"MPI sees {size} rank(s) where {expected} were started: its launcher does not speak the PMI of {vendor}; "
            "use the mpiexec of the same MPI (see hpc-rl doctor), or srun --mpi=pmi2 (MPICH), --mpi=pmix (Open MPI)"
        )
    return MpiLink(MPI.COMM_WORLD)


def need_threads() -> None:
    """Where two threads of this rank send and receive.

    Raises:
        TooFewThreads: MPI was initialised with less than MPI_THREAD_MULTIPLE; messages would be lost or mixed up.
    """
    level = MPI.Query_thread()
    if level < MPI.THREAD_MULTIPLE:
        names = {MPI.THREAD_SINGLE: "SINGLE", MPI.THREAD_FUNNELED: "FUNNELED", MPI.THREAD_SERIALIZED: "SERIALIZED"}
        raise TooFewThreads(
            f"{MPI.get_vendor()[0]} gives MPI_THREAD_{names.get(level, level)} here, and an inference server in its "
            'learner\'s process needs MPI_THREAD_MULTIPLE; set resources.inference = "actor", or load an MPI built '
            "with it (and leave MPI4PY_RC_THREAD_LEVEL unset)"
        )


def library() -> str:
    """Vendor and version of the MPI library, one line."""
    return MPI.Get_library_version().splitlines()[0].strip("\0 ")


def end(link: MpiLink) -> None:
    """Leave MPI, once every rank does, while ``link`` still holds the posted buffers: late messages arrive in them.

    Left to mpi4py this comes after Python has freed them all.
    """
    MPI.Finalize()
    link._open.clear()


def abort(code: int = 1) -> None:
    """End every rank of the job, now."""
    if MPI.Is_initialized() and not MPI.Is_finalized():
        MPI.COMM_WORLD.Abort(code)
