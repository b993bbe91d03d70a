"""Rainbow (Hessel et al. 2018, arXiv 1710.02298): DQN with six extensions, on distributions of returns (C51).

Of drawn items of n moves row 0 is learned from. p(x, a; θ, ε) is a distribution on N atoms z of v_min … v_max and Q its
mean; the target m is that of the n-step return, brought back onto the atoms (Bellemare et al. 2017, arXiv 1707.06887):

    w KL(m ‖ p(x_0, a_0; θ, ε)),   m = Φ_z [Σ_{k<n} γᵏ r_k + γⁿ Z],   Z ~ p(x_n, a*; θ⁻, ε⁻)
    a* = argmax_a Q(x_n, a; θ, ε*)                          double Q-learning, chosen with a noise of its own
    logits = V + A − mean A, atom by atom                   dueling
    θ = μ + σ ⊙ ε                                           noisy layers, factorised (Fortunato et al. 2018, 1706.10295)
    w_i = (P_i / min P)^(−β),  P_i ∝ KL_i^ω                 prioritised (Schaul et al. 2016, arXiv 1511.05952)

β rises from importance_exponent to 1 over the budget. Every ``target_every`` updates θ⁻ ← θ. Acting is greedy under the
noise of the fragment, M uniforms of each column's stream: nothing else explores. ``exploration`` scales its normal
quantiles; 0 acts by the means μ.

ε, ε⁻ and ε* are one draw each for the whole batch and the same on all learners: stream (seed, update).

Published settings, in the fields of Config:

    Atari     Hessel 2018: v ±10, 51 atoms, rewards clipped to ±1, n 3, ω 0.5, β 0.4 → 1, σ₀ 0.5, capacity 1e6, min_size
              2e4, batch_size 32, one update in 4 env steps (samples_per_insert 8), target_every 8000, Adam 6.25e-5,
              adam_epsilon 1.5e-4
    CartPole  CleanRL's C51: v ±100, 101 atoms, n 1, Adam 2.5e-4, capacity 1e4, batch_size 128, one update in 10 env
              steps (samples_per_insert 12.8), without priorities (ω 0), noise (ε-greedy) and dueling

What differs from the paper: the noise stays for a fragment of ``unroll`` moves, between two updates, as Fortunato's
DQN; the paper does not say. Weights are at most 1 over the store, not over the batch. The dueling streams lie behind
the torso's dense layer, which has no noise. Gradients are clipped to max_grad_norm. Columns step together, so
``unroll`` moves of each come between updates. No-op starts and the end of an episode at a lost life are the
environment's (`noop_max`, `life_loss_ends`).

Needs in extras, where ω > 0, the distribution of the action taken, which is its greedy one: an item's first priority is
the KL of the policy that acted, under the noise of its rows. Topologies: solo, allreduce, actor_replay_learner.
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
from hpc_rl.config import BadJob, BelowOne, Fraction, NonNegative, NonNegativeInt, Positive, PositiveInt, Range
from hpc_rl.devices import to_device, to_host
from hpc_rl.experience import Experience, Items, Unsuited
from hpc_rl.formulas.categorical import atoms, cross_entropy, edge_mass, entropy, expectation, projected
from hpc_rl.formulas.losses import weighted
from hpc_rl.formulas.q_learning import importance_weights, item_rows, n_step_return
from hpc_rl.nets.noisy import NoisyCategoricalQ, factors
from hpc_rl.optim.flat import StateDict, flatten
from hpc_rl.optim.group import Group, means, shared_seed
from hpc_rl.optim.optimizers import annealed, make_optimizer
from hpc_rl.optim.targets import polyak_
from hpc_rl.types import ActOutput, Array, Leaf, Rules, Schema, Spec, Step, Trajectory, Tree, UpdateResult

FIGURES = ("loss", "kl", "q_mean", "target_mean", "edge_mass", "weight")
TOPOLOGIES = ("solo", "allreduce", "actor_replay_learner")


@dataclass(frozen=True)
class Config:
    unroll: Annotated[PositiveInt, "moves per column between updates"] = 4
    n_step: Annotated[PositiveInt, "n, moves of an item"] = 3
    atoms: Annotated[int, Range(2), "N, of the distribution of returns"] = 51
    v_min: Annotated[float, "the lowest atom, in units of the learned rewards"] = -10.0
    v_max: Annotated[float, "the highest atom"] = 10.0
    double: Annotated[bool, "double Q-learning"] = True
    dueling: Annotated[bool, "value and advantage streams"] = True
    sigma: Annotated[Positive, "σ₀, noise of the layers at the start"] = 0.5
    priority_exponent: Annotated[Fraction, "ω, exponent of priorities; 0 draws uniformly"] = 0.5
    importance_exponent: Annotated[Fraction, "β of importance weights at the start; 1 at the end"] = 0.4
    capacity: Annotated[PositiveInt, "of the replay, env steps over all columns"] = 100_000
    min_size: Annotated[NonNegativeInt, "env steps before the first update"] = 5_000
    batch_size: Annotated[PositiveInt, "items per update, over all learners"] = 32
    samples_per_insert: Annotated[Positive, "items drawn per env step"] = 8.0
    target_every: Annotated[PositiveInt, "updates between two copies to the target network"] = 500
    learning_rate: Annotated[Positive, "of Adam"] = 6.25e-5
    anneal: Annotated[bool, "learning rate falls linearly to 0 over the budget"] = False
    adam_epsilon: Annotated[Positive, "of Adam"] = 1.5e-4
    beta_1: Annotated[BelowOne, "of Adam"] = 0.9
    beta_2: Annotated[BelowOne, "of Adam"] = 0.999
    discount: Annotated[Fraction, "γ"] = 0.99
    max_grad_norm: Annotated[Positive, "gradients are clipped to this norm"] = 10.0
    reward_clip: Annotated[NonNegative, "rewards are clipped to ± this; 0 leaves them raw"] = 0.0
    network: Annotated[Literal["nature", "shallow"], "convolutions, for images"] = "nature"
    hidden: Annotated[tuple[PositiveInt, ...], "units per layer for vector observations"] = (128,)

    def experience(self) -> Experience:
        if self.v_min >= self.v_max:
            raise BadJob(f"v_min = {self.v_min} is not below v_max = {self.v_max}; returns lie between them")
        draws, alpha = self.samples_per_insert, self.priority_exponent
        items = Items("items", self.batch_size, self.n_step, samples_per_insert=draws, alpha=alpha)
        return Experience(self.unroll, (items,), self.capacity, self.min_size)


def loss(
    logits: Tensor, target: Tensor, support: Tensor, importance: float, batch: Trajectory
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Summed loss, KL [n] of each item, and the sums that FIGURES names.

    Args:
        logits: [n, A, N] of row 0.
        target: m [n, N].
        importance: β of this update.
    """
    valid = batch.valid[0].float()
    chosen = logits.gather(1, batch.action[0][:, None, None].expand(-1, 1, logits.shape[-1])).squeeze(1)
    kl = cross_entropy(chosen, target) - entropy(target)
    weight = importance_weights(batch.chance, importance)
    summed = weighted(valid * weight, kl)
    figures = (kl, expectation(chosen, support), target @ support, edge_mass(target), weight)
    sums = [summed, *((valid * x).sum() for x in figures)]
    return summed, kl.detach(), [to_device(x.detach(), "cpu") for x in sums]


