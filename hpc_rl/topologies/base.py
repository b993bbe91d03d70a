"""What topologies share when they plan: equal shares of columns and ranks, and the sentences where there are none."""

from __future__ import annotations

from collections.abc import Sequence

from hpc_rl.config import BadJob
from hpc_rl.experience import Experience
from hpc_rl.plan import RankSpec, WorldTooSmall
from hpc_rl.replay.room import part
from hpc_rl.settings import Job


def share_columns(job: Job, parts: int, noun: str, empty: bool = False) -> list[range]:
    """Equal consecutive shares of the columns.

    With ``empty`` there may be more ranks than columns: the last ones have none, and join every reduction all the same.

    Raises:
        BadJob: they do not divide, also not into the halves of the alternating sampler.
    """
    total = job.environment.columns
    if empty and parts > total:
        return [*share_columns(job, total, noun), *[range(total, total)] * (parts - total)]
    if total % parts:
        fit = [n for n in range(1, total + 1) if total % n == 0]
        raise BadJob(
            f"environment.columns = {total} cannot be shared by {parts} {noun}; "
            f"use a multiple of {parts}, or a number of {noun} from {fit}"
        )
    size = total // parts
    if job.sampler == "alternating" and size % 2:
        raise BadJob(
            f'sampler = "alternating" steps half of a rank\'s columns at a time and {parts} {noun} have '
            f'{size} each; set environment.columns to a multiple of {2 * parts}, or sampler = "vector"'
        )
    return [range(k * size, (k + 1) * size) for k in range(parts)]


def in_process(job: Job) -> None:
    """Raise BadJob where the job wants environment ranks and this topology has none."""
    if job.sampler == "central":
        raise BadJob(
            f'sampler = "central" has no place on topology {job.topology}, whose ranks step their own columns; '
            'use sampler = "vector" or "alternating", or topology = "actor_learner"'
        )


def split_evenly(ranks: Sequence[int], to: Sequence[int], noun: str, peers_noun: str) -> dict[int, int]:
    """For each of ``ranks``, the ``noun``, one of ``to``, the ``peers_noun``: equally many, neighbours together.

    Raises:
        BadJob: they do not divide.
    """
    if to and len(ranks) % len(to):
        raise BadJob(
            f"{len(ranks)} {noun} cannot be shared equally by {len(to)} {peers_noun}; "
            f"set resources.ranks so that there are {len(to)} {noun} or a multiple"
        )
    return {rank: to[k * len(to) // len(ranks)] for k, rank in enumerate(ranks)}


def check_minibatches(job: Job, experience: Experience, columns: int) -> None:
    """Raise BadJob where an optimiser step would have no data; ``columns`` are those of all that learn together."""
    count, by_columns = experience.minibatches, experience.split == "columns"
    parts, noun = (columns, "columns") if by_columns else (experience.unroll, "moves of a column")
    if count > parts:
        raise BadJob(
            f"{job.algorithm}.minibatches = {count} is more than the {parts} {noun} of a batch that they share; "
            f"use at most {parts}"
        )


def fresh_only(job: Job, experience: Experience) -> None:
    """Raise BadJob where the method draws items again, on a topology without a replay."""
    replayed = [items.name for items in experience.items if not items.fresh]
    if replayed:
        raise BadJob(
            f"{job.algorithm} replays {', '.join(replayed)}, and topology {job.topology} passes fresh fragments on "
            'without keeping them; use topology = "solo" or "allreduce"'
        )


def check_recorded(job: Job, experience: Experience, learners: int) -> None:
    """Raise BadJob where a job that learns from recorded moves has no end, or counts env steps that nobody makes.

    Unreplayable where a learner would have no item of a batch.
    """
    if not job.budget.updates:
        raise BadJob(
            f"{job.algorithm} learns from recorded moves and makes no env steps, so that budget.env_steps never ends "
            "it; set budget.updates"
        )
    if job.evaluate.every_steps:
        raise BadJob(
            f"evaluate.every_steps = {job.evaluate.every_steps} never comes to an evaluation, for {job.algorithm} "
            "makes no env steps; use evaluate.every_updates"
        )
    for items in experience.items:
        part(items, learners, 0)


def need(job: Job, minimum: int, roles: str) -> None:
    """Raise WorldTooSmall below ``minimum`` ranks, and one more for an evaluator."""
    minimum += job.resources.evaluators
    if job.resources.ranks < minimum:
        also = ", 1 evaluator" if job.resources.evaluators else ""
        raise WorldTooSmall(
            f"topology {job.topology} needs at least {minimum} ranks ({roles}{also}), not {job.resources.ranks}; "
            f"use -n {minimum} or set resources.ranks"
        )


def evaluators(job: Job) -> list[RankSpec]:
    """The last rank where the job asks for an evaluator, else none.

    Raises:
        BadJob: the job never evaluates.
    """
    if not job.resources.evaluators:
        return []
    if not job.evaluate.periodic:
        raise BadJob(
            "resources.evaluators = 1 but evaluate.every_steps = 0: that rank would never play; "
            "set evaluate.every_steps to the env steps between evaluations, or leave evaluators out"
        )
    return [RankSpec(job.resources.ranks - 1, "evaluator", 0, range(0), 1, peers=(0,))]
