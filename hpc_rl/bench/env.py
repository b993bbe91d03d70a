"""Env steps per second of a device sampler against its number of columns: stepping, with inference, with training.

One core, and whatever else the job says: its network, moves per fragment, epochs, minibatches. Stepping is by random
actions, which were drawn before; all else that the sampler does, uniforms and the fragment's leaves, is in all three.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor, nn

from hpc_rl import job as jobs
from hpc_rl.agent import agent_of
from hpc_rl.algorithms.base import Policy
from hpc_rl.bench.batches import random_actions
from hpc_rl.config import BadJob
from hpc_rl.devices import to_device
from hpc_rl.envs.of_rules import on_device
from hpc_rl.fragments import allocate, trajectory, trajectory_schema
from hpc_rl.optim.alone import Alone
from hpc_rl.plan import Plan
from hpc_rl.samplers.base import Timings
from hpc_rl.samplers.device import Device
from hpc_rl.samplers.uniforms import keys_of
from hpc_rl.settings import Job
from hpc_rl.types import ActOutput, Schema, Spec, Step, Tree

WIDTHS = (16, 64, 256, 1024, 4096, 16_384)
BLOCKS = 5  # of each kind and width, in turn: their median counts
DRAWN = 16  # sets of random actions


@dataclass(frozen=True)
class Row:
    """Env steps per second of one number of columns; 0 where it was not measured."""

    columns: int
    step: float
    infer: float
    train: float


class Drawn:
    """A policy of random actions that were drawn before, whose network is only there to say the device."""

    def __init__(self, spec: Spec, columns: int) -> None:
        generator, self.net = np.random.default_rng(1), nn.Linear(1, 1)
        device = self.net.weight.device
        self.actions = to_device(random_actions(spec.actions, (DRAWN, columns), generator), device)
        self.noise, self.fragment_noise, self.turn = 0, 0, 0
        self.extras: Schema = {}
        self.carry: Schema = {}

    def initial_carry(self, columns: int) -> dict[str, Tensor]:
        return {}

    def act(self, step: Step, carry: dict[str, Tensor], exploration: Tensor, noise: Tensor) -> ActOutput:
        self.turn = (self.turn + 1) % DRAWN
        return ActOutput(self.actions[self.turn], {}, {})


def measure(job: Job, widths: Sequence[int] = WIDTHS, seconds: float = 0.5, training: bool = True) -> list[Row]:
    """A row for each number of columns; a measurement takes ``seconds`` in each block. What a replay has learned from
    is not measured: its rate is a setting.

    Raises:
        BadJob: the job has another sampler.
        BadEnvironment: see `on_device`.
    """
    if job.sampler != "device":
        raise BadJob(f'bench env measures sampler = "device", and this job has "{job.sampler}"; --set sampler=device')
    torch.set_num_threads(1)
    return [_row(_wide(job, columns), seconds, training) for columns in widths]


def _wide(job: Job, columns: int) -> Job:
    return replace(job, environment=replace(job.environment, columns=columns))


def _row(job: Job, seconds: float, training: bool) -> Row:
    torch.compiler.reset()  # what was compiled for another width counts towards a limit
    agent, plan, columns = agent_of(job), jobs.plan(job), job.environment.columns
    torch.manual_seed(job.seed)
    policy = agent.make_policy()
    alone, short = tensors(job, plan, Drawn(agent.spec, columns), columns)
    sampler, tree = tensors(job, plan, policy, columns)
    work = {"step": lambda: alone.collect(short, lambda: 0), "infer": lambda: sampler.collect(tree, lambda: 0)}
    if training and agent.experience.items[0].fresh:
        learner, items = agent.make_learner(policy, Alone()), agent.experience.items[0].name

        def train() -> None:
            sampler.collect(tree, lambda: 0)
            learner.update({items: trajectory([tree], agent.spec, str(sampler.device))}, 0.0)

        work["train"] = train
    rates: dict[str, list[float]] = {name: [] for name in ("step", "infer", "train")}
    for block in range(BLOCKS + 1):
        for name, collect in work.items():
            rate = _rate(collect, tree["reward"].size, seconds)
            if block:  # the first one warms up
                rates[name].append(rate)
    return Row(columns, **{name: median(x) if x else 0.0 for name, x in rates.items()})


def tensors(job: Job, plan: Plan, policy: Policy, width: int) -> tuple[Device, Tree]:
    """A sampler of ``width`` columns that act by this policy, and a fragment for it. Raises BadEnvironment."""
    toy = on_device(job.environment.id, job.environment.arguments, torch)
    columns = np.arange(width, dtype=np.int32)
    spec, keys = toy.rules.spec, keys_of(job.seed, "act", columns, 0)
    sampler = Device(
        toy, policy, columns, keys, np.zeros(width, np.int64), 0, Timings(), compiled=job.resources.compile
    )
    schema = trajectory_schema(spec, policy.extras, policy.carry, policy.fragment_noise)
    return sampler, allocate(schema, plan.steps, width, spec.stack)


def _rate(work: Callable[[], None], size: int, seconds: float) -> float:
    """Units of ``size`` per call and second, over at least ``seconds``."""
    begin, calls = time.perf_counter(), 0
    while (taken := time.perf_counter() - begin) < seconds:
        work()
        calls += 1
    return calls * size / taken


def render(rows: Sequence[Row]) -> str:
    lines = [
        f"{'columns':>10}{'stepping':>14}{'and inference':>16}{'and training':>16}   (moves of all columns per second)"
    ]
    for row in rows:
        figures = [f"{x:,.0f}" if x else "-" for x in (row.step, row.infer, row.train)]
        lines.append(f"{row.columns:>10,}{figures[0]:>14}{figures[1]:>16}{figures[2]:>16}")
    return "\n".join(lines)


def plot(rows: Sequence[Row], title: str, path: Path) -> None:
    """The table as a picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    names = {"step": "stepping", "infer": "and inference", "train": "and training"}
    for name, label in names.items():
        points = [(row.columns, getattr(row, name)) for row in rows if getattr(row, name)]
        if points:
            axes.loglog(*zip(*points, strict=True), marker="o", label=label)
    axes.set(xlabel="columns", ylabel="moves per second", title=title)
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(path, dpi=150)