class NoisyGreedy:
    """Takes the action of the largest mean return, under the noise of the column's fragment times ``exploration``."""

    noise = 0

    def __init__(self, net: NoisyCategoricalQ, support: Tensor, remembers: bool = False) -> None:
        self.net, self.support, self.fragment_noise = net, support, net.noise
        value = Leaf((len(support),), "float32", "step", "", "logits of the return of the action taken")
        self.extras: Schema = {"value": value} if remembers else {}
        self.carry: Schema = {}

    def initial_carry(self, columns: int) -> dict[str, Tensor]:
        return {}

    @torch.no_grad()
    def act(self, step: Step, carry: dict[str, Tensor], exploration: Tensor, noise: Tensor) -> ActOutput:
        logits = self.net(step.observation, factors(noise, exploration[:, None]))
        action = expectation(logits, to_device(self.support, logits.device)).argmax(-1)
        value = logits[torch.arange(len(action), device=action.device), action]
        return ActOutput(action, {}, {"value": value} if self.extras else {})


def policy(config: Config, spec: Spec, rules: Rules | None) -> NoisyGreedy:
    """Raises Unsuited where the environment does not offer one discrete choice."""
    if spec.actions.kind != "discrete":
        raise Unsuited(
            f"Rainbow needs one discrete choice, and {spec.id} has {spec.actions.kind} actions; use d4pg for a box, or "
            "a method that has a distribution over them"
        )
    shape = (tuple(config.hidden), config.network, config.atoms, config.dueling, config.sigma)
    support, remembers = atoms(config.v_min, config.v_max, config.atoms), config.priority_exponent > 0
    return NoisyGreedy(NoisyCategoricalQ(spec, *shape), support, remembers)


