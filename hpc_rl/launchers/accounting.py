"""What SLURM's database says a job consumed, over all its starts."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from typing import Any

from hpc_rl.launchers import slurm

FORMAT = "JobID,ElapsedRaw,AllocCPUS,TotalCPU,MaxRSS,ConsumedEnergyRaw"
_MOST_ENERGY_J = 1e15  # what is above is one of SLURM's marks for "unknown"
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def consumed(ids: Sequence[str]) -> dict[str, Any] | None:
    """cpu_s and core_s of the jobs, largest_rss_bytes of a task, energy_j (0 where it is not measured).

    None where there is no database, or none of the jobs in it. Raises SlurmError where it does not answer.
    """
    if not ids or shutil.which("sacct") is None:
        return None
    form = f"--format={FORMAT}"
    command = ["sacct", "--noheader", "--parsable2", "--duplicates", "--noconvert", form, f"--jobs={','.join(ids)}"]
    return summed(slurm.ask(command))


def summed(output: str) -> dict[str, Any] | None:
    """The sums of lines of sacct: times and energy of allocations (a step's where that has none), memory of steps."""
    rows = [fields for line in output.splitlines() if len(fields := line.strip().split("|")) >= 6]
    jobs = [row for row in rows if "." not in row[0]]
    if not jobs:
        return None
    steps = [row for row in rows if "." in row[0]]
    energy = sum(_energy(row[5]) for row in jobs) or sum(_energy(row[5]) for row in steps)
    return {
        "cpu_s": sum(_clock(row[3]) for row in jobs),
        "core_s": sum(float(row[1]) * int(row[2]) for row in jobs if row[1].isdigit() and row[2].isdigit()),
        "largest_rss_bytes": max((_bytes(row[4]) for row in steps), default=0),
        "energy_j": energy,
    }


def _clock(text: str) -> float:
    """Seconds of "1-02:03:04", "02:03:04" or "03:04.567"; 0 where it is none of them."""
    match = re.fullmatch(r"(?:(?:(\d+)-)?(\d+):)?(\d+):(\d+(?:\.\d+)?)", text.strip())
    if not match:
        return 0.0
    days, hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return ((24 * days + hours) * 60 + minutes) * 60 + seconds


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)", text.strip())
    return int(float(match[1]) * _UNITS[match[2]]) if match else 0


def _energy(text: str) -> float:
    value = float(text) if re.fullmatch(r"\d+", text.strip()) else 0.0
    return value if value < _MOST_ENERGY_J else 0.0
