"""Which rank ended a job, and how: from the ranks' records, their launcher's output, and which process died first."""

from __future__ import annotations

import re
import signal
from typing import Any

from hpc_rl.storage.rank_records import rank_records
from hpc_rl.storage.run_dir import RunDir

_ENDS = "Killed|Out Of Memory|Aborted|Bus error|Illegal instruction|[A-Z][a-z]+ fault|Floating point exception"


def first_failure(run: RunDir, output: str, code: int, deaths: dict[int, float], lone: bool = False) -> str:
    """Which rank failed first, in which role, and how; ``deaths``: processes that ended first -> unix time, if any.

    ``lone``: the exit code is that of the only rank, negative after a signal; else it is that of its launcher.
    """
    records = rank_records(run)
    failures = sorted((r for r in records if r.get("ended") == "error"), key=lambda record: float(record["time"]))
    # A rank that fails records it before it ends the others; one that was killed is dead before the others fail.
    if failures and (not deaths or failures[0]["time"] <= min(deaths.values())):
        first = failures[0]
        pointer = f"; the traceback is in {run.logs}/rank-{first['rank']:03d}.json" if first["bug"] else ""
        return f"{_whose(first)} failed: {_first_line(first['error'])}{pointer}"
    silent = {r["pid"]: r for r in records if "ended" not in r and (not deaths or r["pid"] in deaths)}
    if victim := _victim_of_srun(records, output):
        return victim
    if lone:
        return f"{_whose(*silent.values()) if len(silent) == 1 else 'the rank'} {_end_of_one(run, code)}"
    how = re.search(r"signal[: ]+\(?(\d+)|\(signal (\d+)\)", output, re.IGNORECASE)
    for text in [*re.findall(r"PID[ :]+(\d+)", output, re.IGNORECASE), *map(str, deaths)]:
        if int(text) in silent:
            end = f"was killed by signal {how[1] or how[2]}" if how else "exited without an error message"
            return f"{_whose(silent[int(text)])} {end}"
    if code < 0:
        return f"the ranks' launcher was killed by {_signal(-code)}; see {run.logs}/ranks.log"
    lines = [line.strip() for line in output.splitlines() if line.strip()] or ["nothing was printed"]
    message = next((line for line in lines if re.match(r"rank \d+: ", line)), lines[-1])
    return f"the ranks ended with exit code {code}: {message}; see {run.logs}/ranks.log"


def unfinished(run: RunDir) -> str:
    """The ranks that began and have not recorded an end; empty where there are none."""
    return ", ".join(_whose(record) for record in rank_records(run) if "ended" not in record)


def _end_of_one(run: RunDir, code: int) -> str:
    end = f"was killed by {_signal(-code)}" if code < 0 else f"ended with exit code {code} and no error message"
    return f"{end}; see {run.logs}/ranks.log"


def _signal(number: int) -> str:
    try:
        return f"signal {number} ({signal.Signals(number).name})"
    except ValueError:  # a real-time signal
        return f"signal {number}"


def _victim_of_srun(records: list[dict[str, Any]], output: str) -> str | None:
    """srun names the task that died first; those that it then kills itself come later, or as one list."""
    for tasks, word in re.findall(rf"srun: error: \S+: tasks? ([\d,-]+): ({_ENDS})", output):
        first = int(re.split("[,-]", tasks)[0])
        record = next((r for r in records if r["rank"] == first and "ended" not in r), None)
        if record:
            memory = " by the node's memory limit" if word == "Killed" and re.search("oom.kill", output) else ""
            return f"{_whose(record)} ended: {word.lower()}{memory}"
    return None


def _first_line(text: str) -> str:
    return next((line for line in text.splitlines() if line.strip()), "no error message")


def _whose(record: dict[str, Any]) -> str:
    return f"rank {record['rank']} ({record['role']}) on {record['host']}"
