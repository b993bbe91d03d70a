"""DQN (Mnih et al. 2015, Nature 518): Q-learning on a replay, against a target network.

Loss over drawn items of n moves, of which row 0 is learned from; h is Huber's with κ = error_clip:

    h(y − Q(x_0, a_0; θ)),   y = Σ_{k<n} γᵏ r_k + γⁿ max_a Q(x_n, a; θ⁻)

    double    y ends in Q(x_n, argmax_a Q(x_n, a; θ); θ⁻)             (van Hasselt et al. 2016, arXiv 1509.06461)
    dueling   Q = V + A − mean A                                      (Wang et al. 2016, arXiv 1511.06581)
    n_step    n > 1, cut where the episode ends; not corrected for the policy that acted   (Hessel et al. 2018,
              arXiv 1710.02298)
    priority_exponent α > 0: items are drawn with P(i) ∝ |δ_i|^α, δ = y − Q as the last update with item i had it, and
              the loss has weights (P(i) / min_k P(k))^(−β), β = importance_exponent (Schaul et al. 2016, arXiv
              1511.05952, equation 1 and section 3.4)

    relabel   goals in hindsight for relabel_share of the items (HER: Andrychowicz et al. 2017, arXiv 1707.01495), which
              clips y to what returns can be: target_low = −1 / (1 − γ), target_high = 0

Every ``target_every`` updates θ⁻ ← (1 − τ) θ⁻ + τ θ; τ = 1 copies. Acting is ε-greedy: ε falls linearly from 1 to
epsilon_final over the first ``epsilon_fraction`` of the budget, the same in all columns.

With epsilon_base > 0 column i of N keeps ε_i = epsilon_base^(1 + epsilon_exponent · i / (N − 1)) for life, which Ape-X
does (Horgan et al. 2018, arXiv 1803.00933: base 0.4, exponent 7, on actor_replay_learner).

Gorila (Nair et al. 2015, arXiv 1507.04296) is this on parameter_server with several servers: every worker has a replay
of its own (capacity, min_size and samples_per_insert are each worker's) and a target network that it copies every
target_every updates of its own, where the paper counts those of the servers. Servers use every gradient, however old;
the paper drops stale ones and outliers, and steps by AdaGrad.

Published settings, in the fields of Config:

    Atari     Mnih 2015: capacity 1e6, min_size 5e4, batch_size 32, one update in 4 env steps (samples_per_insert 8),
              target_every 1e4, RMSProp 2.5e-4, ε 1 -> 0.1 over 1e6 frames. Here: Adam
    Replay    Schaul 2016, proportional: α 0.6, β 0.4 rising to 1, learning_rate a quarter of the uniform one
    CartPole  CleanRL: error_clip 0, capacity 1e4, min_size 1e4, batch_size 128, one update in 10 env steps
              (samples_per_insert 12.8), a copy every 500 env steps (target_every 50), Adam 2.5e-4, ε 1 -> 0.05 over
              half of 500 k env steps

κ = 1 belongs to rewards clipped to ±1. Where values are tens, h fits medians rather than means, rare terminations lose
their weight, and Q grows without bound (CartPole: 1e5 after 9 000 updates).

What differs from the papers: Adam, and the loss is a mean over the batch. β is constant, as in Ape-X. Columns step
together, so ``unroll`` moves of each come between updates. The dueling streams lie behind the torso's dense layer, not
beside it. The first items are from the first policy with ε near 1; there are no purely random moves. Several learners
(allreduce) have a ring each, of their own columns, and share the batch out. No-op starts and the end of an episode at a
lost life are the environment's (`noop_max`, `life_loss_ends`).

Needs in extras, where α > 0, Q of the action taken and the largest Q: an item's first priority is the |δ| of the policy
that acted (Horgan et al. 2018, arXiv 1803.00933, section 3). Topologies: solo, allreduce, parameter_server,
actor_replay_learner.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from hpc_rl.algorithms import base
from hpc_rl.config import BelowOne, Fraction, NonNegative, NonNegativeInt, Positive, PositiveInt, Range
from hpc_rl.devices import to_device, to_host
from hpc_rl.experience import Experience, Hindsight, Items, Unsuited, in_hindsight
from hpc_rl.formulas.q_learning import (
    epsilon_greedy,
    epsilon_ladder,
    falling_epsilon,
    greedy_value,
    huber,
    importance_weights,
    item_rows,
    n_step_return,
)
from hpc_rl.nets.q import QNetwork
from hpc_rl.optim.flat import StateDict, flatten
from hpc_rl.optim.group import Group, means
from hpc_rl.optim.optimizers import annealed, make_optimizer
from hpc_rl.optim.targets import polyak_
from hpc_rl.types import ActOutput, Array, Leaf, Rules, Schema, Spec, Step, Trajectory, Tree, UpdateResult

FIGURES = ("loss", "q_mean", "target_mean")
TOPOLOGIES = ("solo", "allreduce", "parameter_server", "actor_replay_learner")
VALUES: Schema = {
    "q_action": Leaf((), "float32", "step", "reward", "Q of the action taken"),
    "q_max": Leaf((), "float32", "step", "reward", "the largest Q"),
}


@dataclass(frozen=True)
class Config:
    unroll: Annotated[PositiveInt, "moves per column between updates"] = 4
    n_step: Annotated[PositiveInt, "n, moves of an item"] = 1
    double: Annotated[bool, "double Q-learning"] = True
    dueling: Annotated[bool, "value and advantage streams"] = False
    capacity: Annotated[PositiveInt, "of the replay, env steps over all columns"] = 100_000
    min_size: Annotated[NonNegativeInt, "env steps before the first update"] = 5_000
    batch_size: Annotated[PositiveInt, "items per update, over all learners"] = 32
    samples_per_insert: Annotated[Positive, "items drawn per env step"] = 8.0
    relabel: Annotated[Hindsight, "where the goals of a share of the items come from in hindsight"] = "none"
    relabel_share: Annotated[Fraction, "of the items, k / (k + 1) for k relabelled beside each other one"] = 0.8
    priority_exponent: Annotated[Fraction, "α of priorities |δ|; 0 draws uniformly"] = 0.0
    importance_exponent: Annotated[Fraction, "β of importance weights, where α > 0"] = 0.4
    target_every: Annotated[PositiveInt, "updates between two steps of the target network"] = 500
    tau: Annotated[float, Range(0, 1, open_low=True), "τ, how far it goes each time"] = 1.0
    learning_rate: Annotated[Positive, "of Adam"] = 2.5e-4
    anneal: Annotated[bool, "learning rate falls linearly to 0 over the budget"] = False
    adam_epsilon: Annotated[Positive, "of Adam"] = 1e-8
    beta_1: Annotated[BelowOne, "of Adam"] = 0.9
    beta_2: Annotated[BelowOne, "of Adam"] = 0.999
    error_clip: Annotated[NonNegative, "κ; 0 is the squared error, for values that are not of the order of 1"] = 1.0
    discount: Annotated[Fraction, "γ"] = 0.99
    target_low: Annotated[float, "the least y, where returns have a bound"] | None = None
    target_high: Annotated[float, "the largest y"] | None = None
    epsilon_final: Annotated[Fraction, "ε at the end"] = 0.05
    epsilon_fraction: Annotated[Fraction, "of the budget, until ε is final"] = 0.5
    epsilon_base: Annotated[Fraction, "ε of the first column, for life, falling over the columns; 0 anneals all"] = 0.0
    epsilon_exponent: Annotated[NonNegative, "the last column's ε is epsilon_base to the power of 1 + this"] = 7.0
    max_grad_norm: Annotated[Positive, "gradients are clipped to this norm"] = 10.0
    reward_clip: Annotated[NonNegative, "rewards are clipped to ± this; 0 leaves them raw"] = 0.0
    network: Annotated[Literal["nature", "shallow"], "convolutions, for images"] = "nature"
    hidden: Annotated[tuple[PositiveInt, ...], "units per layer for vector observations"] = (120, 84)

    def experience(self) -> Experience:
        rate, alpha = self.samples_per_insert, self.priority_exponent
        items = Items("items", self.batch_size, self.n_step, samples_per_insert=rate, alpha=alpha)
        relabelled = in_hindsight(items, self.relabel, self.relabel_share)
        return Experience(self.unroll, (relabelled,), self.capacity, self.min_size)


def loss(config: Config, q: Tensor, target: Tensor, batch: Trajectory) -> tuple[Tensor, list[Tensor], Tensor]:
    """Summed loss, the sums that FIGURES names, and |δ| [n], for q [n, A] of row 0 and targets y [n]."""
    valid = batch.valid[0].float()
    q_action = q.gather(-1, batch.action[0][:, None]).squeeze(-1)
    error = target - q_action
    summed = huber(error, valid * importance_weights(batch.chance, config.importance_exponent), config.error_clip)
    sums = (summed, (valid * q_action).sum(), (valid * target).sum())
    return summed, [to_device(x.detach(), "cpu") for x in sums], error.detach().abs()


class EpsilonGreedy:
    """Takes the action of the largest Q value, or with probability ``exploration`` = ε any, all as likely."""

    noise, fragment_noise = 2, 0  # one uniform for whether, one for which

    def __init__(self, net: QNetwork, extras: Schema | None = None) -> None:
        self.net = net
        self.extras: Schema = extras or {}
        self.carry: Schema = {}

    def initial_carry(self, columns: int) -> dict[str, Tensor]:
        return {}

    @torch.no_grad()
    def act(self, step: Step, carry: dict[str, Tensor], exploration: Tensor, noise: Tensor) -> ActOutput:
        q = self.net(step.observation)
        action = epsilon_greedy(q, exploration, noise)
        values = {"q_action": q.gather(-1, action[:, None]).squeeze(-1), "q_max": q.amax(-1)} if self.extras else {}
        return ActOutput(action, {}, values)


def policy(config: Config, spec: Spec, rules: Rules | None) -> EpsilonGreedy:
    """Raises Unsuited where the environment does not offer one discrete choice."""
    if spec.actions.kind != "discrete":
        raise Unsuited(
            f"DQN needs one discrete choice, and {spec.id} has {spec.actions.kind} actions; use a method that has a "
            "distribution over them"
        )
    net = QNetwork(spec, tuple(config.hidden), config.network, config.dueling)
    return EpsilonGreedy(net, VALUES if config.priority_exponent else None)


def exploration(config: Config, columns: Array, total: int, progress: float) -> Array:
    """ε [b], from 1 at the beginning to epsilon_final; with epsilon_base each column's own."""
    if config.epsilon_base:
        return epsilon_ladder(columns, total, config.epsilon_base, config.epsilon_exponent)
    return np.full(len(columns), falling_epsilon(progress, config.epsilon_fraction, config.epsilon_final), np.float32)


