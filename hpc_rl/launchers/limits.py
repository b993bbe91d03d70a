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
    """Tasks that one array may have at this site; None where SLURM is not here or does not tell."""
    limits = re.findall(r"(?m)^MaxArraySize\s*=\s*(\d+)|\bmax_array_tasks=(\d+)", slurm.shown("config"))
    return min((int(size or most) for size, most in limits if int(size or most)), default=None)


def check_time(options: Options, warn: Callable[[str], None]) -> None:
    """Warn where a start is mostly the time to save, or its partition too short. Raises BadJob where it is only that.

    Without a time of its own a job gets its partition's; where SLURM is not here, that is not known. What is not given
    sbatch takes from its variables.
    """
    time = options.time or os.environ.get("SBATCH_TIMELIMIT") or None
    given, partitions = seconds(time), _partitions(options.partition or os.environ.get("SBATCH_PARTITION"))
    if given is not None:
        _check_work(given, f"time = {time!r}", options, warn)
        longest = [most for _, _, most in partitions if most is not None]
        if longest and len(longest) == len(partitions) and given > max(longest):
            names = " and ".join(name for name, _, _ in partitions)
            warn(
                f"time = {options.time!r} is more than partition {names} allows, {max(longest)} s: it would never start"
            )
    elif time is None:
        limits = {name: default or most for name, default, most in partitions}
        short = {name: limit for name, limit in limits.items() if limit is not None and limit <= options.lead_s}
        if limits and len(short) == len(limits):
            name, limit = next(iter(short.items()))
            raise BadJob(
                f"partition {name} gives a job {limit} s, which is not longer than lead_s = {options.lead_s}: it would "
                "only be told to save; use another --partition, more --time or less --lead-s"
            )


def check_granted(job: str, options: Options, warn: Callable[[str], None]) -> None:
    """The same of the time that SLURM has given a job without one: its partition, QOS or a rule of the site decided."""
    if not options.time and (limit := slurm.granted(job)) is not None:
        _check_work(limit, "SLURM", options, warn)


def _check_work(limit: int, who: str, options: Options, warn: Callable[[str], None]) -> None:
    """``limit``: seconds of one start, which ``who`` gives."""
    work = limit - options.lead_s
    if work < max(options.lead_s, EARLY_S + 1):
        again = f", up to {options.max_restarts} times" if options.resume_mode != "none" else ""
        warn(
            f"{who} gives each start {limit} s; lead_s = {options.lead_s} leaves {max(work, 0)} s for work{again}"
            f" (SLURM may signal up to {EARLY_S} s early); give more --time or less --lead-s"
        )


def _partitions(names: str | None) -> list[tuple[str, int | None, int | None]]:
    """(name, default, longest time in s) of these partitions, or of the default one; empty where SLURM is not here."""
    wanted = names.split(",") if names else []
    found = []
    for line in slurm.shown("partition", "--all", "--oneliner").splitlines():
        values = dict(word.partition("=")[::2] for word in line.split())
        name = values.get("PartitionName", "")
        if name in wanted or (not wanted and values.get("Default") == "YES"):
            found.append((name, seconds(values.get("DefaultTime")), seconds(values.get("MaxTime"))))
    return found
