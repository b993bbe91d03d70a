"""Recorded moves as what a method learns from, in place of any that are made: plain values, as in experience.py."""

from __future__ import annotations

from dataclasses import dataclass

from hpc_rl.experience import Experience


@dataclass(frozen=True)
class Source:
    """Whole episodes of one run; a share of them is kept apart."""

    run: str = ""  # its directory; a Minari set becomes one by `hpc-rl import`
    episodes: int = 0  # the last so many; 0 takes all
    least_return: float | None = None  # raw, of an episode that is taken
    held_out: float = 0.0
    memory_bytes: int = 256 << 20  # of the moves that a rank holds at a time, to draw from


@dataclass(frozen=True)
class Start:
    """What a part of the networks that act begins as: the network of another run's policy, of its best checkpoint.

    A Config whose method begins so has ``starts() -> {part: key}``. A resumed run does not read them again.
    """

    part: str  # a module of the policy's net, as `get_submodule` finds it
    key: str  # that names the run in a job
    run: str  # its directory


@dataclass(frozen=True)
class RecordedExperience(Experience):
    """Items are drawn from a `Source`, and no rank steps an environment."""

    source: Source = Source()
    apart: str = ""  # name of the items that are drawn from the episodes held out; all others from the rest


def source_of(experience: Experience) -> Source | None:
    """Where recorded moves come from; None where ranks make their own."""
    return experience.source if isinstance(experience, RecordedExperience) else None
