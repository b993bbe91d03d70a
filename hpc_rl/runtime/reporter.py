"""The metric lines of a rank: how far, how fast, where the time went, how much memory."""

from __future__ import annotations

import contextlib
import math
import os
import time
from pathlib import Path

import psutil

from hpc_rl.runtime.files import RunFiles
from hpc_rl.samplers.base import Timings

TALK_S = 60.0  # between lines of progress in the log of the ranks


def peak_rss_bytes() -> int:
    """The largest resident memory that this process has had; samples would miss a short peak."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def cpu_s() -> float:
    """CPU seconds of this process, of children that have ended, and of those that live (`environment.processes`)."""
    own = os.times()
    return sum(own[:4]) + _descendants(os.getpid()) / os.sysconf("SC_CLK_TCK")


def _descendants(pid: int) -> int:
    """Clock ticks of the children of a process's first thread, of theirs, and of those that they waited for."""
    total = 0
    with contextlib.suppress(OSError, ValueError):  # one that has just ended, or a kernel without this file
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            with contextlib.suppress(OSError, ValueError, IndexError):
                fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
                total += sum(int(field) for field in fields[11:15]) + _descendants(int(child))
    return total


class Reporter:
    """Writes this rank's metric line every few seconds; shares of time are those since the last line.

    ``started`` is when the attempt began, on the clock of time.monotonic; ``begin`` are the env steps that `report`
    would have been given before it.
    """

    def __init__(self, files: RunFiles, timings: Timings, started: float, begin: int = 0) -> None:
        self.metrics, self.timings, self.started = files.metrics(begin), timings, started
        self.process = psutil.Process(os.getpid())
        self.time, self.before, self.steps = time.monotonic(), dict(timings.seconds), begin
        self.peak, self.said = 0, self.time

    def due(self) -> bool:
        return time.monotonic() - self.time >= self.metrics.interval_s

    def report(self, env_steps: int, values: dict[str, float]) -> None:
        """One line: ``env_steps`` of this rank, its rate, time split, memory, and ``values``."""
        now = time.monotonic()
        span = max(now - self.time, 1e-9)
        share = {f"time/{k}": (v - self.before[k]) / span for k, v in self.timings.seconds.items()}
        share["time/other"] = max(0.0, 1 - sum(v for k, v in share.items() if k != "time/other"))
        rss = self.process.memory_info().rss
        self.peak = peak_rss_bytes()
        rate = (env_steps - self.steps) / span if self.steps else 0.0
        line = {"env_steps": env_steps, "env_steps_per_s": rate, "rss_bytes": rss, "peak_rss_bytes": self.peak}
        line["cpu_s"] = cpu_s()
        self.metrics.write(env_steps, {**line, **share, **values})
        if "mean_return_100" in values and now - self.said > TALK_S:
            mean, self.said = values["mean_return_100"], now
            done = f"{(now - self.started) / 60:.0f} min: {env_steps:,} env steps, {rate:,.0f}/s"
            print(f"{done}, {'no episode yet' if math.isnan(mean) else f'mean return {mean:.2f}'}", flush=True)
        self.time, self.before, self.steps = now, dict(self.timings.seconds), env_steps

    def close(self) -> None:
        self.metrics.close()
