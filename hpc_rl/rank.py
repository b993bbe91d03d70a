"""One rank of a run: make the context that the plan gives this rank, and become its role.

Started by a launcher as ``python -m hpc_rl.rank RUN RANKS``; the job, the attempt and the checkpoint are found in RUN.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc_rl import host_memory
from hpc_rl.failure import end_all
from hpc_rl.launchers import shared_memory
from hpc_rl.startup import make_context
from hpc_rl.stop_flag import StopFlag
from hpc_rl.storage.rank_records import write_record

if TYPE_CHECKING:
    from hpc_rl.runtime.context import RankContext
    from hpc_rl.transport.mpi import MpiLink

START_S, LEAVE_S = 60, 30  # for the start and the end of MPI, where ranks may be lost


def main() -> None:
    """Entry of every rank. Exit code 0 unless something failed; the reason then lies in logs/rank-NNN.json."""
    stop = StopFlag()  # before the slow imports: a signal must never find the default handler
    host_memory.keep_freed()
    folder, ranks = Path(sys.argv[1]), int(sys.argv[2])
    rank = 0
    begun = threading.Timer(0, lambda: None)
    try:
        begun = _serve_processes(folder)
        # CUDA must not be seen by actors, and threads are counted when torch loads: plan first, import later.
        link, rank = _link(ranks)
        context = make_context(folder, link, stop)
        from hpc_rl import job

        begun.cancel()
        outcome = job.topology(context.job.topology).run(context)
        if outcome is not None:
            from hpc_rl.conclusion import conclude

            conclude(context, outcome)
        together = _close(context)
        write_record(folder, rank, {"ended": "ok"})
        if ranks > 1:
            _leave(context, link, together)
    except BaseException as error:
        end_all(folder, rank, error)


def _close(context: RankContext) -> bool:
    """Close the environments, once every rank has done its work: foreign code that crashes here ends all ranks.

    Whether all ranks are there to leave together.
    """
    from hpc_rl.transport.waiting import Deadline

    ports, everyone = context.ports, range(context.ports.link.size)
    together = not context.job.resources.tolerate_lost_actors
    with contextlib.suppress(Deadline):  # a last checkpoint that takes so long
        if ports.link.rank:
            together = ports.await_release(everyone)  # rank 0 may still judge the last policy
        else:
            together = not ports.waiting.lost()
            ports.release(everyone, together)
    if together:
        with contextlib.suppress(Deadline):
            ports.barrier(everyone)
    context.close_environments()
    return together


def _leave(context: RankContext, link: MpiLink, together: bool) -> None:
    """End MPI with all others; where some are lost, end this process without that."""
    from hpc_rl.transport import mpi

    if context.job.resources.tolerate_lost_actors:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(LEAVE_S)  # all is saved, and one that is lost by now would be waited for
    if together:
        mpi.end(link)
        return
    from hpc_rl.runtime.losses import part

    part(context.ports)
    sys.stdout.flush()
    os._exit(0)


def _serve_processes(folder: Path) -> threading.Timer:
    """Where the job asks for environment processes, their server starts here: a rank must not fork once MPI runs.

    What is returned ends this rank if it does not begin: where others may be lost, MPI's own start would wait for ever.
    """
    from hpc_rl import job

    begun = threading.Timer(0, lambda: None)
    with contextlib.suppress(job.BadJob):  # every rank hears of it in `make_context`, where rank 0 can tell the others
        loaded = job.load(folder / "job.toml")
        if loaded.environment.processes:
            from hpc_rl.envs import forkserver

            forkserver.start()
        if loaded.resources.tolerate_lost_actors:
            begun = threading.Timer(START_S + loaded.resources.deadline_s, _never_begun)
            begun.daemon = True
            begun.start()
    return begun


def _never_begun() -> None:
    print("error: not all ranks began; one was lost before the run had started", file=sys.stderr, flush=True)
    os._exit(1)


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
