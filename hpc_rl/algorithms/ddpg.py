"""DDPG (Lillicrap et al. 2016, arXiv 1509.02971): a deterministic policy that climbs the action values of a critic.

Losses over drawn items of n moves, of which row 0 is learned from; θ⁻ and φ⁻ are the target networks:

    critic   ½ (y − Q(x_0, a_0; φ))²,   y = Σ_{k<n} γᵏ r_k + γⁿ Q(x_n, π(x_n; θ⁻); φ⁻)                 (eq. 4, 5)
    actor    − ∂Q(x_0, a; φ)/∂a · π(x_0; θ)   at a = π(x_0; θ), of which ∂Q/∂a is held                  (eq. 6)

Each update is a step of the critic, then one of the actor against the new critic, then θ⁻ ← (1 − τ) θ⁻ + τ θ and φ⁻
likewise. Actions lie in −1..1, which the environment scales to its bounds; training acts by clip(π(x) + σ z, −1, 1),
z standard normal. σ falls linearly from 1 to ``noise`` over the first ``noise_fraction`` of the budget.

Where priority_exponent α > 0, items are drawn with P(i) ∝ |δ_i|^α, δ = y − Q as the last update with item i had it, and
the critic's loss has weights (P(i) / min_k P(k))^(−β), β = importance_exponent.

With ``relabel`` a share of the items has a goal that was reached in hindsight (HER: Andrychowicz et al. 2017, arXiv
1707.01495; replay/relabel.py).

Published settings, in the fields of Config:

    Lillicrap 2016   hidden 400, 300; capacity 1e6; batch_size 64; γ 0.99; τ 1e-3; Adam 1e-4 (actor) and 1e-3 (critic)
    TD3's authors    hidden 256, 256; batch_size 256; τ 5e-3; Adam 3e-4 for both; noise 0.1; 25 000 random moves first
    Ape-X DPG        n_step 5; batch_size 256; a copy (τ 1) every 100 updates; Adam 1e-4; noise 0.3; slope_clip 1;
                     priority_exponent 0.6, importance_exponent 0.4; actor_replay_learner with 64 actors (Horgan et al.
                     2018, arXiv 1803.00933, which also evicts by priority: here the oldest go)

What differs from the papers: Gaussian noise in place of an Ornstein-Uhlenbeck process, as in TD3 and Ape-X. The action
enters the critic's first layer, not its second; no batch normalisation, no weight decay; orthogonal weights. There are
no purely random moves: σ = 1 comes close. An entry of the action without two finite bounds stays within −1..1.

Needs in extras, where α > 0, what the critic of the policy that acted said of the action taken and of π(x), for first
priorities |δ|; actors copy the critic with the actor. Topologies: solo, allreduce, actor_replay_learner.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from math import inf
from typing import Annotated

import torch
from torch import Tensor

from hpc_rl.algorithms import base
from hpc_rl.config import BelowOne, Fraction, NonNegative, NonNegativeInt, Positive, PositiveInt, Range
from hpc_rl.devices import to_device, to_host
from hpc_rl.experience import Experience, Hindsight, Items, Unsuited, in_hindsight
from hpc_rl.formulas.continuous import critics_loss, deterministic_policy_gradient
from hpc_rl.formulas.q_learning import importance_weights, item_rows, n_step_return
from hpc_rl.nets.continuous import ActorWithCritic, DeterministicPolicy, falling_noise, slope_of
from hpc_rl.optim.flat import StateDict, flatten
from hpc_rl.optim.group import Group, means
from hpc_rl.optim.optimizers import make_optimizer
from hpc_rl.optim.targets import polyak_
from hpc_rl.types import Array, Rules, Spec, Trajectory, Tree, UpdateResult

FIGURES = ("loss", "q_mean", "target_mean", "policy_q")
TOPOLOGIES = ("solo", "allreduce", "actor_replay_learner")
Player = DeterministicPolicy[ActorWithCritic]


@dataclass(frozen=True)
class Config:
    unroll: Annotated[PositiveInt, "moves per column between updates"] = 1
    n_step: Annotated[PositiveInt, "n, moves of an item"] = 1
    capacity: Annotated[PositiveInt, "of the replay, env steps over all columns"] = 1_000_000
    min_size: Annotated[NonNegativeInt, "env steps before the first update"] = 5_000
    batch_size: Annotated[PositiveInt, "items per update, over all learners"] = 256
    samples_per_insert: Annotated[Positive, "items drawn per env step"] = 256.0
    relabel: Annotated[Hindsight, "where the goals of a share of the items come from in hindsight"] = "none"
    relabel_share: Annotated[Fraction, "of the items, k / (k + 1) for k relabelled beside each other one"] = 0.8
    priority_exponent: Annotated[Fraction, "α of priorities |δ|; 0 draws uniformly"] = 0.0
    importance_exponent: Annotated[Fraction, "β of importance weights, where α > 0"] = 0.4
    target_every: Annotated[PositiveInt, "updates between two steps of the target networks"] = 1
    tau: Annotated[float, Range(0, 1, open_low=True), "τ, how far they go each time"] = 0.005
    actor_learning_rate: Annotated[Positive, "of the actor's Adam"] = 3e-4
    critic_learning_rate: Annotated[Positive, "of the critic's Adam"] = 3e-4
    beta_1: Annotated[BelowOne, "of Adam"] = 0.9
    adam_epsilon: Annotated[Positive, "of Adam"] = 1e-8
    discount: Annotated[Fraction, "γ"] = 0.99
    noise: Annotated[Fraction, "σ of the actions at the end, in the scale of −1..1"] = 0.1
    noise_fraction: Annotated[Fraction, "of the budget, until σ has fallen from 1 to that"] = 0.025
    slope_clip: Annotated[NonNegative, "entries of ∂Q/∂a are clipped to ± this; 0 leaves them"] = 0.0
    max_grad_norm: Annotated[NonNegative, "gradients are clipped to this norm; 0 leaves them"] = 0.0
    hidden: Annotated[tuple[PositiveInt, ...], "units per layer, of the actor and of the critic"] = (256, 256)

    def experience(self) -> Experience:
        rate, alpha = self.samples_per_insert, self.priority_exponent
        items = Items("items", self.batch_size, self.n_step, samples_per_insert=rate, alpha=alpha)
        relabelled = in_hindsight(items, self.relabel, self.relabel_share)
        return Experience(self.unroll, (relabelled,), self.capacity, self.min_size)


def policy(config: Config, spec: Spec, rules: Rules | None) -> Player:
    """Raises Unsuited where actions are not continuous."""
    if spec.actions.kind != "box":
        raise Unsuited(
            f"DDPG needs a box of continuous actions, and {spec.id} has {spec.actions.kind} ones; use a method for "
            "these, as DQN or PPO"
        )
    net = ActorWithCritic(spec, tuple(config.hidden))
    return DeterministicPolicy(net, spec.actions, net.critics if config.priority_exponent else None)


def exploration(config: Config, columns: Array, total: int, progress: float) -> Array:
    """σ [b] of the Gaussian noise on actions."""
    return falling_noise(columns, progress, config.noise, config.noise_fraction)


def annotate(config: Config, rows: Tree) -> dict[str, Array] | None:
    """First priorities |δ| of items [L, n], from the networks that acted, which are the targets' as well to them."""
    if not config.priority_exponent:
        return None
    names = ("reward", "discount", "first", "extras/critic_action", "extras/critic_policy")
    reward, discount, first, q_action, q_policy = (to_device(rows[name], "cpu") for name in names)
    total, factor, row = n_step_return(reward.nan_to_num(0.0, 0.0, 0.0), config.discount * discount, ~first[1:])
    target = total + factor * q_policy.gather(0, row[None])[0]
    return {"priority": to_host((target - q_action[0]).abs())}


