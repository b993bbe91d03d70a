"""TD3 (Fujimoto et al. 2018, arXiv 1802.09477): DDPG with two critics, smoothed targets and a slower actor.

Losses over drawn items of n moves, of which row 0 is learned from; θ⁻ and φ⁻ are the target networks:

    critics   Σ_i ½ (y − Q(x_0, a_0; φ_i))²,   y = Σ_{k<n} γᵏ r_k + γⁿ min_i Q(x_n, ã; φ⁻_i)               (eq. 10)
              ã = clip(π(x_n; θ⁻) + clip(σ̃ z, −c, c), −1, 1),   z standard normal                          (eq. 14)
    actor     − ∂Q(x_0, a; φ_1)/∂a · π(x_0; θ)   at a = π(x_0; θ), of which ∂Q/∂a is held

Each update is a step of the critics; every ``policy_delay`` of them one of the actor follows, and all target networks
go τ of the way. Training acts by clip(π(x) + σ z, −1, 1); σ falls linearly from 1 to ``noise`` over the first
``noise_fraction`` of the budget.

With ``relabel`` a share of the items has a goal that was reached in hindsight (HER: Andrychowicz et al. 2017, arXiv
1707.01495; replay/relabel.py).

Published settings: the defaults, but for 25 000 random moves (min_size) of a million; n = 1.

What differs from the paper: σ = 1 in place of purely random moves at the beginning; orthogonal weights; a policy's
action in −1..1 is scaled by the environment to its bounds, and stays there where an entry has no two finite ones. z
depends on the number of the update and on the item's place in the global batch, not on the number of learners.

Needs nothing in extras. Topologies: solo, allreduce, actor_replay_learner.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from math import inf
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from hpc_rl.algorithms import base
from hpc_rl.config import BelowOne, Fraction, NonNegative, NonNegativeInt, Positive, PositiveInt, Range
from hpc_rl.devices import to_device
from hpc_rl.experience import Experience, Hindsight, Items, Unsuited, in_hindsight
from hpc_rl.formulas.continuous import critics_loss, deterministic_policy_gradient, smoothed
from hpc_rl.formulas.q_learning import item_rows, n_step_return
from hpc_rl.nets.continuous import Critics, DeterministicActor, DeterministicPolicy, falling_noise, slope_of
from hpc_rl.optim.flat import StateDict, flatten
from hpc_rl.optim.group import Group, means, shared_seed
from hpc_rl.optim.optimizers import make_optimizer
from hpc_rl.optim.targets import placed, polyak_, shared_normals
from hpc_rl.types import Array, Rules, Spec, Trajectory, UpdateResult

FIGURES = ("loss", "q_mean", "target_mean")
TOPOLOGIES = ("solo", "allreduce", "actor_replay_learner")
Player = DeterministicPolicy[DeterministicActor]


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
    policy_delay: Annotated[PositiveInt, "updates of the critics for each of the actor and the targets"] = 2
    tau: Annotated[float, Range(0, 1, open_low=True), "τ, how far the target networks go each time"] = 0.005
    actor_learning_rate: Annotated[Positive, "of the actor's Adam"] = 3e-4
    critic_learning_rate: Annotated[Positive, "of the critics' Adam"] = 3e-4
    beta_1: Annotated[BelowOne, "of Adam"] = 0.9
    adam_epsilon: Annotated[Positive, "of Adam"] = 1e-8
    discount: Annotated[Fraction, "γ"] = 0.99
    target_noise: Annotated[NonNegative, "σ̃ of the target's action"] = 0.2
    target_noise_clip: Annotated[NonNegative, "c, the most of that noise"] = 0.5
    noise: Annotated[Fraction, "σ of the actions at the end, in the scale of −1..1"] = 0.1
    noise_fraction: Annotated[Fraction, "of the budget, until σ has fallen from 1 to that"] = 0.025
    max_grad_norm: Annotated[NonNegative, "gradients are clipped to this norm; 0 leaves them"] = 0.0
    hidden: Annotated[tuple[PositiveInt, ...], "units per layer, of the actor and of each critic"] = (256, 256)

    def experience(self) -> Experience:
        items = Items("items", self.batch_size, self.n_step, samples_per_insert=self.samples_per_insert)
        relabelled = in_hindsight(items, self.relabel, self.relabel_share)
        return Experience(self.unroll, (relabelled,), self.capacity, self.min_size)


def policy(config: Config, spec: Spec, rules: Rules | None) -> Player:
    """Raises Unsuited where actions are not continuous."""
    if spec.actions.kind != "box":
        raise Unsuited(
            f"TD3 needs a box of continuous actions, and {spec.id} has {spec.actions.kind} ones; use a method for "
            "these, as DQN or PPO"
        )
    return DeterministicPolicy(DeterministicActor(spec, tuple(config.hidden)), spec.actions)


def exploration(config: Config, columns: Array, total: int, progress: float) -> Array:
    """σ [b] of the Gaussian noise on actions."""
    return falling_noise(columns, progress, config.noise, config.noise_fraction)


class Learner(base.Learner):
    """One update = one step of the critics on one batch of items, and now and then one of the actor."""

    def __init__(self, config: Config, spec: Spec, rules: Rules | None, policy: Player, group: Group) -> None:
        self.config, self.policy, self.group = config, policy, group
        self.weights = flatten(policy.net)
        self.critics = Critics(spec, tuple(config.hidden), 2)
        critics = flatten(placed(self.critics, self.weights.data.device))
        for flat in (self.weights, critics):
            group.broadcast_(flat.data)
        self.target_net, self.target_critics = deepcopy(policy.net), deepcopy(self.critics)
        self.targets = {"actor": flatten(self.target_net), "critics": flatten(self.target_critics)}
        adam = (config.adam_epsilon, 0.999, config.beta_1)
        actor_step = make_optimizer(self.weights, "adam", config.actor_learning_rate, *adam)
        self.optimizers = {
            "weights": actor_step,
            "critics": make_optimizer(critics, "adam", config.critic_learning_rate, *adam),
        }
        self.seed, self.rounds = shared_seed(group), 0
        self.policy_figures = {"policy_q": 0.0, "policy_grad_norm": 0.0}  # of the actor's last step

    def update(self, batches: Mapping[str, Trajectory], progress: float) -> UpdateResult:
        batch, limit = batches["items"], self.config.max_grad_norm or inf
        weight, count = batch.valid[0].float(), int(batch.valid[0].sum())
        q = self.critics(batch.observation[0], batch.action[0])
        summed, sums = critics_loss(q, self._target(batch), weight)
        norm = self.group.apply_gradients(self.optimizers["critics"], summed, count, limit)
        self.rounds += norm < inf  # the same on every member
        if norm < inf and self.rounds % self.config.policy_delay == 0:
            self._step_actor(batch.observation[0], weight, count, limit)
        metrics = means(self.group, FIGURES, torch.stack([*sums, torch.tensor(float(count))]))
        return UpdateResult({**metrics, "grad_norm": norm, **self.policy_figures})

    def _step_actor(self, observation: Tensor, weight: Tensor, count: int, limit: float) -> None:
        action = self.policy.net(observation)
        slope, q = slope_of(self.critics, observation, action)
        summed = deterministic_policy_gradient(action, slope, weight)
        norm = self.group.apply_gradients(self.optimizers["weights"], summed, count, limit)
        polyak_(self.targets["actor"], self.weights, self.config.tau)
        polyak_(self.targets["critics"], self.optimizers["critics"].flat, self.config.tau)
        sums = torch.stack([to_device((weight * q).sum(), "cpu"), torch.tensor(float(count))])
        self.policy_figures = means(self.group, ("policy_q",), sums) | {"policy_grad_norm": norm}

    @torch.no_grad()
    def _target(self, batch: Trajectory) -> Tensor:
        """y [n]."""
        config = self.config
        total, factor, row = n_step_return(batch.reward, config.discount * batch.discount, batch.valid)
        behind = item_rows(batch.observation, row)
        draw = np.random.default_rng([self.seed, self.rounds])
        z = to_device(shared_normals(self.group, draw, len(row), tuple(batch.action.shape[2:])), row.device)
        action = smoothed(self.target_net(behind), z, config.target_noise, config.target_noise_clip)
        value: Tensor = self.target_critics(behind, action).amin(0)
        return total + factor * value

    def state(self) -> StateDict:
        targets = {name: flat.data.clone() for name, flat in self.targets.items()}
        return {"seed": self.seed, "rounds": self.rounds, "targets": targets, "policy": dict(self.policy_figures)}

    def load(self, state: StateDict) -> None:
        self.seed, self.rounds = int(state["seed"]), int(state["rounds"])
        self.policy_figures = {name: float(x) for name, x in state["policy"].items()}
        for name, flat in self.targets.items():
            flat.data.copy_(state["targets"][name])


ALGORITHM = base.Algorithm(config=Config, policy=policy, learner=Learner, exploration=exploration)
