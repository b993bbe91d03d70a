"""SAC (Haarnoja et al. 2018, arXiv 1812.05905): a stochastic policy that keeps its entropy at a target.

Losses over drawn items of n moves, of which row 0 is learned from; φ⁻ are the target networks, a = tanh(μ + σ z):

    critics       Σ_i ½ (y − Q(x_0, a_0; φ_i))²,   y = Σ_{k<n} γᵏ r_k + γⁿ (min_i Q(x_n, a'; φ⁻_i) − α log π(a'|x_n))
    actor         α log π(a|x_0) − min_i Q(x_0, a; φ_i),   a drawn from π(·|x_0; θ) by its own z            (eq. 5 to 9)
    temperature   − log α (log π(a|x_0) + H̄),   H̄ = ``target_entropy`` × entries of an action               (eq. 18)

Each update is a step of the critics, one of the actor against the new critics, and one of the temperature by the same
log π; then φ⁻ ← (1 − τ) φ⁻ + τ φ. log π counts tanh's change of volume in the scale of −1..1. Exploration 1 draws from
π, 0 takes tanh μ.

With ``relabel`` a share of the items has a goal that was reached in hindsight (HER: Andrychowicz et al. 2017, arXiv
1707.01495; replay/relabel.py).

Published settings: the defaults (1 million moves; one update a move; 10 000 random moves before the first).

What differs from the paper: the temperature's loss is over log α, as in the authors' code. No random moves: π begins
with σ = 1 before tanh. Orthogonal weights. n > 1 counts only the entropy at x_n. An entry of the action without two
finite bounds stays within −1..1. z depends on the number of the update and on the item's place in the global batch.

Needs nothing in extras. Topologies: solo, allreduce, actor_replay_learner.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from math import inf, log, prod
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from hpc_rl.algorithms import base
from hpc_rl.config import BelowOne, Fraction, NonNegative, NonNegativeInt, Positive, PositiveInt, Range
from hpc_rl.devices import to_device
from hpc_rl.experience import Experience, Hindsight, Items, Unsuited, in_hindsight
from hpc_rl.formulas.continuous import critics_loss, entropy_regularized, squashed_sample, temperature_loss
from hpc_rl.formulas.q_learning import item_rows, n_step_return
from hpc_rl.nets.continuous import Critics
from hpc_rl.nets.squashed import GaussianActor, SquashedGaussianPolicy
from hpc_rl.optim.flat import Flat, Optimizer, StateDict, flatten
from hpc_rl.optim.group import Group, means, shared_seed
from hpc_rl.optim.optimizers import make_optimizer
from hpc_rl.optim.targets import placed, polyak_, shared_normals
from hpc_rl.types import Rules, Spec, Trajectory, UpdateResult

FIGURES = ("loss", "q_mean", "target_mean", "policy_loss", "entropy")
TOPOLOGIES = ("solo", "allreduce", "actor_replay_learner")


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
    tau: Annotated[float, Range(0, 1, open_low=True), "τ, how far the target networks go each update"] = 0.005
    actor_learning_rate: Annotated[Positive, "of the actor's Adam"] = 3e-4
    critic_learning_rate: Annotated[Positive, "of the critics' Adam"] = 3e-4
    temperature_learning_rate: Annotated[NonNegative, "of the temperature's Adam; 0 keeps α"] = 3e-4
    beta_1: Annotated[BelowOne, "of Adam"] = 0.9
    adam_epsilon: Annotated[Positive, "of Adam"] = 1e-8
    temperature: Annotated[Positive, "α at the beginning"] = 1.0
    target_entropy: Annotated[float, "H̄ for each entry of an action, nat"] = -1.0
    discount: Annotated[Fraction, "γ"] = 0.99
    max_grad_norm: Annotated[NonNegative, "gradients are clipped to this norm; 0 leaves them"] = 0.0
    hidden: Annotated[tuple[PositiveInt, ...], "units per layer, of the actor and of each critic"] = (256, 256)

    def experience(self) -> Experience:
        items = Items("items", self.batch_size, self.n_step, samples_per_insert=self.samples_per_insert)
        relabelled = in_hindsight(items, self.relabel, self.relabel_share)
        return Experience(self.unroll, (relabelled,), self.capacity, self.min_size)


def policy(config: Config, spec: Spec, rules: Rules | None) -> SquashedGaussianPolicy:
    """Raises Unsuited where actions are not continuous."""
    if spec.actions.kind != "box":
        raise Unsuited(
            f"SAC needs a box of continuous actions, and {spec.id} has {spec.actions.kind} ones; use a method for "
            "these, as DQN or PPO"
        )
    return SquashedGaussianPolicy(GaussianActor(spec, tuple(config.hidden)), spec.actions)


class Learner(base.Learner):
    """One update = a step of the critics, of the actor and of the temperature on one batch of items."""

    def __init__(
        self, config: Config, spec: Spec, rules: Rules | None, policy: SquashedGaussianPolicy, group: Group
    ) -> None:
        self.config, self.policy, self.group = config, policy, group
        self.weights = flatten(policy.net)
        device = self.weights.data.device
        self.critics = Critics(spec, tuple(config.hidden), 2)
        critics = flatten(placed(self.critics, device))
        self.log_temperature = Flat(torch.full((1,), log(config.temperature), device=device))
        for flat in (self.weights, critics):
            group.broadcast_(flat.data)
        self.target_critics = deepcopy(self.critics)
        self.target = flatten(self.target_critics)
        self.target_entropy = config.target_entropy * prod(spec.actions.shape)
        self.optimizers = {
            "weights": self._adam(self.weights, config.actor_learning_rate),
            "critics": self._adam(critics, config.critic_learning_rate),
            "temperature": self._adam(self.log_temperature, config.temperature_learning_rate),
        }
        self.seed, self.rounds = shared_seed(group), 0

    def _adam(self, flat: Flat, rate: float) -> Optimizer:
        return make_optimizer(flat, "adam", rate, self.config.adam_epsilon, 0.999, self.config.beta_1)

    def update(self, batches: Mapping[str, Trajectory], progress: float) -> UpdateResult:
        batch, limit = batches["items"], self.config.max_grad_norm or inf
        observation, weight, count = batch.observation[0], batch.valid[0].float(), int(batch.valid[0].sum())
        z, alpha = self._draw(batch), self.log_temperature.data.exp()
        q = self.critics(observation, batch.action[0])
        summed, sums = critics_loss(q, self._target(batch, alpha, z[0]), weight)
        norm = self.group.apply_gradients(self.optimizers["critics"], summed, count, limit)
        policy_norm, policy_sums = 0.0, [torch.zeros(()), torch.zeros(())]
        if norm < inf:  # the same on every member
            summed, log_prob = self._actor_loss(observation, alpha, z[1], weight)
            policy_norm = self.group.apply_gradients(self.optimizers["weights"], summed, count, limit)
            entropy = -(weight * log_prob).sum()
            policy_sums = [to_device(x, "cpu") for x in (summed.detach(), entropy)]
            summed = temperature_loss(self.log_temperature.parameter, log_prob, self.target_entropy, weight)
            self.group.apply_gradients(self.optimizers["temperature"], summed, count, inf)
            polyak_(self.target, self.optimizers["critics"].flat, self.config.tau)
        self.rounds += 1
        metrics = means(self.group, FIGURES, torch.stack([*sums, *policy_sums, torch.tensor(float(count))]))
        norms = {"grad_norm": norm, "policy_grad_norm": policy_norm}
        return UpdateResult({**metrics, **norms, "temperature": float(alpha)})

    def _draw(self, batch: Trajectory) -> Tensor:
        """z [2, n, K] of this update: of the target's actions, and of the actor's."""
        draw, (items, *shape) = np.random.default_rng([self.seed, self.rounds]), batch.action.shape[1:]
        return to_device(shared_normals(self.group, draw, items, (2, prod(shape))).movedim(1, 0), batch.reward.device)

    def _actor_loss(self, observation: Tensor, alpha: Tensor, z: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Summed loss of the actor, and log π [n] of the actions drawn by z [n, K], without a gradient."""
        mean, log_std = self.policy.net(observation)
        action, log_prob = squashed_sample(mean, log_std, z)
        q = self.critics(observation, action).amin(0)
        return entropy_regularized(log_prob, q, alpha, weight), log_prob.detach()

    @torch.no_grad()
    def _target(self, batch: Trajectory, alpha: Tensor, z: Tensor) -> Tensor:
        """y [n]."""
        total, factor, row = n_step_return(batch.reward, self.config.discount * batch.discount, batch.valid)
        behind = item_rows(batch.observation, row)
        mean, log_std = self.policy.net(behind)
        action, log_prob = squashed_sample(mean, log_std, z)
        value: Tensor = self.target_critics(behind, action).amin(0) - alpha * log_prob
        return total + factor * value

    def state(self) -> StateDict:
        return {"seed": self.seed, "rounds": self.rounds, "target": self.target.data.clone()}

    def load(self, state: StateDict) -> None:
        self.seed, self.rounds = int(state["seed"]), int(state["rounds"])
        self.target.data.copy_(state["target"])


ALGORITHM = base.Algorithm(config=Config, policy=policy, learner=Learner)
