"""A job file as the frozen values of settings.py: strict TOML in, identical TOML out."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc_rl import methods, toml
from hpc_rl.checking import build, convert, hints_of, nearest
from hpc_rl.config import BadJob
from hpc_rl.experience import Experience
from hpc_rl.methods import (
    PACKAGE,
    BadMethod,
    algorithm,
    algorithms,
    allowed_topologies,
    config_class,
    topologies,
    topology,
)
from hpc_rl.plan import Plan
from hpc_rl.settings import Budget, Checkpoint, EnvironmentConfig, Evaluate, Job, Output, Resources
from hpc_rl.sources import Start
from hpc_rl.storage.untrusted import MOST_TOML_BYTES, Unreadable, parse_toml, read_toml

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = [
    "PACKAGE", "BadJob", "BadMethod", "Budget", "Checkpoint", "EnvironmentConfig", "Evaluate", "Job", "Output",
    "Resources", "algorithm", "algorithms", "check_reduction", "data_folder", "dumps", "experience", "find", "load",
    "method_config", "parse", "plan", "shipped_jobs", "starts", "topologies", "topology", "with_resources",
]  # fmt: skip

SENDING = ("actor_learner", "actor_replay_learner")  # topologies whose actors send to other ranks
VALID_ON: dict[str, tuple[Any, tuple[str, ...]]] = {  # key -> its neutral value, topologies where another one is valid
    "schedule": ("free", SENDING),
    "resources.learners": (1, SENDING),
    "resources.replays": (1, ("actor_replay_learner",)),
    "resources.inference": ("learner", SENDING),
    "resources.servers": (1, ("parameter_server", *SENDING)),
    "resources.quorum": (0, ("parameter_server",)),
    "resources.reduction": ("mpi", ("solo", "allreduce", *SENDING)),
    "resources.evaluators": (0, ("allreduce", "parameter_server", *SENDING)),
    "resources.tolerate_lost_actors": (False, SENDING),
}


HEAD = ("name", "algorithm", "topology", "sampler", "schedule", "seed")


SECTIONS: dict[str, type[Any]] = {
    "environment": EnvironmentConfig,
    "budget": Budget,
    "resources": Resources,
    "output": Output,
    "checkpoint": Checkpoint,
    "evaluate": Evaluate,
}


def load(source: str | Path, overrides: Iterable[str] = ()) -> Job:
    """The job of a path or shipped name, with ``key=value`` overrides applied.

    Raises:
        BadJob: no such job, not TOML, an unknown key or method, a value of the wrong type or out of range.
    """
    path = find(str(source))
    try:
        table = read_toml(path)
    except (Unreadable, FileNotFoundError) as error:
        raise BadJob(str(error)) from None
    return parse(toml.override(table, overrides), path.stem)


def find(source: str) -> Path:
    """The file of a job: a path as it is, else a shipped job's name."""
    shipped = shipped_jobs()
    if os.path.isfile(source) or (source not in shipped and _there(source)):
        return Path(source)
    if source in shipped:
        return shipped[source]
    raise BadJob(f"no job file {source!r} (`hpc-rl list` shows all)" + nearest(source, shipped, "job"))


def _there(source: str) -> bool:
    """Something has this name, or it cannot be looked for: then reading the file says why."""
    try:
        os.stat(source)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError:
        return True
    return True


def data_folder(folder: str) -> Path:
    """A data folder: the checkout's own, else the copy inside the installed package."""
    inside = PACKAGE / "share" / folder
    return inside if inside.is_dir() else PACKAGE.parent / folder


def shipped_jobs() -> dict[str, Path]:
    """Name -> file of the jobs that come with the package."""
    return {path.stem: path for path in sorted(data_folder("jobs").glob("*.toml"))}


def parse(table: Mapping[str, Any], name: str = "job") -> Job:
    """A checked job from a TOML table. Raises BadJob."""
    table = {"name": name, **table}
    _check_names(table)
    method = table["algorithm"]
    _check_keys(table, method)
    if table.get("sampler") == "device" and isinstance(output := table.get("output", {}), Mapping):
        table["output"] = {"record": 0.0, **output}
    hints = hints_of(Job)
    head: dict[str, Any] = {key: convert(key, table[key], hints[key]) for key in HEAD if key in table}
    sections: dict[str, Any] = {key: build(kind, table.get(key, {}), key) for key, kind in SECTIONS.items()}
    values = dataclasses.asdict(build(config_class(method), table.get(method, {}), method))
    job = replace(Job("", "", ""), **head, **sections, method=values)
    if not job.environment.id:
        raise BadJob('environment.id is missing; add id = "CartPole-v1" below [environment]')
    _check_meant(job)
    check_reduction(job.resources.reduction, job.resources.device)
    _check_text(job)
    return job


def _check_names(table: Mapping[str, Any]) -> None:
    """Refuse a job without a known algorithm on a topology that this one allows."""
    for key, names in (("algorithm", algorithms()), ("topology", topologies())):
        if key not in table:
            raise BadJob(f'the job has no {key}; add {key} = "…" (choose from {", ".join(names)})')
        if table[key] not in names:
            end = nearest(str(table[key]), names, key)
            if key == "algorithm":
                end += f"{'' if end.endswith('?') else ';'} a method of your own is a file of {PACKAGE / 'algorithms'}"
            raise BadJob(f"{key} = {table[key]!r} is not known" + end)
    allowed = allowed_topologies(table["algorithm"])
    if table["topology"] not in allowed:
        raise BadJob(
            f"{table['algorithm']} cannot run on topology {table['topology']!r}; use one of {', '.join(allowed)}"
        )


