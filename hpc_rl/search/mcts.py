"""Monte Carlo tree search with a model's priors and values (PUCT), of b positions in lock-step.

From the root of its tree each simulation follows, with N, W of a move (visits, sum of what came of it) and Q = W / N,

    argmax_a  Q(s, a) + c(s) P(s, a) √max(1, ΣN) / (1 + N(s, a)),   c(s) = c_puct + log((1 + ΣN + c_base) / c_base)

(Silver et al. 2018, Science 362, supplement) to a move that was never taken, asks the model what it leads to, and adds
what came of it to all moves on the way: G = r + d G′, from the model's value of the new position. d is the discount of
`Trajectory`: −1 where the other player moves next, so that W belongs to who moves, 0 where the episode ends.

The positions that b simulations ask about are one batch of the model; a tree whose root has enough visits asks no more.
Where nobody was yet, Q is ``first_play``. What a tree knows of the position that follows is kept (`find`, `advance`).

What differs: √ΣN is at least 1, so that the first move is that of the largest prior.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from hpc_rl.devices import to_device, to_host
from hpc_rl.types import Array, Rules, RulesState

if TYPE_CHECKING:  # players of NumPy alone start without torch
    import torch

NONE = -1  # no child

C_BASE = 19652.0


@dataclass(frozen=True)
class Position:
    """What a model says of n positions, and of the moves that led there.

    A prior is 0 where a move is not legal, and sums to 1 over the others; where the episode is over all are finite.
    """

    state: RulesState  # {name: [n, …]}
    prior: Array  # [n, A] float
    value: Array  # [n] what is expected to come, for who moves
    reward: Array  # [n] of the move that led here, for who made it
    discount: Array  # [n]


RootMove = Callable[["Trees", Array], Array]
"""(trees, rows [n]) -> the move [n] that the next simulation of each of these trees takes at its root."""

Move = Callable[[RulesState, Array, Array], tuple[RulesState, Array, Array, Array]]
"""As `Rules.move`, of arrays."""

Model = Callable[[RulesState, Array], Position]
"""(state {name: [n, …]}, action [n] int64) -> where these moves lead."""

Score = Callable[[Array, Array, Array, float], Array]
"""(Q, N, P [n, A], c) -> what a simulation follows the largest of, among moves whose P is above 0; `puct`."""


def puct(q: Array, visits: Array, prior: Array, c_puct: float) -> Array:
    summed = visits.sum(-1, keepdims=True)
    c = c_puct + np.log((1 + summed + C_BASE) / C_BASE)
    score: Array = q + c * prior * np.sqrt(np.maximum(1, summed)) / (1 + visits)
    return score


@dataclass
class Trees:
    """b trees of up to N nodes over A moves. Node 0 is the root; parents come before their children."""

    state: RulesState  # {name: [b, N, …]}
    prior: Array  # [b, N, A]
    visits: Array  # [b, N, A] int64
    total: Array  # [b, N, A] float64, W
    child: Array  # [b, N, A] int64, NONE where the move was never taken
    parent: Array  # [b, N] int64
    move: Array  # [b, N] int64, that leads here from the parent
    reward: Array  # [b, N] of that move
    discount: Array  # [b, N]
    value: Array  # [b, N] by the model
    size: Array  # [b] int64, nodes so far

    @property
    def root_visits(self) -> Array:
        """[b] int64."""
        visits: Array = self.visits[:, 0].sum(-1)
        return visits

    def q(self) -> Array:
        """Q of the root's moves, [b, A]; NaN where one was never taken."""
        visits = self.visits[:, 0]
        return np.where(visits > 0, self.total[:, 0] / np.maximum(visits, 1), np.nan)

    def root_value(self) -> Array:
        """[b] what came of all simulations; the model's value where there was none."""
        visits = self.root_visits
        return np.where(visits > 0, self.total[:, 0].sum(-1) / np.maximum(visits, 1), self.value[:, 0])


def planted(root: Position, nodes: int) -> Trees:
    """Trees of their roots alone, with room for ``nodes`` ≥ simulations + 1."""
    b, actions = root.prior.shape
    trees = Trees(
        state={name: np.zeros((b, nodes, *x.shape[1:]), x.dtype) for name, x in root.state.items()},
        prior=np.zeros((b, nodes, actions)),
        visits=np.zeros((b, nodes, actions), np.int64),
        total=np.zeros((b, nodes, actions)),
        child=np.full((b, nodes, actions), NONE, np.int64),
        parent=np.zeros((b, nodes), np.int64),
        move=np.zeros((b, nodes), np.int64),
        reward=np.zeros((b, nodes)),
        discount=np.ones((b, nodes)),
        value=np.zeros((b, nodes)),
        size=np.ones(b, np.int64),
    )
    _place(trees, np.arange(b), np.zeros(b, np.int64), root)
    return trees


def search(
    trees: Trees,
    model: Model,
    simulations: Array,
    c_puct: float,
    root_prior: Array | None = None,
    first_play: float = 0.0,
    score: Score = puct,
    root_move: RootMove | None = None,
) -> None:
    """Simulate until each root has ``simulations`` [b] visits.

    ``root_prior`` [b, A] takes the place of the model's at the roots (`noisy`), ``root_move`` that of the whole rule.
    """
    prior = trees.prior[:, 0] if root_prior is None else root_prior
    while len(rows := np.flatnonzero(trees.root_visits < simulations)):
        given = root_move(trees, rows) if root_move else None
        node, action, known = _select(trees, rows, c_puct, prior[rows], first_play, score, given)
        grows = known == NONE
        value = np.zeros(len(rows))  # of an end, whose discount 0 would leave nothing of another
        if grows.any():
            at, new = rows[grows], trees.size[rows[grows]]
            before = {name: x[at, node[grows]] for name, x in trees.state.items()}
            position = model(before, action[grows])
            _place(trees, at, new, position)
            trees.child[at, node[grows], action[grows]] = new
            trees.parent[at, new], trees.move[at, new] = node[grows], action[grows]
            trees.size[at] += 1
            known[grows] = new
            value[grows] = position.value
        _back_up(trees, rows, known, value)


