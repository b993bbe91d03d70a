"""HAC (Levy et al. 2019, arXiv 1712.00948): levels of goals that learn at the same time, by three kinds of hindsight.

Level 0 moves; an action of level i > 0 is a subgoal, towards which level i − 1 acts up to H times: its run, which ends
early where its goal or one above it is met. The highest level acts to the end of the episode, towards the desired goal.
Every action of every level gives transitions (s, a, r, γ, s'; g), s' where the run below ended (algorithm 1):

    hindsight action   a is the subgoal where it was met in s', else what was achieved in s'; r = 0, γ = 0 where g is
                       met in s', else r = −1                                                           (section 4.2)
    hindsight goal     the same with g = what was achieved later in the run: a share k / (k + 1) of draws (section 4.3)
    subgoal test       a is the subgoal, r = −H, γ = 0: of a subgoal that was tested, with the levels below acting
                       without noise, and missed by a run of H actions                                  (section 4.4)

Each level is DDPG (ddpg.py) with Q(s, a; g) = −H σ(f + c) within −H..0 and y = clip(r + γ Q(s', π(s'; g); g), −H, 0).
Training acts by clip(π + σ z, −1, 1), or with probability ``random_actions`` by any action, all as likely; subgoals
have a σ for each entry.

Published settings, in the fields of Config: the authors' code has batch_size 1024, γ 0.98, Adam 1e-3, hidden 64, 64,
64, random_actions 0.2, noise 0.1, test_share 0.3, 3 hindsight goals, 40 updates an episode, no target networks.

What differs from the paper: goals are drawn when items are (replay/relabel.py), from all rows behind the item's first
move to the end of the run, not from the ends of actions; a move that meets one ends the item. An attempt that a goal of
a higher level, or the end of the episode, cut short is no miss. The highest level meets its goal where the environment
pays 0 or more, not −1; others where each entry is within its threshold. Levels see goals and what was achieved in the
scale of low..high. The critics of all levels have one optimiser, and so have the actors.

Needs in extras: goals, attempts and testing of all levels as they are for a move; for every row of an item goal_i, used
and decides_i. Topologies: solo, allreduce, actor_replay_learner.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Annotated

import torch
from torch import Tensor, nn

from hpc_rl.algorithms import base
from hpc_rl.config import Fraction, NonNegative, NonNegativeInt, Positive, PositiveInt, Range
from hpc_rl.devices import to_device
from hpc_rl.experience import Experience, Items, Relabel, Unsuited
from hpc_rl.formulas.continuous import critics_loss, deterministic_policy_gradient
from hpc_rl.formulas.losses import half_squared
from hpc_rl.formulas.subgoals import GoalSpace, runs_over
from hpc_rl.nets.continuous import slope_of
from hpc_rl.nets.levels import PARTS, BoundedCritic, GoalView, SubgoalPolicy, goal_view, level_specs
from hpc_rl.optim.flat import StateDict, flatten
from hpc_rl.optim.group import Group, means
from hpc_rl.optim.optimizers import make_optimizer
from hpc_rl.optim.targets import placed
from hpc_rl.types import Rules, Spec, Trajectory, UpdateResult

FIGURES = ("loss", "q_mean", "target_mean", "met", "reached", "missed", "policy_q")
TOPOLOGIES = ("solo", "allreduce", "actor_replay_learner")


@dataclass(frozen=True)
class Config:
    levels: Annotated[int, Range(1, 4), "N, of which the lowest moves"] = 2
    horizon: Annotated[PositiveInt, "H, actions of a run"] = 20
    low: Annotated[tuple[float, ...], "of subgoals, each entry"] = (-1.2, -0.07)
    high: Annotated[tuple[float, ...], "of subgoals, each entry"] = (0.6, 0.07)
    thresholds: Annotated[tuple[Positive, ...], "how far from a subgoal each entry may be where it is met"] = (
        0.01,
        0.02,
    )
    unroll: Annotated[PositiveInt, "moves per column between updates"] = 20
    capacity: Annotated[PositiveInt, "of the replay, env steps over all columns"] = 200_000
    min_size: Annotated[NonNegativeInt, "env steps before the first update"] = 1_000
    batch_size: Annotated[PositiveInt, "items of each level per update, over all learners"] = 512
    samples_per_insert: Annotated[Positive, "items of each level drawn per env step"] = 128.0
    hindsight_goals: Annotated[NonNegativeInt, "k, draws with another goal for each one without"] = 3
    test_share: Annotated[Fraction, "of subgoals that are tested"] = 0.3
    random_actions: Annotated[Fraction, "share of actions that are drawn uniformly"] = 0.2
    noise: Annotated[NonNegative, "σ of all other moves, in the scale of −1..1"] = 0.1
    subgoal_noise: Annotated[tuple[NonNegative, ...], "σ of all other subgoals, each entry"] = (0.02, 0.01)
    learning_rate: Annotated[Positive, "of Adam, of actors and critics"] = 1e-3
    discount: Annotated[Fraction, "γ"] = 0.98
    hidden: Annotated[tuple[PositiveInt, ...], "units per layer, of every actor and critic"] = (64, 64)

    def experience(self) -> Experience:
        top, share = self.levels - 1, self.hindsight_goals / (self.hindsight_goals + 1)
        items = []
        for i in range(self.levels):
            relabel = (
                Relabel("future", share) if i == top else Relabel("future", share, f"goal_{i}", f"decides_{i + 1}")
            )
            decides, drawn = f"decides_{i}" if i else "", self.samples_per_insert
            items.append(
                Items(
                    f"level_{i}",
                    self.batch_size,
                    self.horizon**i,
                    decides,
                    decides,
                    samples_per_insert=drawn,
                    relabel=relabel,
                )
            )
        return Experience(self.unroll, tuple(items), self.capacity, self.min_size)


@dataclass(frozen=True)
class Transitions:
    """Of one level, from n items."""

    before: Tensor  # [n, width] what it saw
    action: Tensor  # [n, K] with hindsight
    reward: Tensor  # [n]
    discount: Tensor  # [n] with γ
    behind: Tensor  # [n, width]
    weight: Tensor  # [n] 1, or 0 where nothing happened
    proposal: Tensor  # [n, K] what it chose
    reached: Tensor  # [n] 1 where its subgoal was met
    missed: Tensor  # [n] 1 where it was tested and missed by a whole run, and the goal is the level's own


def transitions(config: Config, view: GoalView, batch: Trajectory, level: int) -> Transitions:
    """Items [L, n] of a level, drawn with the goals that `Relabel` gave them."""
    space, top = view.space, level == config.levels - 1
    valid, here = batch.valid.cumprod(0).bool(), torch.arange(batch.first.shape[1], device=batch.first.device)
    start, achieved = batch.observation[0], batch.observation[1:, :, view.achieved]  # achieved [L, n, g] by each move
    goal = start[:, view.desired] if top else batch.extras[f"goal_{level}"][0]
    met = valid & (batch.reward >= 0 if top else space.met(achieved, goal))
    last = (valid.sum(0) - 1).clamp(min=0)
    end = torch.where(met.any(0), met.int().argmax(0), last)  # a goal from hindsight may be met before
    weight, done = valid[0].float(), met[end, here]
    action = proposal = batch.action[0].flatten(1)
    reached = missed = torch.zeros_like(weight)
    if level:
        subgoal, state = batch.carry["goals"][:, level - 1], achieved[end, here]
        hit = space.met(state, subgoal)
        action = space.scaled(torch.where(hit[:, None], subgoal, state)).clamp(-1, 1)
        proposal, reached = space.scaled(subgoal), weight * hit
        own = (goal == batch.carry["goals"][:, level]).all(-1)
        missed = weight * (own & batch.carry["testing"][:, level - 1] & _missed(config, view, batch, level, last))
    reward = batch.reward[end, here] if top else done.float() - 1
    behind = view.inputs(batch.observation[end + 1, here], goal)
    seen = view.inputs(start, goal)
    return Transitions(seen, action, reward, config.discount * ~done, behind, weight, proposal, reached, missed)


def _missed(config: Config, view: GoalView, batch: Trajectory, level: int, last: Tensor) -> Tensor:
    """[n] bool of items of level > 0, the moves 0..``last`` [n]: a run below of H actions did not meet its subgoal, and
    neither a goal of a higher level nor the end of the episode cut the last of them short."""
    here = torch.arange(len(last), device=last.device)
    state, used = batch.observation[last + 1, here][:, view.achieved], batch.extras["used"][last, here]
    whole = (used[:, level - 1] >= config.horizon) & ~view.space.met(state, batch.carry["goals"][:, level - 1])
    if level > 1:
        goals = torch.stack([batch.extras[f"goal_{j}"][last, here] for j in range(level - 1)], 1)
        met = view.space.met(state[:, None], goals)
        whole &= runs_over(met, used[:, : level - 1], config.horizon)[:, -1]
    return whole


def policy(config: Config, spec: Spec, rules: Rules | None) -> SubgoalPolicy:
    """Raises Unsuited where actions are not continuous, goals are not shown, or subgoals do not fit them."""
    if spec.actions.kind != "box" or not {*PARTS} <= {*spec.parts} or len(spec.observation) != 1:
        parts = f"the parts {', '.join(spec.parts)}" if spec.parts else "no parts"
        raise Unsuited(
            f"HAC needs a box of continuous actions and observations with the parts {', '.join(PARTS)}, and {spec.id} "
            f"has {spec.actions.kind} actions and shows {parts}; use an environment with goals, as Gymnasium's GoalEnv"
        )
    view = goal_view(spec, GoalSpace(config.low, config.high, config.thresholds))
    sizes = {len(config.low), len(config.high), len(config.thresholds), len(config.subgoal_noise)}
    if sizes != {view.goal} or any(low >= high for low, high in zip(config.low, config.high, strict=True)):
        raise Unsuited(
            f"HAC's subgoals from low = {list(config.low)} to high = {list(config.high)} with thresholds = "
            f"{list(config.thresholds)} and subgoal_noise = {list(config.subgoal_noise)} do not fit the goals of "
            f"{spec.id}; give {view.goal} numbers each, low < high"
        )
    specs = level_specs(spec, view, config.levels)
    exploring = (config.noise, tuple(config.subgoal_noise), config.random_actions, config.test_share)
    return SubgoalPolicy(view, specs, tuple(config.hidden), config.horizon, exploring)


class Learner(base.Learner):
    """One update = one step of all critics, and one of all actors, on a batch of items of each level."""

    def __init__(self, config: Config, spec: Spec, rules: Rules | None, policy: SubgoalPolicy, group: Group) -> None:
        self.config, self.policy, self.group, self.actors = config, policy, group, policy.net
        self.weights = flatten(policy.net)
        specs = level_specs(spec, policy.view, config.levels)
        self.critics = nn.ModuleList(BoundedCritic(x, tuple(config.hidden), config.horizon) for x in specs)
        critics = flatten(placed(self.critics, self.weights.data.device))
        for flat in (self.weights, critics):
            group.broadcast_(flat.data)
        self.optimizers = {
            name: make_optimizer(flat, "adam", config.learning_rate, 1e-8, 0.999, 0.9)
            for name, flat in {"weights": self.weights, "critics": critics}.items()
        }

    def update(self, batches: Mapping[str, Trajectory], progress: float) -> UpdateResult:
        levels, metrics, policy_norm = range(self.config.levels), dict[str, float](), 0.0
        rows = [transitions(self.config, self.policy.view, batches[f"level_{i}"], i) for i in levels]
        losses, sums = zip(*(self._critic_loss(i, rows[i]) for i in levels), strict=True)
        counts = torch.stack([x.weight.sum() for x in rows])
        missed = torch.stack([x.missed.sum() for x in rows])
        norm = self.group.apply_gradients(self.optimizers["critics"], sum(losses), int((counts + missed).sum()), inf)
        values: Sequence[Tensor] = [torch.zeros(())] * len(rows)
        if norm < inf:  # the same on every member
            losses, values = zip(*(self._actor_loss(i, rows[i]) for i in levels), strict=True)
            policy_norm = self.group.apply_gradients(self.optimizers["weights"], sum(losses), int(counts.sum()), inf)
        for i, count in enumerate(to_device(counts, "cpu")):
            figures = torch.stack([*sums[i], values[i], count])
            metrics |= means(self.group, [f"{name}_{i}" for name in FIGURES], figures)
        return UpdateResult({**metrics, "grad_norm": norm, "policy_grad_norm": policy_norm})

    def _critic_loss(self, level: int, x: Transitions) -> tuple[Tensor, list[Tensor]]:
        """Summed loss, and the sums of FIGURES but for the last one."""
        horizon, critic = self.config.horizon, self.critics[level]
        with torch.no_grad():
            value = critic(x.behind, self.actors[level](x.behind))[0]
            target = (x.reward + x.discount * value).clamp(-horizon, 0)
        summed, sums = critics_loss(critic(x.before, x.action), target, x.weight)
        if level:
            q = critic(x.before, x.proposal)[0]
            summed = summed + half_squared(q, torch.full_like(q, -horizon), x.missed)
        counts = (x.weight * (x.discount == 0), x.reached, x.missed)
        return summed, [*sums, *(to_device(count.sum(), "cpu") for count in counts)]

    def _actor_loss(self, level: int, x: Transitions) -> tuple[Tensor, Tensor]:
        """Summed loss, and Σ w Q(s, π(s; g); g)."""
        action = self.actors[level](x.before)
        slope, q = slope_of(self.critics[level], x.before, action)
        return deterministic_policy_gradient(action, slope, x.weight), to_device((x.weight * q).sum(), "cpu")

    def state(self) -> StateDict:
        return {}

    def load(self, state: StateDict) -> None:
        """Weights and optimisers are all."""


ALGORITHM = base.Algorithm(config=Config, policy=policy, learner=Learner)
