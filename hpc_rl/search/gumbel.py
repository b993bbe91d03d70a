"""Moves at the root by sequential halving of Gumbel draws, for few simulations (Danihelka et al. 2022, ICLR).

m moves of the largest g(a) + log P(a), g a Gumbel draw of each, are tried alike often; after each of ⌈log₂ m⌉ phases
the better half by g + log P + σ(Q) goes on. σ(Q) = (c_visit + max N) c_scale · Q, Q from 0 to 1, and Q of moves never
taken is

    v_mix = (v + ΣN / Σ_{N(a)>0} P(a) · Σ_{N(a)>0} P(a) Q(a)) / (1 + ΣN)                             (equation 33)

The move that is made is the best of those taken most often; what the network learns is softmax(log P + σ(Q)) (equation
11), an improvement of the policy however few the simulations. Below the root the search stays what it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from hpc_rl.search.mcts import Trees
from hpc_rl.types import Array

C_VISIT, C_SCALE = 50.0, 0.1  # those of the authors' code, for values from 0 to 1


@dataclass(frozen=True)
class Halving:
    """The plan of b roots: g [b, A], P [b, A], and how many simulations each gets and moves it considers [b]."""

    gumbel: Array
    prior: Array
    simulations: Array
    considered: Array

    def move(self, trees: Trees, rows: Array) -> Array:
        """The next simulation's move at the roots of ``rows`` [n]."""
        made = trees.root_visits[rows]
        pairs = zip(self.considered[rows].tolist(), self.simulations[rows].tolist(), made.tolist(), strict=True)
        wanted = np.array([visits_in_turn(m, n)[k] for m, n, k in pairs])
        score = np.where(trees.visits[rows, 0] == wanted[:, None], self.score(trees)[rows], -np.inf)
        return np.asarray(score.argmax(-1))

    def best(self, trees: Trees) -> Array:
        """[b] the move to make: of those taken most often the one of the best score."""
        visits = trees.visits[:, 0]
        most = (visits == visits.max(-1, keepdims=True)) & (self.prior > 0)
        return np.asarray(np.where(most, self.score(trees), -np.inf).argmax(-1))

    def score(self, trees: Trees) -> Array:
        """g + log P + σ(Q) [b, A]; −∞ where a move is not legal."""
        return self.gumbel + improved(self.prior, trees)


def halving(prior: Array, u: Array, simulations: Array, considered: int) -> Halving:
    """For priors [b, A], the draws' uniforms u [b, A] (all alike: none), simulations [b]; at most so many moves."""
    inside = np.clip(u, 1e-12, 1 - 1e-12)
    return Halving(-np.log(-np.log(inside)), prior, simulations, np.minimum((prior > 0).sum(-1), considered))


def improved(prior: Array, trees: Trees) -> Array:
    """log P + σ(Q) [b, A] of the roots; −∞ where a move is not legal."""
    visits = trees.visits[:, 0]
    q = (np.where(visits > 0, trees.total[:, 0] / np.maximum(visits, 1), mixed_value(prior, trees)[:, None]) + 1) / 2
    sigma = (C_VISIT + visits.max(-1, keepdims=True)) * C_SCALE * q
    return np.where(prior > 0, np.log(np.where(prior > 0, prior, 1.0)) + sigma, -np.inf)


def improved_policy(prior: Array, trees: Trees) -> Array:
    """softmax(log P + σ(Q)) [b, A] of the roots; where no move is legal, the first one."""
    score = improved(prior, trees)
    score[:, 0] = np.where((prior > 0).any(-1), score[:, 0], 0.0)
    power = np.exp(score - score.max(-1, keepdims=True))
    policy: Array = power / power.sum(-1, keepdims=True)
    return policy


def mixed_value(prior: Array, trees: Trees) -> Array:
    """v_mix [b] of the roots."""
    visits, taken = trees.visits[:, 0], trees.visits[:, 0] > 0
    q = trees.total[:, 0] / np.maximum(visits, 1)
    mass, summed = (prior * taken).sum(-1), visits.sum(-1)
    mean = (prior * taken * q).sum(-1) / np.where(mass > 0, mass, 1.0)
    mixed: Array = (trees.value[:, 0] + summed * mean) / (1 + summed)
    return mixed


@cache
def visits_in_turn(considered: int, simulations: int) -> tuple[int, ...]:
    """Of each simulation, how often the move that it takes was taken before."""
    if considered <= 1:
        return tuple(range(simulations))
    phases = int(np.ceil(np.log2(considered)))
    turns, visits, left = list[int](), [0] * considered, considered
    while len(turns) < simulations:
        for _ in range(max(1, simulations // (phases * left))):
            turns += visits[:left]
            visits[:left] = [x + 1 for x in visits[:left]]
        left = max(2, left // 2)
    return tuple(turns[:simulations])
