"""Energy that a host's own counters tell: RAPL of its processors and memory, NVML of its GPUs.

Counters are of the whole host: what others run there is counted, too. Nothing needs a privilege but RAPL, which most
kernels since 5.10 let only root read (CVE-2020-8694); where a counter is missing or closed its energy is not known.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
_COUNTED = re.compile(r"package-\d+|dram")  # "core" and "uncore" lie in their package, "psys" holds all

Counters = Mapping[str, float]
"""Name of a counter -> J; counters of RAPL fall back to 0 once they have come to their range."""


@dataclass
class Meter:
    """Energy since it was made, J by what used it: "processor_energy_j" and "gpu_energy_j", of those that are known."""

    read: Mapping[str, Callable[[], Counters]]  # by metric; {} where nothing counts
    ranges: Counters  # J at which a counter begins anew, of those that do
    before: dict[str, Counters] = field(default_factory=dict)
    used: dict[str, float] = field(default_factory=dict)

    def figures(self) -> dict[str, float]:
        """The metrics so far. To be called before any counter can have come round twice: RAPL's do in some minutes."""
        for name, read in self.read.items():
            if now := read():
                before = self.before.get(name, now)
                steps = (_step(before.get(key, x), x, self.ranges.get(key, 0.0)) for key, x in now.items())
                self.used[name] = self.used.get(name, 0.0) + sum(steps)
                self.before[name] = now
        return dict(self.used)


def meter(gpus: bool) -> Meter:
    """The counters of this host; those of its GPUs where the job uses any."""
    zones = _zones(POWERCAP)
    read = {"processor_energy_j": lambda: _rapl(zones)} | ({"gpu_energy_j": _nvml} if gpus else {})
    found = Meter(read, {str(zone): limit for zone, limit in zones.items()})
    found.figures()
    return found


def _step(before: float, now: float, limit: float) -> float:
    return now - before if now >= before else max(0.0, now + limit - before)


def _zones(folder: Path) -> dict[Path, float]:
    """Zones of RAPL that count energy, none of them a part of another -> the J at which they begin anew."""
    zones = {}
    for zone in sorted(folder.glob("intel-rapl:*")):  # AMD's processors have the same name
        with contextlib.suppress(OSError, ValueError):
            if _COUNTED.fullmatch((zone / "name").read_text().strip()):
                zones[zone] = int((zone / "max_energy_range_uj").read_text()) / 1e6
    return zones


def _rapl(zones: Mapping[Path, float]) -> Counters:
    """J of every zone; {} where one of them may not be read, for the others are not the host's energy."""
    try:
        return {str(zone): int((zone / "energy_uj").read_text()) / 1e6 for zone in zones}
    except (OSError, ValueError):
        return {}


def _nvml() -> Counters:
    """J of every GPU of this host, or of those the allocation lets be seen; {} without the library or a counter."""
    try:
        import pynvml
    except ImportError:
        return {}
    try:
        pynvml.nvmlInit()
        cards = [pynvml.nvmlDeviceGetHandleByIndex(k) for k in range(pynvml.nvmlDeviceGetCount())]
        return {f"gpu-{k}": pynvml.nvmlDeviceGetTotalEnergyConsumption(card) / 1e3 for k, card in enumerate(cards)}
    except pynvml.NVMLError:
        return {}
