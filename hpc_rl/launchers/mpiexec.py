"""The mpiexec of this Python, and how it is started such that every rank runs on this machine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from hpc_rl.job import BadJob
from hpc_rl.launcher_variables import LAUNCHER, RANK, SETTINGS, SLURM
from hpc_rl.launchers.base import END_VARIABLE

_ROOT_SETTINGS = {
    f"{prefix}_ALLOW_RUN_AS_ROOT{suffix}": "1" for prefix in ("OMPI", "PRTE") for suffix in ("", "_CONFIRM")
}
# Hydra, of MPICH and of Intel, would start its helpers through srun, which waits for CPUs that this very step holds.
_HERE = {"HYDRA_LAUNCHER": "fork", "HYDRA_BOOTSTRAP": "fork", "I_MPI_HYDRA_BOOTSTRAP": "fork"}
_KEPT = ("SLURMD_", "SLURMSTEPD_", *SETTINGS)
_FACTS = {  # of the job around it: no launcher goes by them, provenance and environments may
    f"SLURM_{name}"
    for name in ("CONF", "JOB_ID", "JOB_NAME", "JOB_PARTITION", "CLUSTER_NAME", "SUBMIT_DIR", "SUBMIT_HOST", "TMPDIR")
}


def find_mpiexec(python: str = sys.executable) -> tuple[str, str]:
    """(path, vendor "mpich" or "openmpi") of the mpiexec that belongs to a Python, else of the first on PATH.

    Raises:
        BadJob: there is none, or it does not answer.
    """
    beside = Path(python).parent / "mpiexec"
    path = str(beside) if beside.exists() else shutil.which("mpiexec")
    if path is None:
        raise BadJob(
            f"mpiexec is neither beside {python} nor on PATH; install the extra with its own MPI "
            "(pip install 'hpc-rl[mpi]') or load the module of an MPI"
        )
    try:
        answer = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=30, check=False, env=environment(),
            stdin=subprocess.DEVNULL,
        ).stdout  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BadJob(f"{path} --version does not answer ({error}); load the module of the MPI of this Python") from None
    return path, "openmpi" if re.search("open.?mpi|prte|prrte", answer, re.IGNORECASE) else "mpich"


def prefix(ranks: int, tolerant: bool = False) -> list[str]:
    """What to put before the command of a rank to start ``ranks`` of it here.

    Raises:
        BadJob: as `find_mpiexec`; or a ``tolerant`` job, whose ranks go on without those that were killed, is MPICH's.
    """
    path, vendor = find_mpiexec()
    extra = ["--oversubscribe", "--bind-to", "none"] if vendor == "openmpi" else []
    return [path, *extra, *(with_survivors(path, vendor) if tolerant else []), "-n", str(ranks)]


def with_survivors(path: str, vendor: str) -> list[str]:
    """The options under which ranks go on when others are killed. Raises BadJob where there are none."""
    if vendor == "mpich":
        raise BadJob(
            f"resources.tolerate_lost_actors = true needs srun or Open MPI, and {path} (MPICH) ends all ranks with the "
            "first that is killed; submit to SLURM with --launcher srun, or set it to false"
        )
    return ["--with-ft", "ulfm"] if vendor == "openmpi" else []


def environment(outer: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of such a start: ``outer`` without the variables of another launcher.

    A shell inside a SLURM job (srun --pty, salloc, a batch script) carries the variables of that job's step; ranks
    started here are no part of it.
    """
    variables = {name: x for name, x in outer.items() if not _foreign(name)}
    end = outer.get("SLURM_JOB_END_TIME", "") if "SLURMD_NODENAME" in outer else ""
    if end.isdecimal():  # ranks that save before it do not depend on what mpiexec does with SLURM's last signal
        variables.setdefault(END_VARIABLE, end)
    return {**variables, **_ROOT_SETTINGS, **_HERE}


def _foreign(name: str) -> bool:
    """Whether an mpiexec, or MPI, would conclude from it that another launcher started this process."""
    return name.startswith((*SLURM, *RANK, *LAUNCHER)) and name not in _FACTS and not name.startswith(_KEPT)


def allocation_hint(outer: Mapping[str, str] = os.environ) -> str:
    """A sentence for a shell inside a SLURM job of which ``hpc-rl run`` would use only a part; else empty."""
    job = outer.get("SLURM_JOB_ID", "")
    if not job:
        return ""
    host = os.uname().nodename
    if "SLURMD_NODENAME" not in outer:
        return (
            f"this shell belongs to SLURM job {job}, but the ranks start on this host ({host}), "
            "not on the nodes of that job; srun --pty bash opens a shell on one of them"
        )
    nodes = outer.get("SLURM_JOB_NUM_NODES", "1")
    if nodes != "1":
        return (
            f"SLURM job {job} has {nodes} nodes; all ranks start on this one ({host}). "
            "hpc-rl submit uses the nodes of a job of its own"
        )
    return ""
