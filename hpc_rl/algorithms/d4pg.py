"""D4PG (Barth-Maron et al. 2018, arXiv 1804.08617): a deterministic policy climbs the mean of a categorical critic.

Of drawn items of N moves row 0 is learned from. Z(x, a; φ) is a distribution on atoms z of v_min … v_max and Q its
mean; the target m is that of the N-step return under the target networks, brought back onto the atoms (algorithm 1):

    critic   w KL(m ‖ Z(x_0, a_0; φ)),   m = Φ_z [Σ_{k<N} γᵏ r_k + γᴺ Z(x_N, π(x_N; θ⁻); φ⁻)]
    actor    − Q(x_0, π(x_0; θ); φ), a gradient of θ alone

Where priority_exponent α > 0, P_i ∝ KL_i^α and w_i = (P_i / min P)^(−β), β = importance_exponent. Actors are processes
of their own on actor_replay_learner.

Each update is a step of the critic, then one of the actor against the new critic; every ``target_every`` updates
θ⁻ ← (1 − τ) θ⁻ + τ θ and φ⁻ likewise, τ = 1 copies. Training acts by clip(π(x) + σ z, −1, 1), z standard normal; σ
falls linearly from 1 to ``noise`` over the first ``noise_fraction`` of the budget.

Published settings, in the fields of Config: n_step 5, 51 atoms, batch_size 256, capacity 1e6, a copy every 100 updates,
Adam 1e-4 for both (5e-5 on hard tasks), noise 0.3, γ 0.99, importance_exponent 1; Acme adds v ±150 on the control suite
and ±1000 on Gym, slope_clip 1 (of the slope's length) and max_grad_norm 40. v_max is about the discounted return of the
best episode in units of the learned rewards: returns beyond the atoms cannot be told apart, which edge_mass shows.

What differs from the paper: it takes both gradients before either step. Its weights are 1/(R P_i), here they are at
most 1. slope_clip is of entries, as in Ape-X DPG. Networks are layers with ReLU, without layer normalisation; images
are flattened.

Needs in extras, where α > 0, what the critic of the policy that acted said of the action taken and of π(x), for first
priorities KL; actors copy the critic with the actor. Topologies: solo, allreduce, actor_replay_learner.
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
from hpc_rl.config import BadJob, BelowOne, Fraction, NonNegative, NonNegativeInt, Positive, PositiveInt, Range
from hpc_rl.devices import to_device, to_host
from hpc_rl.experience import Experience, Items, Unsuited
from hpc_rl.formulas.categorical import atoms, cross_entropy, edge_mass, entropy, expectation, projected
from hpc_rl.formulas.losses import weighted
from hpc_rl.formulas.q_learning import importance_weights, item_rows, n_step_return
from hpc_rl.nets.continuous import ActorWithCritic, DeterministicPolicy, falling_noise
from hpc_rl.optim.flat import StateDict, flatten
from hpc_rl.optim.group import Group, means
from hpc_rl.optim.optimizers import make_optimizer
from hpc_rl.optim.targets import polyak_
from hpc_rl.types import Array, Rules, Spec, Trajectory, Tree, UpdateResult

FIGURES = ("loss", "kl", "q_mean", "target_mean", "edge_mass", "weight", "policy_q")
TOPOLOGIES = ("solo", "allreduce", "actor_replay_learner")
Player = DeterministicPolicy[ActorWithCritic]


@dataclass(frozen=True)
class Config:
    unroll: Annotated[PositiveInt, "moves per column between updates"] = 1
    n_step: Annotated[PositiveInt, "N, moves of an item"] = 5
    atoms: Annotated[int, Range(2), "of the distribution of returns"] = 51
    v_min: Annotated[float, "the lowest atom, in units of the learned rewards"] = -150.0
    v_max: Annotated[float, "the highest atom"] = 150.0
    reward_scale: Annotated[Positive, "learned rewards are raw ones times this"] = 1.0
    priority_exponent: Annotated[Fraction, "α of priorities; 0 draws uniformly"] = 0.0
    importance_exponent: Annotated[Fraction, "β of importance weights, where α > 0"] = 1.0
    capacity: Annotated[PositiveInt, "of the replay, env steps over all columns"] = 1_000_000
    min_size: Annotated[NonNegativeInt, "env steps before the first update"] = 5_000
    batch_size: Annotated[PositiveInt, "items per update, over all learners"] = 256
    samples_per_insert: Annotated[Positive, "items drawn per env step"] = 256.0
    target_every: Annotated[PositiveInt, "updates between two steps of the target networks"] = 100
    tau: Annotated[float, Range(0, 1, open_low=True), "τ, how far they go each time"] = 1.0
    actor_learning_rate: Annotated[Positive, "of the actor's Adam"] = 1e-4
    critic_learning_rate: Annotated[Positive, "of the critic's Adam"] = 1e-4
    beta_1: Annotated[BelowOne, "of Adam"] = 0.9
    adam_epsilon: Annotated[Positive, "of Adam"] = 1e-8
    discount: Annotated[Fraction, "γ"] = 0.99
    noise: Annotated[Fraction, "σ of the actions at the end, in the scale of −1..1"] = 0.3
    noise_fraction: Annotated[Fraction, "of the budget, until σ has fallen from 1 to that"] = 0.0
    slope_clip: Annotated[NonNegative, "entries of ∂Q/∂a are clipped to ± this; 0 leaves them"] = 1.0
    max_grad_norm: Annotated[Positive, "gradients are clipped to this norm"] = 40.0
    hidden: Annotated[tuple[PositiveInt, ...], "units per layer, of the actor and of the critic"] = (256, 256)

    def experience(self) -> Experience:
        if self.v_min >= self.v_max:
            raise BadJob(f"v_min = {self.v_min} is not below v_max = {self.v_max}; returns lie between them")
        draws, alpha = self.samples_per_insert, self.priority_exponent
        items = Items("items", self.batch_size, self.n_step, samples_per_insert=draws, alpha=alpha)
        return Experience(self.unroll, (items,), self.capacity, self.min_size)


def loss(
    logits: Tensor, target: Tensor, support: Tensor, importance: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The critic's summed loss, KL [n] of each item, and sums for the first six of FIGURES.

    Args:
        logits, target: of Z and m, [n, atoms].
        importance, weight: [n]; weight 0 never happened.
    """
    kl = cross_entropy(logits, target) - entropy(target)
    summed = weighted(weight * importance, kl)
    figures = (kl, expectation(logits, support), target @ support, edge_mass(target), importance)
    return summed, kl.detach(), [summed.detach(), *((weight * x.detach()).sum() for x in figures)]


