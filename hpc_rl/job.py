"""A job file as frozen values: strict TOML in, identical TOML out. The only place where a name becomes a module."""

from __future__ import annotations

import ast
import copy
import dataclasses
import difflib
import functools
import importlib
import json
import math
import os
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc_rl.storage.untrusted import Unreadable, parse_toml, read_toml

if TYPE_CHECKING:  # login-node commands read jobs and must start without torch
    from hpc_rl.algorithms.base import Algorithm

PACKAGE = Path(__file__).parent
SAMPLERS = ("vector", "alternating", "central")
SCHEDULES = ("free", "deterministic")
CHANGEABLE_ON_RESUME = (
    "budget",
    "output",
    "checkpoint",
    "evaluate",
    "resources.ranks",
    "resources.device",
    "resources.threads",
    "resources.deadline_s",
    "resources.reduction",
    "environment.processes",
)
_MEANT: dict[str, tuple[Any, tuple[str, ...]]] = {  # key -> what asks for nothing, topologies where more has a meaning
    "schedule": ("free", ("actor_learner",)),
    "resources.learners": (1, ("actor_learner",)),
    "resources.inference": ("learner", ("actor_learner",)),
    "resources.servers": (1, ("parameter_server", "actor_learner")),
    "resources.quorum": (0, ("parameter_server",)),
    "resources.reduction": ("mpi", ("solo", "allreduce", "actor_learner")),
}
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text in quotes", dict: "a table"}
_ITEMS = {int: "whole numbers", float: "numbers", str: "texts in quotes"}


class BadJob(ValueError):
    """The job cannot run; the message names the value and the remedy."""


@dataclass(frozen=True)
class EnvironmentConfig:
    id: str = ""  # Gymnasium id, ALE/<Game>-v5, toy/<name> or my_package.my_module:make
    columns: int = 8  # B, environments over all ranks, >= 1
    processes: int = 0  # >= 0 child processes that share the columns of a rank; 0 steps them in the rank itself
    arguments: dict[str, Any] = field(default_factory=dict)  # for the environment's constructor


@dataclass(frozen=True)
class Budget:
    env_steps: int = 1_000_000  # valid moves over all columns, >= 1
    time_limit_s: float = 0.0  # >= 0, of one attempt; 0 is none
    stop_at_return: float | None = None  # end once the mean raw return of the last 100 episodes reaches this


@dataclass(frozen=True)
class Resources:
    ranks: int = 1  # MPI ranks, >= 1
    learners: int = 1  # >= 1, of actor_learner
    servers: int = 1  # >= 1, parameter servers, or actors that answer environment workers
    inference: str = "learner"  # learner | actor, who answers environment workers of the central sampler
    quorum: int = 0  # >= 0 gradients that make one update of a parameter server; 0 applies each as it comes
    threads: int = 0  # >= 0 CPU threads of a learning rank; 0 shares the affinity mask
    precision: str = "auto"  # auto | fp32 | bf16, of the torso; auto is what is faster on each kind of processor
    precisions: dict[str, str] = field(
        default_factory=dict, hash=False
    )  # what auto chose, by processor; written at the start
    device: str = "auto"  # auto | cpu | cuda
    reduction: str = "mpi"  # mpi | gloo | nccl, what sums the gradients of several learners
    deadline_s: float = 120.0  # > 0, longest wait for another rank


@dataclass(frozen=True)
class Output:
    record: float = 1.0  # fraction of columns whose every step is written, 0..1
    compression: str = "zstd"  # zstd | gzip | none
    segment_bytes: int = 268_435_456  # >= 1, a segment is closed at this size
    segment_s: float = 600.0  # > 0, or at this age
    metrics_s: float = 2.0  # > 0, seconds between metric lines


@dataclass(frozen=True)
class Checkpoint:
    interval_s: float = 120.0  # > 0
    keep: int = 3  # >= 1 newest ones, and the best


@dataclass(frozen=True)
class Evaluate:
    every_steps: int = 0  # >= 0 env steps; 0 never
    episodes: int = 10  # >= 1


@dataclass(frozen=True)
class Job:
    name: str
    algorithm: str
    topology: str
    sampler: str = "vector"
    schedule: str = "free"  # deterministic: every update learns from the weights before the last, repeatably
    seed: int = 1
    environment: EnvironmentConfig = EnvironmentConfig()
    method: Mapping[str, Any] = field(default_factory=dict)  # the [<algorithm>] table, defaults filled in
    budget: Budget = Budget()
    resources: Resources = Resources()
    output: Output = Output()
    checkpoint: Checkpoint = Checkpoint()
    evaluate: Evaluate = Evaluate()


