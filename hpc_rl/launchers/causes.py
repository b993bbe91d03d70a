"""Why an attempt ended: one cause and one sentence, from what the batch script saw, SLURM's record and the STOP file.

Whoever ends a job leaves traces in different places, and not every site has all of them: the record of ``scontrol show
job`` (a time of preemption), the accounts (who cancelled it), srun's own words, the signal and the time that was left.
"""

from __future__ import annotations

import pwd
import re
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from hpc_rl.job import BadJob
from hpc_rl.launchers.options import Options, load_saved
from hpc_rl.settings import BUDGET_SPENT, OUT_OF_TIME, TOO_FEW
from hpc_rl.storage.run_dir import RunDir
from hpc_rl.storage.untrusted import Unreadable

FINAL = ("cancelled", "STOP file", "budget")  # a user or the job itself ended it
FROM_OUTSIDE = ("time limit", "preempted", "node lost", "requeued", "signal")  # no fault of the run
EARLY_S = 65.0  # SLURM sends its signal up to a minute before the time that was requested
_STATES = {
    "TIMEOUT": "time limit", "DEADLINE": "time limit", "PREEMPTED": "preempted", "CANCELLED": "cancelled",
    "NODE_FAIL": "node lost", "BOOT_FAIL": "node lost", "OUT_OF_MEMORY": "out of memory",
}  # fmt: skip
_SRUN = {"PREEMPTION": "preempted", "TIME LIMIT": "time limit", "NODE FAILURE": "node lost", "JOB REQUEUE": "requeued"}
_WORDS = {
    "time limit": "{} reached its time limit",
    "preempted": "{} was preempted",
    "cancelled": "{} was cancelled{}",
    "node lost": "a node of {} was lost",
    "out of memory": "{} took more memory than it requested",
    "requeued": "SLURM requeued {}",
    "signal": "{} got {}",
}


@dataclass(frozen=True)
class Ending:
    """What the batch script saw. ``record`` is a line of scontrol, ``account`` a state of sacct; either may be empty.

    ``signal`` is the first that came, USR1 or TERM, ``left_s`` the time to the limit then; ``lead_s`` is how long
    before it SLURM was to send USR1; ``restarts`` how often SLURM had restarted the job when the attempt began.
    """

    job: str
    signal: str = ""
    left_s: float | None = None
    lead_s: float = 120.0
    record: str = ""
    account: str = ""
    restarts: int = 0

    def value(self, key: str) -> str:
        """One field of the record; empty where it has none."""
        match = re.search(rf" {key}=(\S*)", f" {self.record}")
        return match[1] if match else ""


def by_slurm(ending: Ending, output: str) -> str:
    """The cause where SLURM, or a user through it, ended the attempt, else empty; ``output`` is what srun printed."""
    if re.match(r"\d", ending.value("PreemptTime")):
        return "preempted"
    for words in re.findall(r"CANCELLED AT \S+ DUE TO ([A-Z ]+)", output):
        if cause := _SRUN.get(words.strip()):
            return cause
    state = ending.value("JobState")
    for word in (ending.account.partition(" ")[0], state):
        if word in _STATES:
            return _STATES[word]
    if (count := ending.value("Restarts")) and int(count) != ending.restarts:
        return "requeued"
    if state == "COMPLETING":
        return "time limit" if ending.left_s is not None and ending.left_s < EARLY_S else "cancelled"
    return ""


def by_signal(ending: Ending) -> str:
    """The cause that the signal to the batch script stands for; empty without one."""
    if ending.signal == "USR1" and (ending.left_s is None or ending.left_s < ending.lead_s + EARLY_S):
        return "time limit"
    return "signal" if ending.signal else ""


def of_state(state: str) -> str:
    """The cause that a final state of a job stands for: CANCELLED, TIMEOUT …; "script failed" for the others."""
    return _STATES.get(state, "script failed")


def sentence(cause: str, job: str, account: str = "", signal: str = "") -> str:
    """What happened to the job; ``account`` is like "CANCELLED by 1000"."""
    by = re.search(r"CANCELLED by (\d+)", account)
    details = {"cancelled": f" by {user(int(by[1]))}" if by else "", "signal": f"SIG{signal}" if signal else "a signal"}
    return _WORDS[cause].format(f"job {job}", details.get(cause, ""))


