"""Checks whether this machine can run jobs. Each check is one function; a failing one names the remedy.

``python -m hpc_rl.doctor --pair`` is one rank of the 2-rank exchange that `examine` starts through mpiexec.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from hpc_rl.job import BadJob

DEADLINE_S = 30.0
FREE_BYTES = 1 << 30  # below this a run is likely to fill the disk
SHM_BYTES = 64 << 20  # two slots of weights per node, and MPI's own buffers between ranks
SMALL_BYTES, LARGE_BYTES = 1 << 10, 1 << 20


@dataclass(frozen=True)
class Check:
    """``ok`` is None for a note that is neither good nor bad."""

    name: str
    ok: bool | None
    text: str


def examine() -> list[Check]:
    """Every check of this machine, in a fixed order; takes some seconds and starts two ranks."""
    checks: list[Callable[[], Check]] = [
        _versions,
        _cores,
        _mpiexec,
        _mpi_library,
        _exchange,
        _hdf5,
        _locking,
        _zstd,
        lambda: _space("disk", Path.cwd(), FREE_BYTES, "free space or pass --out on another disk"),
        lambda: _space("/dev/shm", Path("/dev/shm"), SHM_BYTES, "remove leftovers there, or enlarge it (--shm-size)"),
        _cuda,
        _roms,
    ]
    return [check() for check in checks]


def _versions() -> Check:
    names = ("torch", "numpy", "mpi4py", "h5py", "gymnasium", "ale-py")
    versions = [f"{name} {metadata.version(name)}" for name in names]
    return Check("versions", True, ", ".join([f"Python {platform.python_version()}", *versions]))


def _cores() -> Check:
    cores, all_cores = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    if cores < all_cores:
        text = f"{cores} of {all_cores} in the affinity mask; request more with --cpus-per-task, or use taskset"
        return Check("cores", None, text)
    return Check("cores", True, f"{cores}, all of them in the affinity mask")


def _mpiexec() -> Check:
    from hpc_rl.launchers.mpiexec import find_mpiexec

    try:
        path, vendor = find_mpiexec()
    except BadJob as error:
        return Check("mpiexec", False, str(error))
    return Check("mpiexec", True, f"{path} ({vendor})")


def _mpi_library() -> Check:
    """In a child: an MPI library that cannot be loaded may end the process."""
    code = "from hpc_rl.transport import mpi; print(mpi.library())"
    success, output = _child([sys.executable, "-c", code])
    if success:
        return Check("MPI library", True, output.strip().splitlines()[-1])
    remedy = "install one with pip install 'hpc-rl[mpi]', or load the module that mpi4py was built with"
    return Check("MPI library", False, f"mpi4py cannot load it ({_last(output)}); {remedy}")


def _exchange() -> Check:
    from hpc_rl.launchers import mpiexec

    name = "2-rank exchange"
    try:
        launcher = mpiexec.prefix(2)
    except BadJob as error:
        return Check(name, False, str(error))
    success, output = _child([*launcher, sys.executable, "-m", "hpc_rl.doctor", "--pair"])
    figures = next((json.loads(line) for line in output.splitlines() if line.startswith('{"latency_s"')), None)
    if success and figures:
        latency, speed = figures["latency_s"] * 1e6, figures["bytes_per_s"] / 1e9
        return Check(name, True, f"1 KiB in {latency:.0f} µs, 1 MiB both ways at {speed:.2f} GB/s each way")
    remedy = "use the mpiexec of the library above: pip install 'hpc-rl[mpi]', or load its module first on PATH"
    return Check(name, False, f"{_last(output)}; {remedy}")


def _hdf5() -> Check:
    from hpc_rl.storage.locking import hdf5_version

    return Check("HDF5", True, hdf5_version())


def _locking() -> Check:
    return locking(Path.cwd())


def locking(folder: Path) -> Check:
    """Whether files in ``folder`` can be locked; in a child, for a dead lock service never answers."""
    from hpc_rl.storage.h5 import LOCKING_VARIABLE

    name = "HDF5 locking"
    success, output = _child([sys.executable, "-m", "hpc_rl.storage.locking", str(folder)])
    if not success:
        return Check(
            name, False, f"{_last(output)}; use a folder where you may write, on a file system whose lock service runs"
        )
    verdict, detail = json.loads(output.splitlines()[-1])
    advice = "runs work without locks (each file has one writer), but never start two runs in one folder"
    forced = os.environ.get(LOCKING_VARIABLE, "FALSE")
    if verdict == "absent" and forced.upper() not in ("FALSE", "0"):
        return Check(name, False, f"{folder} has no file locks ({detail}) and {LOCKING_VARIABLE}={forced}; unset it")
    texts = {
        "works": f"works in {folder}",
        "ignored": f"{folder} grants a lock twice (usual on network file systems); {advice}",
        "absent": f"{folder} has no file locks ({detail}); {advice}; for other programs set {LOCKING_VARIABLE}=FALSE",
    }
    return Check(name, True if verdict == "works" else None, texts[verdict])


def _zstd() -> Check:
    from hpc_rl.storage.h5 import hdf5plugin

    if hdf5plugin is None:
        remedy = "segments are written with gzip, which is slower; pip install hdf5plugin"
        return Check("zstd", False, f"the HDF5 filter is missing; {remedy}")
    return Check("zstd", True, f"HDF5 filter of hdf5plugin {metadata.version('hdf5plugin')}")


def _space(name: str, path: Path, least: int, remedy: str) -> Check:
    try:
        free = shutil.disk_usage(path).free
    except OSError as error:
        return Check(name, False, f"{path} cannot be used ({error.strerror}); {remedy}")
    text = f"{free / 2**30:.1f} GiB free in {path}"
    return Check(name, True, text) if free >= least else Check(name, False, f"{text}; {remedy}")


def _cuda() -> Check:
    import torch

    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return Check("CUDA", True, ", ".join(names)) if names else Check("CUDA", None, "no device; learners use the CPU")


def _roms() -> Check:
    from hpc_rl.envs.atari import games
    from hpc_rl.envs.base import BadEnvironment
    from hpc_rl.envs.make import describe

    try:
        count = len(games())
        describe("ALE/Pong-v5", {})
    except BadEnvironment as error:
        return Check("Atari ROMs", False, str(error))
    except ImportError as error:
        return Check("Atari ROMs", False, f"{error}; pip install ale-py")
    return Check("Atari ROMs", True, f"{count} games")


def _child(command: list[str]) -> tuple[bool, str]:
    """(exit code is 0, everything it printed); a child that outlives the deadline is killed with all it started."""
    from hpc_rl.launchers import mpiexec

    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=mpiexec.environment(),
        start_new_session=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=2 * DEADLINE_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.communicate()
        return False, f"{Path(command[0]).name} did not end within {2 * DEADLINE_S:.0f} s"
    return process.returncode == 0, output


def _last(output: str) -> str:
    """The sentence of the first rank that failed, else the last line of the output."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    failures = [line.removeprefix("failed: ") for line in lines if line.startswith("failed: ")]
    return failures[0] if failures else (lines[-1] if lines else "nothing was printed")


