"""One rank of a run: make the context that the plan gives this rank, and become its role.

Started by a launcher as ``python -m hpc_rl.rank RUN RANKS``; the job, the attempt and the checkpoint are found in RUN.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc_rl.failure import end_all
from hpc_rl.launchers import shared_memory
from hpc_rl.startup import make_context
from hpc_rl.stop_flag import StopFlag
from hpc_rl.storage.rank_records import write_record

if TYPE_CHECKING:
    from hpc_rl.runtime.context import RankContext

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def main() -> None:
    """Entry of every rank. Exit code 0 unless something failed; the reason then lies in logs/rank-NNN.json."""
    stop = StopFlag()  # before the slow imports: a signal must never find the default handler
    _keep_memory()
    folder, ranks = Path(sys.argv[1]), int(sys.argv[2])
    rank = 0
    try:
        _serve_processes(folder)
        # CUDA must not be seen by actors, and threads are counted when torch loads: plan first, import later.
        link, rank = _link(ranks)
        context = make_context(folder, link, stop)
        from hpc_rl import job

        outcome = job.topology(context.job.topology).run(context)
        if outcome is not None:
            from hpc_rl.conclusion import conclude

            conclude(context, outcome)
        _close(context)
        write_record(folder, rank, {"ended": "ok"})
        if ranks > 1:
            from hpc_rl.transport import mpi

            mpi.end(link)
    except BaseException as error:
        end_all(folder, rank, error)


def _close(context: RankContext) -> None:
    """Close the environments, once every rank has done its work: foreign code that crashes here ends all ranks."""
    from hpc_rl.transport.waiting import Deadline

    ports, everyone = context.ports, range(context.ports.link.size)
    with contextlib.suppress(Deadline):  # a last checkpoint that takes so long
        if ports.link.rank:
            ports.await_release(everyone)  # rank 0 may still judge the last policy
        else:
            ports.release(everyone)
    with contextlib.suppress(Deadline):
        ports.barrier(everyone)
    context.close_environments()


def _keep_memory() -> None:
    """Blocks up to 32 MiB are kept for the next use: a tensor of new pages costs more to fault in than to compute."""
    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc has its own ways
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        libc.mallopt(_M_TRIM_THRESHOLD, 512 << 20)


def _serve_processes(folder: Path) -> None:
    """Where the job asks for environment processes, their server starts here: a rank must not fork once MPI runs."""
    from hpc_rl import job

    processes = 0
    with contextlib.suppress(job.BadJob):  # every rank hears of it in `make_context`, where rank 0 can tell the others
        processes = job.load(folder / "job.toml").environment.processes
    if processes:
        from hpc_rl.envs import forkserver

        forkserver.start()


def _link(ranks: int) -> tuple[Any, int]:
    if ranks == 1:
        from hpc_rl.transport.local import alone

        return alone(), 0
    shared_memory.clear()
    os.environ.setdefault("UCX_LOG_LEVEL", "error")  # at every clean end it warns of objects in its own pools
    from hpc_rl.transport import mpi

    link = mpi.world(ranks)
    return link, link.rank


if __name__ == "__main__":
    main()
