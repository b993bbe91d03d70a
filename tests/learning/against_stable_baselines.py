"""SAC on HalfCheetah-v5 beside Stable-Baselines3's: env steps per second with one update of 256 for each, in turn.

    python -m tests.learning.against_stable_baselines --python PYTHON

PYTHON has stable-baselines3 and gymnasium[mujoco]. All programs are begun and trained past their first update; then in
each round every one works alone for ``--seconds``, while the others are halted, so that a clock that drifts hits them
alike. The other side runs with 1 and with 2 threads; the median ratio of the rounds to each is printed, and the share
of the peak FLOP/s of a large matrix product, measured in the same rounds on all cores.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from hpc_rl import job as jobs
from hpc_rl.bench.roofline import Roofline, terms
from hpc_rl.bench.share import env_steps_per_s, together, training
from hpc_rl.settings import Job

SCRIPT = Path(__file__).with_name("stable_baselines_sac.py")
OURS, THREADS = "hpc_rl", (1, 2)
AFTER = 10_300  # env steps, of which 10 000 come before the first update


@dataclass
class Program:
    """A learner that can be halted, and its lines {"time", "env_steps"}."""

    name: str
    send: Callable[[signal.Signals], None]
    rows: Callable[[], list[dict[str, object]]]
    windows: list[tuple[float, float]] = field(default_factory=list)

    def work(self, seconds: float) -> None:
        self.send(signal.SIGCONT)
        begin = time.time()
        time.sleep(seconds)
        self.send(signal.SIGSTOP)
        self.windows.append((begin, time.time()))

    def trained(self) -> bool:
        rows = self.rows()
        return bool(rows) and float(str(rows[-1]["env_steps"])) > AFTER

    def rates(self) -> list[float]:
        """Env steps per second of each window; the first is warm-up."""
        rows, windows = self.rows(), self.windows
        halts = [(end, begin) for (_, end), (begin, _) in pairwise(windows)]
        return [env_steps_per_s(rows, halts, begin, end) for begin, end in windows[1:]]


@contextmanager
def baseline(python: Path, task: str, threads: int, folder: Path) -> Iterator[Program]:
    """Stable-Baselines3's learner with so many threads."""
    out = folder / f"baseline-{threads}.jsonl"
    command = [python, SCRIPT, task, "--threads", str(threads), "--env-steps", str(10**9), "--out", out]
    process = subprocess.Popen(list(map(str, command)))

    def rows() -> list[dict[str, object]]:
        return [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []

    try:
        yield Program(f"Stable-Baselines3, {threads} threads", process.send_signal, rows)
    finally:
        process.kill()
        process.wait()


def begun(program: Program) -> Program:
    """The program halted, once it learns."""
    program.send(signal.SIGCONT)
    begin = time.time()
    while not program.trained():
        time.sleep(0.2)
    program.send(signal.SIGSTOP)
    program.windows.append((begin, time.time()))
    return program


def measure(job: Job, python: Path, rounds: int, seconds: float) -> tuple[dict[str, list[float]], Roofline]:
    """Rates by program, and the roofline of the rounds."""
    with TemporaryDirectory() as folder, ExitStack() as stack:
        run = stack.enter_context(training(job, Path(folder)))
        programs = [begun(Program(OURS, run.send, run.rows))]
        for threads in THREADS:
            other = stack.enter_context(baseline(python, job.environment.id, threads, Path(folder)))
            programs.append(begun(other))
        measured = stack.enter_context(terms(job))
        figures = []
        for _ in range(rounds):
            for program in programs:
                program.work(seconds)
            figures.append(measured.round(seconds / 2))
        for program in programs:  # a line of figures behind the last window
            program.send(signal.SIGCONT)
            time.sleep(6.0)
            program.send(signal.SIGSTOP)
        return {program.name: program.rates() for program in programs}, measured.roofline(together(figures))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", type=Path, required=True)
    parser.add_argument("--job", default="sac_halfcheetah")
    parser.add_argument("--windows", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0)
    arguments = parser.parse_args()
    rates, roofline = measure(jobs.load(arguments.job), arguments.python, arguments.windows, arguments.seconds)
    ours = rates[OURS]
    for name, row in rates.items():
        numbers = " ".join(f"{rate:7.1f}" for rate in row)
        ratio = median(a / b for a, b in zip(ours, row, strict=True))
        print(f"{name:<30}{numbers}   median {median(row):7.1f} env steps/s; ours is {ratio:.2f} times that")
    share = median(ours) * roofline.reuse * roofline.learn_flops / (roofline.peak_flops * roofline.cores)
    print(f"learning by itself computes at {roofline.peak_share:.0%} of the cores' peak, the run at {share:.0%}")


if __name__ == "__main__":
    main()
