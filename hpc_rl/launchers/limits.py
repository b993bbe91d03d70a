"""What a site allows: how many tasks one array may have, and how long a job may run."""

from __future__ import annotations

import os
import re
from collections.abc import Callable

from hpc_rl.job import BadJob
from hpc_rl.launchers import slurm
from hpc_rl.launchers.options import Options, seconds

EARLY_S = 60  # SLURM may send the signal before a time limit so much earlier than asked for


def largest_array() -> int | None:
    """Tasks that one array may have at this site; None where SLURM is not installed or states no limit."""
    limits = re.findall(r"(?m)^MaxArraySize\s*=\s*(\d+)|\bmax_array_tasks=(\d+)", slurm.show("config"))
    return min((int(size or most) for size, most in limits if int(size or most)), default=None)


def check_time(options: Options, warn: Callable[[str], None]) -> None:
    """Warn where a start is mostly the time to save, or its partition too short. Raises BadJob where it is only that.

    Without a time of its own a job gets its partition's; where SLURM is not installed, that is not known. sbatch takes
    absent options from its variables.
    """
    time = options.time or os.environ.get("SBATCH_TIMELIMIT") or None
    time_s, partitions = seconds(time), _partitions(options.partition or os.environ.get("SBATCH_PARTITION"))
    if time_s is not None:
        _check_work(time_s, f"time = {time!r}", options, warn)
        longest = [most for _, _, most in partitions if most is not None]
        if longest and len(longest) == len(partitions) and time_s > max(longest):
            names = " and ".join(name for name, _, _ in partitions)
            warn(
                f"time = {options.time!r} is more than partition {names} allows, {max(longest)} s, so the job would "
                "never start; give less --time or another --partition"
            )
    elif time is None:
        limits = {name: default or most for name, default, most in partitions}
        short = {name: limit for name, limit in limits.items() if limit is not None and limit <= options.lead_s}
        if limits and len(short) == len(limits):
            name, limit = next(iter(short.items()))
            raise BadJob(
                f"partition {name} gives a job {limit} s, which is not longer than lead_s = {options.lead_s}, so ranks "
                "would save at once and never train; use another --partition, more --time or less --lead-s"
            )


def check_granted(job: str, options: Options, warn: Callable[[str], None]) -> None:
    """The same of the time that SLURM has given a job without one: its partition, QOS or a rule of the site decided."""
    if not options.time and (limit := slurm.granted(job)) is not None:
        _check_work(limit, "SLURM", options, warn)


def _check_work(limit: int, source: str, options: Options, warn: Callable[[str], None]) -> None:
    """``limit``: seconds of one start, which ``source`` gives."""
    work = limit - options.lead_s
    if work < max(options.lead_s, EARLY_S + 1):
        repeats = f", up to {options.max_restarts} times" if options.resume_mode != "none" else ""
        warn(
            f"{source} gives each start {limit} s; lead_s = {options.lead_s} leaves {max(work, 0)} s for work{repeats}"
            f" (SLURM may signal up to {EARLY_S} s early); give more --time or less --lead-s"
        )


def _partitions(names: str | None) -> list[tuple[str, int | None, int | None]]:
    """(name, default, longest time in s) of these partitions, or of the default one; empty where SLURM is not here."""
    selection = names.split(",") if names else []
    partitions = []
    for line in slurm.show("partition", "--all", "--oneliner").splitlines():
        values = dict(word.partition("=")[::2] for word in line.split())
        name = values.get("PartitionName", "")
        if name in selection or (not selection and values.get("Default") == "YES"):
            partitions.append((name, seconds(values.get("DefaultTime")), seconds(values.get("MaxTime"))))
    return partitions
