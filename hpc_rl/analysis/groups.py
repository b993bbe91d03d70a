"""Runs that differ in their seeds only, and the settings in which the others differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields

from hpc_rl.analysis.runs import RecordedRun
from hpc_rl.settings import Job

_MACHINE = ("threads", "device", "deadline_s", "precision", "precisions", "reduction", "tolerate_lost_actors")

# When a run ends: of a budget only env steps and updates are what values anneal over.
_ENDS = ("stop_at_return", "time_limit_s")


def settings(job: Job) -> dict[str, object]:
    """Key of the job file -> value, of all that decides how a run learns: not its name, seed, output or target."""
    head = {key: getattr(job, key) for key in ("algorithm", "topology", "sampler", "schedule")}
    tables = {
        "environment": asdict(job.environment),
        job.algorithm: dict(job.method),
        "budget": {key: x for key, x in asdict(job.budget).items() if key not in _ENDS},
        "resources": {x.name: getattr(job.resources, x.name) for x in fields(job.resources) if x.name not in _MACHINE},
    }
    return head | {f"{table}.{key}": value for table, own in tables.items() for key, value in own.items()}


def differing(runs: Sequence[RecordedRun]) -> dict[str, dict[str, object]]:
    """Key -> run name -> value, of the settings that are not the same in all runs; a run may lack a key."""
    flat = {run.name: settings(run.job) for run in runs}
    keys = dict.fromkeys(key for own in flat.values() for key in own)
    values = {key: {name: own[key] for name, own in flat.items() if key in own} for key in keys}
    return {key: own for key, own in values.items() if len(own) < len(flat) or len({repr(x) for x in own.values()}) > 1}


def by_setting(runs: Sequence[RecordedRun], apart: str = "") -> dict[str, list[RecordedRun]]:
    """Label -> the runs that differ in nothing but the seed. The label names what distinguishes the group.

    Settings whose keys begin with ``apart`` are left out, where it is given.

    A setting that comes with another one (a method has keys of its own) is left out of labels: the fewest keys that
    distinguish all groups, taken in the order of the job file.
    """
    values = {key: own for key, own in differing(runs).items() if not apart or not key.startswith(apart)}
    members: dict[str, list[RecordedRun]] = {}
    for run in runs:
        members.setdefault(repr([(key, own.get(run.name)) for key, own in values.items()]), []).append(run)
    groups = list(members.values())
    keys: list[str] = []
    for key in values:
        told = len({_label(group[0], keys, values) for group in groups})
        if told < len({_label(group[0], [*keys, key], values) for group in groups}):
            keys.append(key)
    names = [_label(group[0], keys, values) or group[0].job.name for group in groups]
    return dict(zip(names, groups, strict=True))


def _label(run: RecordedRun, keys: Sequence[str], values: dict[str, dict[str, object]]) -> str:
    parts = [(key, values[key][run.name]) for key in keys if run.name in values[key]]
    plain = ("algorithm", "topology", "environment.id")  # speak for themselves
    return ", ".join(str(x) if key in plain else f"{key.rpartition('.')[2]} {x}" for key, x in parts)
