"""SLURM's commands: sbatch, squeue, sacct, scancel, and what their answers mean, whatever the version of SLURM."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from hpc_rl.job import BadJob
from hpc_rl.launchers import environment, reasons
from hpc_rl.launchers.mpiexec import find_mpiexec, with_survivors
from hpc_rl.launchers.options import Options, seconds

ANSWER_S = 60.0  # the longest that a controller may take
LINE_BYTES = 60_000  # of ids in one command
ENDED = ("COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "DEADLINE",
         "OUT_OF_MEMORY")  # fmt: skip


class SlurmError(RuntimeError):
    """A SLURM command is missing, refused, or did not answer."""


class Refused(SlurmError):
    """SLURM refused a command, so nothing has changed; any other error leaves that open."""


@dataclass(frozen=True)
class JobStatus:
    """What SLURM knows of one job: its word for the state, why, expected or real start, nodes, time of this start (s).

    ``active``: it is in the queue, in a state that is none of those that end a job; versions add states.
    """

    job: str
    state: str
    active: bool
    reason: str = ""
    start: str = ""
    nodes: str = ""
    elapsed_s: int | None = None
    left_s: int | None = None  # before its time limit


def sbatch(script: Path, *arguments: str) -> str:
    """Submit; the job's id. The script's options and nothing of a job from inside of which it is sent reach SLURM.

    Raises Refused with sbatch's sentence; SlurmError where the job may have been queued."""
    overruled = set(environment.overruled(environment.options(script.read_text())))
    variables = {name: value for name, value in environment.scrubbed(os.environ).items() if name not in overruled}
    try:
        answer = ask(["sbatch", "--parsable", *arguments, str(script.absolute())], variables=variables)
    except Refused as error:
        if shutil.which("sbatch") is None:
            raise
        own_options = "job-name|output|open-mode|signal|requeue|no-requeue"
        directives = re.findall(rf"(?m)^#SBATCH (--(?!{own_options}).*)", script.read_text())
        raise Refused(
            f"{reasons.explained(str(error))}; requested: {' '.join(directives)}; see sinfo and hpc-rl submit --help"
        ) from None
    match = re.search(r"^(\d+)(;\S+)?\s*$", answer, re.MULTILINE)
    if not match:
        raise SlurmError(f"sbatch printed {answer.strip()!r} without a job id; the job may be queued: see squeue --me")
    return match[1]


def resolved(options: Options, tolerant: bool = False) -> Options:
    """The options with launcher and PMI chosen for the MPI of the ranks' Python and the PMIs of this cluster.

    MPICH speaks pmi2; Open MPI 5 speaks pmix only, and elsewhere would give N worlds of one rank: there its mpiexec.
    Which MPI a container holds cannot be seen from here: there srun's own default stands. Raises BadJob where that
    mpiexec would end all ranks of a ``tolerant`` job with one.
    """
    if options.launcher not in ("auto", "srun", "mpiexec"):
        return options
    mpiexec, vendor = _mpi_of(options)
    unbound = " --bind-to none" if vendor == "openmpi" else ""

    def by_mpiexec() -> Options:
        words = " ".join(["", *with_survivors(mpiexec, vendor)]) if tolerant else ""
        return replace(options, launcher=f'{shlex.quote(mpiexec)}{unbound}{words} -n "$ranks"')

    if options.launcher == "mpiexec":
        return by_mpiexec()
    types: dict[str, Literal["pmi2", "pmix", "none"]] = {"mpich": "pmi2", "openmpi": "pmix"}
    pmi = types.get(vendor, "none")
    mpi, offered = options.mpi, _pmi_types()
    if mpi == "auto":
        usable = "SLURM_MPI_TYPE" not in environment.scrubbed(os.environ) and pmi in offered
        mpi = pmi if usable or (not offered and vendor == "mpich") else "none"
    if options.launcher == "auto" and vendor == "openmpi" and mpi == "none" and options.mpi == "auto":
        return by_mpiexec()
    return replace(options, launcher="srun", mpi=mpi)