_SECTIONS: dict[str, type[Any]] = {
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
    return parse(override(table, overrides), path.stem)


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


def share(folder: str) -> Path:
    """A data folder: the checkout's own, else the copy inside the installed package."""
    inside = PACKAGE / "share" / folder
    return inside if inside.is_dir() else PACKAGE.parent / folder


def shipped_jobs() -> dict[str, Path]:
    """Name -> file of the jobs that come with the package."""
    return {path.stem: path for path in sorted(share("jobs").glob("*.toml"))}


def override(table: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """The table with each dotted ``key=value`` set; the value is TOML, or a bare string."""
    table = copy.deepcopy(table)
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals:
            raise BadJob(f"--set {item!r} has no '='; write --set key=value")
        at, *rest = reversed(key.strip().split("."))
        place = table
        for name in reversed(rest):
            place = place.setdefault(name, {})
            if not isinstance(place, dict):
                raise BadJob(f"--set {item!r}: {name} is a value, not a table")
        try:
            place[at] = parse_toml(f"v = {text}")["v"]
        except ValueError:
            place[at] = text
    return table


def parse(table: Mapping[str, Any], name: str = "job") -> Job:
    """A checked job from a TOML table. Raises BadJob."""
    table = dict(table)
    name = convert("name", table.pop("name", name), str)
    for key in ("algorithm", "topology"):
        if key not in table:
            raise BadJob(f'the job has no {key}; add {key} = "…" (choose from {", ".join(_choices(key))})')
    algorithm = table["algorithm"]
    for key in ("algorithm", "topology", "sampler", "schedule"):
        if key in table and table[key] not in _choices(key):
            raise BadJob(f"{key} = {table[key]!r} is not known" + nearest(str(table[key]), _choices(key), key))
    allowed = literal(algorithm, "TOPOLOGIES")
    if table["topology"] not in allowed:
        raise BadJob(f"{algorithm} cannot run on topology {table['topology']!r}; use one of {', '.join(allowed)}")
    known = ["algorithm", "topology", "sampler", "schedule", "seed", *_SECTIONS, algorithm]
    for key in table:
        if key not in known:
            raise BadJob(f"unknown key {key!r}" + nearest(key, known, "key"))
    method = _section(algorithm, config_class(algorithm), table.get(algorithm, {}))
    sections = {key: _section(key, kind, table.get(key, {})) for key, kind in _SECTIONS.items()}
    top = {key: table[key] for key in ("algorithm", "topology", "sampler", "schedule", "seed") if key in table}
    job = Job(name=name, **top, **sections, method=dataclasses.asdict(method))
    _check(job)
    return job


def _check(job: Job) -> None:
    if not 0 <= convert("seed", job.seed, int) < 2**31:
        raise BadJob(f"seed = {job.seed!r} must be a whole number from 0 to 2147483647")
    if not job.environment.id:
        raise BadJob('environment.id is missing; add id = "CartPole-v1" below [environment]')
    _check_arguments("environment.arguments", job.environment.arguments)
    for name, value in job.resources.precisions.items():
        if value not in ("fp32", "bf16"):
            raise BadJob(f'resources.precisions."{name}" = {value!r}; choose from fp32, bf16')
    _check_meant(job)
    check_reduction(job.resources.reduction, job.resources.device)


def _check_arguments(key: str, value: Any) -> None:
    """Refuse what job.toml could not give back as it is: dates, nan, integers beyond 64 bits, broken text.

    An infinite number may be an argument: some environments take it for "no bound".
    """
    if isinstance(value, Mapping):
        for name, x in value.items():
            _check_arguments(f"{key}.{convert(key, name, str)}", x)
    elif isinstance(value, list | tuple):
        for k, x in enumerate(value):
            _check_arguments(f"{key}[{k}]", x)
    elif isinstance(value, float) and math.isnan(value):
        raise BadJob(f"{key} = nan is not a number; write the number, or leave the argument out")
    elif isinstance(value, bool | int | float | str):
        _written(key, value)
    else:
        kind = type(value).__name__
        raise BadJob(
            f"{key} = {value} is a {kind}; an argument is a number, text in quotes, true, false, list or table"
        )


def _written(key: str, value: object) -> None:
    """Refuse what TOML cannot carry."""
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise BadJob(f"{key} does not fit into 64 bits; write a smaller number")
    if isinstance(value, str) and not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise BadJob(f"{key} = {value!r} is not Unicode text; write it in UTF-8")


def _check_meant(job: Job) -> None:
    """Refuse what would promise something that this job's topology and sampler do not keep."""
    for key, (nothing, topologies) in _MEANT.items():
        section, _, name = key.rpartition(".")
        value = getattr(job.resources if section else job, name)
        if value != nothing and job.topology not in topologies:
            _refuse(key, value, f"topology {' or '.join(topologies)}")
    given = job.resources
    if given.inference == "actor" and job.sampler != "central":
        _refuse("resources.inference", given.inference, 'sampler = "central"')
    if given.servers > 1 and job.topology == "actor_learner" and given.inference != "actor":
        _refuse("resources.servers", given.servers, 'resources.inference = "actor"')


def _refuse(key: str, value: Any, where: str) -> None:
    raise BadJob(f"{key} = {value!r} means nothing here, it belongs to {where}; leave it out")


def check_reduction(reduction: str, device: str) -> None:
    """Raise BadJob where nccl would have no GPU; ``device`` may still be "auto", and is looked at again at start."""
    if reduction == "nccl" and device == "cpu":
        raise BadJob('resources.reduction = "nccl" sums on GPUs only, and the device is "cpu"; use "mpi" or "gloo"')


def dumps(job: Job) -> str:
    """TOML that `parse` reads back as an equal job."""
    head = {key: getattr(job, key) for key in ("name", "algorithm", "topology", "sampler", "schedule", "seed")}
    lines = [f"{key} = {_toml(value)}" for key, value in head.items()]
    tables = {key: _plain(getattr(job, key)) for key in _SECTIONS}
    tables[job.algorithm] = dict(job.method)
    for key, table in tables.items():
        lines += ["", f"[{key}]"]
        lines += [f"{name} = {_toml(value)}" for name, value in table.items() if value is not None]
    return "\n".join(lines) + "\n"


def with_resources(job: Job, **changes: Any) -> Job:
    """The job with fields of [resources] replaced: what is decided once at the start of a run."""
    return replace(job, resources=replace(job.resources, **changes))


def resumed(saved: Job, wanted: Job) -> Job:
    """The saved job with the changes that a resumed run may make. Raises BadJob naming the first other one.

    ``resources.precision`` "auto" was decided when the run first started, and means that.
    """
    if wanted.resources.precision == "auto":
        wanted = with_resources(wanted, precision=saved.resources.precision)
    before, after = tomllib.loads(dumps(saved)), tomllib.loads(dumps(wanted))
    for section in sorted(before.keys() | after.keys()):
        old, new = before.get(section), after.get(section)
        if old == new or section in CHANGEABLE_ON_RESUME or section == "name":
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            keys = [f"{section}.{k}" for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k)]
            keys = [key for key in keys if key not in CHANGEABLE_ON_RESUME]
        else:
            keys = [section]
        if keys:
            raise BadJob(
                f"{keys[0]} cannot change on --resume; only {', '.join(CHANGEABLE_ON_RESUME[:-1])} and "
                f"{CHANGEABLE_ON_RESUME[-1]} can. Start a new run with another --out for the rest"
            )
    return wanted


def algorithm(name: str) -> Algorithm:
    """The method's value, importing its file (and torch)."""
    found: Algorithm = importlib.import_module(f"hpc_rl.algorithms.{name}").ALGORITHM
    return found


def topology(name: str) -> Any:
    """The topology's module: ``plan(job) -> Plan`` and ``run(...)``."""
    return importlib.import_module(f"hpc_rl.topologies.{name}")


def method_config(job: Job) -> Any:
    """The method's own Config with this job's values."""
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in job.method.items()}
    return algorithm(job.algorithm).config(**values)


