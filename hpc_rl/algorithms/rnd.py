"""RND (Burda et al. 2018, arXiv 1810.12894): PPO that is also paid for observations it cannot predict yet.

A fixed random network f and a predictor f̂ see each next observation x', a stack's newest frame alone, standardised by
running moments and clipped to ±5. The bonus of a move is

    i_t = mean over features of (f̂(x') − f(x'))²                                                   (section 2.2)

divided by the running deviation of its filtered sum F_t = γ_I F_{t−1} + i_t, which runs along the time of each column
and over episodes; no mean is subtracted (section 2.4). Two values V_E and V_I share PPO's loss:

    Â = c_E Â_E + c_I Â_I,   Â_E by γ_E, cut where episodes end,   Â_I by γ_I, through their ends       (section 2.3)
    clipped surrogate of Â  +  c_v ½ (R_E − V_E)²  +  c_v ½ (R_I − V_I)²  −  c_e H(π)

and f̂ descends Σ m i / Σ m, m = 1 for a random share of the moves, so that more columns do not train it faster.

Published settings (Atari, 128 columns): unroll 128, 4 epochs × 4 minibatches, lr 1e-4, clip 0.1, γ_E 0.999, γ_I 0.99,
λ 0.95, c_E 2, c_I 1, c_e 0.001, predictor_share 0.25, warm_up 50, reward_clip 1, features 512; sticky, whole games.

What differs: gradients are clipped (`max_grad_norm`); f̂ has an optimiser of its own; minibatches are moves of all
columns, not whole columns. In the rounds of `warm_up`, whose moves only set the moments, bonuses are 0 and f̂ rests,
while the policy learns from rewards; OpenAI's acts at random there. Moments are frozen during an update. The policy is
`network` without second dense layers or recurrence. `ends_at_goal` cuts Â_I at terminations, lest agents loiter there.

Needs in extras: log_prob, and both values of the acting policy. Topologies: solo, allreduce.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from hpc_rl.algorithms import base
from hpc_rl.config import Fraction, NonNegative, NonNegativeInt, Positive, PositiveInt, Range
from hpc_rl.devices import to_device
from hpc_rl.experience import Experience, Items
from hpc_rl.formulas.losses import approximate_kl, clipped_surrogate, explained_variance, half_squared, standardized
from hpc_rl.formulas.returns import gae
from hpc_rl.nets.actions import ActionDistribution
from hpc_rl.nets.actor_critic import VALUES, ActorCritic, StochasticPolicy
from hpc_rl.nets.distillation import Distillation, FilteredScale
from hpc_rl.nets.normalizers import Normalizers, RunningMoments
from hpc_rl.optim.batches import shuffled_moves
from hpc_rl.optim.flat import StateDict, flatten
from hpc_rl.optim.group import Group, means, shared_seed
from hpc_rl.optim.optimizers import annealed, make_optimizer
from hpc_rl.types import Leaf, Rules, Schema, Spec, Trajectory, UpdateResult

FIGURES = ("policy_loss", "value_loss", "intrinsic_value_loss", "entropy", "clip_fraction", "kl")
STREAMS = ("bonus", "intrinsic_reward", "intrinsic_return", "extrinsic_reward", "extrinsic_return")
TOPOLOGIES = ("solo", "allreduce")
EXTRAS: Schema = {
    "log_prob": Leaf((), "float32", "step", "nat", "log-probability of the action under the acting weights"),
    "value": Leaf((), "float32", "step", "", "V_E(x) of the acting weights"),
    "intrinsic_value": Leaf((), "float32", "step", "", "V_I(x) of the acting weights"),
}


@dataclass(frozen=True)
class Config:
    unroll: Annotated[PositiveInt, "T, moves per column and round"] = 128
    epochs: Annotated[PositiveInt, "passes over a batch"] = 4
    minibatches: Annotated[PositiveInt, "optimiser steps per epoch, of the policy and of the predictor"] = 4
    learning_rate: Annotated[Positive, "of both optimisers, at the start"] = 1e-4
    anneal: Annotated[bool, "learning rate falls linearly to 0 over the budget"] = False
    epsilon: Annotated[Positive, "of Adam"] = 1e-5
    clip: Annotated[Positive, "ε, of π/π_old"] = 0.1
    discount: Annotated[Fraction, "γ_E, of the environment's rewards"] = 0.999
    intrinsic_discount: Annotated[Fraction, "γ_I, of bonuses"] = 0.99
    lambda_: Annotated[Fraction, "λ of GAE, of both"] = 0.95
    extrinsic_weight: Annotated[NonNegative, "c_E, of advantages of rewards"] = 2.0
    intrinsic_weight: Annotated[NonNegative, "c_I, of advantages of bonuses; 0 is PPO with two values"] = 1.0
    ends_at_goal: Annotated[bool, "a termination ends the stream of bonuses, too"] = False
    warm_up: Annotated[NonNegativeInt, "rounds at the start that only set the moments of observations"] = 1
    predictor_share: Annotated[float, Range(0, 1, open_low=True), "of the moves, which the predictor learns from"] = 1.0
    features: Annotated[PositiveInt, "F, outputs of the random network"] = 512
    embedding: Annotated[tuple[PositiveInt, ...], "its units per layer for vector observations"] = (128, 128)
    entropy_cost: Annotated[NonNegative, "c_e, weight of the entropy in the loss"] = 0.001
    value_cost: Annotated[NonNegative, "c_v, weight of each value's loss"] = 0.5
    max_grad_norm: Annotated[Positive, "gradients are clipped to this norm"] = 0.5
    normalize_advantage: Annotated[bool, "Â, over the global batch"] = False
    reward_clip: Annotated[NonNegative, "rewards are clipped to ± this; 0 leaves them raw"] = 0.0
    normalize_observation: Annotated[bool, "the policy's observations, by running moments; vectors only"] = False
    normalize_reward: Annotated[bool, "rewards, by the running spread of filtered returns"] = False
    network: Annotated[Literal["nature", "shallow"], "the policy's convolutions, for images"] = "nature"
    hidden: Annotated[tuple[PositiveInt, ...], "the policy's units per layer for vector observations"] = (64, 64)
    initial_std: Annotated[Positive, "σ of a box's actions at the start, in the scale of −1..1"] = 1.0

    def experience(self) -> Experience:
        return Experience(self.unroll, (Items("items", 0),), passes=self.epochs, minibatches=self.minibatches)


@dataclass(frozen=True)
class Samples:
    """What both losses need, [n, …] without order; weight 0 never happened."""

    observation: Tensor
    action: Tensor
    log_prob: Tensor
    advantage: Tensor  # Â
    target: Tensor  # R_E and R_I [n, 2]
    weight: Tensor
    frame: Tensor  # x' [n, *frame], raw
    features: Tensor  # f(x') [n, F]

    def at(self, index: Tensor) -> Samples:
        """The moves ``index`` [m] of n, in that order."""
        index = to_device(index, self.weight.device)
        return Samples(**{name: x.index_select(0, index) for name, x in vars(self).items()})


def loss(
    config: Config, output: Tensor, value: Tensor, head: ActionDistribution, part: Samples
) -> tuple[Tensor, Tensor]:
    """Summed loss of the policy and both values [n, 2], and the sums that FIGURES names with the count behind them."""
    log_prob, entropy = head.log_prob_entropy(output, part.action)
    log_ratio = (log_prob - part.log_prob) * part.weight
    policy_loss = clipped_surrogate(log_ratio, part.advantage, part.weight, config.clip)
    of_rewards, of_bonuses = (half_squared(value[:, k], part.target[:, k], part.weight) for k in (0, 1))
    bonus = (part.weight * entropy).sum()
    total = policy_loss + config.value_cost * (of_rewards + of_bonuses) - config.entropy_cost * bonus
    clipped = (((log_ratio.exp() - 1).abs() > config.clip) * part.weight).sum()
    kl = approximate_kl(log_ratio, part.weight)
    sums = torch.stack([policy_loss, of_rewards, of_bonuses, bonus, clipped, kl, part.weight.sum()])
    return total, to_device(sums.detach(), "cpu")


def policy(config: Config, spec: Spec, rules: Rules | None) -> StochasticPolicy:
    """Acts by sampling π; remembers log π(a|x), V_E(x) and V_I(x)."""
    shape = (tuple(config.hidden), config.network, 0, config.normalize_observation, config.initial_std, len(VALUES))
    net = ActorCritic(spec, *shape)
    return StochasticPolicy(net, spec, EXTRAS, config.discount if config.normalize_reward else None)


class Learner(base.Learner):
    """One update = ``epochs`` × ``minibatches`` steps of the policy on one batch, and as many of the predictor."""

    def __init__(self, config: Config, spec: Spec, rules: Rules | None, policy: StochasticPolicy, group: Group) -> None:
        self.config, self.policy, self.group = config, policy, group
        self.weights = flatten(policy.net)
        with self.weights.data.device:
            self.novelty = novelty = Distillation(spec, tuple(config.embedding), config.features)
        self.fixed, predictor = flatten(novelty.standardize, novelty.target), flatten(novelty.predictor)
        for flat in (self.weights, self.fixed, predictor):
            group.broadcast_(flat.data)
        adam = ("adam", config.learning_rate, config.epsilon, 0.999, 0.9)
        flats = {"weights": self.weights, "predictor": predictor}
        self.optimizers = {name: make_optimizer(flat, *adam) for name, flat in flats.items()}
        self.normalizers = Normalizers(policy.net.standardize, config.normalize_reward)
        self.seen, self.bonuses = RunningMoments(spec.frame), FilteredScale(config.intrinsic_discount)
        self.seed, self.round = shared_seed(group), 0

    def update(self, batches: Mapping[str, Trajectory], progress: float) -> UpdateResult:
        config, batch = self.config, batches["items"]
        rate = annealed(config.learning_rate, progress, config.anneal)
        for optimizer in self.optimizers.values():
            optimizer.learning_rate = rate
        warming, shuffle = self.round < config.warm_up, np.random.default_rng([self.seed, self.round])
        self.round += 1
        samples, figures = self._samples(batch, warming)
        for _ in range(config.epochs):
            metrics = self._epoch(samples, batch, shuffle, 0.0 if warming else config.predictor_share)
        self.normalizers.add(batch, self.group.sum)
        for frames in torch.tensor_split(samples.frame[batch.finite.flatten()], config.minibatches):
            self.seen.add(frames, self.group.sum)
        self.seen.write(self.novelty.standardize)
        return UpdateResult({**figures, **metrics, "learning_rate": rate})

    def state(self) -> StateDict:
        moments = {"observation": self.seen.state(), "sum": self.bonuses.sums.state()}
        own = {"seed": self.seed, "round": self.round, "fixed": self.fixed.data.clone()}
        return {**own, "moments": moments, "normalizers": self.normalizers.state()}

    def load(self, state: StateDict) -> None:
        self.normalizers.load(state["normalizers"])
        self.seen.load(state["moments"]["observation"])
        self.bonuses.sums.load(state["moments"]["sum"])
        self.fixed.data.copy_(state["fixed"])
        self.seed, self.round = state["seed"], state["round"]

    def columns(self) -> dict[str, Tensor]:
        return {name: x.clone() for name, x in self.bonuses.last.items()}

    def load_columns(self, rows: dict[str, Tensor]) -> None:
        self.bonuses.last = {name: to_device(x, self.weights.data.device) for name, x in rows.items()}

    @torch.no_grad()
    def _samples(self, batch: Trajectory, warming: bool) -> tuple[Samples, dict[str, float]]:
        """Bonuses, advantages and targets of this rank's columns, and the metrics of both streams."""
        config, weight = self.config, batch.valid.float()
        frame = self.novelty.newest(batch.observation[1:]).flatten(0, 1)
        parts = [(x, self.novelty.features(x)) for x in torch.tensor_split(frame, config.minibatches)]
        bonus = torch.cat([self.novelty.error(*part) for part in parts]).reshape(weight.shape)
        intrinsic = 0 * bonus if warming else self.bonuses.scaled(bonus, weight, batch.column, self.group.sum)
        reward = self.normalizers.reward(batch, config.reward_clip)
        acting = torch.stack([batch.extras[name] for name in VALUES], -1)
        value = torch.cat([acting, self.policy.net(batch.observation[-1:])[1]])  # [T+1, b, 2]
        extrinsic = gae(reward, config.discount * batch.discount, value[..., 0], weight, config.lambda_)
        discount = config.intrinsic_discount * (batch.discount != 0 if config.ends_at_goal else torch.ones_like(reward))
        novel = gae(intrinsic, discount, value[..., 1], weight, config.lambda_, through=True)
        target = torch.stack([extrinsic, novel], -1) + value[:-1]
        advantage = config.extrinsic_weight * extrinsic + config.intrinsic_weight * novel
        if config.normalize_advantage:
            advantage = standardized(advantage, weight, self.group.mean)
        sums = [(weight * x).sum() for x in (bonus, intrinsic, target[..., 1], reward, target[..., 0])]
        figures = means(self.group, STREAMS, to_device(torch.stack([*sums, weight.sum()]), "cpu"))
        for k, name in enumerate(("explained_variance", "intrinsic_explained_variance")):
            figures[name] = float(explained_variance(value[:-1, :, k], target[..., k], weight, self.group.mean))
        acted = (batch.observation[:-1], batch.action, batch.extras["log_prob"], advantage, target, weight)
        moves = (*(x.flatten(0, 1) for x in acted), frame, torch.cat([features for _, features in parts]))
        return Samples(*moves), figures

    def _epoch(
        self, samples: Samples, batch: Trajectory, shuffle: np.random.Generator, share: float
    ) -> dict[str, float]:
        """One pass of both networks: the epoch's global means of FIGURES, and the last gradient norms."""
        group, limit = self.group, self.config.max_grad_norm
        steps, columns = batch.action.shape[:2]
        draws = shuffle.random((steps, group.size * columns))[:, group.rank * columns :][:, :columns]
        kept = to_device(np.ascontiguousarray(draws < share).ravel(), "cpu")
        totals, errors, norms = torch.zeros(len(FIGURES) + 1), torch.zeros(2), {}
        for index in shuffled_moves(group, shuffle, steps, columns, self.config.minibatches):
            summed, count = None, 0
            if len(index):  # else other ranks hold all of this minibatch
                part = samples.at(index)
                output, value, _ = self.policy.net(part.observation)
                summed, sums = loss(self.config, output, value, self.policy.head, part)
                count, totals = int(sums[-1]), totals + sums
            norms["grad_norm"] = group.apply_gradients(self.optimizers["weights"], summed, count, limit)
            summed, count, chosen = None, 0, index[kept[index]]
            if len(chosen):
                part = samples.at(chosen)
                summed = (part.weight * self.novelty.error(part.frame, part.features)).sum()
                sums = to_device(torch.stack([summed.detach(), part.weight.sum()]), "cpu")
                count, errors = int(sums[-1]), errors + sums
            norms["predictor_grad_norm"] = group.apply_gradients(self.optimizers["predictor"], summed, count, limit)
        return {**means(group, FIGURES, totals), **means(group, ("predictor_loss",), errors), **norms}


ALGORITHM = base.Algorithm(config=Config, policy=policy, learner=Learner)