def _mpi_of(options: Options) -> tuple[str, str]:
    """(mpiexec, vendor) of what the ranks will run."""
    if options.container:
        return "mpiexec", "unknown"
    try:
        return find_mpiexec(options.python or sys.executable)
    except BadJob:
        return "mpiexec", "unknown"


def available() -> bool:
    """SLURM's commands are installed on this host."""
    return shutil.which("squeue") is not None


def query(ids: Sequence[str]) -> dict[str, JobStatus]:
    """What squeue, then sacct for the rest, know of these jobs: one query each; absent where neither knows.

    A job leaves squeue minutes after its end; sacct needs a database, so its failure only means knowing less.

    Raises:
        SlurmError: squeue did not answer, so nothing is known; an empty answer is not taken for "no such job".
    """
    if not ids or not available():
        return {}
    id_set = set(ids)
    statuses: dict[str, JobStatus] = {}
    for batch in batches(_whole(ids)):
        statuses |= queued(ask(_squeue(batch), but="nvalid job id"))
    sacct_ids = [job for job in ids if job not in statuses or statuses[job].state == "CANCELLED"]  # sacct knows by whom
    if shutil.which("sacct"):
        with contextlib.suppress(SlurmError):
            for batch in batches(_whole(sacct_ids)):
                answer = accounted(ask(_sacct(batch)))
                statuses |= {job: answer[job] for job in sacct_ids if job in answer}
    return {job: status for job, status in statuses.items() if job in id_set}


def _whole(ids: Sequence[str]) -> list[str]:
    """The ids; where they are too many for one query, an array's id, which stands for all its tasks."""
    return list(ids) if len(",".join(ids)) < LINE_BYTES else list(dict.fromkeys(job.partition("_")[0] for job in ids))


def queued(output: str) -> dict[str, JobStatus]:
    """Lines of ``squeue --format=%i|%T|%r|%S|%N|%M|%L`` by job; lines of another form are passed over."""
    statuses = {}
    for job, (_, state, *fields) in _rows(output, 5).items():
        word, (reason, start, nodes, elapsed, remaining, *_) = state_word(state), [*map(_known, fields), "", ""]
        statuses[job] = JobStatus(
            job, word, word not in ENDED, reason, start, nodes, seconds(elapsed), seconds(remaining)
        )
    return statuses


def accounted(output: str) -> dict[str, JobStatus]:
    """Lines of ``sacct --parsable2 --format=JobID,State,Start,NodeList``; "CANCELLED by 123" is CANCELLED.

    None is active: sacct is queried for what squeue no longer knows, and may keep such a job as running for ever.
    """
    rows = _rows(output, 4).items()
    return {job: JobStatus(job, state_word(row[1]), False, row[1], _known(row[2]), _known(row[3])) for job, row in rows}


def _rows(output: str, columns: int) -> dict[str, list[str]]:
    """Fields of each line by job id; ``12+0``, the leader of a heterogeneous job, stands for all its components."""
    rows = [line.strip().split("|") for line in output.splitlines()]
    return {row[0].removesuffix("+0"): row for row in rows if len(row) >= columns and not re.search(r"\+[1-9]", row[0])}


def state_word(text: str) -> str:
    """The first word of a state, else UNKNOWN: versions add words, signs and authors."""
    return re.split(r"[^A-Z_]", text.strip().upper(), maxsplit=1)[0] or "UNKNOWN"


def cancel(ids: Sequence[str]) -> None:
    """End jobs now. Raises SlurmError."""
    for batch in batches(together(ids)):
        ask(["scancel", *batch])


def release(ids: Sequence[str]) -> None:
    """Let held jobs begin. Raises SlurmError."""
    for job in ids:
        ask(["scontrol", "release", job])


def show(*words: str) -> str:
    """What ``scontrol show`` prints; empty where SLURM is not installed or does not answer."""
    if shutil.which("scontrol") is None:
        return ""
    try:
        return ask(["scontrol", "show", *words])
    except SlurmError:
        return ""


