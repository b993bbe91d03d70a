"""The tasks of one srun as a Dask cluster: task 0 schedules, task 1 is the program, the others compute.

They meet in a folder that only this user can read: the scheduler's address lies there, and the keys with which the
tasks encrypt what they send, for whoever reaches a Dask scheduler may run code on it.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hpc_rl.host_memory import available
from hpc_rl.storage.run_dir import BadRun, write_text
from hpc_rl.storage.untrusted import read_json

WAIT_S = 60.0  # for a scheduler, and for tasks that start later
MEMORY_SHARE = 0.8  # of what is free: the rest is for the program and for pages of files
LEAST = 3
_KEYS = ("tls_ca_file", "tls_scheduler_key", "tls_scheduler_cert", "tls_worker_key", "tls_worker_cert",
         "tls_client_key", "tls_client_cert")  # fmt: skip


@contextmanager
def cluster(folder: Path) -> Iterator[Any]:
    """A `distributed.Client` of this step's tasks, in task 1; in the others it ends the process when all is done.

    Raises:
        BadRun: this is no task of an srun, there are fewer than `LEAST`, or the others do not come.
    """
    try:
        from dask_jobqueue.slurm import SLURMRunner
    except ImportError:
        raise BadRun("--scheduler slurm needs dask-jobqueue; pip install 'hpc_rl[slurm]'") from None
    from distributed import Client

    task, tasks = (int(os.environ.get(name, "-1")) for name in ("SLURM_PROCID", "SLURM_NTASKS"))
    if task < 0 or tasks < LEAST:
        raise BadRun(
            f"--scheduler slurm is for an srun of {LEAST} tasks and more, and here are {max(tasks, 1)}; start it with"
            f" srun --ntasks={LEAST}, or leave --scheduler out to compute on this node"
        )
    parts = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
    meeting = folder.absolute() / "-".join(["dask", *(os.environ.get(name, "0") for name in parts)])
    local = {"dashboard": False, "dashboard_address": "127.0.0.1:0"}  # its port is opened all the same
    options = local | {"security": _security(meeting, first=task == 0)}
    for name in ("distributed", "tornado"):  # every connection would be told
        logging.getLogger(name).setLevel(logging.CRITICAL)
    memory = int(available() * MEMORY_SHARE / _tasks_of_a_node()) or "auto"
    worker = {"nthreads": 1, "memory_limit": memory, "local_directory": scratch(), "death_timeout": WAIT_S}
    try:
        runner = SLURMRunner(
            scheduler_file=str(meeting / "scheduler.json").replace("{", "{{").replace("}", "}}"),  # it is formatted
            scheduler_options=options | {"protocol": "tls://"},
            worker_options=worker | options,
        )
    except KeyboardInterrupt:  # how the runner ends the scheduler and the workers
        sys.exit(0)
    runner.scheduler_comm = None  # a connection without keys, by which it would end the scheduler; the client does
    try:
        with Client(runner.scheduler_address, security=options["security"], timeout=WAIT_S) as connected:
            connected.wait_for_workers(1, timeout=WAIT_S)
            try:
                yield connected
            finally:
                connected.shutdown()
    finally:
        shutil.rmtree(meeting, ignore_errors=True)


def scratch() -> str:
    """A folder on this node for what workers spill."""
    return os.environ.get("SLURM_TMPDIR") or tempfile.gettempdir()


def _security(meeting: Path, first: bool) -> Any:
    """Keys of this step alone: the first task makes them, the others wait for its file. Raises BadRun."""
    from distributed import Security

    file = meeting / "keys.json"
    if first:
        meeting.mkdir(mode=0o700, parents=True, exist_ok=True)
        security = Security.temporary()
        write_text(file, json.dumps({name: getattr(security, name) for name in _KEYS}))
        return security
    deadline = time.monotonic() + WAIT_S
    while not file.exists():
        if time.monotonic() > deadline:
            raise BadRun(f"task 0 of this srun has not written {file} within {WAIT_S:.0f} s; do all its nodes see it?")
        time.sleep(0.2)
    return Security(require_encryption=True, **read_json(file, dict.fromkeys(_KEYS, str), _KEYS))


def _tasks_of_a_node() -> int:
    """The most tasks that one node of this step has: "2(x3),1" is two on three nodes and one on another."""
    counts = re.sub(r"\(x\d+\)", "", os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    return max((int(count) for count in re.findall(r"\d+", counts)), default=1)