def annotate(config: Config, rows: Tree) -> dict[str, Array] | None:
    """First priorities |δ| of items [L, n], from the Q values of the policy that acted, which is θ⁻ = θ to them."""
    if not config.priority_exponent:
        return None
    names = ("reward", "discount", "first", "extras/q_action", "extras/q_max")
    reward, discount, first, q_action, q_max = (to_device(rows[name], "cpu") for name in names)
    reward, clip = reward.nan_to_num(0.0, 0.0, 0.0), config.reward_clip
    total, factor, row = n_step_return(reward, config.discount * discount, ~first[1:], clip)
    target = total + factor * q_max.gather(0, row[None])[0]
    return {"priority": to_host((target - q_action[0]).abs())}


class Learner(base.Learner):
    """One update = one optimiser step on one batch of items."""

    def __init__(self, config: Config, spec: Spec, rules: Rules | None, policy: EpsilonGreedy, group: Group) -> None:
        self.config, self.policy, self.group = config, policy, group
        self.weights = flatten(policy.net)
        group.broadcast_(self.weights.data)
        self.target_net = deepcopy(policy.net)
        self.target = flatten(self.target_net)
        adam = ("adam", config.learning_rate, config.adam_epsilon, config.beta_2, config.beta_1)
        self.optimizer = make_optimizer(self.weights, *adam)
        self.optimizers = {"weights": self.optimizer}
        self.rounds = 0

    def update(self, batches: Mapping[str, Trajectory], progress: float) -> UpdateResult:
        config, batch = self.config, batches["items"]
        rate = annealed(config.learning_rate, progress, config.anneal)
        self.optimizer.learning_rate = rate
        summed, sums, priorities = loss(config, self.policy.net(batch.observation[0]), self._target(batch), batch)
        count = int(batch.valid[0].sum())
        norm = self.group.apply_gradients(self.optimizer, summed, count, config.max_grad_norm)
        self.rounds += 1
        if self.rounds % config.target_every == 0:
            polyak_(self.target, self.weights, config.tau)
        metrics = means(self.group, FIGURES, torch.stack([*sums, torch.tensor(float(count))]))
        metrics |= {"grad_norm": norm, "learning_rate": rate}
        return UpdateResult(metrics, priorities if config.priority_exponent else None)

    @torch.no_grad()
    def _target(self, batch: Trajectory) -> Tensor:
        """y [n]."""
        discount, clip = self.config.discount * batch.discount, self.config.reward_clip
        total, factor, row = n_step_return(batch.reward, discount, batch.valid, clip)
        behind = self.target_net.prepared(item_rows(batch.observation, row))
        online = self.policy.net(behind) if self.config.double else None
        y = total + factor * greedy_value(self.target_net(behind), online)
        low, high = self.config.target_low, self.config.target_high
        return y if low is None and high is None else y.clamp(low, high)

    def state(self) -> StateDict:
        return {"target": self.target.data.clone(), "rounds": self.rounds}

    def load(self, state: StateDict) -> None:
        self.target.data.copy_(state["target"])
        self.rounds = int(state["rounds"])


ALGORITHM = base.Algorithm(config=Config, policy=policy, learner=Learner, exploration=exploration, annotate=annotate)
