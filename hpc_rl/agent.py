"""A job's method on its environment: its parts as functions to which its Config and the environment are known.

Everything that makes a policy or a learner starts here: ranks, evaluation, `hpc-rl show` and the roofline.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from hpc_rl import job as jobs
from hpc_rl.algorithms.base import Algorithm, C, Learner, Policy
from hpc_rl.envs.make import describe, goal_reward, rules
from hpc_rl.experience import Experience, Unsuited
from hpc_rl.optim.group import Group
from hpc_rl.replay.relabel import check_goals, goals_of_observations
from hpc_rl.settings import Job
from hpc_rl.sources import Start
from hpc_rl.types import Array, GoalReward, Rules, Spec, Tree


@dataclass(frozen=True)
class Agent:
    """What `algorithms/base.py` calls an Algorithm, for one Config and one environment."""

    spec: Spec
    rules: Rules | None  # on torch; those of the job's environment, also where evaluation changes its arguments
    experience: Experience
    make_policy: Callable[[], Policy]  # with its networks on torch's default device
    make_learner: Callable[[Policy, Group], Learner]  # on its policy's device
    exploration: Callable[[Array, int, float], Array]  # (columns [b], of so many, progress) -> [b]
    annotate: Callable[[Tree], dict[str, Array] | None] | None
    starts: tuple[Start, ...]  # what a new run's networks begin as
    make_goal_reward: Callable[[], GoalReward | None]  # on NumPy, for the rank that relabels; None where nobody does


def agent_of(job: Job) -> Agent:
    """The agent of a job.

    Raises:
        BadMethod: the method's file cannot be imported.
        BadEnvironment: the environment cannot be made.
    """
    id, arguments = job.environment.id, job.environment.arguments
    spec = describe(id, arguments)  # first, since a method imports torch
    algorithm, config = jobs.algorithm(job.algorithm), jobs.method_config(job)
    judge = partial(goal_reward, id, arguments)
    return bind(algorithm, config, jobs.experience(job), spec, rules(id, arguments), judge, jobs.starts(job))


def bind(
    algorithm: Algorithm[C, Any],
    config: C,
    experience: Experience,
    spec: Spec,
    rules: Rules | None = None,
    make_goal_reward: Callable[[], GoalReward | None] = lambda: None,
    starts: tuple[Start, ...] = (),
) -> Agent:
    """A method with its Config, in an environment of this Spec, these Rules and what it pays for other goals."""

    def make_policy() -> Policy:
        check_goals(experience, spec)
        if rules is not None and rules.legal is not None and not algorithm.legal:
            raise Unsuited(
                f"in {spec.id} not every move is legal, which this method does not look at; use alphazero, or an "
                "environment in which every action is allowed"
            )
        policy: Policy = algorithm.policy(config, spec, rules)
        return policy

    return Agent(
        spec=spec,
        rules=rules,
        experience=experience,
        make_policy=make_policy,
        make_learner=partial(algorithm.learner, config, spec, rules),
        exploration=partial(algorithm.exploration, config),
        annotate=partial(algorithm.annotate, config) if algorithm.annotate else None,
        starts=starts,
        make_goal_reward=make_goal_reward if goals_of_observations(experience) else lambda: None,
    )