def annotate(config: Config, rows: Tree) -> dict[str, Array] | None:
    """First priorities KL [n] of items [L, n], from the distributions of the policy that acted."""
    if not config.priority_exponent:
        return None
    names = ("reward", "discount", "first", "extras/value")
    reward, discount, first, logits = (to_device(rows[name], "cpu") for name in names)
    reward, clip = reward.nan_to_num(0.0, 0.0, 0.0), config.reward_clip
    total, factor, row = n_step_return(reward, config.discount * discount, ~first[1:], clip)
    behind = torch.softmax(logits[row, torch.arange(len(row))], -1)
    m = projected(behind, total, factor, atoms(config.v_min, config.v_max, config.atoms))
    return {"priority": to_host((cross_entropy(logits[0], m) - entropy(m)).clamp(min=0.0))}


class Learner(base.Learner):
    """One update = one optimiser step on one batch of items."""

    def __init__(self, config: Config, spec: Spec, rules: Rules | None, policy: NoisyGreedy, group: Group) -> None:
        self.config, self.policy, self.group = config, policy, group
        self.weights = flatten(policy.net)
        group.broadcast_(self.weights.data)
        self.target_net = deepcopy(policy.net)
        self.target = flatten(self.target_net)
        self.support = to_device(policy.support, self.weights.data.device)
        adam = ("adam", config.learning_rate, config.adam_epsilon, config.beta_2, config.beta_1)
        self.optimizer = make_optimizer(self.weights, *adam)
        self.optimizers = {"weights": self.optimizer}
        self.seed, self.rounds = shared_seed(group), 0

    def update(self, batches: Mapping[str, Trajectory], progress: float) -> UpdateResult:
        config, batch = self.config, batches["items"]
        rate = annealed(config.learning_rate, progress, config.anneal)
        importance = 1.0 - annealed(1.0 - config.importance_exponent, progress, True)
        self.optimizer.learning_rate = rate
        online, target, choice = self._noise()
        m = self._target(batch, target, choice)
        logits = self.policy.net(batch.observation[0], online)
        summed, kl, sums = loss(logits, m, self.support, importance, batch)
        count = int(batch.valid[0].sum())
        norm = self.group.apply_gradients(self.optimizer, summed, count, config.max_grad_norm)
        self.rounds += 1
        if self.rounds % config.target_every == 0:
            polyak_(self.target, self.weights, 1.0)
        metrics = means(self.group, FIGURES, torch.stack([*sums, torch.tensor(float(count))]))
        own = {"grad_norm": norm, "learning_rate": rate, "importance": importance}
        return UpdateResult({**metrics, **own}, kl.clamp(min=0.0) if config.priority_exponent else None)

    def _noise(self) -> Tensor:
        """[3, 1, M] of this update: for the prediction, its target, and the choice of the target's action."""
        draw = np.random.default_rng([self.seed, self.rounds]).random((3, self.policy.net.noise), np.float32)
        return factors(to_device(draw, self.weights.data.device))[:, None]

    @torch.no_grad()
    def _target(self, batch: Trajectory, noise: Tensor, choice: Tensor) -> Tensor:
        """m [n, N]."""
        discount, clip = self.config.discount * batch.discount, self.config.reward_clip
        total, factor, row = n_step_return(batch.reward, discount, batch.valid, clip)
        item = torch.arange(len(row), device=row.device)
        behind = item_rows(batch.observation, row)
        logits = self.target_net(behind, noise)
        chooser = self.policy.net(behind, choice) if self.config.double else logits
        best = expectation(chooser, self.support).argmax(-1)
        return projected(torch.softmax(logits[item, best], -1), total, factor, self.support)

    def state(self) -> StateDict:
        return {"target": self.target.data.clone(), "seed": self.seed, "rounds": self.rounds}

    def load(self, state: StateDict) -> None:
        self.target.data.copy_(state["target"])
        self.seed, self.rounds = int(state["seed"]), int(state["rounds"])


ALGORITHM = base.Algorithm(config=Config, policy=policy, learner=Learner, annotate=annotate)