def algorithms() -> list[str]:
    """The folder is the registry."""
    return sorted(p.stem for p in (PACKAGE / "algorithms").glob("*.py") if p.stem not in ("__init__", "base"))


def topologies() -> list[str]:
    return sorted(p.stem for p in (PACKAGE / "topologies").glob("*.py") if p.stem not in ("__init__", "base"))


@functools.cache
def _source(name: str) -> ast.Module:
    return ast.parse((PACKAGE / "algorithms" / f"{name}.py").read_text())


def literal(name: str, constant: str) -> Any:
    """A literal constant of an algorithm's file, read without importing it (that would import torch)."""
    for node in _source(name).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == constant for t in node.targets):
            return ast.literal_eval(node.value)
    raise BadJob(f"algorithms/{name}.py defines no {constant}")


@functools.cache
def config_class(name: str) -> type[Any]:
    """The method's Config class alone, without importing its file; its fields may use builtin types only."""
    for node in _source(name).body:
        if isinstance(node, ast.ClassDef) and node.name == "Config":
            module = types.ModuleType(f"hpc_rl.algorithms.{name}:Config")
            module.__dict__["dataclass"] = dataclass
            exec(compile(ast.Module([node], []), f"{name}.py", "exec", dont_inherit=True), module.__dict__)
            found: type[Any] = module.__dict__["Config"]
            return found
    raise BadJob(f"algorithms/{name}.py defines no Config")


