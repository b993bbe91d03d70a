"""PPO (Schulman et al. 2017, arXiv 1707.06347): several epochs on one batch, held near the acting policy.

Loss over valid moves, r = π/π_old, Â from GAE (eq. 11) normalised over the *global* batch, R = Â + V_old:

    clip   − min(r Â, clip(r, 1−ε, 1+ε) Â)     (eq. 7)     or     kl   − r Â + β KL(π_old ‖ π)     (eq. 8)
    + c_v ½ (R − V)²  −  c_e H(π)                                                                    (eq. 9)

β doubles after a round whose KL, measured after its last step, exceeds 1.5 × kl_target, and halves below kl_target/1.5.
On a parameter server with a quorum this is DPPO (Heess et al. 2017, arXiv 1707.02286), whose penalty has a hinge,
+ ξ max(0, KL − 2 kl_target)², and whose round ends once KL > 4 kl_target: `hinge_cost`, `target_kl`.

A minibatch is a part of one permutation of the global batch that all ranks share: of (time, column) pairs, equally many
of each column, or of whole columns where the network is recurrent. Results do not depend on the number of ranks.

Published settings (Atari): T 128, 8 columns, 3 epochs × 4 minibatches, lr 2.5e-4 and ε 0.1 both annealed to 0
(`anneal_clip`), γ 0.99, λ 0.95, c_e 0.01, c_v 2 (its c₁ = 1 has no ½), Adam ε 1e-5, rewards clipped to ±1. The defaults
are OpenAI Baselines': 4 epochs, ε constant, c_v 0.5, gradients clipped at 0.5.

What differs: advantages are normalised over the global batch. DPPO's policy and value take each step together, not in
phases; its hinge and break see the KL after the epoch before, exact where minibatches = 1; each worker has its own β.

Needs in extras: log_prob and value of the acting policy. Topologies: solo, allreduce, parameter_server.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from hpc_rl.algorithms import base
from hpc_rl.config import Fraction, NonNegative, NonNegativeInt, Positive, PositiveInt
from hpc_rl.devices import to_device
from hpc_rl.experience import Experience, Items
from hpc_rl.formulas.losses import (
    approximate_kl,
    clipped_half_squared,
    clipped_surrogate,
    explained_variance,
    half_squared,
    kl_slope,
    standardized,
    surrogate,
)
from hpc_rl.formulas.returns import gae
from hpc_rl.nets.actions import ActionDistribution
from hpc_rl.nets.actor_critic import ActorCritic, StochasticPolicy
from hpc_rl.nets.normalizers import Normalizers
from hpc_rl.optim.batches import shuffled_columns, shuffled_moves
from hpc_rl.optim.flat import StateDict, flatten
from hpc_rl.optim.group import Group, means, shared_seed
from hpc_rl.optim.optimizers import annealed, make_optimizer
from hpc_rl.types import Leaf, Rules, Schema, Spec, Trajectory, UpdateResult

FIGURES = ("policy_loss", "value_loss", "entropy", "clip_fraction", "kl")
TOPOLOGIES = ("solo", "allreduce", "parameter_server")
EXTRAS: Schema = {
    "log_prob": Leaf((), "float32", "step", "nat", "log-probability of the action under the acting weights"),
    "value": Leaf((), "float32", "step", "", "V(x) of the acting weights"),
}


@dataclass(frozen=True)
class Config:
    unroll: Annotated[PositiveInt, "T, moves per column and round"] = 128
    epochs: Annotated[PositiveInt, "passes over a batch"] = 4
    minibatches: Annotated[PositiveInt, "optimiser steps per epoch"] = 4
    learning_rate: Annotated[Positive, "of the optimiser, at the start"] = 2.5e-4
    anneal: Annotated[bool, "learning rate falls linearly to 0 over the budget"] = True
    epsilon: Annotated[Positive, "of Adam"] = 1e-5
    objective: Annotated[Literal["clip", "kl"], "clipped ratio (eq. 7), or KL penalty (eq. 8)"] = "clip"
    clip: Annotated[Positive, "ε, of π/π_old"] = 0.1
    anneal_clip: Annotated[bool, "clip falls linearly to 0 over the budget"] = False
    kl_cost: Annotated[NonNegative, "β of the first round"] = 1.0
    kl_target: Annotated[Positive, "nat, of a round; β moves towards it"] = 0.01
    hinge_cost: Annotated[NonNegative, "ξ of the penalty on KL beyond 2 kl_target"] = 0.0
    value_clip: Annotated[NonNegative, "V is clipped to V_old ± this; 0 leaves it"] = 0.0
    discount: Annotated[Fraction, "γ"] = 0.99
    lambda_: Annotated[Fraction, "λ of GAE"] = 0.95
    entropy_cost: Annotated[NonNegative, "c_e, weight of the entropy in the loss"] = 0.01
    value_cost: Annotated[NonNegative, "c_v, weight of the value's loss"] = 0.5
    max_grad_norm: Annotated[Positive, "gradients are clipped to this norm"] = 0.5
    normalize_advantage: Annotated[bool, "advantages, over the global batch"] = True
    target_kl: Annotated[NonNegative, "nat, ends a round early once an epoch's KL passes it; 0 never does"] = 0.0
    reward_clip: Annotated[NonNegative, "rewards are clipped to ± this; 0 leaves them raw"] = 0.0
    normalize_observation: Annotated[bool, "observations, by running moments; vectors only"] = False
    normalize_reward: Annotated[bool, "rewards, by the running spread of filtered returns"] = False
    network: Annotated[Literal["nature", "shallow"], "convolutions, for images"] = "nature"
    hidden: Annotated[tuple[PositiveInt, ...], "units per layer for vector observations"] = (64, 64)
    lstm: Annotated[NonNegativeInt, "units of a recurrent layer; 0 has none"] = 0
    initial_std: Annotated[Positive, "σ of a box's actions at the start, in the scale of −1..1"] = 1.0

    def experience(self) -> Experience:
        split: Literal["moves", "columns"] = "columns" if self.lstm else "moves"
        items = (Items("items", 0),)
        return Experience(self.unroll, items, passes=self.epochs, minibatches=self.minibatches, split=split)


@dataclass(frozen=True)
class Samples:
    """What the loss needs, [n, …] without order, or [T, n, …] for a recurrent network; weight 0 never happened."""

    observation: Tensor
    first: Tensor
    action: Tensor
    log_prob: Tensor
    value: Tensor
    advantage: Tensor
    target: Tensor
    weight: Tensor
    carry: Tensor | None = None  # [n, 2 for each LSTM, H] before row 0

    def at(self, index: Tensor) -> Samples:
        """The moves ``index`` [m] of n, in that order; the columns ``index`` where there is a carry."""
        index = to_device(index, self.observation.device)
        rows = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "carry"}
        if self.carry is None:
            return Samples(**{name: x.index_select(0, index) for name, x in rows.items()})
        return Samples(**{name: x[:, index] for name, x in rows.items()}, carry=self.carry[index])


def loss(
    config: Config, output: Tensor, value: Tensor, head: ActionDistribution, part: Samples, clip: float, kl_cost: float
) -> tuple[Tensor, Tensor]:
    """Summed loss, and the sums that FIGURES names with the count behind them, for outputs [.., P] and values [..]."""
    log_prob, entropy = head.log_prob_entropy(output, part.action)
    log_ratio = (log_prob - part.log_prob) * part.weight
    kl = approximate_kl(log_ratio, part.weight)
    if config.objective == "clip":
        policy_loss = clipped_surrogate(log_ratio, part.advantage, part.weight, clip)
    else:
        policy_loss = surrogate(log_ratio, part.advantage, part.weight) + kl_cost * kl
    if config.value_clip:
        value_loss = clipped_half_squared(value, part.value, part.target, part.weight, config.value_clip)
    else:
        value_loss = half_squared(value, part.target, part.weight)
    bonus = (part.weight * entropy).sum()
    total = policy_loss + config.value_cost * value_loss - config.entropy_cost * bonus
    clipped = (((log_ratio.exp() - 1).abs() > clip) * part.weight).sum()
    sums = torch.stack([policy_loss, value_loss, bonus, clipped, kl, part.weight.sum()])
    return total, to_device(sums.detach(), "cpu")


def policy(config: Config, spec: Spec, rules: Rules | None) -> StochasticPolicy:
    """Acts by sampling π; remembers log π(a|x) and V(x)."""
    shape = (tuple(config.hidden), config.network, config.lstm, config.normalize_observation, config.initial_std)
    net = ActorCritic(spec, *shape)
    return StochasticPolicy(net, spec, EXTRAS, config.discount if config.normalize_reward else None)


class Learner(base.Learner):
    """One update = ``epochs`` × ``minibatches`` optimiser steps on one batch."""

    def __init__(self, config: Config, spec: Spec, rules: Rules | None, policy: StochasticPolicy, group: Group) -> None:
        self.config, self.policy, self.group = config, policy, group
        self.weights = flatten(policy.net)
        group.broadcast_(self.weights.data)
        self.optimizer = make_optimizer(self.weights, "adam", config.learning_rate, config.epsilon, 0.999, 0.9)
        self.optimizers = {"weights": self.optimizer}
        self.normalizers = Normalizers(policy.net.standardize, config.normalize_reward)
        self.seed, self.round, self.kl_cost = shared_seed(group), 0, config.kl_cost

    def update(self, batches: Mapping[str, Trajectory], progress: float) -> UpdateResult:
        config, batch = self.config, batches["items"]
        rate = annealed(config.learning_rate, progress, config.anneal)
        clip = annealed(config.clip, progress, config.anneal_clip)
        self.optimizer.learning_rate = rate
        samples, shuffle = self._samples(batch), np.random.default_rng([self.seed, self.round])
        self.round += 1
        steps, kl = 0, 0.0
        for _ in range(config.epochs):
            kl_cost = kl_slope(kl, self.kl_cost, config.kl_target, config.hinge_cost)
            metrics, norm = self._epoch(samples, batch, shuffle, clip, kl_cost)
            steps += config.minibatches
            kl = self._kl(samples) if config.objective == "kl" else metrics["kl"]
            if config.target_kl and kl > config.target_kl:
                break
        if config.objective == "kl":
            self.kl_cost *= 2.0 if kl > 1.5 * config.kl_target else 0.5 if kl < config.kl_target / 1.5 else 1.0
        self.normalizers.add(batch, self.group.sum)
        variance = float(explained_variance(samples.value, samples.target, samples.weight, self.group.mean))
        more = {"grad_norm": norm, "learning_rate": rate, "explained_variance": variance, "kl_cost": self.kl_cost}
        return UpdateResult({**metrics, **more, "steps": float(steps)})

    def state(self) -> StateDict:
        own = {"seed": self.seed, "round": self.round, "kl_cost": self.kl_cost}
        return {**own, "normalizers": self.normalizers.state()}

    def load(self, state: StateDict) -> None:
        self.normalizers.load(state["normalizers"])
        self.seed, self.round, self.kl_cost = state["seed"], state["round"], state["kl_cost"]

    @torch.no_grad()
    def _kl(self, samples: Samples) -> float:
        """KL(π_old ‖ π) of the present weights, over the global batch."""
        output, value, _ = self.policy.net(samples.observation, samples.first, samples.carry)
        sums = loss(self.config, output, value, self.policy.head, samples, 1.0, 0.0)[1]
        return means(self.group, FIGURES, sums)["kl"]

    def _epoch(
        self, samples: Samples, batch: Trajectory, shuffle: np.random.Generator, clip: float, kl_cost: float
    ) -> tuple[dict[str, float], float]:
        """One pass: the epoch's global means of FIGURES, and the last gradient norm."""
        totals, norm = torch.zeros(len(FIGURES) + 1), 0.0
        for index in self._minibatches(batch, shuffle):
            summed, count = None, 0
            if len(index):  # else other ranks hold all of this minibatch
                part = samples.at(index)
                output, value, _ = self.policy.net(part.observation, part.first, part.carry)
                summed, sums = loss(self.config, output, value, self.policy.head, part, clip, kl_cost)
                count = int(sums[-1])
                totals += sums
            norm = self.group.apply_gradients(self.optimizer, summed, count, self.config.max_grad_norm)
        return means(self.group, FIGURES, totals), norm

    def _minibatches(self, batch: Trajectory, shuffle: np.random.Generator) -> list[Tensor]:
        """This rank's share of each global minibatch: indices into its flattened [T·b], or columns if recurrent."""
        if self.config.lstm:
            return shuffled_columns(self.group, shuffle, batch.action.shape[1], self.config.minibatches)
        steps, columns = batch.action.shape[:2]
        return shuffled_moves(self.group, shuffle, steps, columns, self.config.minibatches)

    def _samples(self, batch: Trajectory) -> Samples:
        """Advantages and targets of this rank's columns, advantages normalised over the global batch."""
        config, weight, carry = self.config, batch.valid.float(), batch.carry.get("lstm")
        rows = slice(None) if config.lstm else slice(-1, None)  # a recurrent V(x_T) needs the rows before it
        with torch.no_grad():
            _, last, _ = self.policy.net(batch.observation[rows], batch.first[rows], carry)
            value = torch.cat([batch.extras["value"], last[-1:]])
            reward = self.normalizers.reward(batch, config.reward_clip)
            advantage = gae(reward, config.discount * batch.discount, value, weight, config.lambda_)
            target = advantage + value[:-1]
            if config.normalize_advantage:
                advantage = standardized(advantage, weight, self.group.mean)
        timed = (batch.observation[:-1], batch.first[:-1], batch.action, batch.extras["log_prob"], value[:-1])
        parts = (*timed, advantage, target, weight)
        return Samples(*parts, carry) if config.lstm else Samples(*(x.flatten(0, 1) for x in parts))


ALGORITHM = base.Algorithm(config=Config, policy=policy, learner=Learner)
