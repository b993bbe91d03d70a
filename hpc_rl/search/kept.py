"""Search trees as a policy's carry: they stay with their columns, from move to move and in checkpoints, unsent."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from hpc_rl.devices import to_device, to_host
from hpc_rl.search.mcts import NONE, Trees
from hpc_rl.types import Leaf, RulesState, Schema, Tree

PREFIX, STATE = "tree/", "tree/state/"


def empty(state: RulesState, actions: int, nodes: int, columns: int) -> dict[str, Tensor]:
    """The carry of ``columns`` trees without a node, of positions like the first one of ``state`` {name: [n, …]}."""
    shape = (columns, nodes)
    arrays: Tree = {f"{STATE}{name}": np.zeros((*shape, *x.shape[1:]), x.dtype) for name, x in state.items()}
    for name in ("prior", "total"):
        arrays[PREFIX + name] = np.zeros((*shape, actions))
    arrays[PREFIX + "visits"] = np.zeros((*shape, actions), np.int64)
    arrays[PREFIX + "child"] = np.full((*shape, actions), NONE, np.int64)
    for name in ("parent", "move"):
        arrays[PREFIX + name] = np.zeros(shape, np.int64)
    for name in ("reward", "discount", "value"):
        arrays[PREFIX + name] = np.zeros(shape)
    arrays[PREFIX + "size"] = np.zeros(columns, np.int64)
    return {name: to_device(x, "cpu") for name, x in arrays.items()}


def leaves(state: RulesState, actions: int, nodes: int) -> Schema:
    """What `empty` holds of each column."""
    text = "of the search tree of the position before the next move"
    carry = empty(state, actions, nodes, 1)
    return {
        name: Leaf(tuple(x.shape[1:]), str(x.dtype).removeprefix("torch."), "step", "", text, local=True)
        for name, x in carry.items()
    }


def trees_of(carry: dict[str, Tensor]) -> Trees:
    """The trees of a carry, in its own memory: `advance` makes them anew before anything is written."""
    arrays = {name.removeprefix(PREFIX): to_host(x) for name, x in carry.items() if name.startswith(PREFIX)}
    state = {name.removeprefix("state/"): arrays.pop(name) for name in list(arrays) if name.startswith("state/")}
    return Trees(state=state, **arrays)


def carry_of(trees: Trees) -> dict[str, Tensor]:
    """The carry that `trees_of` reads."""
    fields = {name: getattr(trees, name) for name in trees.__dataclass_fields__ if name != "state"}
    arrays = {PREFIX + name: x for name, x in fields.items()} | {STATE + name: x for name, x in trees.state.items()}
    return {name: to_device(x, "cpu") for name, x in arrays.items()}
