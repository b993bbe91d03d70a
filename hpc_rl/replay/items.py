"""The leaves of items: what a ring gathers of each, and what travels from a replay rank to its learner."""

from __future__ import annotations

from hpc_rl.experience import Experience, Items
from hpc_rl.replay.remote import ReplayLayouts
from hpc_rl.replay.rows import MOVES, Annotate, blank_items
from hpc_rl.transport.layout import Layout
from hpc_rl.types import Leaf, Schema, Spec


def with_notes(schema: Schema, spec: Spec, items: Items, steps: int, annotate: Annotate | None) -> Schema:
    """The leaves of a fragment, with those that the method's ``annotate`` adds in a store to ``items`` of ``steps``."""
    if annotate is None:
        return dict(schema)
    notes = annotate(blank_items(schema, items, steps, 1, spec.stack)) or {}
    added = {f"extras/{name}": Leaf(x.shape[1:], str(x.dtype)) for name, x in notes.items() if name != "priority"}
    return {**schema, **added}


def item_schema(schema: Schema, spec: Spec, items: Items, annotate: Annotate | None) -> Schema:
    """The leaves of items as a replay rank sends them, with keys and chances; of what is carried, that before row 0."""
    kept = {"observation", "first", "column", "start", *MOVES}
    carried = {f"extras/{name.removeprefix('carry/')}" for name in schema if name.startswith("carry/")}
    leaves = {
        name: leaf
        for name, leaf in with_notes(schema, spec, items, items.length, annotate).items()
        if name in kept or (name.startswith(("extras/", "carry/")) and name not in carried)
    }
    chance = Leaf((), "float64", "fragment", "", "p^α of the item, of which its probability is a part")
    return {**leaves, "key": Leaf((), "int64", "fragment", "", "of the item on its replay rank"), "chance": chance}


def arrival_schema(schema: Schema, names: tuple[str, ...]) -> Schema:
    """The small leaves of a fragment that a learner counts by, and those that its method takes of new fragments."""
    counted = {"first", "version", "episode_return", "episode_success", "episode_length", "column", "start", "closed"}
    return {name: leaf for name, leaf in schema.items() if name in counted or name in names}


def replay_layouts(
    experience: Experience,
    schema: Schema,
    spec: Spec,
    learners: int,
    fragment: tuple[int, int],
    annotate: Annotate | None = None,
) -> ReplayLayouts:
    """Messages of a replay rank that ``learners`` share; fragments are of (moves, columns) and of this ``schema``."""
    items = tuple(
        Layout(item_schema(schema, spec, x, annotate), x.length, -(-x.batch_size // learners), spec.stack)
        for x in experience.items
    )
    return ReplayLayouts(items, Layout(arrival_schema(schema, experience.arrivals), *fragment, spec.stack))
