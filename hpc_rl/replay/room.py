"""Whether a replay of given size can hold a method's items, in plain numbers: login nodes look at it without torch."""

from __future__ import annotations

from hpc_rl.config import BadJob
from hpc_rl.experience import Experience, Items
from hpc_rl.sources import source_of


class Unreplayable(BadJob):
    """This experience cannot be kept and drawn again; the message names why and the remedy."""


def needs_ring(experience: Experience) -> bool:
    """Items are drawn again, from a ring of moves; else all are fresh fragments, episodes used once, or recorded."""
    fresh = all(items.fresh for items in experience.items) or source_of(experience) is not None
    return not fresh and (len(experience.items) > 1 or bool(experience.items[0].length))


def check_room(experience: Experience, columns: int, shards: int) -> None:
    """Raise Unreplayable where a ring of all ``columns``, in so many ``shards``, lacks room for what it is to hold, or
    where what is to be relabelled is not drawn uniformly from a ring."""
    _relabelled(experience)
    if needs_ring(experience):
        moves, _ = room(experience, columns, 1)
        _filled(experience, moves * columns)
        prioritised(experience)
        for items in experience.items:
            part(items, shards, 0)


def _filled(experience: Experience, held: int) -> None:
    """Raise Unreplayable where a replay that holds so many env steps never has what an update waits for."""
    if experience.min_size > held:
        raise Unreplayable(
            f"min_size = {experience.min_size} env steps are waited for before the first update, and the replay holds "
            f"{held}; lower min_size or raise the capacity"
        )
    for items in experience.items:
        if items.batch_size > held:
            raise Unreplayable(
                f"a batch of {items.batch_size} {items.name} is larger than the replay, which holds {held} env steps; "
                "lower the batch size or raise the capacity"
            )


def prioritised(experience: Experience) -> str:
    """The kind of items that has priorities, "" where none has. Raises Unreplayable where more than one has."""
    names = [items.name for items in experience.items if items.alpha > 0]
    if len(names) > 1:
        raise Unreplayable(
            f"{names[0]} and {names[1]} both have alpha > 0, and an update gives priorities of one kind of items; "
            "draw all kinds but one uniformly"
        )
    return names[0] if names else ""


def _relabelled(experience: Experience) -> None:
    """Raise Unreplayable where items are relabelled that lie in no ring, or have priorities, which are those of the
    goals that they had."""
    for items in experience.items:
        if items.relabel and not items.length:
            raise Unreplayable(
                f"{items.name} are used once and cannot be relabelled; give them a length, or relabel none"
            )
        if items.relabel and items.alpha:
            raise Unreplayable(
                f"{items.name} are relabelled, and with another goal an item has another priority than alpha = "
                f"{items.alpha} draws it by; draw them uniformly, or relabel none"
            )


def room(experience: Experience, columns: int, stack: int) -> tuple[int, int]:
    """Moves that items may cover of each of all ``columns``, and slots for them: no insertion overwrites these.

    Raises:
        Unreplayable: they do not hold an item behind a fragment.
    """
    moves = experience.capacity // columns
    least = max(items.length for items in experience.items) + experience.unroll
    if moves < least:
        raise Unreplayable(
            f"a replay of {experience.capacity} env steps holds {moves} moves of each of {columns} columns, and an "
            f"item behind a fragment takes {least}; set the capacity to {least * columns} or more"
        )
    return moves, moves + experience.unroll + 2 * stack


def part(items: Items, shards: int, shard: int) -> int:
    """Items per update of one shard, as equal as they divide. Raises Unreplayable where some have none."""
    if items.batch_size < shards:
        raise Unreplayable(
            f"a batch of {items.batch_size} {items.name} cannot be shared by {shards} learners; "
            f"use a batch of at least {shards}, or fewer ranks"
        )
    return items.batch_size * (shard + 1) // shards - items.batch_size * shard // shards
