"""IMPALA (Espeholt et al. 2018, arXiv 1802.01561): actor-critic on late trajectories, corrected by V-trace.

Loss over valid moves, with v_s and the advantage Â_s from V-trace (formulas/returns.py, eq. 1):

    − log π(a_s|x_s) Â_s  +  c_v ½ (v_s − V(x_s))²  −  c_e H(π(·|x_s))

Published settings (Table G.1, Atari), in the fields of Config: unroll 20, 32 columns a batch, rmsprop_inside, decay
0.99, epsilon 0.01, learning_rate 6e-4 annealed to 0, loss "sum", max_grad_norm 40, entropy_cost 0.01, value_cost 0.5,
discount 0.99, reward_clip 1; of the environment, `life_loss_ends = true`.

What differs: the defaults are Adam on the mean with gradients clipped at 0.5, which learn the shipped jobs in fewer env
steps. RMSProp's v begins with 0. No network takes the last action and reward as inputs, as the paper's with an LSTM do,
and its deep residual one is not here; nor is population-based training.

``replay`` mixes in fragments that this learner has seen before, chosen uniformly (section 5.2.2; its share there 0.5).
``correction = "none"`` takes late data for fresh, the baseline of Table 2.

``passes`` > 1 reuses a batch, which needs ``surrogate_clip``: that is APPO (Sample Factory, RLlib), V-trace's targets
with PPO's clip of π/μ. One pass without a clip is the paper.

Needs in extras: log_prob, log μ(a|x) of the version that acted. Topologies: actor_learner; also solo and allreduce.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from hpc_rl.algorithms import base
from hpc_rl.config import BelowOne, Fraction, NonNegative, NonNegativeInt, Positive, PositiveInt, Range
from hpc_rl.devices import to_device
from hpc_rl.experience import Experience, Items
from hpc_rl.formulas.losses import clipped_surrogate, half_squared, policy_gradient
from hpc_rl.formulas.returns import vtrace
from hpc_rl.nets.actions import ActionDistribution
from hpc_rl.nets.actor_critic import ActorCritic, StochasticPolicy
from hpc_rl.optim.flat import StateDict, flatten
from hpc_rl.optim.group import Group, means
from hpc_rl.optim.optimizers import annealed, make_optimizer
from hpc_rl.optim.trajectories import batch_of, concatenate, moved, rows_of
from hpc_rl.types import Leaf, Rules, Schema, Spec, Trajectory, UpdateResult

FIGURES = ("policy_loss", "value_loss", "entropy", "rho", "clipped")
TOPOLOGIES = ("actor_learner", "solo", "allreduce")
EXTRAS: Schema = {
    "log_prob": Leaf((), "float32", "step", "nat", "log-probability of the action under the acting weights")
}


@dataclass(frozen=True)
class Config:
    unroll: Annotated[PositiveInt, "T, moves per fragment"] = 20
    batch_columns: Annotated[NonNegativeInt, "columns per update on actor_learner; 0 takes one actor's share"] = 0
    minibatches: Annotated[PositiveInt, "optimiser steps per pass, each on its share of the columns"] = 1
    passes: Annotated[PositiveInt, "times that a batch is learned from; V-trace corrects for the growing distance"] = 1
    learning_rate: Annotated[Positive, "of the optimiser, at the start"] = 6e-4
    anneal: Annotated[bool, "learning rate falls linearly to 0 over the budget"] = True
    optimizer: Annotated[Literal["adam", "rmsprop", "rmsprop_inside"], "rmsprop_inside: ε inside the root"] = "adam"
    epsilon: Annotated[Positive, "of the optimiser"] = 1e-5
    decay: Annotated[BelowOne, "RMSProp's α or Adam's β₂"] = 0.99
    momentum: Annotated[BelowOne, "RMSProp's momentum or Adam's β₁"] = 0.0
    loss: Annotated[Literal["mean", "sum"], "of the terms over T·B"] = "mean"
    discount: Annotated[Fraction, "γ"] = 0.99
    lambda_: Annotated[Fraction, "λ, leak of the traces c"] = 1.0
    surrogate_clip: Annotated[NonNegative, "clips π/μ as PPO does (APPO); 0 is the paper's policy gradient"] = 0.0
    correction: Annotated[Literal["vtrace", "none"], "none takes late data for fresh"] = "vtrace"
    rho_bar: Annotated[Positive, "ρ̄, clips the importance ratio of a move"] = 1.0
    c_bar: Annotated[Positive, "c̄, clips the ratios that a trace is made of"] = 1.0
    entropy_cost: Annotated[NonNegative, "c_e, weight of the entropy in the loss"] = 0.01
    value_cost: Annotated[NonNegative, "c_v, weight of the value's loss"] = 0.5
    max_grad_norm: Annotated[Positive, "gradients are clipped to this norm"] = 0.5
    replay: Annotated[float, Range(0, 0.9), "share of each batch taken from a queue of earlier columns"] = 0.0
    replay_columns: Annotated[PositiveInt, "columns of one fragment each that this learner's queue holds"] = 1000
    normalize_advantage: Annotated[bool, "advantages / their root mean square over the global minibatch"] = False
    reward_clip: Annotated[NonNegative, "rewards are clipped to ± this; 0 leaves them raw"] = 1.0
    network: Annotated[Literal["nature", "shallow"], "convolutions, for images"] = "nature"
    hidden: Annotated[tuple[PositiveInt, ...], "units per layer for vector observations"] = (64, 64)
    lstm: Annotated[NonNegativeInt, "units of a recurrent layer; 0 has none"] = 0
    initial_std: Annotated[Positive, "σ of a box's actions at the start, in the scale of −1..1"] = 1.0

    def experience(self) -> Experience:
        return Experience(
            self.unroll,
            (Items("items", self.batch_columns),),
            queue=self.replay_columns if self.replay else 0,
            passes=self.passes,
            minibatches=self.minibatches,
            split="columns",
        )


def loss(
    config: Config, output: Tensor, value: Tensor, head: ActionDistribution, batch: Trajectory, group: Group
) -> tuple[Tensor, list[Tensor]]:
    """Summed loss and the sums that FIGURES names, of one minibatch, for network outputs [T+1, b, P] and [T+1, b]."""
    weight = batch.valid.float()
    log_prob, entropy = head.log_prob_entropy(output[:-1], batch.action)
    log_ratio = (log_prob - batch.extras["log_prob"]) * weight
    late = log_ratio if config.correction == "vtrace" else torch.zeros_like(log_ratio)
    reward = batch.reward.clamp(-config.reward_clip, config.reward_clip) if config.reward_clip else batch.reward
    with torch.no_grad():
        target, rho, advantage = vtrace(
            late,
            reward,
            config.discount * batch.discount,
            value,
            weight,
            config.rho_bar,
            config.c_bar,
            config.lambda_,
        )
        if config.normalize_advantage:
            spread = group.mean((weight * advantage.square()).sum(), weight.sum()).sqrt()
            advantage = advantage / (spread + 1e-5)
    if config.surrogate_clip:
        policy_loss = clipped_surrogate(log_ratio, advantage, weight, config.surrogate_clip)
    else:
        policy_loss = policy_gradient(log_prob, rho * advantage, weight)
    value_loss = half_squared(value[:-1], target, weight)
    bonus = (weight * entropy).sum()
    total = policy_loss + config.value_cost * value_loss - config.entropy_cost * bonus
    clipped = (late > math.log(1.01 * config.rho_bar)) * weight  # not by rounding
    return total, [to_device(x.detach().sum(), "cpu") for x in (policy_loss, value_loss, bonus, rho * weight, clipped)]


def policy(config: Config, spec: Spec, rules: Rules | None) -> StochasticPolicy:
    """Acts by sampling π; remembers log μ(a|x) for V-trace."""
    net = ActorCritic(spec, tuple(config.hidden), config.network, config.lstm, std=config.initial_std)
    return StochasticPolicy(net, spec, EXTRAS)


def alternate_columns(group: Group, columns: int, count: int) -> list[slice]:
    """``count`` minibatches, to which all members' columns go in turn: of each, this member's own columns."""
    low = group.rank * columns
    return [slice((k - low) % count, None, count) for k in range(count)]


class Learner(base.Learner):
    """One update = ``passes`` over the batch, each in ``minibatches`` steps on columns in turn."""

    def __init__(self, config: Config, spec: Spec, rules: Rules | None, policy: StochasticPolicy, group: Group) -> None:
        self.config, self.policy, self.group = config, policy, group
        self.weights = flatten(policy.net)
        group.broadcast_(self.weights.data)
        rates = (config.optimizer, config.learning_rate, config.epsilon, config.decay, config.momentum)
        self.optimizer = make_optimizer(self.weights, *rates)
        self.optimizers = {"weights": self.optimizer}
        self.seed, self.round, self.queue = int(torch.randint(2**31, (1,))), 0, list[Trajectory]()

    def update(self, batches: Mapping[str, Trajectory], progress: float) -> UpdateResult:
        config, batch = self.config, self._mixed(batches["items"])
        rate = annealed(config.learning_rate, progress, config.anneal)
        self.optimizer.learning_rate = rate
        moves, columns = batch.action.shape[:2]
        nominal = moves * columns * self.group.size / config.minibatches
        scale = nominal if config.loss == "sum" else 1.0
        totals, norm = torch.zeros(len(FIGURES) + 1), 0.0
        parts = alternate_columns(self.group, columns, config.minibatches)
        for part in [batch.columns(own) for own in parts] * config.passes:
            if not len(part.column):  # the other ranks hold all of this minibatch
                summed, samples = None, 0
                if config.normalize_advantage:
                    self.group.mean(torch.zeros(()), torch.zeros(()))
            else:
                output, value, _ = self.policy.net(part.observation, part.first, part.carry.get("lstm"))
                summed, figures = loss(config, output, value, self.policy.head, part, self.group)
                samples = int(part.valid.sum())
                totals += torch.stack([*figures, torch.tensor(float(samples))])
            norm = self.group.apply_gradients(self.optimizer, summed, samples, config.max_grad_norm, scale)
        return UpdateResult({**means(self.group, FIGURES, totals), "grad_norm": norm, "learning_rate": rate})

    def _mixed(self, batch: Trajectory) -> Trajectory:
        """The fresh columns with their share of earlier ones, which this learner draws from its own queue."""
        config, fresh = self.config, batch.action.shape[1]
        count = min(round(fresh * config.replay / (1 - config.replay)), len(self.queue))
        draw = np.random.default_rng([self.seed, self.group.rank, self.round])
        replayed = [self.queue[k] for k in draw.choice(len(self.queue), count, replace=False)] if count else []
        self.round += 1
        if config.replay:
            self.queue += [
                concatenate([batch.columns(slice(k, k + 1))]) for k in range(fresh)
            ]  # copies: messages are reused
            self.queue = self.queue[-config.replay_columns :]
        return concatenate([batch, *replayed]) if replayed else batch

    def state(self) -> StateDict:
        return {"seed": self.seed, "round": self.round}

    def load(self, state: StateDict) -> None:
        self.seed, self.round = state["seed"], state["round"]

    def columns(self) -> dict[str, Tensor]:
        return rows_of(concatenate(self.queue)) if self.queue else {}

    def load_columns(self, rows: dict[str, Tensor]) -> None:
        batch = moved(batch_of(rows), self.weights.data.device)
        self.queue = [concatenate([batch.columns(slice(k, k + 1))]) for k in range(len(batch.column))]


ALGORITHM = base.Algorithm(config=Config, policy=policy, learner=Learner)
