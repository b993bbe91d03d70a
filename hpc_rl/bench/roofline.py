"""The fastest that this machine's cores could train a job: every core always busy, nothing spent on moving data.

A trained env step costs 1/env + 1/infer + E/learn seconds of one core, so C cores give C / (1/env + 1/infer + E/learn).
E moves are learned from for each env step: the passes over fresh experience, or what a replay draws. Each term is
measured by itself, on all cores at once, since they share a clock and caches, and on the CPU, whatever device the job
asks for. Beside the learning term stands what share of a core's peak its arithmetic is: the roofline does not show how
slow a kernel is.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import mean, median

from hpc_rl.bench.batches import reuse
from hpc_rl.bench.cores import DEADLINE_S, ask, others, pinned, rate, read
from hpc_rl.bench.pieces import Pieces, pieces
from hpc_rl.settings import Job

ROUNDS = 5  # each measures every term once, so that a drifting clock hits all of them alike


@dataclass(frozen=True)
class Roofline:
    """Rates of one core while all work alike, and how many cores there are."""

    env_per_s: float  # env steps/s, random actions
    infer_per_s: float  # moves/s of Policy.act
    learn_per_s: float  # moves/s forward, backward and optimiser step
    reuse: float  # E, moves learned from for each env step
    cores: int  # C, in the affinity mask
    learn_flops: float = 0.0  # of one move, as torch counts products of matrices and convolutions
    peak_flops: float = 0.0  # FLOP/s of a large product of matrices

    @property
    def env_steps_per_s(self) -> float:
        return self.cores / (1 / self.env_per_s + 1 / self.infer_per_s + self.reuse / self.learn_per_s)

    @property
    def peak_share(self) -> float:
        """Arithmetic of the learning term over the peak, in [0, 1]."""
        return self.learn_flops * self.learn_per_s / self.peak_flops if self.peak_flops else 0.0


@dataclass(frozen=True)
class Terms:
    """The pieces of a job's work, warm on every core."""

    work: Pieces
    processes: list[subprocess.Popen[str]]  # of the other cores

    def round(self, seconds: float) -> dict[str, float]:
        """Units per second of one core; each piece runs on all cores at once, for its share of ``seconds``."""
        rates = {}
        for name in self.work.work:
            share = seconds / len(self.work.work)
            ask(self.processes, name, share)
            own = rate(self.work, name, share)
            rates[name] = mean([own, *(float(read(process, DEADLINE_S)) for process in self.processes)])
        return rates

    def roofline(self, rates: Mapping[str, float]) -> Roofline:
        return Roofline(
            rates["env"], rates["infer"], rates["learn"], reuse(self.work.experience), 1 + len(self.processes),
            self.work.learn_flops, rates["peak"],
        )  # fmt: skip


@contextmanager
def terms(job: Job, cores: int | None = None) -> Iterator[Terms]:
    """The terms of this job, on so many ``cores``; None means all of the mask. This thread stays on the first.

    Raises:
        BadJob, BadEnvironment, Unsuited: the job cannot be planned, its environment not be made, or not be learned.
        CoreLost: the process of another core has ended, or is silent.
    """
    mask = sorted(os.sched_getaffinity(0))[: cores or None]
    # This core's environment is made once it is pinned: the environment's threads inherit the mask.
    with others(job, mask[1:]) as processes, pinned(mask[0]), pieces(job) as work:
        yield Terms(work, processes)


def measure(job: Job, seconds: float = 6.0, cores: int | None = None) -> Roofline:
    """The roofline of this job, in ``seconds`` and a warm-up; raises what `terms` raises."""
    with terms(job, cores) as measured:
        rounds = [measured.round(seconds / ROUNDS) for _ in range(ROUNDS)]
        return measured.roofline({name: median(rates[name] for rates in rounds) for name in rounds[0]})


def render(roofline: Roofline) -> str:
    """The three terms, their shares of a core's time, and the result."""
    per_step = [1 / roofline.env_per_s, 1 / roofline.infer_per_s, roofline.reuse / roofline.learn_per_s]
    rates = [roofline.env_per_s, roofline.infer_per_s, roofline.learn_per_s]
    names = ["step environments", "infer", f"learn, {roofline.reuse:g} moves per env step"]
    units = ["env steps/s", "moves/s", "moves/s"]
    rows = ["one core, all at once:" if roofline.cores > 1 else "one core:"]
    for name, term, unit, cost in zip(names, rates, units, per_step, strict=True):
        rows.append(f"  {name:<36}{term:>12,.0f} {unit:<12}{cost / sum(per_step):>4.0%} of an env step")
    if roofline.learn_flops:
        giga = roofline.learn_flops * roofline.learn_per_s / 1e9
        rows.append(f"  learning computes {giga:,.1f} GFLOP/s, {roofline.peak_share:.0%} of a large matrix product's")
    rows.append(f"roofline of {roofline.cores} core(s): {roofline.env_steps_per_s:,.0f} env steps/s")
    return "\n".join(rows)
