"""The options of `hpc-rl submit`: typed, with the same keys in a site profile, everything checked before sbatch.

One dataclass drives the command line, the profiles and the script. A profile is a TOML file of these keys, found in
``$XDG_CONFIG_HOME/hpc_rl`` (user), ``$XDG_CONFIG_DIRS/hpc_rl`` (site), then in the package's slurm/clusters.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from hpc_rl.checking import convert, hints_of, nearest
from hpc_rl.config import BadJob, Range
from hpc_rl.job import data_folder
from hpc_rl.storage.untrusted import Unreadable, read_json, read_toml

_TIME = re.compile(r"\d+(-\d+(:\d+){0,2}|(:\d+){0,2})|UNLIMITED|INFINITE", re.IGNORECASE)
_MEMORY = re.compile(r"\d+[KMGT]?B?", re.IGNORECASE)
_GPUS = re.compile(r"([\w.-]+:)?\d+")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DEPENDENCY = {"ok": "afterok", "any": "afterany", "notok": "afternotok", "start": "after"}


def _option(text: str, default: Any = None, directive: str = "") -> Any:
    """A field: its help text, and the sbatch option that it becomes (none where the script itself uses it)."""
    return field(default=default, metadata={"help": text, "directive": directive})


@dataclass(frozen=True)
class Options:
    """One submission. None leaves the choice to SLURM; tuples are given by repeating the option."""

    nodes: Annotated[int, Range(1)] | None = _option("Nodes.", directive="nodes")
    cpus_per_task: Annotated[int, Range(1)] | None = _option(
        "CPUs of each rank [resources.threads].", directive="cpus-per-task"
    )
    gpus_per_node: str | None = _option("GPUs of each node, N or TYPE:N.", directive="gpus-per-node")
    mem: str | None = _option("Memory of each node, like 16G.", directive="mem")
    mem_per_cpu: str | None = _option("Memory of each CPU.", directive="mem-per-cpu")
    time: str | None = _option("Wall time, like 4:00:00 or 1-12.", directive="time")
    partition: str | None = _option("Partition.", directive="partition")
    account: str | None = _option("Account.", directive="account")
    qos: str | None = _option("Quality of service.", directive="qos")
    reservation: str | None = _option("Reservation.", directive="reservation")
    constraint: str | None = _option("Node features.", directive="constraint")
    nodelist: str | None = _option("Nodes to use.", directive="nodelist")
    exclude: str | None = _option("Nodes to avoid.", directive="exclude")
    licenses: str | None = _option("Licences.", directive="licenses")
    begin: str | None = _option("Not before this time.", directive="begin")
    nice: int | None = _option("Lower the priority by this much.", directive="nice")
    mail_type: str | None = _option("When to send mail, like END,FAIL.", directive="mail-type")
    mail_user: str | None = _option("Where to send mail.", directive="mail-user")
    comment: str | None = _option("Comment.", directive="comment")
    exclusive: bool = _option("Whole nodes.", False, "exclusive")
    after: tuple[str, ...] = _option("Start after a job: ok:ID, any:ID, notok:ID or start:ID.", ())
    parallel: Annotated[int, Range(1)] | None = _option("Array tasks at the same time.")
    sbatch: tuple[str, ...] = _option("Any other sbatch option, KEY=VALUE or KEY.", ())
    layout: Literal["one", "het"] = _option(
        "one: roles by rank; het: learners and the others as two components.", "one"
    )
    learners: tuple[str, ...] = _option("sbatch option of the learners' component, KEY=VALUE (layout het).", ())
    lead_s: Annotated[int, Range(10)] = _option("Seconds before the time limit at which ranks begin to save.", 120)
    resume_mode: Literal["requeue", "chain", "none"] = _option(
        "When time is up: requeue, chain (a new job that waits) or none.", "requeue"
    )
    max_restarts: Annotated[int, Range(0)] = _option("Restarts after which the run is left stopped.", 100)
    launcher: str = _option("What starts the ranks: auto, srun, mpiexec or a command.", "auto")
    mpi: Literal["auto", "pmi2", "pmix", "none"] = _option(
        "PMI of srun: auto, pmi2, pmix or none (its default).", "auto"
    )
    modules: tuple[str, ...] = _option("Module to load.", ())
    setup: tuple[str, ...] = _option("Shell line to run before the ranks.", ())
    teardown: tuple[str, ...] = _option("Shell line to run after them, whatever happened.", ())
    env: tuple[str, ...] = _option("Variable for the ranks, NAME=VALUE.", ())
    container: str | None = _option("Apptainer image that holds this package.")
    scratch: str | None = _option("Node-local folder for temporary files, or auto.")
    python: str | None = _option("Python of the ranks [the one that submits].")
    template: str | None = _option("Another script template.")


def load(cluster: str | None, option_values: Mapping[str, Any]) -> Options:
    """Profile, then ``option_values`` (None and () are absent); lists of a profile come first.

    Raises:
        BadJob: no such profile, an unknown key, a value of the wrong type or shape.
    """
    options = _over(_over(Options(), _profile(cluster) if cluster else {}, True), option_values, True)
    _check(options)
    return options


def load_saved(path: Path) -> Options:
    """The options that an earlier submission wrote to ``path``. Raises BadJob, Unreadable, FileNotFoundError."""
    return Options(**_typed(read_json(path, {}), path))


def changed(saved: Options, cluster: str | None, option_values: Mapping[str, Any]) -> Options:
    """The options of an earlier submission, over them a profile and ``option_values``; lists replace lists.

    Raises BadJob like `load`.
    """
    options = _over(_over(saved, _profile(cluster) if cluster else {}, False), option_values, False)
    _check(options)
    return options


def _over(below: Options, option_values: Mapping[str, Any], add: bool) -> Options:
    values = {key: value for key, value in option_values.items() if value not in (None, ())}
    for key, value in values.items():
        if add and isinstance(value, tuple):
            values[key] = (*getattr(below, key), *value)
    for name, alternative in (("mem", "mem_per_cpu"), ("mem_per_cpu", "mem")):  # SLURM takes either
        if name in values and alternative not in values:
            values[alternative] = None
    return replace(below, **values)


def profiles() -> dict[str, Path]:
    """Name -> file of every profile; the user's own hides the site's, that one the package's."""
    home = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    sites = [Path(part) for part in (os.environ.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(":") if part]
    folders = [data_folder("slurm") / "clusters", *(site / "hpc_rl" for site in reversed(sites)), home / "hpc_rl"]
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.toml"))}


def dependency(after: tuple[str, ...]) -> str:
    """``ok:12`` -> ``afterok:12``, several joined by commas."""
    return ",".join(f"{_DEPENDENCY[kind]}:{job}" for kind, _, job in (item.partition(":") for item in after))


def managed() -> set[str]:
    """sbatch options that the script sets itself: --sbatch may not."""
    typed = {item.metadata["directive"] for item in fields(Options)} - {""}
    return typed | {"job-name", "ntasks", "output", "error", "open-mode", "requeue", "no-requeue", "signal", "array",
                    "dependency", "parsable", "wrap", "wait", "test-only", "distribution",
                    "ntasks-per-node"}  # fmt: skip


def _profile(name: str) -> dict[str, Any]:
    files = profiles()
    if name not in files:
        place = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "hpc_rl" / f"{name}.toml"
        raise BadJob(f"no cluster profile {name!r}" + nearest(name, files, "profile") + f"; write one in {place}")
    path = files[name]
    try:
        return _typed(read_toml(path), path)
    except (FileNotFoundError, Unreadable) as error:
        raise BadJob(f"{path} is not a cluster profile: {error}") from None


def _typed(table: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The values as their fields' types want them. Raises BadJob."""
    hints = hints_of(Options)
    values = {}
    for key, value in table.items():
        if key not in hints:
            raise BadJob(f"{path}: unknown key {key!r}" + nearest(key, hints, "key"))
        values[key] = convert(f"{path}: {key}", value, hints[key])
    return values


def _check(options: Options) -> None:
    """Raises BadJob naming the first value that sbatch or the script could not take."""
    _shapes(options)
    _ranges(options)
    _items(options)
    _one_line(options)


def _shapes(options: Options) -> None:
    shapes = {"time": _TIME, "mem": _MEMORY, "mem_per_cpu": _MEMORY, "gpus_per_node": _GPUS}
    for key, shape in shapes.items():
        value = getattr(options, key)
        if value is not None and not shape.fullmatch(value):
            example = {"time": "4:00:00 or 1-12", "gpus_per_node": "2 or a100:2"}.get(key, "16G")
            raise BadJob(f"{key} = {value!r} cannot be read; write it like {example}")


def _ranges(options: Options) -> None:
    for key, hint in hints_of(Options).items():
        convert(key, getattr(options, key), hint)
    limit = seconds(options.time)
    if limit is not None and limit <= options.lead_s:
        raise BadJob(
            f"time = {options.time!r} is not longer than lead_s = {options.lead_s}, so ranks would save at once and "
            "never train; give more --time or less --lead-s"
        )


def seconds(text: str | None) -> int | None:
    """Of a SLURM time: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S. None where there is no limit, or it is another word."""
    if text is None or not _TIME.fullmatch(text) or not text[0].isdigit():
        return None
    days, dash, clock = text.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    if dash:
        hours, minutes, rest_s = (*parts, 0, 0)[:3]
    else:
        hours, minutes, rest_s = parts if len(parts) == 3 else (0, *parts, 0)[:3]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + rest_s


def _items(options: Options) -> None:
    for item in options.after:
        kind, _, job = item.partition(":")
        if kind not in _DEPENDENCY or not re.fullmatch(r"\d+(_\d+)?", job):
            raise BadJob(f"after = {item!r} cannot be read; write ok:ID, any:ID, notok:ID or start:ID")
    for item in options.env:
        if not _NAME.fullmatch(item.partition("=")[0]) or "=" not in item:
            raise BadJob(f"env = {item!r} cannot be read; write NAME=VALUE")
    for item in (*options.sbatch, *options.learners):
        key = item.partition("=")[0].lstrip("-")
        if not re.fullmatch(r"[a-z][a-z0-9-]*", key):
            raise BadJob(f"sbatch option {item!r} cannot be read; write KEY=VALUE or KEY, with a long option's name")
        if item in options.sbatch and key in managed():
            raise BadJob(f"sbatch option {key!r} is set by hpc-rl; use its own option (hpc-rl submit --help)")
    if options.container and "://" not in options.container and not Path(options.container).exists():
        raise BadJob(f"container = {options.container!r} does not exist; give the path of an image, or docker://…")
    if options.learners and options.layout != "het":
        raise BadJob(
            f"learners = {' '.join(options.learners)} has no effect here: it applies to --layout het only; "
            "add that, or remove it"
        )


def _one_line(options: Options) -> None:
    """A directive ends with its line: a newline inside would begin another one."""
    for item in fields(options):
        value = getattr(options, item.name)
        for text in value if isinstance(value, tuple) else (value,):
            inside = item.metadata["directive"] or item.name in ("sbatch", "learners", "modules")
            if isinstance(text, str) and inside and not text.isprintable():
                raise BadJob(f"{item.name} = {text!r} holds a line break or control character; remove it")


def nodes_of(ranks: int, nodes: int) -> list[int]:
    """For each rank the number of its node, as SLURM's block distribution lays 10 tasks on 3 nodes: 4, 3, 3.

    Raises BadJob where a node would have no rank.
    """
    if nodes > ranks:
        raise BadJob(f"nodes = {nodes} for {ranks} rank(s); use fewer nodes, or -n for more ranks")
    least, extra = divmod(ranks, nodes)
    return [node for node in range(nodes) for _ in range(least + (node < extra))]
