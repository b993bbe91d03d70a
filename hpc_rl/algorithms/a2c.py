"""A2C and A3C (Mnih et al. 2016, arXiv 1602.01783): an actor-critic on short, fresh trajectories.

Loss over valid moves, with n-step returns R cut at the fragment's end and Â = R − V(x):

    − log π(a|x) Â  +  c_v ½ (R − V(x))²  −  c_e H(π(·|x))          (section 4.3)

One optimiser step per batch. All ranks' gradients summed: A2C. Pushed to a parameter server as they come, with shared
RMSProp statistics: A3C. Behind central inference, where data are a little late and nothing corrects it: GA3C
(Babaeizadeh et al. 2017, arXiv 1611.06256), which takes log(π(a|x) + ε). λ < 1 replaces R by Â_GAE + V.

Published settings (Atari), in the fields of Config, rewards clipped to ±1, γ 0.99, entropy_cost 0.01, λ 1:

    A2C   OpenAI Baselines: unroll 5, 16 columns, rmsprop_inside, decay 0.99, epsilon 1e-5, learning_rate 7e-4 annealed
          to 0, value_cost 0.5, max_grad_norm 0.5, loss "mean"
    A3C   16 workers of one column: unroll 5, rmsprop_inside, decay 0.99, learning_rate 1e-4 to 1e-2 annealed to 0,
          value_cost 2 (the paper's (R − V)² has no factor), loss "sum"; its clip and ε are not given
    GA3C  its code: unroll 5, rmsprop_inside, decay 0.99, epsilon 0.1, learning_rate 3e-4 constant, log_epsilon 1e-6,
          value_cost 1, loss "sum", no clip

What differs from the papers: the default optimiser is torch's RMSProp, which adds ε to the root. A worker's columns
make one fragment of T moves each, also across the ends of games, where the papers cut a fragment at the end of a game
and have one column a worker. Workers wait for the answer to their gradient; the papers' threads overwrite each other.
GA3C's ε is in the policy's loss only, not in the entropy, and the numbers of its threads are not tuned while it runs.
No-op starts and the end of a fragment at a lost life are the environment's (`noop_max`, `life_loss_ends`).

Needs nothing in extras. Topologies: solo, allreduce; parameter_server; actor_learner.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from hpc_rl.algorithms import base
from hpc_rl.config import BelowOne, Fraction, NonNegative, NonNegativeInt, Positive, PositiveInt
from hpc_rl.devices import to_device
from hpc_rl.experience import Experience, Items
from hpc_rl.formulas.losses import guarded, half_squared, policy_gradient
from hpc_rl.formulas.returns import gae
from hpc_rl.nets.actions import ActionDistribution
from hpc_rl.nets.actor_critic import ActorCritic, StochasticPolicy
from hpc_rl.nets.normalizers import Normalizers
from hpc_rl.optim.flat import StateDict, flatten
from hpc_rl.optim.group import Group, means
from hpc_rl.optim.optimizers import annealed, make_optimizer
from hpc_rl.types import Rules, Schema, Spec, Trajectory, UpdateResult

FIGURES = ("policy_loss", "value_loss", "entropy")
TOPOLOGIES = ("solo", "allreduce", "parameter_server", "actor_learner")
EXTRAS: Schema = {}


@dataclass(frozen=True)
class Config:
    unroll: Annotated[PositiveInt, "T, moves per column and update"] = 5
    batch_columns: Annotated[NonNegativeInt, "columns per update on actor_learner; 0 takes one actor's share"] = 0
    learning_rate: Annotated[Positive, "of the optimiser, at the start"] = 7e-4
    anneal: Annotated[bool, "learning rate falls linearly to 0 over the budget"] = True
    optimizer: Annotated[Literal["rmsprop", "adam", "rmsprop_inside"], "rmsprop_inside: ε inside the root"] = "rmsprop"
    epsilon: Annotated[Positive, "of the optimiser"] = 1e-5
    decay: Annotated[BelowOne, "RMSProp's α or Adam's β₂"] = 0.99
    loss: Annotated[Literal["mean", "sum"], "of the terms over T·B"] = "mean"
    discount: Annotated[Fraction, "γ"] = 0.99
    lambda_: Annotated[Fraction, "λ of GAE; 1 is the n-step return"] = 1.0
    log_epsilon: Annotated[NonNegative, "added to π inside its logarithm"] = 0.0
    entropy_cost: Annotated[NonNegative, "c_e, weight of the entropy in the loss"] = 0.01
    value_cost: Annotated[NonNegative, "c_v, weight of the value's loss"] = 0.5
    max_grad_norm: Annotated[Positive, "gradients are clipped to this norm"] = 0.5
    reward_clip: Annotated[NonNegative, "rewards are clipped to ± this; 0 leaves them raw"] = 0.0
    normalize_observation: Annotated[bool, "observations, by running moments; vectors only"] = False
    normalize_reward: Annotated[bool, "rewards, by the running spread of filtered returns"] = False
    network: Annotated[Literal["nature", "shallow"], "convolutions, for images"] = "nature"
    hidden: Annotated[tuple[PositiveInt, ...], "units per layer for vector observations"] = (64, 64)
    lstm: Annotated[NonNegativeInt, "units of a recurrent layer; 0 has none"] = 0
    initial_std: Annotated[Positive, "σ of a box's actions at the start, in the scale of −1..1"] = 1.0

    def experience(self) -> Experience:
        return Experience(self.unroll, (Items("items", self.batch_columns),))


def loss(
    config: Config, output: Tensor, value: Tensor, head: ActionDistribution, batch: Trajectory, reward: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Summed loss and the sums that FIGURES names, for network outputs [T+1, b, P], [T+1, b] and rewards [T, b]."""
    weight = batch.valid.float()
    log_prob, entropy = head.log_prob_entropy(output[:-1], batch.action)
    fixed = value.detach()
    advantage = gae(reward, config.discount * batch.discount, fixed, weight, config.lambda_)
    late = guarded(log_prob, config.log_epsilon) if config.log_epsilon else log_prob
    policy_loss = policy_gradient(late, advantage, weight)
    value_loss = half_squared(value[:-1], advantage + fixed[:-1], weight)
    bonus = (weight * entropy).sum()
    total = policy_loss + config.value_cost * value_loss - config.entropy_cost * bonus
    return total, [to_device(x.detach(), "cpu") for x in (policy_loss, value_loss, bonus)]


