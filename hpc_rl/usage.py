"""RUN/usage.json: what each attempt of a run was given and what it used, written by rank 0, read by `status`.

An attempt that was killed has no last word: the next one, or whoever reads, takes its end from the metrics.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from hpc_rl.storage.metrics import CHIEFS, last
from hpc_rl.storage.run_dir import RunDir, write_json
from hpc_rl.storage.untrusted import Unreadable, checked, parse_line, read_end, read_json

_ENTRY = {
    "attempt": int, "start": float, "ready": float | None, "end": float | None, "cores": int, "gpus": int,
    "memory_bytes": int, "asked_of": str, "cpu_s": float, "peak_rss_bytes": int, "again_s": float,
    "hosts": int, "processor_energy_j": float | None, "gpu_energy_j": float | None,
}  # fmt: skip
ENERGY = ("processor_energy_j", "gpu_energy_j")
_NEWER = {"hosts": 0, **dict.fromkeys(ENERGY)}  # of an entry that a version wrote which did not count them
_BACK_BYTES = 4 << 20  # of rank 0's metrics, some hours, in which the step is looked for from which a run went on
_LINE = {"step": int, "time": float, "attempt": int}

Entry = dict[str, Any]
"""One attempt: "start", "ready" (rank 0 begins to learn) and "end", unix times, null where it has not come to it;
"cores", "gpus", "memory_bytes" that it was given, over all hosts, by "asked_of": "SLURM" or "the machine"; "cpu_s" and
"peak_rss_bytes" that it used, summed over ranks; "again_s", s of it whose env steps a later attempt made again;
"processor_energy_j" and "gpu_energy_j" of its "hosts", null where one of them does not tell."""


def usage(run: RunDir) -> list[Entry]:
    """The attempts that are recorded, in order; that of an open end as the metrics have it by now."""
    entries = _read(run)
    return [_ended(run, entry) if entry["end"] is None else entry for entry in entries]


def begin(run: RunDir, attempt: int, rows: Sequence[Mapping[str, Any]], cuda: bool, from_step: int) -> None:
    """Rank 0, before any rank writes: this attempt begins, on what ``rows`` of all ranks show, at this env step."""
    entries = [entry for entry in usage(run) if entry["attempt"] < attempt]
    if entries:
        entries[-1]["again_s"] = _again(run, entries[-1], from_step)
    entries.append(
        {
            "attempt": attempt,
            "start": _process_start(),
            "ready": None,
            "end": None,
            **given(rows, cuda, os.environ),
            "cpu_s": 0.0,
            "peak_rss_bytes": 0,
            "again_s": 0.0,
            **dict.fromkeys(ENERGY),
        }
    )
    _write(run, entries)


def ready(run: RunDir, attempt: int) -> None:
    """Rank 0: the start is over."""
    _change(run, attempt, lambda entry: {"ready": time.time()})


def end(run: RunDir, attempt: int, cpu_s: Mapping[str, float], peaks: Mapping[str, int]) -> None:
    """Rank 0: the attempt ends in order, with what ranks by name have used; of others as their metrics have it."""
    lines = _lines(run, attempt)
    cpu = {name: row.get("cpu_s") or 0.0 for name, row in lines.items()} | dict(cpu_s)
    peak = {name: row.get("peak_rss_bytes") or 0 for name, row in lines.items()} | dict(peaks)
    figures = {"end": time.time(), "cpu_s": sum(cpu.values()), "peak_rss_bytes": sum(peak.values())}
    _change(run, attempt, lambda entry: figures | _energy(entry, lines.values()))


def given(rows: Sequence[Mapping[str, Any]], cuda: bool, variables: Mapping[str, str]) -> Entry:
    """hosts, cores, gpus, memory_bytes and asked_of: the allocation's where SLURM tells, else what the hosts have."""
    hosts = {row["host"] for row in rows}
    cores = len({(row["host"], core) for row in rows for core in row["cores"]})
    gpus = sum(max(row["gpus"] for row in rows if row["host"] == host) for host in hosts) if cuda else 0
    found = {"hosts": len(hosts), "cores": cores, "gpus": gpus, "memory_bytes": _host_bytes() * len(hosts)}
    asked = _asked(variables)
    return {**found, **asked, "asked_of": "SLURM" if "memory_bytes" in asked else "the machine"}


def _process_start() -> float:
    """Unix time at which this process began."""
    import psutil  # which `status` does without

    return float(psutil.Process().create_time())


