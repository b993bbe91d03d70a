"""Why a job waits, in plain words: SLURM's reason first, as its pages name it, then what it means and what helps."""

from __future__ import annotations

import re

_NEVER = "it will never start like this: hpc-rl cancel, then hpc-rl resume with other options"
_WORDS = {
    "Priority": "jobs of higher priority come first",
    "Resources": "it is next, and waits for nodes to become free",
    "Dependency": "it waits for another job to end",
    "DependencyNeverSatisfied": f"the job that it depends on ended in another way than --after names; {_NEVER}",
    "BeginTime": "it may not begin yet; a requeued job is held back, by default for two minutes",
    "JobHeldUser": "its owner holds it; scontrol release lets it go",
    "JobHeldAdmin": "an administrator holds it",
    "ReqNodeNotAvail": "nodes that it requests are down, drained or reserved",
    "ReservationDeleted": f"its reservation is gone; {_NEVER}",
    "Reservation": "it waits for its reservation to begin",
    "Licenses": "it waits for licences",
    "JobArrayTaskLimit": "as many tasks of its array run as --parallel allows",
    "PartitionTimeLimit": f"it requests more time than its partition allows; {_NEVER}",
    "PartitionNodeLimit": f"it requests more nodes, or fewer, than its partition allows or has; {_NEVER}",
    "PartitionConfig": f"its partition does not take such jobs; {_NEVER}",
    "PartitionDown": "its partition is down",
    "PartitionInactive": "its partition starts no jobs at present",
    "BadConstraints": f"no node fits what it requests; {_NEVER}",
    "MaxMemPerLimit": f"it requests more memory than a node or CPU may give; {_NEVER}",
    "InvalidAccount": f"its account is not valid; {_NEVER}",
    "InvalidQOS": f"its QOS is not valid; {_NEVER}",
    "AccountingPolicy": "a limit of its account or QOS is reached",
    "QOSNotAllowed": f"its partition or account does not take its QOS; {_NEVER}",
    "QOSUsageThreshold": "its QOS has used more than its threshold",
    "NodeDown": "a node that it needs is down",
    "JobLaunchFailure": "it could not be launched, perhaps for its files or its node; see scontrol show job",
    "launch failed requeued held": "it could not be launched and is held; mend the cause, then scontrol release",
    "job requeued in held state": "it was requeued and is held; scontrol release lets it go",
    "Nodes required for job are DOWN": "nodes that it needs are down, drained or reserved",
    "BurstBufferResources": "it waits for a burst buffer",
    "BurstBufferStageIn": "its burst buffer is being filled",
    "Cleaning": "what its last start left on the nodes is being cleaned away",
    "Prolog": "the nodes are being prepared",
    "DeadLine": f"it cannot end before its deadline; {_NEVER}",
}
_LIMIT = re.compile(r"(QOS|Assoc)(Grp|Max|Min)(\w+?)(Per(?:Job|User|Account|Node)|Per)?(?:Limit|NotSatisfied)?")
_WHAT = {
    "jobs": "running jobs", "job": "running jobs", "submitjobs": "submitted jobs", "submitjob": "submitted jobs",
    "cpu": "CPUs", "cpuminutes": "CPU minutes", "cpurunminutes": "CPU minutes of running jobs", "mem": "memory",
    "memory": "memory", "memminutes": "memory over time", "node": "nodes", "nodes": "nodes", "gres": "GPUs",
    "wall": "wall time", "wallduration": "wall time", "billing": "billed resources", "license": "licences",
}  # fmt: skip
_WHOSE = {"PerUser": " of one user", "PerAccount": " of one account", "PerNode": " on one node"}


def explain(reason: str) -> str:
    """``Priority: jobs of higher priority come first``; a reason that is not known stays as it is."""
    words = next((words for name, words in _WORDS.items() if re.match(rf"{name}\b", reason.replace("_", " "))), "")
    if not words and (limit := _limit(reason)):
        words = limit + (f"; {_NEVER}" if limit.startswith("it requests") else ", until other jobs end")
    return f"{reason}: {words}" if words else reason


def explained(refusal: str) -> str:
    """sbatch's sentence when it refused a job, with the meaning of a limit's name behind it."""
    return re.sub(r"\b(?:QOS|Assoc)\w+", lambda name: f"{name[0]} ({limit})" if (limit := _limit(name[0])) else name[0],
                  refusal)  # fmt: skip


def _limit(reason: str) -> str:
    """QOSMaxJobsPerUserLimit, AssocGrpCPUMinutesLimit …: dozens of names that are made of the same parts."""
    parts = _LIMIT.fullmatch(reason)
    if not parts:
        return ""
    owner = "QOS" if parts[1] == "QOS" else "account"
    resource = _WHAT.get(parts[3].lower(), re.sub(r"(?<=[a-z])(?=[A-Z])", " ", parts[3]).lower())
    if parts[2] == "Min":
        return f"it requests fewer {resource} than its {owner} demands"
    if parts[4] == "PerJob":
        return f"it requests more {resource} than its {owner} allows one job"
    scope = " of all its users together" if parts[2] == "Grp" else _WHOSE.get(parts[4] or "", "")
    return f"the limit of its {owner} on {resource}{scope} is reached"
