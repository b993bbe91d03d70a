"""Which rank ended a job, and how: read from what the ranks noted, what their launcher printed, and who died first."""

from __future__ import annotations

import re
import signal
from typing import Any

from hpc_rl.storage.rank_records import rank_records
from hpc_rl.storage.run_dir import RunDir

_ENDS = "Killed|Out Of Memory|Aborted|Bus error|Illegal instruction|[A-Z][a-z]+ fault|Floating point exception"


def first_failure(run: RunDir, said: str, code: int, dead: dict[int, float], lone: bool = False) -> str:
    """Which rank failed first, in which role, and how; ``dead`` are the processes seen to end first, if any.

    ``lone``: the exit code is that of the only rank, negative after a signal; else it is that of its launcher.
    """
    records = rank_records(run)
    failed = sorted((r for r in records if r.get("ended") == "error"), key=lambda record: float(record["time"]))
    # A rank that fails says so before it ends the others; one that was killed is dead before the others complain.
    if failed and (not dead or failed[0]["time"] <= min(dead.values())):
        first = failed[0]
        where = f"; the traceback is in {run.logs}/rank-{first['rank']:03d}.json" if first["bug"] else ""
        return f"{_whose(first)} failed: {_first_line(first['error'])}{where}"
    silent = {r["pid"]: r for r in records if "ended" not in r and (not dead or r["pid"] in dead)}
    if victim := _victim_of_srun(records, said):
        return victim
    if lone:
        return f"{_whose(*silent.values()) if len(silent) == 1 else 'the rank'} {_end_of_one(run, code)}"
    how = re.search(r"signal[: ]+\(?(\d+)|\(signal (\d+)\)", said, re.IGNORECASE)
    for text in [*re.findall(r"PID[ :]+(\d+)", said, re.IGNORECASE), *map(str, dead)]:
        if int(text) in silent:
            end = f"was killed by signal {how[1] or how[2]}" if how else "exited without an error message"
            return f"{_whose(silent[int(text)])} {end}"
    if code < 0:
        return f"the launcher of the ranks was killed by {_signal(-code)}; see {run.logs}/ranks.log"
    lines = [line.strip() for line in said.splitlines() if line.strip()] or ["nothing was printed"]
    told = next((line for line in lines if re.match(r"rank \d+: ", line)), lines[-1])
    return f"the ranks ended with exit code {code}: {told}; see {run.logs}/ranks.log"


def unfinished(run: RunDir) -> str:
    """The ranks that took their seats and have not noted an end; empty where there are none."""
    return ", ".join(_whose(record) for record in rank_records(run) if "ended" not in record)


def _end_of_one(run: RunDir, code: int) -> str:
    how = f"was killed by {_signal(-code)}" if code < 0 else f"ended with exit code {code} and without a word"
    return f"{how}; see {run.logs}/ranks.log"


def _signal(number: int) -> str:
    try:
        return f"signal {number} ({signal.Signals(number).name})"
    except ValueError:  # a real-time signal
        return f"signal {number}"


def _victim_of_srun(records: list[dict[str, Any]], said: str) -> str | None:
    """srun names the task that died first; those that it then kills itself come later, or as one list."""
    for tasks, word in re.findall(rf"srun: error: \S+: tasks? ([\d,-]+): ({_ENDS})", said):
        first = int(re.split("[,-]", tasks)[0])
        record = next((r for r in records if r["rank"] == first and "ended" not in r), None)
        if record:
            memory = " by the node's memory limit" if word == "Killed" and re.search("oom.kill", said) else ""
            return f"{_whose(record)} ended: {word.lower()}{memory}"
    return None


def _first_line(text: str) -> str:
    return next((line for line in text.splitlines() if line.strip()), "without a word")


def _whose(record: dict[str, Any]) -> str:
    return f"rank {record['rank']} ({record['role']}) on {record['host']}"
