"""What a method learns from, as plain values: login-node commands read it without torch or NumPy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

Hindsight = Literal["none", "future", "final", "episode", "random"]
"""Where the goals of relabelled items come from (replay/relabel.py), as a Config says it."""


class Unsuited(ValueError):
    """A method cannot learn in this environment; the message names what it lacks and the remedy."""


@dataclass(frozen=True)
class Relabel:
    """Hindsight: a share of the items drawn have what was achieved at another row as their goal (replay/relabel.py).

    That row is drawn from the span of its episode that the item begins in: the whole episode, or what lies between two
    rows where the bool extra ``within`` is true. Replaced is the part "desired_goal" of the observation, and rewards
    and discounts are computed again; or it is the extra ``goal``, whose rewards are the method's.
    """

    strategy: Literal["future", "final", "episode", "random"]
    share: float  # k / (k + 1) for k relabelled items beside each one that is not
    goal: str = ""
    within: str = ""


@dataclass(frozen=True)
class Items:
    """One kind of experience that an update takes ``batch_size`` of, over all learners.

    An item begins where the bool extra ``opens`` is true (any valid move if empty), ends after ``length`` moves or
    before the next row whose ``closes`` is true, and may be drawn once complete. Only there does a policy see what a
    move led to: an option ends before the row where the next is chosen. Short items are padded with void rows.
    Length 0 is a whole fragment, used once while fresh; with complete = "episode" a whole episode, or its items.
    """

    name: str
    batch_size: int  # columns where fresh, 0 for one actor's fragment for each learner; items where replayed
    length: int = 0  # L, moves
    opens: str = ""
    closes: str = ""
    complete: Literal["length", "episode"] = "length"
    samples_per_insert: float = 1.0  # items drawn per env step inserted
    alpha: float = 0.0  # α: where replayed, drawn by priority^α (replay/priorities.py); 0 draws uniformly
    relabel: Relabel | None = None  # where replayed
    annotated: Literal["item", "episode"] = "item"  # rows that ``annotate`` gets: its own; or to the end, no extras

    @property
    def fresh(self) -> bool:
        """Used once, as whole fragments: no replay is needed."""
        return self.length == 0 and self.complete == "length"


def in_hindsight(items: Items, strategy: Hindsight, share: float) -> Items:
    """Items of which a ``share`` is relabelled; those whose goal needs the end of an episode are drawn after it."""
    if strategy == "none":
        return items
    complete = items.complete if strategy in ("future", "random") else "episode"
    return replace(items, complete=complete, relabel=Relabel(strategy, share))


@dataclass(frozen=True)
class Experience:
    """What a method learns from, as its Config says: read by topologies, progress, `show` and the roofline."""

    unroll: int  # T, moves per fragment
    items: tuple[Items, ...]
    capacity: int = 0  # of the replay, env steps over all columns; 0 where all items are fresh
    min_size: int = 0  # env steps over all columns before the first update
    arrivals: tuple[str, ...] = ()  # leaves that Learner.arrived takes
    queue: int = 0  # columns of one fragment each that every learner keeps for itself, to mix them in again
    self_play: bool = False  # its policy makes the moves of all players: there is nothing to learn from matches
    columnless: bool = False  # a learner without columns has work, too: allreduce allows more ranks than columns
    passes: int = 1  # times that an update learns from each sample
    minibatches: int = 1  # optimiser steps per pass, each on its share of the batch
    split: Literal["moves", "columns"] = "moves"  # what minibatches share: the moves of every column, or whole columns