def script_of(job: str) -> str:
    """The file that a job was sent from; empty where SLURM does not know the job, or is not installed."""
    if not available():
        return ""
    output = ask(["squeue", "--noheader", "--states=all", "--format=%o", f"--jobs={job}"], but="nvalid job id")
    return next(iter(output.splitlines()), "").strip()


def granted(job: str) -> int | None:
    """Seconds that one start of a job has been given; None where there is no limit, or SLURM does not answer."""
    try:
        output = ask(["squeue", "--noheader", "--array", "--format=%l", f"--jobs={job}"])
    except SlurmError:
        return None
    return seconds(next(iter(output.split()), None))


def together(ids: Sequence[str]) -> list[str]:
    """The same jobs with the tasks of an array as one word, ``12_[0,1,5]``, which scancel sends as one request."""
    arrays: dict[str, list[str]] = {}
    for job in ids:
        array, _, task = job.partition("_")
        arrays.setdefault(array, []).extend([task] if task else [])
    words = []
    for array, tasks in arrays.items():
        for part in batches(tasks):
            words.append(f"{array}_[{','.join(part)}]" if len(part) > 1 else f"{array}_{part[0]}")
        words += [] if tasks else [array]
    return words


def batches(words: Sequence[str]) -> list[list[str]]:
    """The words in parts that a command line can carry: Linux takes 128 KiB in one argument, 2 MiB in all of them."""
    groups: list[list[str]] = []
    room = 0
    for word in words:
        if len(word) + 1 > room:
            groups.append([])
            room = LINE_BYTES
        groups[-1].append(word)
        room -= len(word) + 1
    return groups


def signal_batch(job: str) -> None:
    """USR1 to the batch script alone, as before a time limit. Raises SlurmError."""
    ask(["scancel", "--signal=USR1", "--batch", job])


def _squeue(ids: Sequence[str]) -> list[str]:
    return [
        "squeue",
        "--noheader",
        "--array",
        "--states=all",
        "--format=%i|%T|%r|%S|%N|%M|%L",
        f"--jobs={','.join(ids)}",
    ]


def _sacct(ids: Sequence[str]) -> list[str]:
    form = "--format=JobID,State,Start,NodeList"
    return ["sacct", "--noheader", "--parsable2", "--allocations", form, f"--jobs={','.join(ids)}"]


def _pmi_types() -> set[str]:
    """What ``srun --mpi=list`` offers; empty without SLURM, or where it cannot tell."""
    try:
        return set(re.findall(r"\b(pmi2|pmix|cray_shasta)\b", ask(["srun", "--mpi=list"])))
    except SlurmError:
        return set()


def _known(text: str) -> str:
    return "" if text in ("N/A", "None", "(null)", "Unknown", "None assigned") else text


def ask(command: Sequence[str], but: str | None = None, variables: Mapping[str, str] | None = None) -> str:
    """What a command prints; an error that contains ``but`` is an empty answer. Raises Refused, SlurmError."""
    variables = environment.scrubbed(os.environ) if variables is None else variables
    try:
        process = subprocess.run(
            command, capture_output=True, text=True, timeout=ANSWER_S, check=False, env=variables
        )  # fmt: skip
    except FileNotFoundError:
        raise Refused(f"{command[0]} is not installed here; use a login node of a SLURM cluster") from None
    except subprocess.TimeoutExpired:
        raise SlurmError(
            f"{command[0]} did not answer within {ANSWER_S:.0f} s; its controller may be down or busy, try again later"
        ) from None
    if process.returncode and not (but and but in process.stderr):
        message = re.sub(rf"(?m)^({command[0]}: )?(error: )?|^Try .*", "", process.stderr or process.stdout)
        words = "; ".join(line.strip() for line in message.splitlines() if line.strip())
        kind = SlurmError if "timed out" in process.stderr else Refused  # a slow controller may have accepted
        raise kind(f"{command[0]} says: {words or f'exit code {process.returncode}'}")
    return process.stdout + (process.stderr if "--mpi=list" in command else "")
