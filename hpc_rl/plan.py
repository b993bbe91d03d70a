"""The plan of a job: each rank's role, columns, threads and device. Pure values; no MPI, no torch."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from hpc_rl.config import BadJob


class WorldTooSmall(BadJob):
    """The topology needs more ranks than the job asks for; the message names the minimum."""


@dataclass(frozen=True)
class RankSpec:
    """One rank's row of the plan."""

    rank: int
    role: str
    index: int  # among the ranks of its role
    columns: range  # global environment columns it steps; empty for ranks without environments
    threads: int  # CPU threads of torch and of the environments; 0: its share of the cores
    learns: bool = False  # has a learner, and takes part in every update of its group
    device: Literal["accelerator", "cpu"] = "cpu"  # "accelerator": may use CUDA
    peers: tuple[int, ...] = ()  # ranks with which it exchanges experience, gradients or actions

    @property
    def name(self) -> str:
        return f"{self.role}-{self.index}"


@dataclass(frozen=True)
class Plan:
    """All ranks, in order, and the shape of the fragments between them."""

    topology: str
    ranks: tuple[RankSpec, ...]
    steps: int  # T of a fragment
    batch_columns: int  # columns per update, over all learners
    fragment_columns: int  # of one fragment

    @property
    def acts(self) -> bool:
        """Ranks step environments; else recorded moves are learned from."""
        return any(rank.columns for rank in self.ranks)

    @property
    def learning_columns(self) -> int:
        """Columns that one learning rank has in an update, where it has any."""
        return max(self.fragment_columns, self.batch_columns // len(self.learners))

    def of(self, role: str) -> list[int]:
        """The ranks of a role, in order."""
        return [spec.rank for spec in self.ranks if spec.role == role]

    @property
    def learners(self) -> list[int]:
        """The ranks that learn, in order."""
        return [spec.rank for spec in self.ranks if spec.learns]

    @property
    def accelerated(self) -> list[int]:
        """The ranks that may use a GPU, in order."""
        return [spec.rank for spec in self.ranks if spec.device == "accelerator"]

    def learned_columns(self, rank_spec: RankSpec) -> list[int]:
        """The global columns whose experience a rank learns from: its own, or those of the ranks that send to it."""
        if rank_spec.role != "learner":
            return list(rank_spec.columns)
        sending = [p for p in self.ranks if p.rank in rank_spec.peers and p.role == "actor"]
        serving = [p for p in self.ranks if p.role == "env_worker" and p.peers == (rank_spec.rank,)]
        return [column for p in [*sending, *serving] for column in p.columns]

    def lanes(self, rank_spec: RankSpec) -> list[range]:
        """The columns of every fragment that is sent to a replay rank: those of its actors, or of ranks they serve."""
        serving = [p.columns for p in self.ranks if p.role == "env_worker" and p.peers[0] in rank_spec.peers]
        return serving or [p.columns for p in self.ranks if p.role == "actor" and p.rank in rank_spec.peers]

    @property
    def evaluator(self) -> int | None:
        """The rank that plays the evaluations; None where rank 0 plays them between its updates."""
        ranks = self.of("evaluator")
        return ranks[0] if ranks else None


@dataclass(frozen=True)
class WeightRoutes:
    """How one version reaches the ranks that act. ``relays`` maps each node (its lowest rank) to its relay."""

    token: str  # of the attempt, part of the names of shared memory
    learners: Sequence[int]  # the first one sends to the relays
    relays: dict[int, int]
    nodes: Sequence[int]  # for each rank its node
    heirs: Sequence[int] = ()  # actors that may take a lost relay's place

    def source(self, rank: int) -> int:
        """The rank whose shared memory ``rank`` reads: its own where it is a relay, or acts in a learner's process."""
        return rank if rank in self.learners else self.relays[self.nodes[rank]]

    def heir(self, relay: int, lost: Collection[int]) -> int | None:
        """The actor of the same node that takes the place of a lost relay, None where there is none."""
        node = self.nodes[relay]
        return next((rank for rank in self.heirs if self.nodes[rank] == node and rank not in lost), None)


def weight_routes(plan: Plan, nodes: Sequence[int], token: str, tolerated: bool = False) -> WeightRoutes:
    """A node's relay is its lowest rank with weights; where lost ones are ``tolerated``, its next actor is the heir."""
    relays: dict[int, int] = {}
    for spec in plan.ranks:
        if spec.rank == plan.learners[0] or spec.role == "actor":
            relays.setdefault(nodes[spec.rank], spec.rank)
    return WeightRoutes(token, plan.learners, relays, nodes, plan.of("actor") if tolerated else ())
