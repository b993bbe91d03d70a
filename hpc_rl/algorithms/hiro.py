"""HIRO (Nachum et al. 2018, arXiv 1805.08296): two levels of TD3, of which the high one sets goals for the low one.

A goal g is an offset of some entries of the observation, its position s. Every c moves, and where an episode opens, the
high level chooses one within ± ``goal_range``; between, h(s, g, s') = s + g − s' keeps it in its place (eq. 3). The low
level acts at (x, g). Each level is TD3 (td3.py) from transitions of its own:

    low    (x_t, g_t), a_t, −‖s_t + g_t − s_{t+1}‖₂, (x_{t+1}, h(s_t, g_t, s_{t+1})),  h also before a new goal  (eq. 4)
    high   x_t, g̃, scale · Σ_{k<m} r_{t+k}, x_{t+m},  of one discount γ;  m = c, or fewer at the end of an episode
    g̃ = argmax −½ Σ_{k<m} ‖a_{t+k} − μ_lo(x_{t+k}, g̃_{t+k})‖²,  g̃_{t+k+1} = h(s_{t+k}, g̃_{t+k}, s_{t+k+1})      (eq. 5)

over ``candidates``: the goal that was set, s_{t+m} − s_t, and draws from N(s_{t+m} − s_t, (½ range)²), all cut at the
range. So high transitions stay true while the low policy changes: μ_lo is that of the update, not the one that acted.

An update is a step of the high level and ``low_steps`` of the low one, on a batch each. Training adds σ z to what each
level chooses, in the scale of its own range; σ falls from 1 to ``noise`` as in td3.py. Published settings for MuJoCo's
ant: the defaults.

What differs from the paper: σ = 1 in place of random episodes at the beginning; squared errors where the released code
has Huber's; actors move with the targets, at every other step, where that code moves them at each; goals enter networks
as g / range; a new goal where an episode opens, so that a segment which its end cuts is learned from as a shorter one.

Needs in extras: goal, decides, the carry (target, clock). Topologies: solo, allreduce, actor_replay_learner.
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
from hpc_rl.config import Fraction, NonNegative, NonNegativeInt, Positive, PositiveInt, Range
from hpc_rl.devices import to_device
from hpc_rl.experience import Experience, Items, Unsuited
from hpc_rl.formulas.continuous import critics_loss, deterministic_policy_gradient, smoothed
from hpc_rl.formulas.relative_goals import goal_candidates, goal_reward, moved_goal, relabelled_goals, segment
from hpc_rl.nets.continuous import Critics, DeterministicActor, falling_noise, slope_of
from hpc_rl.nets.two_levels import TwoLevelPolicy, TwoLevels, default_position
from hpc_rl.optim.flat import Flat, StateDict, flatten
from hpc_rl.optim.group import Group, means, shared_seed
from hpc_rl.optim.optimizers import make_optimizer
from hpc_rl.optim.targets import placed, polyak_, shared_normals
from hpc_rl.types import Array, Rules, Spec, Trajectory, UpdateResult

HIGH_FIGURES = ("high_loss", "high_q_mean", "high_target_mean", "relabelled", "distance")
LOW_FIGURES = ("low_loss", "low_q_mean", "low_target_mean", "low_reward")
TOPOLOGIES = ("solo", "allreduce", "actor_replay_learner")


@dataclass(frozen=True)
class Config:
    unroll: Annotated[PositiveInt, "moves per column between updates"] = 10
    interval: Annotated[PositiveInt, "c, moves for each goal"] = 10
    position: Annotated[tuple[NonNegativeInt, ...], "entries that goals are for; none: achieved_goal, or all"] = ()
    goal_range: Annotated[tuple[Positive, ...], "the most of a goal, for each of these entries; one for all"] = (10.0,)
    candidates: Annotated[PositiveInt, "goals that one is relabelled from; 1 leaves it"] = 10
    reward_scale: Annotated[Positive, "of the high level's rewards"] = 0.1
    capacity: Annotated[PositiveInt, "of the replay, env steps over all columns"] = 200_000
    min_size: Annotated[NonNegativeInt, "env steps before the first update"] = 2_500
    batch_size: Annotated[PositiveInt, "items per step of a level, over all learners"] = 100
    low_steps: Annotated[PositiveInt, "steps of the low level for each of the high one"] = 10
    samples_per_insert: Annotated[Positive, "items of the high level drawn per env step"] = 10.0
    policy_delay: Annotated[PositiveInt, "steps of a level's critics for each of its actor and targets"] = 2
    tau: Annotated[float, Range(0, 1, open_low=True), "τ, how far the target networks go each time"] = 0.005
    actor_learning_rate: Annotated[Positive, "of the actors' Adam"] = 1e-4
    critic_learning_rate: Annotated[Positive, "of the critics' Adam"] = 1e-3
    discount: Annotated[Fraction, "γ of the high level, of one goal to the next"] = 0.99
    low_discount: Annotated[Fraction, "γ of the low level"] = 0.99
    target_noise: Annotated[NonNegative, "σ̃ of the targets' actions"] = 0.2
    target_noise_clip: Annotated[NonNegative, "the most of that noise"] = 0.5
    noise: Annotated[Fraction, "σ of goals and actions at the end, in the scale of −1..1"] = 0.1
    noise_fraction: Annotated[Fraction, "of the budget, until σ has fallen from 1 to that"] = 0.025
    hidden: Annotated[tuple[PositiveInt, ...], "units per layer, of each actor and each critic"] = (300, 300)

    def experience(self) -> Experience:
        drawn, steps = self.samples_per_insert, self.low_steps
        high = Items("high", self.batch_size, self.interval, "decides", samples_per_insert=drawn)
        low = Items("low", self.batch_size * steps, 1, samples_per_insert=drawn * steps)
        return Experience(self.unroll, (high, low), self.capacity, self.min_size)


def policy(config: Config, spec: Spec, rules: Rules | None) -> TwoLevelPolicy:
    """Raises Unsuited where actions are not continuous, or observations have no such position."""
    if spec.actions.kind != "box" or len(spec.observation) != 1 or spec.dtype == "uint8":
        raise Unsuited(
            f"HIRO needs a box of continuous actions, and observations that are one row of numbers to set goals in; "
            f"{spec.id} has {spec.actions.kind} actions and shows {spec.dtype} of {list(spec.observation)}; use PPO"
        )
    size, position = spec.observation[0], list(config.position or default_position(spec))
    limit = list(config.goal_range) * (len(position) if len(config.goal_range) == 1 else 1)
    if max(position) >= size or len(set(position)) < len(position) or len(limit) != len(position):
        raise Unsuited(
            f"hiro.position = {position} and hiro.goal_range = {list(config.goal_range)} do not fit {spec.id}; name "
            f"entries 0..{size - 1} of what it shows, each once, and a range for each of them or one for all"
        )
    return TwoLevelPolicy(TwoLevels(spec, tuple(config.hidden), position, limit), config.interval)


def exploration(config: Config, columns: Array, total: int, progress: float) -> Array:
    """σ [b] of the Gaussian noise on goals and actions."""
    return falling_noise(columns, progress, config.noise, config.noise_fraction)


@dataclass(frozen=True)
class Transitions:
    """Of one level, each [n, …]: Q(x, a) goes to reward + factor · Q(behind, ·)."""

    x: Tensor
    action: Tensor
    reward: Tensor
    factor: Tensor  # γ, or 0 where it terminated
    behind: Tensor
    weight: Tensor  # 0 never happened


def high_transitions(config: Config, net: TwoLevels, batch: Trajectory, z: Tensor) -> tuple[Transitions, list[Tensor]]:
    """Of items [c(+1), n], with normals z [d, n, k]; and the sums of replaced goals and of ‖s_t + g − s_{t+m}‖."""
    valid, goal = batch.valid, batch.extras["goal"][0]
    total, factor, behind = segment(config.reward_scale * batch.reward, batch.discount, batch.observation, valid)
    x, weight = batch.observation[:-1], valid[0].float()
    begin, end = net.position(x[0]), net.position(behind)
    left, replaced = -goal_reward(begin, goal, end), torch.zeros_like(weight)
    if config.candidates > 1:
        candidates = goal_candidates(goal, end - begin, z, net.limit)
        goal, best = relabelled_goals(candidates, net.position(x), batch.action, valid, net.acting(x))
        replaced = (best > 0).float()
    transitions = Transitions(x[0], goal / net.limit, total, config.discount * factor, behind, weight)
    return transitions, [(weight * replaced).sum(), (weight * left).sum()]


def low_transitions(config: Config, net: TwoLevels, batch: Trajectory) -> Transitions:
    """Of row 0 of items."""
    (x, behind), goal = batch.observation[:2], batch.extras["goal"][0]
    here, there = net.position(x), net.position(behind)
    reward, after = goal_reward(here, goal, there), moved_goal(here, goal, there)
    factor, weight = config.low_discount * batch.discount[0], batch.valid[0].float()
    return Transitions(net.below(x, goal), batch.action[0], reward, factor, net.below(behind, after), weight)


class Level:
    """TD3 of one level: ``actor``, which is stepped where it lies in ``weights``, two critics, the targets of both."""

    def __init__(self, config: Config, weights: Flat, actor: DeterministicActor, group: Group) -> None:
        self.config, self.actor = config, actor
        self.critics = Critics(actor.spec, tuple(config.hidden), 2)
        critics = flatten(placed(self.critics, weights.data.device))
        group.broadcast_(critics.data)
        self.target_actor, self.target_critics = deepcopy(actor), deepcopy(self.critics)
        self.targets = {"actor": flatten(self.target_actor), "critics": flatten(self.target_critics)}
        rates = {"actor": config.actor_learning_rate, "critics": config.critic_learning_rate}
        flats = {"actor": weights.part(actor), "critics": critics}
        self.optimizers = {x: make_optimizer(flats[x], "adam", rates[x], 1e-8, 0.999, 0.9) for x in flats}
        self.rounds = 0  # steps of the critics

    def step(self, group: Group, batch: Transitions, z: Tensor) -> tuple[float, list[Tensor]]:
        """A step of the critics, maybe of actor and targets; z [n, A] is the targets' noise. (gradient norm, sums)"""
        config, count = self.config, int(batch.weight.sum())
        q = self.critics(batch.x, batch.action)
        summed, sums = critics_loss(q, self._target(batch, z), batch.weight)
        norm = group.apply_gradients(self.optimizers["critics"], summed, count, inf)
        self.rounds += norm < inf  # the same on every member
        if norm < inf and self.rounds % config.policy_delay == 0:
            action = self.actor(batch.x)
            summed = deterministic_policy_gradient(action, slope_of(self.critics, batch.x, action)[0], batch.weight)
            group.apply_gradients(self.optimizers["actor"], summed, count, inf)
            for name, target in self.targets.items():
                polyak_(target, self.optimizers[name].flat, config.tau)
        return norm, sums

    @torch.no_grad()
    def _target(self, batch: Transitions, z: Tensor) -> Tensor:
        """y [n]."""
        action = smoothed(self.target_actor(batch.behind), z, self.config.target_noise, self.config.target_noise_clip)
        value: Tensor = self.target_critics(batch.behind, action).amin(0)
        return batch.reward + batch.factor * value

    def state(self) -> StateDict:
        return {"rounds": self.rounds, **{name: flat.data.clone() for name, flat in self.targets.items()}}

    def load(self, state: StateDict) -> None:
        self.rounds = int(state["rounds"])
        for name, flat in self.targets.items():
            flat.data.copy_(state[name])