def user(uid: int) -> str:
    """A name for people; the number where this host knows none."""
    with suppress(KeyError):
        return pwd.getpwuid(uid).pw_name
    return f"user {uid}"


def stop(run: RunDir, reason: str, ending: Ending, output: str) -> tuple[str, str]:
    """(cause, sentence) of an attempt whose ranks saved and left; ``reason`` is what they recorded."""
    if reason.startswith(BUDGET_SPENT):
        return "budget", reason
    if reason.startswith(TOO_FEW):
        return "actors lost", reason
    if run.stop_requested():
        return of_stop_file(run)
    cause = by_slurm(ending, output) or ("time limit" if reason == OUT_OF_TIME else by_signal(ending)) or "signal"
    return cause, f"stopped: {sentence(cause, ending.job, ending.account, ending.signal)}"


def failure(rank_failure: str, certain: bool, ending: Ending, output: str) -> tuple[str, str]:
    """(cause, sentence) of an attempt whose ranks did not save: ``rank_failure`` is the sentence about one of them.

    ``certain``: that rank itself recorded why, which is more than a signal that came as well.
    """
    cause = by_slurm(ending, output) or ("" if certain else by_signal(ending))
    if cause in ("", "signal", "out of memory"):
        return of_failure(rank_failure) if cause != "out of memory" else cause, rank_failure
    event = sentence(cause, ending.job, ending.account)
    return cause, f"{event} before the ranks had saved; the last checkpoint stands"


def without(lost: Sequence[str]) -> str:
    """The actors that an attempt went on without."""
    return f"{len(lost)} actor{'s were' if len(lost) > 1 else ' was'} lost: {', '.join(lost)}"


def of_stop_file(run: RunDir) -> tuple[str, str]:
    """(cause, sentence) where a STOP file lies; hpc-rl's own commands write a line with their author into it."""
    text = run.stop_text()
    return ("cancelled", f"stopped: {text}") if text else ("STOP file", f"stopped: {run.stop_file} was written")


def of_failure(sentence: str) -> str:
    """The cause that the sentence about a failed rank names."""
    for cause, pattern in (("out of memory", "out of memory|memory limit"), ("killed", r"\bkilled\b")):
        if re.search(pattern, sentence):
            return cause
    return "error"


def go_on(run: RunDir, cause: str, ending: Ending | None = None) -> str:
    """The command that goes on with the run, to be pasted into a shell."""
    command = f"hpc-rl resume {shlex.quote(str(run.path))}"
    return command + (_more_memory(ending) if cause == "out of memory" and ending else "")


def saved_too_late(run: RunDir) -> str:
    """`go_on` where the time limit cut the saving short: with twice the lead."""
    lead = Options().lead_s
    for home in (run.path.parent, run.path):  # the options of an array lie one folder above
        with suppress(FileNotFoundError, Unreadable, BadJob):
            lead = load_saved(home / "submit" / "options.json").lead_s
    return f"{go_on(run, 'time limit')} --lead-s {2 * lead}"


def pasted(command: str) -> str:
    """A command out of a run's state, which a stranger may have written: as a launcher makes it, or nothing."""
    try:
        words = shlex.split(command)
    except ValueError:
        return ""
    if not command.isprintable():
        return ""
    if words[:2] == ["hpc-rl", "run"] and len(words) == 6 and (words[3], words[5]) == ("--out", "--resume"):
        return shlex.join(words)
    resumes = words[:2] == ["hpc-rl", "resume"] and len(words) in (3, 5)
    if not resumes or (words[3:] and not (words[3] in ("--mem", "--mem-per-cpu") and words[4].isalnum())):
        return ""
    return shlex.join(words)


def _more_memory(ending: Ending) -> str:
    """Twice what the job had; where the record does not state it, an amount to be changed."""
    for key, option in (("MinMemoryCPU", "--mem-per-cpu"), ("MinMemoryNode", "--mem")):
        if (amount := re.fullmatch(r"(\d+)(?:\.\d+)?([KMGT]?)", ending.value(key))) and int(amount[1]):
            return f" {option} {2 * int(amount[1])}{amount[2] or 'M'}"
    return " --mem-per-cpu 4G"
