"""What part of its roofline a training run reaches, where run and roofline share the cores in turn.

The speed of a shared machine moves by half within a minute, so that a roofline measured after a run is another
machine's. Here the ranks of a run that is under way are halted for some seconds, the terms of the roofline are measured
on the same cores, and the ranks go on; the windows of a block are added up, and each block gives one ratio.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import harmonic_mean, median
from tempfile import TemporaryDirectory

import numpy as np
import psutil

from hpc_rl import job as jobs
from hpc_rl.bench.roofline import Roofline, Terms, terms
from hpc_rl.settings import Budget, Evaluate, Job
from hpc_rl.storage import metrics
from hpc_rl.storage.run_dir import RunDir

WARM_UP_S, START_S = 15.0, 120.0  # of a run before the first block; for its first figures
BLOCKS, WINDOWS, LINE_S = 5, 5, 5.0
ENDLESS = Budget(env_steps=10**12)


class RunEnded(RuntimeError):
    """The run that is measured has ended by itself, or never trained."""


@dataclass(frozen=True)
class Block:
    """Env steps per second of the run, over its windows, and its roofline's over those between."""

    env_steps_per_s: float
    roofline: Roofline

    @property
    def share(self) -> float:
        return self.env_steps_per_s / self.roofline.env_steps_per_s


def measure(job: Job, seconds: float = 250.0) -> list[Block]:
    """`BLOCKS` blocks of `WINDOWS` windows each, one of the run and one of the roofline in turn; ``seconds`` in all.

    Raises:
        BadJob, BadEnvironment, Unsuited, CoreLost: as `roofline.measure`.
        RunEnded: the run has ended, or has no figures after `START_S`.
    """
    window_s = seconds / (2 * BLOCKS * WINDOWS)
    # The run comes first: what is started by a thread that `terms` has pinned stays on its core.
    with TemporaryDirectory() as folder, training(job, Path(folder)) as run, terms(job) as measured:
        halts: list[tuple[float, float]] = []
        rounds: list[list[dict[str, float]]] = []
        for _ in range(BLOCKS):
            rounds.append([_round(run, measured, window_s, halts) for _ in range(WINDOWS)])
        time.sleep(max(window_s, LINE_S))  # for a line of figures after the last halt
        rows = run.rows()
        starts = [halts[WINDOWS * block][0] - window_s for block in range(BLOCKS)]
        ends = [halts[WINDOWS * (block + 1) - 1][0] for block in range(BLOCKS)]
        rates = [env_steps_per_s(rows, halts, start, end) for start, end in zip(starts, ends, strict=True)]
        return [Block(rate, measured.roofline(together(block))) for rate, block in zip(rates, rounds, strict=True)]


def render(blocks: Sequence[Block]) -> str:
    """A line for each block and the median share."""
    rows = [f"{'block':<6}{'run':>12}{'roofline':>12}{'share':>8}   env steps/s"]
    rows += [
        f"{k:<6}{block.env_steps_per_s:>12,.0f}{block.roofline.env_steps_per_s:>12,.0f}{block.share:>8.2f}"
        for k, block in enumerate(blocks, 1)
    ]
    peak = median(block.roofline.peak_share for block in blocks)
    rows.append(f"share of the roofline: {median(block.share for block in blocks):.2f}, median of {len(blocks)} blocks")
    return "\n".join([*rows, f"learning computes at {peak:.0%} of a large matrix product's FLOP/s"])


def together(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    """Rates over all rounds, each of which lasted as long: the harmonic mean, since a run's steps cost time, too."""
    return {name: harmonic_mean([rates[name] for rates in rounds]) for name in rounds[0]}


def env_steps_per_s(
    rows: Sequence[dict[str, object]], halts: Sequence[tuple[float, float]], start: float, end: float
) -> float:
    """Env steps per second of a run between two moments (unix seconds), without the time in which it was halted.

    ``rows`` are its lines of figures; between two of them its env steps rise evenly with the time that it worked.
    """
    marks = [_worked(float(str(row["time"])), halts) for row in rows]
    steps = [float(str(row["env_steps"])) for row in rows]
    a, b = _worked(start, halts), _worked(end, halts)
    first, last = np.interp([a, b], marks, steps)
    return float(last - first) / (b - a)


def _worked(moment: float, halts: Sequence[tuple[float, float]]) -> float:
    """Seconds up to a moment without those of the halts before it."""
    return moment - sum(min(moment, end) - begin for begin, end in halts if begin < moment)


@dataclass(frozen=True)
class Training:
    """A run under way: its processes can be halted, and its figures be read."""

    process: subprocess.Popen[bytes]
    directory: RunDir
    output: Path

    def rows(self) -> list[dict[str, object]]:
        """Rank 0's lines of figures, so far."""
        paths = [self.directory.metrics / f"{name}.jsonl" for name in metrics.CHIEFS]
        return next((metrics.rows(path) for path in paths if path.exists()), [])

    def wait(self) -> None:
        """Until it has figures. Raises RunEnded."""
        deadline = time.monotonic() + START_S
        while not self.rows():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RunEnded(self.sentence())
            time.sleep(0.2)

    def send(self, number: signal.Signals) -> None:
        """To every process of the run. Raises RunEnded."""
        if self.process.poll() is not None:
            raise RunEnded(self.sentence())
        parent = psutil.Process(self.process.pid)
        for process in [parent, *parent.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def sentence(self) -> str:
        last = self.output.read_text(errors="replace").strip().splitlines()[-1:]
        return f"the run that is measured does not train; its last words: {' '.join(last) or 'none'}"


@contextmanager
def training(job: Job, folder: Path) -> Iterator[Training]:
    """`hpc-rl run` of this job without an end, after `WARM_UP_S`; killed at the exit. Raises RunEnded."""
    file, run = folder / "job.toml", folder / "run"
    file.write_text(jobs.dumps(replace(job, budget=ENDLESS, evaluate=Evaluate())))
    main = "from hpc_rl.cli import main; main()"
    command = [sys.executable, "-c", main, "run", str(file), "--out", str(run), "--no-roofline"]
    with (folder / "output.txt").open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
    measured = Training(process, RunDir(run), folder / "output.txt")
    try:
        measured.wait()
        time.sleep(WARM_UP_S)
        yield measured
    finally:
        with suppress(RunEnded):
            measured.send(signal.SIGKILL)
        process.wait(START_S)


def _round(run: Training, measured: Terms, window_s: float, halts: list[tuple[float, float]]) -> dict[str, float]:
    """A window of the run, then one of the roofline with the run halted: its rates."""
    time.sleep(window_s)
    begin = time.time()
    run.send(signal.SIGSTOP)
    try:
        return measured.round(window_s)
    finally:
        run.send(signal.SIGCONT)
        halts.append((begin, time.time()))
