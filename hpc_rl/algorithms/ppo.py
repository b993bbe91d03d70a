"""PPO (Schulman et al. 2017, arXiv 1707.06347): several epochs on one batch, held near the acting policy by a clip.

Loss over valid moves, r = π/π_old, Â from GAE (eq. 11) normalised over the *global* batch, R = Â + V_old:

    − min(r Â, clip(r, 1−ε, 1+ε) Â)  +  c_v ½ (R − V)²  −  c_e H(π)          (eq. 7 and 9)

A minibatch is a part of one permutation of the global batch's (time, column) pairs that all ranks share, equally many
of each column; each rank takes what it holds, perhaps nothing, and still joins the reduction: results do not depend on
the number of ranks.

Published settings (Atari): T 128, 8 columns, 3-4 epochs × 4 minibatches, lr 2.5e-4 annealed to 0, ε 0.1, γ 0.99,
λ 0.95, c_v 0.5, c_e 0.01, clip 0.5, Adam ε 1e-5, rewards clipped to ±1.

Needs in extras: log_prob and value of the acting policy. Topologies: solo, allreduce.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from hpc_rl.algorithms.base import (
    Algorithm,
    Flat,
    Group,
    Optimizer,
    State,
    load_optimizer,
    optimizer_state,
)
from hpc_rl.formulas.policy_gradient import approximate_kl, clipped_surrogate
from hpc_rl.formulas.returns import gae
from hpc_rl.formulas.value import clipped_half_squared, explained_variance, half_squared
from hpc_rl.nets.actions import Head
from hpc_rl.nets.actor_critic import ActorCritic
from hpc_rl.types import Act, Leaf, Schema, Spec, Step, Trajectory, Update

TOPOLOGIES = ("solo", "allreduce")


@dataclass(frozen=True)
class Config:
    unroll: int = 128  # T, moves per column and round, >= 1
    epochs: int = 4  # passes over a batch, >= 1
    minibatches: int = 4  # optimiser steps per epoch, >= 1
    learning_rate: float = 2.5e-4  # > 0
    anneal: bool = True  # learning rate falls linearly to 0 over the budget
    epsilon: float = 1e-5  # > 0, Adam's
    clip: float = 0.1  # > 0
    value_clip: float = 0.0  # >= 0, 0 leaves the value loss unclipped
    discount: float = 0.99  # γ, 0..1
    lambda_: float = 0.95  # 0..1, GAE
    entropy_cost: float = 0.01  # >= 0
    value_cost: float = 0.5  # >= 0
    max_grad_norm: float = 0.5  # > 0
    normalize_advantage: bool = True  # over the global batch
    target_kl: float = 0.0  # >= 0 nat, ends a round early once an epoch's mean KL passes it; 0 never does
    reward_clip: float = 0.0  # >= 0, 0 leaves rewards raw
    network: str = "nature"  # nature | shallow, for images
    hidden: tuple[int, ...] = (64, 64)  # units per layer for vector observations


@dataclass(frozen=True)
class Samples:
    """Moves without their order: everything the loss needs, [n, …]; weight is 0 for moves that never happened."""

    observation: Tensor
    action: Tensor
    log_prob: Tensor
    value: Tensor
    advantage: Tensor
    target: Tensor
    weight: Tensor

    def at(self, index: Tensor) -> Samples:
        """The samples ``index`` [m], in that order."""
        index = index.to(self.observation.device)
        return Samples(*(_taken(getattr(self, name), index) for name in self.__dataclass_fields__))


def _taken(rows: Tensor, index: Tensor) -> Tensor:
    """Rows ``index`` [m]; images by whole runs of memory, six times faster than element by element."""
    if rows.dim() < 4:
        return rows.index_select(0, index)
    return rows.movedim(1, -1).index_select(0, index).movedim(-1, 1)


def loss(config: Config, output: Tensor, value: Tensor, head: Head, part: Samples) -> tuple[Tensor, dict[str, Tensor]]:
    """Summed loss and summed figures of one minibatch, for network outputs [n, P] and [n]."""
    log_prob, entropy = head.log_prob_entropy(output, part.action)
    log_ratio = (log_prob - part.log_prob) * part.weight
    policy_loss = clipped_surrogate(log_ratio, part.advantage, part.weight, config.clip)
    if config.value_clip:
        value_loss = clipped_half_squared(value, part.value, part.target, part.weight, config.value_clip)
    else:
        value_loss = half_squared(value, part.target, part.weight)
    bonus = (part.weight * entropy).sum()
    total = policy_loss + config.value_cost * value_loss - config.entropy_cost * bonus
    clipped = ((log_ratio.exp() - 1).abs() > config.clip) * part.weight
    figures = {"policy_loss": policy_loss, "value_loss": value_loss, "entropy": bonus, "clip_fraction": clipped.sum()}
    figures["kl"] = approximate_kl(log_ratio, part.weight)
    return total, {name: x.detach() for name, x in figures.items()}


class Policy:
    """Acts by sampling π; remembers log π(a|x) and V(x)."""

    extras: ClassVar[Schema] = {
        "log_prob": Leaf((), "float32", "step", "nat", "log-probability of the action under the acting weights"),
        "value": Leaf((), "float32", "step", "", "V(x) of the acting weights"),
    }
    carry: ClassVar[Schema] = {}

    def __init__(self, config: Config, spec: Spec) -> None:
        self.net = ActorCritic(spec, tuple(config.hidden), config.network)
        self.head = Head(spec.actions)
        self.noise = self.head.noise

    def initial_carry(self, columns: int) -> dict[str, Tensor]:
        return {}

    @torch.no_grad()
    def act(self, step: Step, carry: dict[str, Tensor], exploration: Tensor, noise: Tensor) -> Act:
        output, value = self.net(step.observation)
        action = self.head.sample(output, noise, exploration)
        log_prob, _ = self.head.log_prob_entropy(output, action)
        return Act(action, carry, {"log_prob": log_prob, "value": value})


class Learner:
    """One update = ``epochs`` × ``minibatches`` optimiser steps on one batch."""

    def __init__(self, config: Config, spec: Spec, policy: Policy, group: Group) -> None:
        self.config, self.policy, self.group = config, policy, group
        self.flat = Flat(policy.net)
        group.broadcast_(self.flat.parameter.data)
        adam = torch.optim.Adam([self.flat.parameter], config.learning_rate, eps=config.epsilon, fused=True)
        self.optimizer = Optimizer(self.flat, adam)
        shared = torch.randint(2**31, (1,)).double()
        group.broadcast_(shared)
        self.seed, self.round = int(shared), 0

    def update(self, batch: Trajectory, progress: float) -> Update:
        config = self.config
        rate = config.learning_rate * (1 - progress if config.anneal else 1.0)
        self.optimizer.torch.param_groups[0]["lr"] = rate
        samples = self._samples(batch)
        shuffle = np.random.default_rng([self.seed, self.round])
        self.round += 1
        norm, steps = 0.0, 0
        totals = torch.zeros(0)
        names: list[str] = []
        for _ in range(config.epochs):
            totals, names, norm = self._epoch(samples, batch, shuffle)
            steps += config.minibatches
            if config.target_kl and float(totals[names.index("kl")] / totals[-1]) > config.target_kl:
                break
        means = {name: float(x / totals[-1]) for name, x in zip(names, totals, strict=False)}
        variance = float(explained_variance(samples.value, samples.target, samples.weight, self.group.mean))
        return Update(
            {**means, "grad_norm": norm, "learning_rate": rate, "explained_variance": variance, "steps": float(steps)}
        )

    def state(self) -> State:
        return {
            "parameters": self.flat.parameter.data.clone(),
            "optimizer": optimizer_state(self.optimizer),
            "seed": self.seed,
            "round": self.round,
        }

    def load(self, state: State) -> None:
        self.flat.parameter.data.copy_(state["parameters"])
        load_optimizer(self.optimizer, state["optimizer"])
        self.seed, self.round = state["seed"], state["round"]

    def _epoch(
        self, samples: Samples, batch: Trajectory, shuffle: np.random.Generator
    ) -> tuple[Tensor, list[str], float]:
        """One pass: the epoch's global sums (the last is the count), their names, the last gradient norm."""
        config, totals, names, norm = self.config, torch.zeros(1), [""], 0.0
        for index in self._minibatches(batch, shuffle):
            summed, count = None, 0
            if len(index):
                part = samples.at(index)
                output, value = self.policy.net(part.observation)
                summed, figures = loss(config, output, value, self.policy.head, part)
                count = int(part.weight.sum())
                names = list(figures)
                totals = totals + torch.stack([*figures.values(), part.weight.sum()]).cpu()
            norm = self.group.apply_gradients(self.optimizer, summed, count, config.max_grad_norm)
        if totals.numel() == 1:  # this rank held no sample of the whole epoch; the reduction still wants its zeros
            names = ["policy_loss", "value_loss", "entropy", "clip_fraction", "kl"]
            totals = torch.zeros(len(names) + 1)
        return self.group.sum(totals), names, norm

    def _minibatches(self, batch: Trajectory, shuffle: np.random.Generator) -> list[Tensor]:
        """This rank's share of each global minibatch, as indices into its flattened [T·b].

        Every column is permuted in time and gives each minibatch the same number of moves, so that ranks have equal
        work in every step: a reduction waits for the one with the most. Where moves are left over, columns take turns.
        """
        steps, mine = batch.action.shape[:2]
        count, low = self.config.minibatches, int(batch.column[0])
        width = int(self.group.sum(torch.tensor([float(mine)])))
        order = shuffle.permuted(np.tile(np.arange(steps), (width, 1)), axis=1)[low : low + mine]
        chunks = [np.array_split(times * mine + column, count) for column, times in enumerate(order)]
        turns = [[chunk[(k + low + column) % count] for column, chunk in enumerate(chunks)] for k in range(count)]
        return [torch.from_numpy(np.concatenate(parts)) for parts in turns]

    def _samples(self, batch: Trajectory) -> Samples:
        """Advantages and targets of this rank's columns, advantages normalised over the global batch."""
        config, weight = self.config, batch.valid.float()
        with torch.no_grad():
            _, last = self.policy.net(batch.observation[-1:])
            value = torch.cat([batch.extras["value"], last])
            clip = config.reward_clip
            reward = batch.reward.clamp(-clip, clip) if clip else batch.reward
            advantage = gae(reward, config.discount * batch.discount, value, weight, config.lambda_)
            target = advantage + value[:-1]
            if config.normalize_advantage:
                advantage = self._normalized(advantage, weight)
        observation = batch.observation[:-1]
        parts = (batch.action, batch.extras["log_prob"], value[:-1], advantage, target, weight)
        return Samples(observation.flatten(0, 1), *(x.flatten(0, 1) for x in parts))

    def _normalized(self, advantage: Tensor, weight: Tensor) -> Tensor:
        count = weight.sum()
        mean = self.group.mean((weight * advantage).sum(), count)
        variance = self.group.mean((weight * (advantage - mean).square()).sum(), count)
        return (advantage - mean) / (variance.sqrt() + 1e-8)


ALGORITHM = Algorithm(config=Config, policy=Policy, learner=Learner)
