"""The fastest that this machine's cores could train a job: every core always busy, nothing spent on moving data.

A trained env step costs 1/env + 1/infer + E/learn seconds of one core, so C cores give C / (1/env + 1/infer + E/learn).
E moves are learned from for each env step: the passes over fresh experience, or what a replay draws. Each term is
measured alone, on one core and the CPU, whatever device the job asks for.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

import numpy as np
import torch
from torch import Tensor

from hpc_rl import job as jobs
from hpc_rl.agent import Agent, agent_of
from hpc_rl.algorithms.base import Policy
from hpc_rl.bench.batches import batch_shapes, items_schema, random_actions, random_tree, reuse
from hpc_rl.devices import to_device
from hpc_rl.envs.base import Environment
from hpc_rl.envs.make import make
from hpc_rl.experience import Experience
from hpc_rl.fragments import trajectory
from hpc_rl.hardware import cpu_name
from hpc_rl.nets.precision import faster_precision, set_precision
from hpc_rl.optim.group import Alone
from hpc_rl.optim.optimizers import Optimizer
from hpc_rl.plan import Plan
from hpc_rl.settings import Job
from hpc_rl.types import Array, RulesState, Spec, Step

ROUNDS = 5  # each measures every term once, so that a drifting clock hits all of them alike

Work = Callable[[], float]
"""Does one piece of work; how many env steps or moves it was."""


@dataclass(frozen=True)
class Roofline:
    """Rates of one core, and how many cores there are."""

    env_per_s: float  # env steps/s, random actions
    infer_per_s: float  # moves/s of Policy.act
    learn_per_s: float  # moves/s forward, backward and optimiser step
    reuse: float  # E, moves learned from for each env step
    cores: int  # C, in the affinity mask

    @property
    def env_steps_per_s(self) -> float:
        return self.cores / (1 / self.env_per_s + 1 / self.infer_per_s + self.reuse / self.learn_per_s)


def measure(job: Job, seconds: float = 6.0) -> Roofline:
    """The terms for this job's environment, columns, networks, batches and precision; takes ``seconds`` and a warm-up.

    Raises:
        BadJob, BadEnvironment, Unsuited: the job cannot be planned, its environment not be made, or not be learned.
    """
    plan = jobs.plan(job)
    agent = agent_of(job)
    columns = next(len(rank.columns) for rank in plan.ranks if rank.columns)
    cores = len(os.sched_getaffinity(0))
    with _one_core():  # before the environment is made: its threads inherit the mask
        torch.manual_seed(job.seed)
        environment = make(job.environment.id, job.environment.arguments, columns, 1)
        try:
            precision = _precision(job, agent.spec)
            learn = _learn(job, plan, agent, _policy(agent, precision))
            observation = environment.reset(np.arange(columns))
            infer = _infer(_policy(agent, precision), observation, environment.rules_state)
            work = [_step(environment, job.seed), infer, learn]
            env, inferred, learned = _rates(work, seconds)
        finally:
            environment.close()
    return Roofline(env, inferred, learned, reuse(agent.experience), cores)


def render(roofline: Roofline) -> str:
    """The three terms, their shares of a core's time, and the result."""
    per_step = [1 / roofline.env_per_s, 1 / roofline.infer_per_s, roofline.reuse / roofline.learn_per_s]
    rates = [roofline.env_per_s, roofline.infer_per_s, roofline.learn_per_s]
    names = ["step environments", "infer", f"learn, {roofline.reuse:g} moves per env step"]
    units = ["env steps/s", "moves/s", "moves/s"]
    rows = ["one core, each alone:"]
    for name, rate, unit, cost in zip(names, rates, units, per_step, strict=True):
        rows.append(f"  {name:<36}{rate:>12,.0f} {unit:<12}{cost / sum(per_step):>4.0%} of an env step")
    rows.append(f"roofline of {roofline.cores} core(s): {roofline.env_steps_per_s:,.0f} env steps/s")
    return "\n".join(rows)


@contextmanager
def _one_core() -> Iterator[None]:
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
        for of_piece, piece in zip(rates, work, strict=True):
            begin, count, took = time.perf_counter(), 0.0, 0.0
            while took < seconds / (ROUNDS * len(work)):
                count += piece()
                took = time.perf_counter() - begin
            of_piece.append(count / took)
    return [median(of_piece) for of_piece in rates]


def _step(environment: Environment, seed: int) -> Work:
    generator = np.random.default_rng(seed)

    def work() -> float:
        environment.send(random_actions(environment.spec.actions, (environment.columns,), generator))
        return float((~environment.recv().first).sum())

    return work


def _infer(policy: Policy, observation: Array, rules_state: RulesState | None) -> Work:
    columns = len(observation)
    first, reward = torch.zeros(columns, dtype=torch.bool), torch.zeros(columns)
    state = None if rules_state is None else {name: to_device(x.copy(), "cpu") for name, x in rules_state.items()}
    step = Step(to_device(observation.copy(), "cpu"), first, reward, state)
    carry, exploration = policy.initial_carry(columns), torch.ones(columns)
    noise = torch.rand(columns, policy.fragment_noise + policy.noise)

    def work() -> float:
        policy.act(step, carry, exploration, noise)
        return float(columns)

    return work


class Counting(Alone):
    """The group of one, which counts the steps that each optimiser is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: Counter[int] = Counter()

    def apply_gradients(
        self, optimizer: Optimizer, loss_sum: Tensor | None, count: int, max_norm: float, scale: float = 1.0
    ) -> float:
        self.steps[id(optimizer)] += 1
        return super().apply_gradients(optimizer, loss_sum, count, max_norm, scale)

    def passes(self, experience: Experience) -> float:
        """Passes made since the last call: on random moves a method may end its round early, and did less work."""
        steps = max(self.steps.values(), default=0)
        self.steps.clear()
        return steps / experience.minibatches if steps and experience.passes > 1 else float(experience.passes)


def _learn(job: Job, plan: Plan, agent: Agent, policy: Policy) -> Work:
    """One Learner.update on random experience of one learning rank's size."""
    spec, experience, group = agent.spec, agent.experience, Counting()
    learner = agent.make_learner(policy, group)
    generator = np.random.default_rng(job.seed)
    batches = {}
    for name, (steps, columns) in batch_shapes(experience, plan).items():
        schema = items_schema(agent, policy, steps)
        batches[name] = trajectory([random_tree(schema, spec, steps, columns, generator)], spec)
    moves = sum(batch.valid.numel() for batch in batches.values())

    def work() -> float:
        learner.update(batches, 0.0)
        return moves * group.passes(experience)

    return work


def _precision(job: Job, spec: Spec) -> str:
    resources = job.resources
    if resources.precision != "auto":
        return resources.precision
    return resources.precisions.get(cpu_name()) or faster_precision(spec, "cpu")


def _policy(agent: Agent, precision: str) -> Policy:
    policy = agent.make_policy()
    set_precision(policy.net, precision)
    return policy