def _check_keys(table: Mapping[str, Any], method: str) -> None:
    """Refuse an unknown table, and a key that belongs to another one."""
    keys = [*HEAD, *SECTIONS, method]
    kinds: dict[str, type[DataclassInstance]] = {**SECTIONS, method: config_class(method)}
    sections = {"": table, **{name: table[name] for name in kinds if isinstance(table.get(name), Mapping)}}
    for section, inside in sections.items():
        for key in inside:
            if key in (hints_of(kinds[section]) if section else keys):
                continue
            dotted = f"{section}.{key}" if section else repr(key)
            places = [repr(f"{name}.{key}") for name, kind in kinds.items() if key in hints_of(kind)]
            places += [f"{key!r} at the top of the file, before the first [table]"] if key in HEAD else []
            if places:
                raise BadJob(f"unknown key {dotted}; did you mean {' or '.join(places)}?")
            if not section and key in algorithms():
                raise BadJob(
                    f"[{key}] is the table of another method than this job's {method!r}; remove it or change algorithm"
                )
            if not section:
                raise BadJob(f"unknown key {key!r}" + nearest(str(key), keys, "key"))


def _check_text(job: Job) -> None:
    """Refuse a job whose own text could not be read back: nested too deep, or too long."""
    sections = {f"[{name}]": toml.dumps({}, {name: table}) for name, table in _tables(job).items()}
    for name, text in {"the job": toml.dumps(_head(job), {}), **sections}.items():
        try:
            parse_toml(text)
        except Unreadable as error:
            raise BadJob(f"{name} cannot be written as TOML and read back: {error}") from None
    size = len(dumps(job).encode())
    if size > MOST_TOML_BYTES:
        raise BadJob(f"the job takes {size} bytes as TOML; write at most {MOST_TOML_BYTES}")


def _check_meant(job: Job) -> None:
    """Refuse what would promise something that this job's topology and sampler do not keep."""
    for key, (neutral, valid_on) in VALID_ON.items():
        section, _, name = key.rpartition(".")
        value = getattr(job.resources if section else job, name)
        if value != neutral and job.topology not in valid_on:
            _refuse(key, value, f"topology {' or '.join(valid_on)}")
    resources = job.resources
    if resources.inference == "actor" and job.sampler != "central":
        _refuse("resources.inference", resources.inference, 'sampler = "central"')
    if resources.compile and job.sampler != "device":
        _refuse("resources.compile", True, 'sampler = "device"')
    if resources.servers > 1 and job.topology in SENDING and resources.inference != "actor":
        _refuse("resources.servers", resources.servers, 'resources.inference = "actor"')
    if job.schedule == "deterministic" and job.sampler == "central":
        raise BadJob(
            'schedule = "deterministic" needs actors that step their own columns; '
            'use sampler = "vector" or "alternating"'
        )
    if job.sampler == "device" and (processes := job.environment.processes):
        raise BadJob(
            f'environment.processes = {processes} does not go with sampler = "device", whose environments are tensors '
            'of the rank itself; use 0, or sampler = "vector"'
        )
    if resources.tolerate_lost_actors:
        _check_tolerance(job)


def _check_tolerance(job: Job) -> None:
    """Raise BadJob where the others would wait for a lost actor, or for a learner without actors."""
    reason = ""
    if job.sampler == "central":
        reason = 'an inference server, which waits for its environment workers; use sampler = "vector"'
    elif job.schedule == "deterministic":
        reason = 'schedule = "deterministic", which waits for a fragment of every actor; use schedule = "free"'
    elif job.topology == "actor_learner" and job.resources.learners > 1:
        reason = "several learners on actor_learner, one of which may lose all its actors; use resources.learners = 1"
    if reason:
        raise BadJob(f"resources.tolerate_lost_actors = true does not go with {reason}, or set it to false")


def _refuse(key: str, value: Any, scope: str) -> None:
    raise BadJob(f"{key} = {value!r} has no effect here: it applies to {scope} only; remove it")


def check_reduction(reduction: str, device: str) -> None:
    """Raise BadJob where nccl would have no GPU; ``device`` may still be "auto", and is looked at again at start."""
    if reduction == "nccl" and device == "cpu":
        raise BadJob('resources.reduction = "nccl" sums on GPUs only, and the device is "cpu"; use "mpi" or "gloo"')


def dumps(job: Job) -> str:
    """TOML that `parse` reads back as an equal job."""
    return toml.dumps(_head(job), _tables(job))


def _head(job: Job) -> dict[str, object]:
    return {key: getattr(job, key) for key in HEAD}


def _tables(job: Job) -> dict[str, dict[str, object]]:
    """Section -> key -> value."""
    sections = {key: getattr(job, key) for key in SECTIONS}
    tables = {key: {item.name: getattr(x, item.name) for item in fields(x)} for key, x in sections.items()}
    return {**tables, job.algorithm: dict(job.method)}


def with_resources(job: Job, **changes: Any) -> Job:
    """The job with fields of [resources] replaced: what is decided once at the start of a run."""
    return replace(job, resources=replace(job.resources, **changes))


def method_config(job: Job) -> Any:
    """The method's own Config with this job's values."""
    return algorithm(job.algorithm).config(**job.method)


def plan(job: Job) -> Plan:
    """All ranks of the job. Raises WorldTooSmall, and BadJob where its topology cannot give them their parts."""
    ranks: Plan = topology(job.topology).plan(job)
    return ranks


def experience(job: Job) -> Experience:
    """What the job's method learns from. Imports nothing heavy. Raises BadMethod."""
    return methods.experience(job.algorithm, job.method)


def starts(job: Job) -> tuple[Start, ...]:
    """The runs whose networks the job's method begins with. Imports nothing heavy. Raises BadMethod."""
    return methods.starts(job.algorithm, job.method)
