"""Where a run comes from: code, versions, machine, environment, command. One JSON file per attempt, no secrets."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import hpc_rl
from hpc_rl.storage.run_dir import RunDir, write_json

PACKAGES = ("torch", "numpy", "mpi4py", "gymnasium", "ale-py", "h5py", "hdf5plugin", "hpc-rl")
_PREFIXES = ("SLURM_", "OMP_", "CUDA_", "NCCL_", "UCX_", "FI_", "MPICH_", "OMPI_", "HDF5_")
_SECRET = ("TOKEN", "KEY", "SECRET", "PASS", "JWT", "AUTH", "CREDENTIAL")  # SLURM_JWT is a token, too
_DIFF_BYTES = 200_000


def collect(command: list[str], attempt: int, seeds: Any, extra: Mapping[str, Any]) -> dict[str, Any]:
    """What a reader needs to run this again; ``extra`` is merged in last (e.g. resumed_from, MPI library, hosts)."""
    return {
        "attempt": attempt,
        "time": time.time(),
        "command": command,
        "seeds": seeds,
        "git": git(Path(hpc_rl.__file__).parent),
        "versions": {name: _version(name) for name in PACKAGES},
        "python": sys.version,
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "cpu": _cpu(),
        "affinity": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "environment": filtered(os.environ),
        **extra,
    }


def write(run: RunDir, attempt: int, value: Mapping[str, Any]) -> Path:
    """Write provenance/0000.json of this attempt and return its path. Raises OSError."""
    run.provenance.mkdir(exist_ok=True)
    path = run.provenance / f"{attempt:04d}.json"
    write_json(path, value)
    return path


def filtered(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that steer MPI, GPUs and threads, without any whose name may mark a secret."""
    return {
        name: value
        for name, value in sorted(environment.items())
        if name.startswith(_PREFIXES) and not any(word in name.upper() for word in _SECRET)
    }


def git(package: Path) -> dict[str, Any] | None:
    """commit, dirty and diff of the checkout that ``package`` is tracked in; None for an installed wheel."""
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:  # also: a venv inside another checkout
        return None
    diff = _git(package, "diff", "HEAD") or ""
    status = _git(package, "status", "--porcelain") or ""
    cut = diff.encode()[:_DIFF_BYTES].decode(errors="ignore")
    commit = (_git(package, "rev-parse", "HEAD") or "").strip() or None
    return {"commit": commit, "dirty": bool(status), "diff": cut, "diff_truncated": cut != diff}


def _git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), "--no-optional-locks", *arguments]
    try:
        process = subprocess.run(command, capture_output=True, timeout=20, check=True, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError):
        return None
    return process.stdout.decode(errors="replace")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
