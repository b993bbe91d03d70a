"""The fastest that this machine's cores could train a job: every core always busy, nothing spent on moving data.

A trained env step costs 1/env + 1/infer + E/learn seconds of one core, so C cores give C / (1/env + 1/infer + E/learn).
Each term is measured alone, on one core and the CPU, whatever device the job asks for.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from statistics import median
from typing import TYPE_CHECKING, Any

from hpc_rl import job as jobs
from hpc_rl.job import Job
from hpc_rl.plan import Plan

if TYPE_CHECKING:
    from hpc_rl.algorithms.base import Policy
    from hpc_rl.envs.base import Environment
    from hpc_rl.types import Actions, Array, Spec, Trajectory

ROUNDS = 5  # each measures every term once, so that a drifting clock hits all of them alike

Work = Callable[[], int]
"""Does one piece of work; how many env steps or samples it was."""


@dataclass(frozen=True)
class Roofline:
    """Rates of one core, and how many cores there are."""

    env_per_s: float  # env steps/s, random actions
    infer_per_s: float  # samples/s of Policy.act
    learn_per_s: float  # samples/s forward, backward and optimiser step
    passes: int  # E, how often a sample is learned from
    cores: int  # C, in the affinity mask

    @property
    def env_steps_per_s(self) -> float:
        return self.cores / (1 / self.env_per_s + 1 / self.infer_per_s + self.passes / self.learn_per_s)


def measure(job: Job, seconds: float = 6.0) -> Roofline:
    """The terms for this job's environment, columns, network, batch and precision; takes ``seconds`` and a warm-up.

    Raises:
        BadJob, BadEnvironment: the job cannot be planned or its environment not be made.
    """
    import numpy as np
    import torch

    from hpc_rl.envs.make import describe, make

    plan = jobs.topology(job.topology).plan(job)
    spec = describe(job.environment.id, job.environment.arguments)
    columns = next(len(rank.columns) for rank in plan.ranks if rank.columns)
    cores = len(os.sched_getaffinity(0))
    with _one_core():  # before the environment is made: its threads inherit the mask
        torch.manual_seed(job.seed)
        environment = make(job.environment.id, job.environment.arguments, columns, 1)
        try:
            config, precision = _config(job), _precision(job, spec)
            passes, learn = _learn(job, plan, config, _policy(job, config, precision, spec), spec)
            policy = _policy(job, config, precision, spec)
            observation = environment.reset(np.arange(columns))
            work = [_step(environment, job.seed), _infer(policy, observation), learn]
            env, infer, learned = _rates(work, seconds)
        finally:
            environment.close()
    return Roofline(env, infer, learned * passes, passes, cores)


def render(roofline: Roofline) -> str:
    """The three terms, their shares of a core's time, and the result."""
    per_step = [1 / roofline.env_per_s, 1 / roofline.infer_per_s, roofline.passes / roofline.learn_per_s]
    rates = [roofline.env_per_s, roofline.infer_per_s, roofline.learn_per_s]
    learn = "learn" if roofline.passes == 1 else f"learn, {roofline.passes} passes over each sample"
    names = ["step environments", "infer", learn]
    units = ["env steps/s", "samples/s", "samples/s"]
    rows = ["one core, each alone:"]
    for name, rate, unit, cost in zip(names, rates, units, per_step, strict=True):
        rows.append(f"  {name:<36}{rate:>12,.0f} {unit:<12}{cost / sum(per_step):>4.0%} of an env step")
    rows.append(f"roofline of {roofline.cores} core(s): {roofline.env_steps_per_s:,.0f} env steps/s")
    return "\n".join(rows)


@contextmanager
def _one_core() -> Iterator[None]:
    import torch

    mask, threads = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, {max(mask)})
    torch.set_num_threads(1)
    try:
        yield
    finally:
        os.sched_setaffinity(0, mask)
        torch.set_num_threads(threads)