class Learner(base.Learner):
    """One update = one step of the critic and one of the actor on one batch of items."""

    def __init__(self, config: Config, spec: Spec, rules: Rules | None, policy: Player, group: Group) -> None:
        self.config, self.policy, self.group, self.net = config, policy, group, policy.net
        self.weights = flatten(self.net)
        group.broadcast_(self.weights.data)
        self.target_net = deepcopy(self.net)
        self.target = flatten(self.target_net)
        adam = (config.adam_epsilon, 0.999, config.beta_1)
        actor, critic = (self.weights.part(net) for net in (self.net.actor, self.net.critics))
        self.optimizers = {
            "actor": make_optimizer(actor, "adam", config.actor_learning_rate, *adam),
            "critic": make_optimizer(critic, "adam", config.critic_learning_rate, *adam),
        }
        self.rounds = 0

    def update(self, batches: Mapping[str, Trajectory], progress: float) -> UpdateResult:
        config, batch, limit = self.config, batches["items"], self.config.max_grad_norm or inf
        weight, count = batch.valid[0].float(), int(batch.valid[0].sum())
        q, target = self.net.critics(batch.observation[0], batch.action[0]), self._target(batch)
        summed, sums = critics_loss(q, target, weight, importance_weights(batch.chance, config.importance_exponent))
        norm = self.group.apply_gradients(self.optimizers["critic"], summed, count, limit)
        policy_norm, policy_q = 0.0, torch.zeros(())
        if norm < inf:  # the same on every member
            summed, policy_q = self._actor_loss(batch.observation[0], weight)
            policy_norm = self.group.apply_gradients(self.optimizers["actor"], summed, count, limit)
            self._step_targets()
        metrics = means(self.group, FIGURES, torch.stack([*sums, policy_q, torch.tensor(float(count))]))
        priorities = (target - q[0].detach()).abs() if config.priority_exponent else None
        return UpdateResult({**metrics, "grad_norm": norm, "policy_grad_norm": policy_norm}, priorities)

    def _actor_loss(self, observation: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Summed loss of the actor, and Σ w Q(x, π(x))."""
        action = self.net.actor(observation)
        slope, q = slope_of(self.net.critics, observation, action)
        summed = deterministic_policy_gradient(action, slope, weight, self.config.slope_clip)
        return summed, to_device((weight * q).sum(), "cpu")

    def _step_targets(self) -> None:
        self.rounds += 1
        if self.rounds % self.config.target_every == 0:
            polyak_(self.target, self.weights, self.config.tau)

    @torch.no_grad()
    def _target(self, batch: Trajectory) -> Tensor:
        """y [n]."""
        total, factor, row = n_step_return(batch.reward, self.config.discount * batch.discount, batch.valid)
        behind = item_rows(batch.observation, row)
        value: Tensor = self.target_net.critics(behind, self.target_net.actor(behind))[0]
        return total + factor * value

    def state(self) -> StateDict:
        return {"rounds": self.rounds, "target": self.target.data.clone()}

    def load(self, state: StateDict) -> None:
        self.rounds = int(state["rounds"])
        self.target.data.copy_(state["target"])


ALGORITHM = base.Algorithm(config=Config, policy=policy, learner=Learner, exploration=exploration, annotate=annotate)
