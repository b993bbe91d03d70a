"""The same work on several cores at once: a core that computes alone is faster than one whose neighbours compute, too.

One process a core, pinned. This process works on the first core; the others do what it says, a piece at a time:
`python -m hpc_rl.bench.cores JOB CORE`.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

import torch

from hpc_rl import job as jobs
from hpc_rl.bench.pieces import Pieces, pieces
from hpc_rl.settings import Job

DEADLINE_S = 120.0  # for another core to begin, or beyond its time to end a piece


class CoreLost(RuntimeError):
    """A process that measures another core has ended or hangs."""


@contextmanager
def pinned(core: int) -> Iterator[None]:
    """This thread, and what it starts, on one core."""
    mask, threads = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    try:
        yield
    finally:
        os.sched_setaffinity(0, mask)
        torch.set_num_threads(threads)


def rate(work: Pieces, name: str, seconds: float) -> float:
    """Units of this piece per second, over at least ``seconds``."""
    begin, count, took = time.perf_counter(), 0.0, 0.0
    while took < seconds:
        count += work.work[name]()
        took = time.perf_counter() - begin
    return count / took


@contextmanager
def others(job: Job, cores: Sequence[int]) -> Iterator[list[subprocess.Popen[str]]]:
    """A process on each of these cores, all of them warm."""
    with TemporaryDirectory() as folder, ExitStack() as stack:
        file = Path(folder) / "job.toml"
        file.write_text(jobs.dumps(job))
        processes = []
        for core in cores:
            command = [sys.executable, "-m", "hpc_rl.bench.cores", str(file), str(core)]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            stack.callback(_end, process)
            processes.append(process)
        for process in processes:
            read(process, DEADLINE_S)
        yield processes


def ask(processes: list[subprocess.Popen[str]], name: str, seconds: float) -> None:
    """Let them all begin this piece."""
    for process in processes:
        assert process.stdin is not None
        try:
            process.stdin.write(f"{name} {seconds}\n")
            process.stdin.flush()
        except OSError as error:
            raise CoreLost(_ended(process)) from error


def read(process: subprocess.Popen[str], seconds: float) -> str:
    """The next line of a process. Raises CoreLost."""
    out: IO[str] | None = process.stdout
    assert out is not None
    ready, _, _ = select.select([out], [], [], seconds)
    line = out.readline() if ready else ""
    if not line:
        silent = f"the process on core {_core(process)} is silent for {seconds:.0f} s; measure fewer cores (taskset -c)"
        raise CoreLost(_ended(process) if ready else silent)
    return line


def _core(process: subprocess.Popen[str]) -> str:
    """The last argument of its command."""
    return list(map(str, process.args))[-1]  # type: ignore[arg-type]


def _ended(process: subprocess.Popen[str]) -> str:
    return f"the process on core {_core(process)} has ended; see what it wrote above"


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait(DEADLINE_S)


def main() -> None:
    job, core = jobs.load(Path(sys.argv[1])), int(sys.argv[2])
    with pinned(core), pieces(job) as work:
        print("ready", flush=True)
        for line in sys.stdin:
            name, seconds = line.split()
            print(rate(work, name, float(seconds)), flush=True)


if __name__ == "__main__":
    main()