def policy(config: Config, spec: Spec, rules: Rules | None) -> Player:
    """Raises Unsuited where actions are not continuous."""
    if spec.actions.kind != "box":
        raise Unsuited(
            f"D4PG needs a box of continuous actions, and {spec.id} has {spec.actions.kind} ones; use a method for "
            "these, as Rainbow or PPO"
        )
    net = ActorWithCritic(spec, tuple(config.hidden), config.atoms)
    return DeterministicPolicy(net, spec.actions, net.critics if config.priority_exponent else None)


def exploration(config: Config, columns: Array, total: int, progress: float) -> Array:
    """σ [b] of the Gaussian noise on actions."""
    return falling_noise(columns, progress, config.noise, config.noise_fraction)


def returns(config: Config, reward: Tensor, discount: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Σ_{k<N} γᵏ r_k, γᴺ, and the row of x_N, each [n]."""
    return n_step_return(config.reward_scale * reward, config.discount * discount, valid)


def annotate(config: Config, rows: Tree) -> dict[str, Array] | None:
    """First priorities KL [n] of items [L, n], from the networks that acted, which are the targets' as well to them."""
    if not config.priority_exponent:
        return None
    names = ("reward", "discount", "first", "extras/critic_action", "extras/critic_policy")
    reward, discount, first, taken, greedy = (to_device(rows[name], "cpu") for name in names)
    total, factor, row = returns(config, reward.nan_to_num(0.0, 0.0, 0.0), discount, ~first[1:])
    behind = torch.softmax(greedy[row, torch.arange(len(row))], -1)
    m = projected(behind, total, factor, atoms(config.v_min, config.v_max, config.atoms))
    return {"priority": to_host((cross_entropy(taken[0], m) - entropy(m)).clamp(min=0.0))}


class Learner(base.Learner):
    """One update = one step of the critic and one of the actor on one batch of items."""

    def __init__(self, config: Config, spec: Spec, rules: Rules | None, policy: Player, group: Group) -> None:
        self.config, self.policy, self.group, self.net = config, policy, group, policy.net
        self.weights = flatten(self.net)
        group.broadcast_(self.weights.data)
        self.target_net = deepcopy(self.net)
        self.target = flatten(self.target_net)
        self.support = atoms(config.v_min, config.v_max, config.atoms, self.weights.data.device)
        adam = (config.adam_epsilon, 0.999, config.beta_1)
        actor, critic = (self.weights.part(net) for net in (self.net.actor, self.net.critics))
        self.optimizers = {
            "actor": make_optimizer(actor, "adam", config.actor_learning_rate, *adam),
            "critic": make_optimizer(critic, "adam", config.critic_learning_rate, *adam),
        }
        self.rounds = 0

    def update(self, batches: Mapping[str, Trajectory], progress: float) -> UpdateResult:
        config, batch = self.config, batches["items"]
        x, weight, count = batch.observation[0], batch.valid[0].float(), int(batch.valid[0].sum())
        importance = importance_weights(batch.chance, config.importance_exponent)
        logits = self.net.critics(x, batch.action[0])[0]
        summed, kl, sums = loss(logits, self._target(batch), self.support, importance, weight)
        norm = self.group.apply_gradients(self.optimizers["critic"], summed, count, config.max_grad_norm)
        policy_norm, summed = 0.0, self._actor_loss(x, weight)
        if norm < inf:  # the same on every member; else the critic's step was dropped
            policy_norm = self.group.apply_gradients(self.optimizers["actor"], summed, count, config.max_grad_norm)
            self._step_targets()
        totals = [to_device(y, "cpu") for y in (*sums, -summed.detach())]
        metrics = means(self.group, FIGURES, torch.stack([*totals, torch.tensor(float(count))]))
        metrics |= {"grad_norm": norm, "policy_grad_norm": policy_norm}
        return UpdateResult(metrics, kl.clamp(min=0.0) if config.priority_exponent else None)

    def _actor_loss(self, observation: Tensor, weight: Tensor) -> Tensor:
        """−Σ w Q(x, π(x; θ)), of which ∂Q/∂a is clipped; a step of the actor takes no gradient of the critic."""
        action, limit = self.net.actor(observation), self.config.slope_clip
        if limit:
            action.register_hook(lambda slope: slope.clamp(-limit, limit))
        return -weighted(weight, expectation(self.net.critics(observation, action)[0], self.support))

    def _step_targets(self) -> None:
        self.rounds += 1
        if self.rounds % self.config.target_every == 0:
            polyak_(self.target, self.weights, self.config.tau)

    @torch.no_grad()
    def _target(self, batch: Trajectory) -> Tensor:
        """m [n, atoms]."""
        total, factor, row = returns(self.config, batch.reward, batch.discount, batch.valid)
        behind = item_rows(batch.observation, row)
        logits = self.target_net.critics(behind, self.target_net.actor(behind))[0]
        return projected(torch.softmax(logits, -1), total, factor, self.support)

    def state(self) -> StateDict:
        return {"rounds": self.rounds, "target": self.target.data.clone()}

    def load(self, state: StateDict) -> None:
        self.rounds = int(state["rounds"])
        self.target.data.copy_(state["target"])


ALGORITHM = base.Algorithm(config=Config, policy=policy, learner=Learner, exploration=exploration, annotate=annotate)
