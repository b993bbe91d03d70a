"""Random experience in batches as large as a job's: what the roofline learns from, and `hpc-rl show` counts."""

from __future__ import annotations

import numpy as np

from hpc_rl.agent import Agent
from hpc_rl.algorithms.base import Policy
from hpc_rl.experience import Experience
from hpc_rl.fragments import allocate, trajectory_schema
from hpc_rl.plan import Plan
from hpc_rl.replay.items import with_notes
from hpc_rl.runtime.stores import shards
from hpc_rl.types import Actions, Array, Schema, Spec, Tree

Shapes = dict[str, tuple[int, int]]
"""Items name -> (moves, columns)."""


def batch_shapes(experience: Experience, plan: Plan) -> Shapes:
    """What one learning rank takes of each kind for an update.

    Whole episodes are as long as it happens: they are taken to be as long as a fragment, one in each column.
    """
    together, shapes = shards(plan), {}
    for items in experience.items:
        width = max(1, items.batch_size // together) if items.length and items.batch_size else plan.learning_columns
        shapes[items.name] = (items.length or plan.steps, width)
    return shapes


def reuse(experience: Experience) -> float:
    """How many moves are learned from for each env step: the passes over fresh ones, or what a replay draws."""
    replayed = [items for items in experience.items if items.length]
    if not replayed:
        return float(experience.passes)
    updates = min(items.samples_per_insert / items.batch_size for items in replayed)  # for each env step
    return experience.passes * updates * sum(items.batch_size * items.length for items in replayed)


def items_schema(agent: Agent, policy: Policy, name: str, steps: int) -> Schema:
    """The leaves of the items of this name, of ``steps`` moves, with those that ``annotate`` adds in a store."""
    schema = trajectory_schema(agent.spec, policy.extras, policy.carry, policy.fragment_noise)
    items = next(items for items in agent.experience.items if items.name == name)
    return with_notes(schema, agent.spec, items, steps, agent.annotate)


def random_tree(schema: Schema, spec: Spec, steps: int, columns: int, generator: np.random.Generator) -> Tree:
    """One fragment of random moves whose observations and actions lie in their ranges, as every uniform does."""
    tree = allocate(schema, steps, columns, spec.stack)
    shape, pixels = tree["observation"].shape, spec.dtype == "uint8"
    tree["observation"][:] = generator.integers(0, 256, shape) if pixels else generator.standard_normal(shape)
    tree["action"][:] = random_actions(spec.actions, (steps, columns), generator)
    tree["reward"][:] = generator.standard_normal((steps, columns))
    tree["discount"][:] = 1
    tree["column"][:] = np.arange(columns)
    if "noise" in tree:
        tree["noise"][:] = generator.random(tree["noise"].shape)
    return tree


def random_legal(legal: Array, generator: np.random.Generator) -> Array:
    """One of the legal [b, A] bool moves of each column, all as likely; any where none is."""
    return np.asarray((legal + generator.random(legal.shape)).argmax(-1))


def random_actions(actions: Actions, lead: tuple[int, ...], generator: np.random.Generator) -> Array:
    """Uniform actions [*lead, *A]; of a box between -1 and 1."""
    if actions.kind == "box":
        return np.asarray(generator.uniform(-1, 1, (*lead, *actions.shape)), np.float32)
    choices = generator.integers(0, actions.sizes, (*lead, len(actions.sizes)))
    return np.asarray(choices[..., 0] if actions.kind == "discrete" else choices)