def pair() -> None:
    """One of two ranks: small messages in turn, large ones both ways at once. Rank 0 prints the figures as JSON.

    Raises:
        WrongWorld: MPI does not see two ranks. Deadline: the other one did not answer.
        RuntimeError: bytes arrived changed.
    """
    import numpy as np

    from hpc_rl.transport import mpi
    from hpc_rl.transport.ports import Link
    from hpc_rl.transport.waiting import Waiting

    link: Link = mpi.world(2)
    peer, waiting = 1 - link.rank, Waiting(DEADLINE_S)
    peer_name = f"rank {peer} to exchange messages"

    def swap(size: int, rounds: int, tag: int, in_turn: bool) -> float:
        """Seconds per round."""
        outgoing = np.full(size, link.rank + 1, np.uint8)
        incoming = np.zeros(size, np.uint8)
        begin = 0.0
        for k in range(rounds + 3):
            if k == 3:  # the first rounds open connections
                begin = time.perf_counter()
            received = link.irecv(incoming, peer, tag)
            if in_turn and link.rank == 1:
                waiting.until(received, peer_name)
            sent = link.isend(outgoing, peer, tag)
            waiting.until(lambda a=received, b=sent: a() and b(), peer_name)  # type: ignore[misc]
        if not (incoming == peer + 1).all():
            raise RuntimeError(f"rank {link.rank} received {size} bytes that rank {peer} never sent")
        return (time.perf_counter() - begin) / rounds

    latency_s = swap(SMALL_BYTES, 200, 1, in_turn=True) / 2
    seconds = swap(LARGE_BYTES, 20, 2, in_turn=False)
    if link.rank == 0:
        print(json.dumps({"latency_s": latency_s, "bytes_per_s": LARGE_BYTES / seconds}), flush=True)


def _main() -> None:
    if sys.argv[1:] != ["--pair"]:
        sys.exit("hpc_rl.doctor is one rank of `hpc-rl doctor`; run that")
    from hpc_rl.transport import mpi

    try:
        pair()
    except mpi.WrongWorld as error:
        print(f"failed: {error}", flush=True)
        sys.exit(1)  # a world of one can finalize, and leaves nothing in /dev/shm then
    except Exception as error:  # of any kind: examine() shows it in its line
        print(f"failed: {error}", flush=True)
        mpi.abort(1)  # the other rank waits for us


if __name__ == "__main__":
    _main()