class Learner(base.Learner):
    """One update = one step of the high level, and ``low_steps`` of the low one on parts of its batch."""

    def __init__(self, config: Config, spec: Spec, rules: Rules | None, policy: TwoLevelPolicy, group: Group) -> None:
        self.config, self.policy, self.group, self.net = config, policy, group, policy.net
        self.weights = flatten(self.net)
        group.broadcast_(self.weights.data)
        actors = {"high": self.net.high, "low": self.net.low}
        self.levels = {name: Level(config, self.weights, actor, group) for name, actor in actors.items()}
        self.optimizers = {f"{k}_{name}": x for k, y in self.levels.items() for name, x in y.optimizers.items()}
        self.seed, self.rounds = shared_seed(group), 0

    def update(self, batches: Mapping[str, Trajectory], progress: float) -> UpdateResult:
        metrics = self._step_high(batches["high"])
        if metrics["high_grad_norm"] < inf:  # the same on every member; else nothing is learned from this update
            metrics |= self._step_low(batches["low"])
        self.rounds += 1
        return UpdateResult(metrics)

    def _step_high(self, batch: Trajectory) -> dict[str, float]:
        z = self._normals(0, batch, (max(self.config.candidates - 2, 0), self.policy.goals)).movedim(1, 0)
        with torch.no_grad():
            transitions, figures = high_transitions(self.config, self.net, batch, z)
        norm, sums = self.levels["high"].step(self.group, transitions, self._normals(1, batch, (self.policy.goals,)))
        return self._metrics(HIGH_FIGURES, [*sums, *figures], transitions.weight) | {"high_grad_norm": norm}

    def _step_low(self, batch: Trajectory) -> dict[str, float]:
        """Item i of the global batch is learned from in step i mod ``low_steps``."""
        steps, low = self.config.low_steps, self.group.rank * len(batch.column)
        with torch.no_grad():
            transitions = low_transitions(self.config, self.net, batch)
        z, results = self._normals(2, batch, tuple(batch.action.shape[2:])), []
        for k in range(steps):
            keep = slice((k - low) % steps, None, steps)
            part = Transitions(**{name: x[keep] for name, x in vars(transitions).items()})
            results.append(self.levels["low"].step(self.group, part, z[keep]))
        sums = [torch.stack(same).sum() for same in zip(*(sums for _, sums in results), strict=True)]
        sums.append((transitions.weight * transitions.reward).sum())
        norm = sum(norm for norm, _ in results) / steps
        return self._metrics(LOW_FIGURES, sums, transitions.weight) | {"low_grad_norm": norm}

    def _metrics(self, names: tuple[str, ...], sums: list[Tensor], weight: Tensor) -> dict[str, float]:
        return means(self.group, names, torch.stack([to_device(x, "cpu") for x in (*sums, weight.sum())]))

    def _normals(self, purpose: int, batch: Trajectory, shape: tuple[int, ...]) -> Tensor:
        """[n, *shape], the same for an item of the global batch whatever member has it."""
        draw = np.random.default_rng([self.seed, self.rounds, purpose])
        return to_device(shared_normals(self.group, draw, len(batch.column), shape), self.weights.data.device)

    def state(self) -> StateDict:
        return {"seed": self.seed, "rounds": self.rounds} | {name: x.state() for name, x in self.levels.items()}

    def load(self, state: StateDict) -> None:
        self.seed, self.rounds = int(state["seed"]), int(state["rounds"])
        for name, level in self.levels.items():
            level.load(state[name])


ALGORITHM = base.Algorithm(config=Config, policy=policy, learner=Learner, exploration=exploration)