def _select(
    trees: Trees, rows: Array, c_puct: float, root_prior: Array, first_play: float, score: Score, given: Array | None
) -> tuple[Array, Array, Array]:
    """(node, action, its child or NONE), each [n]: where the simulation of each of ``rows`` [n] ends.

    ``given`` [n] are the moves that they take at the roots.
    """
    node, action, child = (np.zeros(len(rows), np.int64) for _ in range(3))
    going = np.arange(len(rows))
    prior = root_prior
    while len(going):
        tree, at = rows[going], node[going]
        if given is not None:
            best, given = given, None
        else:
            visits = trees.visits[tree, at]
            q = np.where(visits > 0, trees.total[tree, at] / np.maximum(visits, 1), first_play)
            best = np.where(prior > 0, score(q, visits, prior, c_puct), -np.inf).argmax(-1)
        onto = trees.child[tree, at, best]
        action[going], child[going] = best, onto
        on = (onto != NONE) & (trees.discount[tree, onto] != 0)
        going = going[on]
        node[going] = onto[on]
        prior = trees.prior[rows[going], node[going]]
    return node, action, child


def _place(trees: Trees, rows: Array, node: Array, position: Position) -> None:
    for name, x in position.state.items():
        trees.state[name][rows, node] = x
    trees.prior[rows, node] = position.prior
    trees.value[rows, node] = position.value
    trees.reward[rows, node] = position.reward
    trees.discount[rows, node] = position.discount


def _back_up(trees: Trees, rows: Array, node: Array, value: Array) -> None:
    """Add what came of a simulation to all moves that led to ``node`` [n]."""
    while len(rows):
        value = trees.reward[rows, node] + trees.discount[rows, node] * value
        parent, move = trees.parent[rows, node], trees.move[rows, node]
        trees.visits[rows, parent, move] += 1
        trees.total[rows, parent, move] += value
        on = parent > 0
        rows, node, value = rows[on], parent[on], value[on]


def move_of(rules: Rules, device: torch.device | str) -> Move:
    """The moves of Rules on torch, of a game without chance, as a function of arrays."""

    import torch

    def move(state: RulesState, action: Array, u: Array) -> tuple[RulesState, Array, Array, Array]:
        nothing = torch.zeros(len(action), 0, dtype=torch.float64, device=device)
        before = {name: to_device(x, device) for name, x in state.items()}
        after, *paid = rules.move(before, to_device(action, device), nothing)
        reward, discount, truncated = (to_host(x) for x in paid)
        return {name: to_host(x) for name, x in after.items()}, reward, discount, truncated

    return move


def find(trees: Trees, state: RulesState) -> Array:
    """[b] the oldest node of each tree whose state is ``state`` {name: [b, …]}; NONE where there is none."""
    b, nodes = trees.parent.shape
    same = np.arange(nodes) < trees.size[:, None]
    for name, x in trees.state.items():
        same = same & (x == np.asarray(state[name])[:, None]).reshape(b, nodes, -1).all(-1)
    return np.where(same.any(1), same.argmax(1), NONE)


def advance(trees: Trees, root: Array) -> None:
    """Make node ``root`` [b] the root of each tree, with what is known from there on; the other nodes are forgotten.

    Where it is NONE the tree is to be planted anew (`replant`).
    """
    b, nodes = trees.parent.shape
    every, known = np.arange(b), root != NONE
    keep = np.zeros((b, nodes), bool)
    keep[every, np.maximum(root, 0)] = known
    for node in range(1, int(trees.size.max())):
        keep[:, node] |= keep[every, trees.parent[:, node]] & (node < trees.size)
    number = np.where(keep, keep.cumsum(1) - 1, NONE)
    row, old = np.nonzero(keep)
    new = number[row, old]
    for name, x in trees.state.items():
        trees.state[name] = _moved(x, row, old, new)
    child = trees.child[row, old]
    renumbered = np.where(child == NONE, NONE, number[row[:, None], child])
    parent = np.maximum(number[row, trees.parent[row, old]], 0)
    for name in ("prior", "visits", "total", "move", "reward", "discount", "value"):
        setattr(trees, name, _moved(getattr(trees, name), row, old, new))
    trees.child = np.full_like(trees.child, NONE)
    trees.child[row, new] = renumbered
    trees.parent = np.zeros_like(trees.parent)
    trees.parent[row, new] = parent
    trees.size = np.maximum(keep.sum(1), 1)


def replant(trees: Trees, rows: Array, root: Position) -> None:
    """Let the trees of ``rows`` [n] be their roots alone again, at these positions [n]."""
    for x in (trees.visits, trees.total, trees.parent, trees.move):
        x[rows] = 0
    trees.child[rows] = NONE
    trees.size[rows] = 1
    _place(trees, rows, np.zeros(len(rows), np.int64), root)


def _moved(x: Array, row: Array, old: Array, new: Array) -> Array:
    moved = np.zeros_like(x)
    moved[row, new] = x[row, old]
    return moved