def _host_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _asked(variables: Mapping[str, str]) -> dict[str, int]:
    """What of cores, gpus and memory_bytes SLURM's variables of a batch step tell, over all nodes."""
    nodes = sum(_counts(variables, "SLURM_JOB_NUM_NODES"))
    cores, asked = sum(_counts(variables, "SLURM_JOB_CPUS_PER_NODE")), {}
    if cores:
        asked["cores"] = cores
    if cores and (per_core := _number(variables.get("SLURM_MEM_PER_CPU"))):  # MiB
        asked["memory_bytes"] = cores * per_core << 20
    if nodes and (per_node := _number(variables.get("SLURM_MEM_PER_NODE"))):
        asked["memory_bytes"] = nodes * per_node << 20
    if nodes and (gpus := _number(variables.get("SLURM_GPUS_ON_NODE"))):
        asked["gpus"] = nodes * gpus
    return asked


def _counts(variables: Mapping[str, str], name: str) -> list[int]:
    """Numbers like "4(x2),1" of a job, or of all components of a heterogeneous one."""
    groups = [value for key, value in variables.items() if re.fullmatch(rf"{name}_HET_GROUP_\d+", key)]
    words = [word for text in (groups or [variables.get(name, "")]) for word in text.split(",")]
    pairs = [re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", word.strip()) for word in words]
    return [int(pair[1]) * int(pair[2] or 1) for pair in pairs if pair]


def _number(text: str | None) -> int:
    return int(text) if text and text.isascii() and text.isdigit() else 0


def _ended(run: RunDir, entry: Entry) -> Entry:
    """An attempt without a last word, as far as its metrics reach."""
    lines = _lines(run, entry["attempt"]).values()
    return {
        **entry,
        "end": max([entry["ready"] or entry["start"], *(row.get("time") or 0.0 for row in lines)]),
        "cpu_s": sum(row.get("cpu_s") or 0.0 for row in lines),
        "peak_rss_bytes": sum(row.get("peak_rss_bytes") or 0 for row in lines),
        **_energy(entry, lines),
    }


def _energy(entry: Entry, lines: Collection[Mapping[str, Any]]) -> Entry:
    """J over all hosts by the newest metric lines, of which one of each host has it."""
    known = {name: [row[name] for row in lines if row.get(name) is not None] for name in ENERGY}
    return {name: sum(values) if 0 < len(values) == entry["hosts"] else None for name, values in known.items()}


def _lines(run: RunDir, attempt: int) -> dict[str, dict[str, Any]]:
    """Rank name -> the newest metric line, of the ranks whose newest is of this attempt."""
    return {name: row for name, row in last(run.metrics).items() if row.get("attempt") == attempt}


def _again(run: RunDir, entry: Entry, step: int) -> float:
    """Seconds of an attempt after the newest metric line of rank 0 up to this env step; 0 where none lies beyond."""
    file = next((file for name in CHIEFS if (file := run.metrics / f"{name}.jsonl").exists()), None)
    rows = [] if file is None else _rows(file)
    own = [row for row in rows if row.get("attempt") == entry["attempt"]]
    if not own or own[-1]["step"] <= step:
        return 0.0
    kept = [row["time"] for row in own if row["step"] <= step]
    return float(max(0.0, entry["end"] - max(kept, default=entry["ready"] or entry["start"])))


def _rows(file: Path) -> list[dict[str, Any]]:
    with contextlib.suppress(FileNotFoundError, Unreadable):
        lines = read_end(file, _BACK_BYTES).encode().splitlines(keepends=True)
        return [row for line in lines if (row := parse_line(line, _LINE, _LINE)) is not None]
    return []


def _change(run: RunDir, attempt: int, figures: Callable[[Entry], Entry]) -> None:
    entries = _read(run)
    if entries and entries[-1]["attempt"] == attempt:
        _write(run, [*entries[:-1], entries[-1] | figures(entries[-1])])


def _read(run: RunDir) -> list[Entry]:
    """The file as it is; nothing where there is none, or one that is something else."""
    try:
        table = read_json(run.usage_file, {"attempts": list}, ("attempts",))
        required = _ENTRY.keys() - _NEWER.keys()
        return [_NEWER | checked(entry, _ENTRY, required, str(run.usage_file)) for entry in table["attempts"]]
    except (FileNotFoundError, Unreadable):
        return []


def _write(run: RunDir, entries: list[Entry]) -> None:
    write_json(run.usage_file, {"attempts": entries})
