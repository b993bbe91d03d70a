"""AlphaZero (Silver et al. 2018, Science 362): a network learns what a tree search that it guides finds out.

Every move is chosen by a search from the position on the board (`search/mcts.py`), with the network's policy p as
priors and its value v as what is expected of a position. A game's positions are learned from once it has ended:

    (z − v)² − πᵀ log p + c ‖θ‖²                                          (Silver et al. 2017, Nature 550, eq. 1)

π are the shares of the root's visits, z the outcome of the game for who moves: z_t = r_t + d_t z_{t+1}, where d = −1
hands the turn over and 0 ends the game.

In training the priors at the root are (1 − ε) P + ε Dir(α) over the legal moves, drawn once for each search, and the
first ``temperature_moves`` moves of a game are drawn from π; later ones, and all at exploration 0, are the most visited
one, without noise. What a search found out about the position that follows is kept: its visits count towards
``simulations``. With ``gumbel_moves`` the root's moves are chosen by sequential halving (`search/gumbel.py`): π is the
improved policy, and nothing is kept. A position whose root value is beyond ± ``decided`` gets ``decided_simulations``.

Published settings, in the fields of Config: simulations 800, alpha 0.3 (chess), 0.15 (shogi), 0.03 (Go), noise 0.25,
temperature_moves 30 or all, batch_size 4096, capacity 1e6 games, SGD; small games: docs/methods/alphazero.md.

What differs from the papers: Adam, a window of positions instead of games, no batch normalisation; each position is
shown in one of its symmetries, the next one in each update; a game that is cut off by a time limit counts as drawn.

Needs the environment's Rules with `legal` moves for its policy, which sees their state, and whose move draws nothing;
in extras visits, legal and root_value. Topologies: solo, allreduce, actor_replay_learner.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from hpc_rl.algorithms import base
from hpc_rl.config import Fraction, NonNegative, NonNegativeInt, Positive, PositiveInt
from hpc_rl.devices import to_device, to_host
from hpc_rl.experience import Experience, Items, Unsuited
from hpc_rl.formulas.returns import cut_scan
from hpc_rl.nets.boards import BoardNetwork
from hpc_rl.optim.flat import StateDict, flatten
from hpc_rl.optim.group import Group, means
from hpc_rl.optim.optimizers import annealed, make_optimizer
from hpc_rl.search.searcher import Searcher
from hpc_rl.types import Array, Rules, Spec, Trajectory, Tree, UpdateResult

FIGURES = ("policy_loss", "value_loss", "target_entropy", "agreement")
TOPOLOGIES = ("solo", "allreduce", "actor_replay_learner")


@dataclass(frozen=True)
class Config:
    unroll: Annotated[PositiveInt, "moves per column and fragment"] = 8
    simulations: Annotated[PositiveInt, "visits of the root of each search"] = 100
    c_puct: Annotated[Positive, "weight of the priors in the search"] = 2.0
    first_play: Annotated[float, "Q of moves never taken"] = 0.0
    alpha: Annotated[Positive, "α of the Dirichlet noise on the root's priors"] = 1.0
    noise: Annotated[Fraction, "ε, share of the noise"] = 0.25
    temperature_moves: Annotated[NonNegativeInt, "plies of a game that are drawn from the visits"] = 10
    gumbel_moves: Annotated[NonNegativeInt, "m, moves that halving at the root begins with; 0 searches by PUCT"] = 0
    decided: Annotated[Fraction, "root value beyond which a game counts as decided; 1 for none"] = 1.0
    decided_simulations: Annotated[PositiveInt, "visits of the root there, at most simulations"] = 16
    capacity: Annotated[PositiveInt, "of the window, positions over all columns"] = 50_000
    min_size: Annotated[NonNegativeInt, "positions before the first update"] = 2_000
    batch_size: Annotated[PositiveInt, "positions per update, over all learners"] = 256
    samples_per_insert: Annotated[Positive, "times that each position is learned from"] = 4.0
    symmetries: Annotated[bool, "positions are also shown turned and mirrored, where the game allows it"] = True
    learning_rate: Annotated[Positive, "of Adam"] = 1e-3
    anneal: Annotated[bool, "learning rate falls linearly to 0 over the budget"] = False
    weight_decay: Annotated[NonNegative, "c of c ‖θ‖²"] = 1e-4
    max_grad_norm: Annotated[Positive, "gradients are clipped to this norm"] = 10.0
    channels: Annotated[PositiveInt, "of the convolutions"] = 32
    blocks: Annotated[NonNegativeInt, "residual blocks; 0 has plain layers"] = 3
    hidden: Annotated[tuple[PositiveInt, ...], "units per plain layer"] = (128, 128)

    def experience(self) -> Experience:
        rate = self.samples_per_insert
        items = Items("items", self.batch_size, 1, complete="episode", samples_per_insert=rate, annotated="episode")
        return Experience(self.unroll, (items,), self.capacity, self.min_size, self_play=True)


def loss(log_p: Tensor, value: Tensor, target: Tensor, outcome: Tensor, weight: Tensor) -> list[Tensor]:
    """The sums that FIGURES names over positions [n] of weight 0 or 1: log p and π = ``target`` [n, A]."""
    policy_loss = -(weight * torch.where(target > 0, target * log_p, 0.0).sum(-1)).sum()
    value_loss = (weight * (outcome - value).square()).sum()
    entropy = (weight * torch.special.entr(target).sum(-1)).sum()
    agreement = (weight * (log_p.argmax(-1) == target.argmax(-1))).sum()
    return [policy_loss, value_loss, entropy, agreement]


def policy(config: Config, spec: Spec, rules: Rules | None) -> Searcher:
    """Raises Unsuited where there is no game to search."""
    if rules is None or rules.legal is None or spec.actions.kind != "discrete" or spec.stack > 1:
        lacks = "is not made of Rules" if rules is None else "has no `legal` moves of one discrete choice"
        raise Unsuited(f"AlphaZero searches a game's Rules, and {spec.id} {lacks}; use toy/connect_four, or add them")
    if rules.move_uniforms:
        raise Unsuited(f"AlphaZero searches games without chance, and moves of {spec.id} draw; use another method")
    net = BoardNetwork(spec, config.channels, config.blocks, tuple(config.hidden))
    return Searcher(config, spec, rules, net)


def annotate(config: Config, rows: Tree) -> dict[str, Array] | None:
    """outcome [n]: z of the first move of rows [L(+1), n] that reach to the end of their game."""
    reward, discount, first = (to_device(rows[name], "cpu") for name in ("reward", "discount", "first"))
    return {"outcome": to_host(cut_scan(reward.nan_to_num(0.0), discount, (~first[1:]).float()))[0]}


class Learner(base.Learner):
    """One update = one optimiser step on positions of ended games."""

    def __init__(self, config: Config, spec: Spec, rules: Rules | None, policy: Searcher, group: Group) -> None:
        self.config, self.policy, self.group = config, policy, group
        self.weights = flatten(policy.net)
        group.broadcast_(self.weights.data)
        self.optimizer = make_optimizer(self.weights, "adam", config.learning_rate, 1e-8, 0.999, 0.9)
        self.optimizers = {"weights": self.optimizer}
        self.rounds = 0

    def update(self, batches: Mapping[str, Trajectory], progress: float) -> UpdateResult:
        config, batch = self.config, batches["items"]
        self.optimizer.learning_rate = annealed(config.learning_rate, progress, config.anneal)
        observation, target, legal = self._shown(batch)
        weight = batch.valid[0].float()
        log_p, value = self.policy.net(observation, legal)
        sums = loss(log_p, value, target, batch.extras["outcome"][0], weight)
        count = int(weight.sum())
        decay = config.weight_decay * sum(p.square().sum() for p in self.policy.net.parameters())
        norm = self.group.apply_gradients(
            self.optimizer, sums[0] + sums[1] + count * decay, count, config.max_grad_norm
        )
        self.rounds += 1
        totals = to_device(torch.stack([*(x.detach() for x in sums), weight.sum()]), "cpu")
        metrics = means(self.group, FIGURES, totals)
        return UpdateResult(metrics | {"grad_norm": norm, "learning_rate": self.optimizer.learning_rate})

    def _shown(self, batch: Trajectory) -> tuple[Tensor, Tensor, Tensor]:
        """observation [n, *O], π [n, A] and legal [n, A], each position in the symmetry whose turn it is."""
        observation, target, legal = batch.observation[0], batch.extras["visits"][0], batch.extras["legal"][0]
        symmetries = self.policy.rules.symmetries if self.config.symmetries else ()
        turn = (batch.start + batch.column + self.rounds) % (1 + len(symmetries))
        actions = torch.arange(target.shape[-1], device=target.device)
        for k, (frame_map, action_map) in enumerate(symmetries, 1):
            to, here = action_map(actions), turn == k
            target = torch.where(here[:, None], torch.empty_like(target).index_copy_(1, to, target), target)
            legal = torch.where(here[:, None], torch.empty_like(legal).index_copy_(1, to, legal), legal)
            shape = (-1, *(1 for _ in observation.shape[1:]))
            observation = torch.where(here.reshape(shape), frame_map(observation), observation)
        return observation, target, legal

    def state(self) -> StateDict:
        return {"rounds": self.rounds}

    def load(self, state: StateDict) -> None:
        self.rounds = int(state["rounds"])


ALGORITHM = base.Algorithm(config=Config, policy=policy, learner=Learner, annotate=annotate, legal=True)
