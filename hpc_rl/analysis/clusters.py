"""Where an analysis computes: in this process, in worker processes of this machine, or on a Dask cluster elsewhere."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import dask

from hpc_rl.analysis import slurm_tasks
from hpc_rl.analysis.slurm_tasks import MEMORY_SHARE, WAIT_S, scratch
from hpc_rl.host_memory import available
from hpc_rl.storage.run_dir import BadRun

SMALL_BYTES = 32 << 20  # of segments: worker processes take longer to start than this takes to read


@dataclass(frozen=True)
class Where:
    """``scheduler``: address or file of a running scheduler, "" for this machine, "slurm" for the tasks of this step.

    ``workers``: processes of one thread each (0: one for each core this process may use). ``dashboard``: serve Dask's
    pages on localhost. ``performance``: write Dask's performance report there. ``meeting``: a folder that all tasks of
    a SLURM step see.
    """

    scheduler: str = ""
    workers: int = 0
    dashboard: bool = False
    performance: Path | None = None
    meeting: Path = Path(".")


def recorded_bytes(folders: list[Path]) -> int:
    """Bytes of all closed segments below these run directories."""
    return sum(file.stat().st_size for folder in folders for file in folder.glob("trajectories/*/segment-*.h5"))


@contextmanager
def computing(where: Where, data_bytes: int) -> Iterator[Any]:
    """Dask computes there until the end of the block; gives the `distributed.Client`, None for this process.

    Processes have one thread each, for HDF5 lets one thread of a process read at a time.

    Raises:
        BadRun: the scheduler does not answer.
    """
    forced = where.scheduler or where.workers or where.dashboard or where.performance
    if not forced and data_bytes < SMALL_BYTES:
        with dask.config.set(scheduler="synchronous"):
            yield None
        return
    if (where.dashboard or where.performance) and find_spec("bokeh") is None:
        raise BadRun("Dask's dashboard and performance report need bokeh; pip install 'hpc_rl[dashboard]'")
    from distributed import performance_report

    with ExitStack() as stack:
        client = _client(where, stack)
        if where.performance is not None:
            stack.enter_context(performance_report(filename=str(where.performance)))
        yield client


def _client(where: Where, stack: ExitStack) -> Any:
    from distributed import Client, LocalCluster, Security

    if where.scheduler == "slurm":
        return stack.enter_context(slurm_tasks.cluster(where.meeting))
    if where.scheduler:
        file = Path(where.scheduler)
        try:
            address = {"scheduler_file": str(file)} if file.is_file() else {"address": where.scheduler}
            return stack.enter_context(Client(**address, timeout=WAIT_S))
        except (OSError, ValueError) as error:
            raise BadRun(
                f"no Dask scheduler answers at {where.scheduler} ({error or 'no answer'}); start one, or leave"
                " --scheduler out to compute on this machine"
            ) from error
    workers = where.workers or len(os.sched_getaffinity(0))
    security = Security.temporary()  # others on this machine can reach its ports, too
    cluster = LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        processes=True,
        host="127.0.0.1",
        protocol="tls://",
        security=security,
        dashboard_address="127.0.0.1:0",
        scheduler_kwargs={"dashboard": where.dashboard},
        memory_limit=int(available() * MEMORY_SHARE / workers) or "auto",
        local_directory=scratch(),
        silence_logs=40,  # errors only: what concerns the user is said in a sentence
    )
    stack.enter_context(cluster)
    return stack.enter_context(Client(cluster, security=security, timeout=WAIT_S))
