"""What a method's own policy and learner hold and need, counted on torch's meta device: shapes without numbers.

Parameters, messages, optimiser states and checkpoints are those of the objects that a run makes. What an inference and
an update need for a moment is counted by doing both on shapes alone. A method that needs numbers for that, a search or
a solver say, is counted up to there, and the page says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from hpc_rl.agent import Agent
from hpc_rl.algorithms.base import Learner, Policy
from hpc_rl.bench.batches import Shapes, batch_shapes, items_schema
from hpc_rl.experience import Experience
from hpc_rl.optim.alone import Alone
from hpc_rl.plan import Plan
from hpc_rl.rehearsal import Rehearsal, most_at_once
from hpc_rl.runtime.checkpoints import learner_state
from hpc_rl.runtime.messages import schemas
from hpc_rl.types import Leaf, Schema, Spec, Step, Trajectory

SHORT = 16  # rows that are enough to count a recurrent network
MOST_LAYERS = 16  # rows of a network; of a deeper one its direct children only


@dataclass(frozen=True)
class Layer:
    """One module of the policy's networks."""

    name: str  # "torso.dense"; "" for the whole
    text: str  # its class, and what it says of itself
    parameters: int


@dataclass(frozen=True)
class Footprint:
    """A method on one environment; sizes in bytes."""

    recorded: Schema  # leaves of a fragment on disk
    sent: Schema  # and of one between two ranks
    layers: tuple[Layer, ...]
    parameters: int  # of all networks that act
    weights: int  # those of them that actors copy
    optimizers: Mapping[str, tuple[str, int]]  # name -> (class, parameters)
    own: Mapping[str, int]  # tensors of the learner beside weights and optimisers -> numbers in them
    learner_bytes: int  # weights, gradients, optimiser states and its own tensors
    checkpoint_bytes: int  # what is saved of the learner; without a replay
    batch_bytes: int  # of one update of one learning rank
    queue_bytes: int  # fragments that one learner keeps for itself, as it learns from them
    act_bytes: float  # at once during an inference, for each column
    update_bytes: int  # at once during an update, beside learner and batch
    uncounted: tuple[str, ...]  # sentences on what needs numbers


def footprint(agent: Agent, plan: Plan, columns: int) -> Footprint:
    """Count one learning rank of ``plan``, and inferences for ``columns``.

    Raises:
        Unsuited: the method cannot learn in this environment.
    """
    spec, experience = agent.spec, agent.experience
    with torch.device("meta"):
        policy = agent.make_policy()
    learner = agent.make_learner(policy, Alone())  # as on a GPU: it follows its policy's device
    shapes = batch_shapes(experience, plan)

    def batches(shapes: Shapes) -> dict[str, Trajectory]:
        schemas = {name: items_schema(agent, policy, name, steps) for name, (steps, _) in shapes.items()}
        return {name: blank(schemas[name], spec, *shape) for name, shape in shapes.items()}

    act_bytes, act_fault = most_at_once(lambda: _act(agent, policy, columns))
    update_bytes, update_fault = _update(learner, experience, shapes, batches)
    for optimizer in learner.optimizers.values():
        optimizer.step()  # its state exists from the first step on
    state = learner_state(learner)
    recorded, sent = schemas(policy, spec)
    queue_bytes = nbytes(vars(blank(recorded, spec, plan.steps, 1))) * experience.queue
    flats = {id(flat): flat for flat in (learner.weights, *(x.flat for x in learner.optimizers.values()))}
    return Footprint(
        recorded=recorded,
        sent=sent,
        layers=_layers(policy.net),
        parameters=sum(p.numel() for p in policy.net.parameters()),
        weights=learner.weights.data.numel(),
        optimizers={name: (x.name, x.flat.data.numel()) for name, x in learner.optimizers.items()},
        own=_tensors(learner),
        learner_bytes=nbytes(state) + sum(flat.reduction.nbytes for flat in flats.values()),
        checkpoint_bytes=nbytes(state),
        batch_bytes=sum(nbytes(vars(batch)) for batch in batches(shapes).values()),
        queue_bytes=queue_bytes,
        act_bytes=act_bytes / columns,
        update_bytes=update_bytes,
        uncounted=tuple(
            f"memory of {action} is counted up to where it needs numbers ({fault})"
            for action, fault in (("an inference", act_fault), ("an update", update_fault))
            if fault
        ),
    )


