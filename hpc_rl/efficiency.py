"""How well a run uses what it was given, over all its attempts, as SLURM users know it from seff."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hpc_rl.storage.run_dir import RunDir
from hpc_rl.usage import ENERGY, Entry, usage

Efficiency = dict[str, Any]
"""The keys of "efficiency" in summary.json and `status --json`: docs/run-directory.md."""


def of(run: RunDir) -> Efficiency | None:
    """Figures over all attempts; None of a run that recorded none, as those of earlier versions."""
    entries = usage(run)
    if not entries:
        return None
    hours = [_hours(entry) for entry in entries]
    core_hours = sum(h * entry["cores"] for h, entry in zip(hours, entries, strict=True))
    again, starting = [entry["again_s"] / 3600 for entry in entries], [_starting(entry) for entry in entries]
    starting[0] = 0.0  # nobody restarted it
    lost = [a + b for a, b in zip(again, starting, strict=True)]
    largest = max(entries, key=lambda entry: entry["peak_rss_bytes"] / max(1, entry["memory_bytes"]))
    cpu_hours = sum(entry["cpu_s"] for entry in entries) / 3600
    return {
        "attempts": len(entries),
        "wall_hours": sum(hours),
        "core_hours": core_hours,
        "gpu_hours": sum(h * entry["gpus"] for h, entry in zip(hours, entries, strict=True)),
        "lost_hours": sum(lost),
        "made_again_hours": sum(again),
        "restarting_hours": sum(starting),
        "lost_core_hours": sum(h * entry["cores"] for h, entry in zip(lost, entries, strict=True)),
        "cpu_hours": cpu_hours,
        "cores": entries[-1]["cores"],
        "gpus": entries[-1]["gpus"],
        "cores_used": cpu_hours / core_hours if core_hours else None,
        "peak_rss_bytes": largest["peak_rss_bytes"],
        "memory_bytes": largest["memory_bytes"],
        "memory_used": largest["peak_rss_bytes"] / largest["memory_bytes"] if largest["memory_bytes"] else None,
        "asked_of": largest["asked_of"],
        **{name.replace("_j", "_kwh"): _kwh([entry[name] for entry in entries]) for name in ENERGY},
    }


def told(figures: Efficiency) -> list[str]:
    """Some lines for a reader; "slurm" may hold what SLURM's database has (`accounting.consumed`)."""
    count, gpus = figures["attempts"], figures["gpu_hours"]
    lines = [
        f"{count} attempt{'s' * (count > 1)}: {_number(figures['core_hours'])} core-hours"
        + (f", {_number(gpus)} GPU-hours" if gpus else "")
        + (f"; {_lost(figures)}" if count > 1 else ""),
        f"cores used: {_share(figures['cores_used'])} of {figures['cores']} "
        f"({_number(figures['cpu_hours'])} CPU-hours in {_span(figures['wall_hours'])})",
        f"memory used: {_share(figures['memory_used'])}, at most {_size(figures['peak_rss_bytes'])} in all ranks, of "
        f"{_size(figures['memory_bytes'])} {'asked for' if figures['asked_of'] == 'SLURM' else 'of the machine'}",
    ]
    counted = [f"{_number(x)} kWh of {what}" for what, x in (("processors", figures["processor_energy_kwh"]),
                                                             ("GPUs", figures["gpu_energy_kwh"])) if x]  # fmt: skip
    lines += [f"energy by the counters of all hosts: {', '.join(counted)}"] * bool(counted)
    return lines + ([_account(figures["slurm"])] if figures.get("slurm") else [])


def _lost(figures: Efficiency) -> str:
    parts = {name: _span(figures[f"{name}_hours"]) for name in ("lost", "made_again", "restarting")}
    return (
        f"{parts['lost']} lost to restarts ({parts['made_again']} of steps made again, {parts['restarting']} of "
        f"starting), {_number(figures['lost_core_hours'])} core-hours"
    )


def _account(account: Mapping[str, Any]) -> str:
    parts = [
        f"{_number(account['cpu_s'] / 3600)} CPU-hours in {_number(account['core_s'] / 3600)} core-hours",
        f"the largest task {_size(account['largest_rss_bytes'])}" if account["largest_rss_bytes"] else "",
        f"{_number(account['energy_j'] / 3.6e6)} kWh" if account["energy_j"] else "",
    ]
    return f"SLURM's account: {', '.join(part for part in parts if part)}"


def _kwh(joules: Sequence[float | None]) -> float | None:
    """None where an attempt did not count it."""
    known = [x for x in joules if x is not None]
    return sum(known) / 3.6e6 if known and len(known) == len(joules) else None


def _hours(entry: Entry) -> float:
    return max(0.0, float(entry["end"] - entry["start"])) / 3600


def _starting(entry: Entry) -> float:
    """Hours until rank 0 began to learn; all of an attempt that never came to it."""
    return max(0.0, float((entry["ready"] or entry["end"]) - entry["start"])) / 3600


def _share(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.0%}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _span(hours: float) -> str:
    if hours >= 1:
        return f"{_number(hours)} h"
    return f"{60 * hours:.1f} min" if hours >= 1 / 60 else f"{3600 * hours:.0f} s"


def _size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
