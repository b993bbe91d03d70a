"""Plans: who is which rank, with which columns, threads and device. Pure values; no MPI, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from hpc_rl.experience import Experience
from hpc_rl.job import BadJob, Job


class WorldTooSmall(BadJob):
    """The topology needs more ranks than the job asks for; the message names the minimum."""


@dataclass(frozen=True)
class Place:
    """One rank's part."""

    rank: int
    role: str
    index: int  # among the ranks of its role
    columns: range  # global environment columns it steps; empty for ranks without environments
    threads: int  # CPU threads of torch and of the environments
    gpu: bool = False  # may use CUDA; actors never do
    peers: tuple[int, ...] = ()  # whom it exchanges experience with

    def to(self, peers: tuple[int, ...]) -> Place:
        """The same place with other peers."""
        return replace(self, peers=peers)

    @property
    def name(self) -> str:
        return f"{self.role}-{self.index}"


@dataclass(frozen=True)
class Plan:
    """All places, and the shape of the fragments between them."""

    topology: str
    places: tuple[Place, ...]
    steps: int  # T of a fragment
    batch_columns: int  # columns per update, over all learners
    fragment_columns: int  # of one fragment

    @property
    def learning_columns(self) -> int:
        """Columns that one learning rank has in an update; a parameter server's workers learn alone."""
        return max(self.fragment_columns, self.batch_columns // len(self.learners))

    def of(self, role: str) -> list[int]:
        """The ranks of a role, in order."""
        return [place.rank for place in self.places if place.role == role]

    @property
    def learners(self) -> list[int]:
        return [place.rank for place in self.places if place.gpu]


def share_columns(job: Job, parts: int, what: str) -> list[range]:
    """Equal consecutive shares of the columns. Raises BadJob when they do not divide, also not into the halves."""
    total = job.environment.columns
    if total % parts:
        fit = [n for n in range(1, total + 1) if total % n == 0]
        raise BadJob(
            f"environment.columns = {total} cannot be shared by {parts} {what}; "
            f"use a multiple of {parts}, or a number of {what} from {fit}"
        )
    size = total // parts
    if job.sampler == "alternating" and size % 2:
        raise BadJob(
            f'sampler = "alternating" steps half of a rank\'s columns at a time and {parts} {what} have '
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


def split_evenly(ranks: Sequence[int], to: Sequence[int], what: str, those: str) -> dict[int, int]:
    """For each of ``ranks``, the ``what``, one of ``to``, the ``those``: equally many, neighbours together.

    Raises:
        BadJob: they do not divide.
    """
    if to and len(ranks) % len(to):
        raise BadJob(
            f"{len(ranks)} {what} cannot be shared equally by {len(to)} {those}; "
            f"set resources.ranks so that there are {len(to)} {what} or a multiple"
        )
    return {rank: to[k * len(to) // len(ranks)] for k, rank in enumerate(ranks)}


def nodes_of(ranks: int, nodes: int) -> list[int]:
    """For each rank the number of its node, as SLURM's block distribution lays 10 tasks on 3 nodes: 4, 3, 3.

    Raises BadJob where a node would have no rank.
    """
    if nodes > ranks:
        raise BadJob(f"nodes = {nodes} for {ranks} rank(s); use fewer nodes, or -n for more ranks")
    least, more = divmod(ranks, nodes)
    return [node for node in range(nodes) for _ in range(least + (node < more))]


def check_minibatches(job: Job, experience: Experience, columns: int) -> None:
    """Raise BadJob where an optimiser step would have no data; ``columns`` are those of all that learn together."""
    count, whole = experience.minibatches, experience.split == "columns"
    parts, what = (columns, "columns") if whole else (experience.unroll, "moves of a column")
    if count > parts:
        raise BadJob(
            f"{job.algorithm}.minibatches = {count} is more than the {parts} {what} of a batch that they share; "
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


def need(job: Job, minimum: int, roles: str) -> None:
    """Raise WorldTooSmall below ``minimum`` ranks."""
    if job.resources.ranks < minimum:
        raise WorldTooSmall(
            f"topology {job.topology} needs at least {minimum} ranks ({roles}), not {job.resources.ranks}; "
            f"use -n {minimum} or set resources.ranks"
        )