def nbytes(tree: Any) -> int:
    """Bytes of all tensors of a nested value."""
    return sum(x.nbytes for x in tree_leaves(tree) if isinstance(x, Tensor))


def _update(
    learner: Learner, experience: Experience, shapes: Shapes, batches: Callable[[Shapes], dict[str, Trajectory]]
) -> tuple[int, str]:
    """`most_at_once` of an update.

    A recurrent network takes row after row, which takes long to count: it is counted for two short batches, and what
    the second needs more is what every further row needs.
    """

    def of(rows: int) -> tuple[int, str]:
        cut = batches({name: (min(steps, rows), columns) for name, (steps, columns) in shapes.items()})
        learner.group = Rehearsal(len(learner.optimizers))
        return most_at_once(lambda: learner.update(cut, 0.0))

    longest, least = max(steps for steps, _ in shapes.values()), max(SHORT, experience.minibatches)
    replayed = any(items.length for items in experience.items)  # a part of an item may be a burn-in and no more
    if not learner.policy.carry or longest <= 2 * least or replayed:
        return of(longest)
    (once, _), (twice, fault) = of(least), of(2 * least)
    return twice + (twice - once) * (longest - 2 * least) // least, fault


def blank(schema: Schema, spec: Spec, steps: int, columns: int) -> Trajectory:
    """``fragments.trajectory`` of a fragment that has shapes and no numbers."""

    def leaf(kind: Leaf) -> Tensor:
        dtype = getattr(torch, kind.dtype)
        return torch.empty(kind.array_shape(steps, columns, spec.stack), dtype=dtype, device="meta")

    def family(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): x for name, x in leaves.items() if name.startswith(prefix)}

    leaves = {name: leaf(kind) for name, kind in schema.items()}
    if spec.stack > 1:  # as `fragments.stacked` lays them
        shape = (steps + 1, columns, spec.stack, *spec.frame)
        leaves["observation"] = torch.empty(shape, dtype=leaves["observation"].dtype, device="meta")
    rows = {name: leaves[name] for name in ("observation", "first", "action", "reward", "discount", "version")}
    finite = torch.empty(steps, columns, dtype=torch.bool, device="meta")
    noise = leaves.get("noise", torch.empty(columns, 0, device="meta"))
    chance = torch.empty(columns, device="meta")
    ends = {"column": leaves["column"], "start": leaves["start"], "chance": chance, "noise": noise}
    return Trajectory(**rows, finite=finite, extras=family("extras/"), carry=family("carry/"), **ends)


def _act(agent: Agent, policy: Policy, columns: int) -> None:
    spec, rules, state = agent.spec, agent.rules, None
    if rules is not None:
        state = rules.begin(torch.empty(columns, rules.begin_uniforms, dtype=torch.float64, device="meta"))
    dtype = getattr(torch, spec.dtype)
    observation = torch.empty(columns, *spec.observation, dtype=dtype, device="meta")
    first = torch.empty(columns, dtype=torch.bool, device="meta")
    reward, exploration = torch.empty(2, columns, device="meta")
    noise = torch.empty(columns, policy.fragment_noise + policy.noise, device="meta")
    policy.act(Step(observation, first, reward, state), policy.initial_carry(columns), exploration, noise)


def _layers(net: nn.Module) -> tuple[Layer, ...]:
    """The modules that have parameters of their own or something to say, and the whole."""
    layers = []
    for name, module in net.named_modules():
        text = module.extra_repr()
        if not name or text or any(True for _ in module.parameters(recurse=False)):
            words = f"{type(module).__name__}: {text}" if text else type(module).__name__
            layers.append(Layer(name, words, sum(p.numel() for p in module.parameters())))
    return tuple(layers if len(layers) <= MOST_LAYERS else [x for x in layers if "." not in x.name])


def _tensors(learner: Learner) -> dict[str, int]:
    """Keys of the learner's own state that hold tensors, and how many numbers are in them."""
    counts = {
        name: sum(x.numel() for x in tree_leaves(value) if isinstance(x, Tensor))
        for name, value in learner.state().items()
    }
    return {name: count for name, count in counts.items() if count}