def policy(config: Config, spec: Spec, rules: Rules | None) -> StochasticPolicy:
    """Acts by sampling π."""
    shape = (tuple(config.hidden), config.network, config.lstm, config.normalize_observation, config.initial_std)
    net = ActorCritic(spec, *shape)
    return StochasticPolicy(net, spec, EXTRAS, config.discount if config.normalize_reward else None)


class Learner(base.Learner):
    """One update = one optimiser step on one batch."""

    def __init__(self, config: Config, spec: Spec, rules: Rules | None, policy: StochasticPolicy, group: Group) -> None:
        self.config, self.policy, self.group = config, policy, group
        self.weights = flatten(policy.net)
        group.broadcast_(self.weights.data)
        rmsprop = (config.optimizer, config.learning_rate, config.epsilon, config.decay)
        self.optimizer = make_optimizer(self.weights, *rmsprop)
        self.optimizers = {"weights": self.optimizer}
        self.normalizers = Normalizers(policy.net.standardize, config.normalize_reward)

    def update(self, batches: Mapping[str, Trajectory], progress: float) -> UpdateResult:
        config, batch = self.config, batches["items"]
        rate = annealed(config.learning_rate, progress, config.anneal)
        self.optimizer.learning_rate = rate
        output, value, _ = self.policy.net(batch.observation, batch.first, batch.carry.get("lstm"))
        reward = self.normalizers.reward(batch, config.reward_clip)
        summed, sums = loss(config, output, value, self.policy.head, batch, reward)
        count = int(batch.valid.sum())
        scale = batch.valid.numel() * self.group.size if config.loss == "sum" else 1.0
        norm = self.group.apply_gradients(self.optimizer, summed, count, config.max_grad_norm, scale)
        self.normalizers.add(batch, self.group.sum)
        metrics = means(self.group, FIGURES, torch.stack([*sums, torch.tensor(float(count))]))
        return UpdateResult({**metrics, "grad_norm": norm, "learning_rate": rate})

    def state(self) -> StateDict:
        return {"normalizers": self.normalizers.state()}

    def load(self, state: StateDict) -> None:
        self.normalizers.load(state["normalizers"])


ALGORITHM = base.Algorithm(config=Config, policy=policy, learner=Learner)