def ranges(name: str) -> dict[str, str]:
    """Field -> the comment beside it, which opens with its range; where a bad value is reported."""
    text = PACKAGE / "algorithms" / f"{name}.py" if name not in _SECTIONS else Path(__file__)
    kind = _SECTIONS[name].__name__ if name in _SECTIONS else "Config"
    lines = text.read_text().split(f"class {kind}:")[1].split("\n\n\n")[0].splitlines()
    pairs = (line.split("#", 1) for line in lines if ":" in line and "#" in line)
    return {left.split(":")[0].strip(): right.strip() for left, right in pairs}


def _choices(key: str) -> list[str]:
    return {
        "algorithm": algorithms(),
        "topology": topologies(),
        "sampler": list(SAMPLERS),
        "schedule": list(SCHEDULES),
    }[key]


def _section(name: str, kind: type[Any], table: Any) -> Any:
    if not isinstance(table, Mapping):
        raise BadJob(f"{name} = {table!r} must be a table; write [{name}]")
    hints = typing.get_type_hints(kind)
    values = {}
    for key, value in table.items():
        if key not in hints:
            raise BadJob(f"unknown key {name}.{key}" + nearest(key, hints, "key"))
        values[key] = convert(f"{name}.{key}", value, hints[key])
    made = kind(**values)
    comments = ranges(name)
    for item in fields(made):
        _in_range(f"{name}.{item.name}", getattr(made, item.name), comments.get(item.name, ""))
    return made


def convert(key: str, value: Any, hint: Any) -> Any:
    """The value as its type ``hint`` wants it. Raises BadJob: another type, a number that is not finite, bad text."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if isinstance(value, int | str):
        _written(key, value)
    for kind in kinds:
        if _is_a(kind, value):
            if typing.get_origin(kind) is tuple:
                return tuple(convert(f"{key}[{k}]", x, typing.get_args(kind)[0]) for k, x in enumerate(value))
            if isinstance(value, float) and not math.isfinite(value):
                raise BadJob(f"{key} = {value!r} is not a finite number; write the number itself")
            return float(value) if kind is float else value
    wanted = [_kind(kind) for kind in kinds if kind is not types.NoneType]
    raise BadJob(f"{key} = {value!r} is of the wrong kind; write {' or '.join(wanted)}")


def _is_a(kind: Any, value: Any) -> bool:
    """Whether ``value`` may stand for a ``kind``: a whole number for a number, a list for a tuple, true for neither."""
    origin = typing.get_origin(kind) or kind
    if isinstance(value, bool):
        return origin is bool
    return isinstance(value, {float: (int, float), tuple: (list, tuple)}.get(origin, origin))


def _kind(kind: Any) -> str:
    """In words: "a whole number", "a list of whole numbers"."""
    inner = typing.get_args(kind)
    if typing.get_origin(kind) is tuple:
        return f"a list of {_ITEMS[inner[0]]}"
    return _KINDS[typing.get_origin(kind) or kind]


def _in_range(key: str, value: Any, comment: str) -> None:
    """Check the range that the comment beside a field states: ``>= 1``, ``> 0``, ``< 1``, ``0..1`` or ``one | two``.

    The range of a list is that of each of its items.
    """
    if isinstance(value, tuple):
        for k, x in enumerate(value):
            _in_range(f"{key}[{k}]", x, comment)
    if isinstance(value, bool):
        return
    words = comment.replace(",", " ").split()
    if isinstance(value, str):
        if len(words) > 2 and words[1] == "|":
            choices = [
                w for w in comment.split(",", maxsplit=1)[0].split(" over ", maxsplit=1)[0].replace("|", " ").split()
            ]
            if value not in choices:
                raise BadJob(f"{key} = {value!r}; choose from {', '.join(choices)}")
        return
    if not isinstance(value, int | float):
        return
    for here, following in zip(words, [*words[1:], ""], strict=True):
        low, dots, high = here.partition("..")
        between = dots and _number(low) is not None and _number(high) is not None
        if between and not float(low) <= value <= float(high):
            raise BadJob(f"{key} = {value!r} is out of range; it must lie in {here}")
        bound = _number(following) if here in (">", ">=", "<") else None
        if bound is not None and not {">": value > bound, ">=": value >= bound, "<": value < bound}[here]:
            raise BadJob(f"{key} = {value!r} is out of range; it must be {here} {following}")


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def nearest(name: str, known: Iterable[str], what: str) -> str:
    known = list(known)
    close = difflib.get_close_matches(name, known, 1, 0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; the known {what}s are {', '.join(known)}"


def _plain(value: Any) -> dict[str, Any]:
    return {item.name: getattr(value, item.name) for item in fields(value)}


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(x) for x in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_toml(k)} = {_toml(v)}" for k, v in value.items()) + "}"
    return repr(value)
