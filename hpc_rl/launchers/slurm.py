"""SLURM's commands: sbatch, squeue, sacct, scancel, and what their answers mean. All versions are survived."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hpc_rl.job import BadJob
from hpc_rl.launchers.local import find_mpiexec
from hpc_rl.launchers.options import Options

ANSWER_S = 60.0  # the longest that a controller may take
ACTIVE = ("PENDING", "RUNNING", "SUSPENDED", "COMPLETING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED",
          "SIGNALING", "STAGE_OUT", "STOPPED", "RESIZING", "SPECIAL_EXIT", "RESV_DEL_HOLD", "REVOKED")  # fmt: skip
ENDED = ("COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "DEADLINE",
         "OUT_OF_MEMORY")  # fmt: skip


class SlurmError(RuntimeError):
    """A SLURM command is missing, refused, or did not answer."""


@dataclass(frozen=True)
class Seen:
    """What SLURM knows of one job: a state word from above or UNKNOWN, why, expected or real start, nodes."""

    job: str
    state: str
    reason: str = ""
    start: str = ""
    nodes: str = ""

    @property
    def active(self) -> bool:
        return self.state in ACTIVE


def sbatch(script: Path, *arguments: str) -> str:
    """Submit; the job's id. Raises SlurmError with sbatch's own words."""
    said = _ask(["sbatch", "--parsable", *arguments, str(script)])
    found = re.search(r"^(\d+)(;\S+)?\s*$", said, re.MULTILINE)
    if not found:
        raise SlurmError(f"sbatch answered {said.strip()!r}, in which no job id can be seen; look at squeue --me")
    return found[1]


def resolved(options: Options) -> Options:
    """The options with launcher and PMI chosen for the MPI of this Python and the PMIs of this cluster.

    MPICH speaks pmi2; Open MPI 5 speaks pmix only, and elsewhere would give N worlds of one rank: there its mpiexec.
    """
    if options.launcher not in ("auto", "srun"):
        return options
    try:
        mpiexec, vendor = find_mpiexec()
    except BadJob:
        mpiexec, vendor = "mpiexec", "unknown"
    wanted = {"mpich": "pmi2", "openmpi": "pmix"}.get(vendor)
    mpi, offered = options.mpi, _pmi_types()
    if mpi == "auto":
        chosen = "SLURM_MPI_TYPE" not in os.environ and wanted in offered
        mpi = str(wanted) if chosen or (not offered and vendor == "mpich") else "none"
    if options.launcher == "auto" and vendor == "openmpi" and mpi == "none" and options.mpi == "auto":
        return replace(options, launcher=f'{mpiexec} --bind-to none -n "$ranks"')
    return replace(options, launcher="srun", mpi=mpi)


def here() -> bool:
    """SLURM's commands are installed on this host."""
    return shutil.which("squeue") is not None


def look(ids: Sequence[str]) -> dict[str, Seen]:
    """What squeue, then sacct for the rest, know of these jobs: one query each; absent where neither knows.

    An empty answer is no error: a job leaves squeue after some minutes, and sacct needs a database.
    """
    if not ids or not here():
        return {}
    found = {seen.job: seen for seen in queued(_ask(_squeue(ids), wrong_is_empty=True))}
    missing = [job for job in ids if job not in found]
    if missing and shutil.which("sacct"):
        said = _ask(["sacct", "--noheader", "--parsable2", "--allocations", "--format=JobID,State,Start,NodeList",
                     f"--jobs={','.join(missing)}"], wrong_is_empty=True)  # fmt: skip
        found |= {seen.job: seen for seen in accounted(said)}
    return found


def queued(said: str) -> list[Seen]:
    """Lines of ``squeue --format=%i|%T|%r|%S|%N``; lines of another form are passed over."""
    rows = (line.strip().split("|") for line in said.splitlines())
    return [Seen(r[0], state_word(r[1]), _known(r[2]), _known(r[3]), _known(r[4])) for r in rows if len(r) >= 5]


def accounted(said: str) -> list[Seen]:
    """Lines of ``sacct --parsable2 --format=JobID,State,Start,NodeList``; "CANCELLED by 123" is CANCELLED."""
    rows = (line.strip().split("|") for line in said.splitlines())
    return [Seen(r[0], state_word(r[1]), r[1], _known(r[2]), _known(r[3])) for r in rows if len(r) >= 4]


def state_word(text: str) -> str:
    """The known state that ``text`` begins with, else UNKNOWN: versions add words, signs and authors."""
    words = re.split(r"[^A-Z_]", text.strip().upper(), maxsplit=1)
    return words[0] if words[0] in (*ACTIVE, *ENDED) else "UNKNOWN"


def cancel(ids: Sequence[str]) -> None:
    """End jobs now. Raises SlurmError."""
    if ids:
        _ask(["scancel", *ids])


def signal_batch(job: str) -> None:
    """USR1 to the batch script alone, as before a time limit. Raises SlurmError."""
    _ask(["scancel", "--signal=USR1", "--batch", job])


def _squeue(ids: Sequence[str]) -> list[str]:
    return ["squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%r|%S|%N", f"--jobs={','.join(ids)}"]


def _pmi_types() -> set[str]:
    """What ``srun --mpi=list`` offers; empty without SLURM."""
    if shutil.which("srun") is None:
        return set()
    return set(re.findall(r"\b(pmi2|pmix|cray_shasta)\b", _ask(["srun", "--mpi=list"], wrong_is_empty=True)))


def _known(text: str) -> str:
    return "" if text in ("N/A", "None", "(null)", "Unknown", "None assigned") else text


def _ask(command: Sequence[str], wrong_is_empty: bool = False) -> str:
    """What a command prints. Raises SlurmError; a controller that is asked about an old job may only say no."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S, check=False)
    except FileNotFoundError:
        raise SlurmError(f"there is no {command[0]} here; submit on a login node of a SLURM cluster") from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{command[0]} did not answer within {ANSWER_S:.0f} s; is the controller up?") from None
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines()
        if wrong_is_empty and not any("contact" in line or "onnect" in line for line in words):
            return done.stdout
        raise SlurmError(f"{command[0]} says: {words[-1] if words else f'exit code {done.returncode}'}")
    return done.stdout + (done.stderr if "--mpi=list" in command else "")
