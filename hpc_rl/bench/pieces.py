"""What a trained env step consists of, as pieces of work on random data: stepping, inference, learning.

Beside them the fastest that a core computes at all, a large product of matrices in the job's precision.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hpc_rl import host_memory
from hpc_rl import job as jobs
from hpc_rl.agent import Agent, agent_of
from hpc_rl.algorithms.base import Policy
from hpc_rl.bench.batches import batch_shapes, items_schema, random_actions, random_legal, random_tree
from hpc_rl.bench.env import Drawn, tensors
from hpc_rl.bench.flops import Flops
from hpc_rl.config import BadJob
from hpc_rl.devices import to_device, to_host
from hpc_rl.envs.base import Environment
from hpc_rl.envs.make import make
from hpc_rl.experience import Experience
from hpc_rl.fragments import trajectory
from hpc_rl.hardware import cpu_name
from hpc_rl.nets.precision import faster_precision, flush_subnormals, set_precision
from hpc_rl.optim.alone import Alone
from hpc_rl.optim.flat import Optimizer
from hpc_rl.plan import Plan
from hpc_rl.settings import Job
from hpc_rl.types import Array, Rules, RulesState, Step

PEAK_SIZE = 1024  # rows and columns of the matrices whose product is the peak

Work = Callable[[], float]
"""Does one piece of work; how many units it was."""


@dataclass(frozen=True)
class Pieces:
    """Work by name, all of it done once: "env" in env steps, "infer" and "learn" in moves, "peak" in FLOPs."""

    work: dict[str, Work]
    experience: Experience
    learn_flops: float  # of one move learned from


@contextmanager
def pieces(job: Job) -> Iterator[Pieces]:
    """The pieces of this job, with its environment, columns, networks, batches and precision.

    Raises:
        BadJob, BadEnvironment, Unsuited: the job cannot be planned, its environment not be made, or not be learned.
    """
    host_memory.keep_freed()  # as every rank does: a fifth of an update on images went into new pages otherwise
    flush_subnormals()
    plan, agent = jobs.plan(job), agent_of(job)
    if not plan.acts:
        raise BadJob(f"{job.algorithm} learns from recorded moves: there is no rate of env steps to compare with")
    columns = next(len(rank.columns) for rank in plan.ranks if rank.columns)
    torch.manual_seed(job.seed)
    step, observation, rules_state, close = _stepping(job, plan, agent, columns)
    try:
        precision = _precision(job, agent)
        work = {
            "env": step,
            "infer": _infer(_policy(agent, precision), observation, rules_state),
            "learn": _learn(job, plan, agent, _policy(agent, precision)),
            "peak": _peak(precision),
        }
        for name in ("env", "infer", "peak"):
            work[name]()
        with Flops() as flops:
            moves = work["learn"]()
        yield Pieces(work, agent.experience, flops.total / moves)
    finally:
        close()


def _stepping(
    job: Job, plan: Plan, agent: Agent, columns: int
) -> tuple[Work, Array, RulesState | None, Callable[[], None]]:
    """Moves by random actions, what is seen first, the state of the Rules, and what ends it."""
    if job.sampler == "device":
        sampler, tree = tensors(job, plan, Drawn(agent.spec, columns), columns)
        observation, state = to_host(sampler.row.shown), {name: to_host(x) for name, x in sampler.row.memory.items()}

        def work() -> float:
            sampler.collect(tree, lambda: 0)
            return float((~tree["first"][1:]).sum())

        return work, observation, state, sampler.close
    environment = make(job.environment.id, job.environment.arguments, columns, 1)
    observation = environment.reset(np.arange(columns))
    return _step(environment, agent.rules, job.seed), observation, environment.rules_state, environment.close


def _step(environment: Environment, rules: Rules | None, seed: int) -> Work:
    generator, legal = np.random.default_rng(seed), rules.legal if rules else None

    def work() -> float:
        if legal and (state := environment.rules_state) is not None:
            action = random_legal(to_host(legal({name: to_device(x, "cpu") for name, x in state.items()})), generator)
        else:
            action = random_actions(environment.spec.actions, (environment.columns,), generator)
        environment.send(action)
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
        schema = items_schema(agent, policy, name, steps)
        batches[name] = trajectory([random_tree(schema, spec, steps, columns, generator)], spec)
    moves = sum(batch.valid.numel() for batch in batches.values())

    def work() -> float:
        learner.update(batches, 0.0)
        return moves * group.passes(experience)

    return work


def _precision(job: Job, agent: Agent) -> str:
    resources = job.resources
    if resources.precision != "auto":
        return resources.precision
    return resources.precisions.get(cpu_name()) or faster_precision(agent.make_policy().net, "cpu")


def _policy(agent: Agent, precision: str) -> Policy:
    policy = agent.make_policy()
    set_precision(policy.net, precision)
    return policy


def _peak(precision: str) -> Work:
    x = torch.rand(PEAK_SIZE, PEAK_SIZE, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)

    def work() -> float:
        torch.mm(x, x)
        return 2.0 * PEAK_SIZE**3

    return work