def _rates(work: list[Work], seconds: float) -> list[float]:
    """Median over the rounds of each work's rate, per second."""
    rates: list[list[float]] = [[] for _ in work]
    for piece in work:
        piece()
    for _ in range(ROUNDS):
        for found, piece in zip(rates, work, strict=True):
            begin, count, took = time.perf_counter(), 0, 0.0
            while took < seconds / (ROUNDS * len(work)):
                count += piece()
                took = time.perf_counter() - begin
            found.append(count / took)
    return [median(found) for found in rates]


def _step(environment: Environment, seed: int) -> Work:
    import numpy as np

    generator = np.random.default_rng(seed)

    def work() -> int:
        environment.send(_random(environment.spec.actions, (environment.columns,), generator))
        return int((~environment.recv().first).sum())

    return work


def _infer(policy: Policy, observation: Array) -> Work:
    import torch

    from hpc_rl.devices import to_device
    from hpc_rl.types import Step

    columns = len(observation)
    step = Step(to_device(observation.copy(), "cpu"), torch.zeros(columns, dtype=torch.bool), torch.zeros(columns))
    carry, exploration = policy.initial_carry(columns), torch.ones(columns)
    noise = torch.rand(columns, policy.fragment_noise + policy.noise)

    def work() -> int:
        policy.act(step, carry, exploration, noise)
        return columns

    return work


def _learn(job: Job, plan: Plan, config: Any, policy: Policy, spec: Spec) -> tuple[int, Work]:
    """(passes, one Learner.update on random experience of one learning rank's size)."""
    from hpc_rl.optim.group import Alone

    learner = jobs.algorithm(job.algorithm).learner(config, spec, policy, Alone())
    batch = _experience(spec, policy, plan.steps, plan.learning_columns, job.seed)
    samples = plan.steps * len(batch.column)

    def work() -> int:
        learner.update({"items": batch}, 0.0)
        return samples

    return config.experience().passes, work


def _config(job: Job) -> Any:
    """The method's config without the early stop, which would skip passes on data that means nothing."""
    config = jobs.method_config(job)
    return replace(config, target_kl=0.0) if "target_kl" in {item.name for item in fields(config)} else config


def _precision(job: Job, spec: Spec) -> str:
    from hpc_rl.hardware import cpu_name
    from hpc_rl.nets.precision import faster_precision

    resources = job.resources
    if resources.precision != "auto":
        return resources.precision
    return resources.precisions.get(cpu_name()) or faster_precision(spec, "cpu")


def _policy(job: Job, config: Any, precision: str, spec: Spec) -> Policy:
    from hpc_rl.nets.precision import set_precision

    policy = jobs.algorithm(job.algorithm).policy(config, spec)
    set_precision(policy.net, precision)
    return policy


def _experience(spec: Spec, policy: Policy, steps: int, columns: int, seed: int) -> Trajectory:
    """Random moves of ``steps`` × ``columns`` whose actions and observations lie in the right ranges."""
    import numpy as np

    from hpc_rl.fragments import allocate, trajectory, trajectory_schema

    generator = np.random.default_rng(seed)
    tree = allocate(
        trajectory_schema(spec, policy.extras, policy.carry, policy.fragment_noise), steps, columns, spec.stack
    )
    shape = tree["observation"].shape
    pixels = spec.dtype == "uint8"
    tree["observation"][:] = generator.integers(0, 256, shape) if pixels else generator.standard_normal(shape)
    tree["action"][:] = _random(spec.actions, (steps, columns), generator)
    tree["reward"][:] = generator.standard_normal((steps, columns))
    tree["discount"][:] = 1
    tree["column"][:] = np.arange(columns)
    return trajectory([tree], spec)


def _random(actions: Actions, lead: tuple[int, ...], generator: Any) -> Array:
    """Uniform actions [*lead, *A]; of a box between -1 and 1."""
    import numpy as np

    if actions.kind == "box":
        return np.asarray(generator.uniform(-1, 1, (*lead, *actions.shape)), np.float32)
    chosen = generator.integers(0, actions.sizes, (*lead, len(actions.sizes)))
    return np.asarray(chosen[..., 0] if actions.kind == "discrete" else chosen)
