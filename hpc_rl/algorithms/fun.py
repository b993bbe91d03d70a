"""FuN, FeUdal Networks (Vezhnevets et al. 2017, arXiv 1703.01161): a manager sets directions, a worker goes there.

Of a percept z = f(x) the manager takes the state s = relu(W_s z) and gives a goal g of unit norm, by an LSTM dilated r
times; the worker turns the goals of the last c + 1 rows into its action (nets/feudal.py, eqs. 1 to 6):

    w_t = φ(Σ_{i=t−c..t} g_i),   π(·|x_t) = softmax(U_t w_t),   U_t from the worker's own LSTM over z

Loss over valid moves, with advantages of n-step returns cut at the fragment's end (λ < 1: of GAE):

    manager   − Â^M_t cos(s_{t+c} − s_t, g_t)                 Â^M of rewards r,             discount γ_m   (eq. 7)
    worker    − log π(a_t|x_t) Â^D_t  −  c_e H(π)             Â^D of rewards e r + α r^I,   discount γ_w   (eq. 9)
    both      + c_v ½ (R − V)²
    r^I_t  =  1/c Σ_{i=1..c} cos(s_t − s_{t−i}, g_{t−i})      of the row that a move led to                (eq. 8)

No gradient goes from the worker into goals, nor through s_{t+c} − s_t. In a share ε of a column's fragments one random
unit vector is the goal of all rows, which the manager's loss leaves alone: it weighs the direction that was taken.

Published settings (Atari): c = r = 10, d 256, k 16, γ_m 0.99 or 0.999, γ_w 0.95 to 0.99, α drawn from 0..1, fragments
of 400 moves, RMSProp with rates drawn from 10^−4.5..10^−3.5, e 1.

What differs: V^D sees w_t, for r^I depends on the goals. A random goal lasts a fragment, where the paper's lasts one
row of the c + 1 that w_t sums, so that the worker learns to go where it is sent. At the last c rows of an episode its
last row stands for s_{t+c}, so that the way to what terminates is learned, too; the last c rows of a fragment that goes
on have no target. ``extrinsic`` e = 0 leaves the worker r^I alone, so that goals are all it has to go by; the paper's e
is 1. States that a fragment carries over its start are those of the acting weights. Gradients are clipped means; Adam.

Needs in extras: goal, as it was emitted. Topologies: solo, allreduce; actor_learner with little lag, uncorrected.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from hpc_rl.algorithms import base
from hpc_rl.config import BelowOne, Fraction, NonNegative, NonNegativeInt, Positive, PositiveInt
from hpc_rl.devices import to_device
from hpc_rl.experience import Experience, Items, Unsuited
from hpc_rl.formulas.feudal import direction, intrinsic_reward, transition, windows
from hpc_rl.formulas.losses import half_squared, policy_gradient
from hpc_rl.formulas.returns import gae
from hpc_rl.nets.actions import ActionDistribution
from hpc_rl.nets.feudal import Feudal, Managed
from hpc_rl.optim.flat import StateDict, flatten
from hpc_rl.optim.group import Group, means
from hpc_rl.optim.optimizers import annealed, make_optimizer
from hpc_rl.types import ActOutput, Leaf, Rules, Schema, Spec, Step, Trajectory, UpdateResult

FIGURES = (
    "policy_loss",
    "value_loss",
    "entropy",
    "manager_loss",
    "manager_value_loss",
    "intrinsic_reward",
    "direction",
    "targets",
)
TOPOLOGIES = ("solo", "allreduce", "actor_learner")
_TINY = 1e-6  # keeps a uniform away from 0 and 1, whose normal quantiles are infinite


@dataclass(frozen=True)
class Config:
    unroll: Annotated[PositiveInt, "T, moves per column and update"] = 40
    batch_columns: Annotated[NonNegativeInt, "columns per update on actor_learner; 0 takes one actor's share"] = 0
    horizon: Annotated[PositiveInt, "c, rows that a goal lasts"] = 10
    dilation: Annotated[PositiveInt, "r, LSTMs of the manager that take turns; at least c"] = 10
    goal_size: Annotated[PositiveInt, "d, of states and goals"] = 32
    embedding: Annotated[PositiveInt, "k, of w"] = 16
    random_goal: Annotated[Fraction, "ε, share of fragments with a random goal while training"] = 0.05
    intrinsic: Annotated[NonNegative, "α, weight of r^I in the worker's reward"] = 0.5
    extrinsic: Annotated[NonNegative, "e, weight of the environment's reward in the worker's"] = 1.0
    manager_discount: Annotated[Fraction, "γ_m"] = 0.99
    worker_discount: Annotated[Fraction, "γ_w"] = 0.95
    lambda_: Annotated[Fraction, "λ of GAE; 1 is the n-step return"] = 1.0
    learning_rate: Annotated[Positive, "of the optimiser, at the start"] = 7e-4
    anneal: Annotated[bool, "learning rate falls linearly to 0 over the budget"] = True
    optimizer: Annotated[Literal["adam", "rmsprop", "rmsprop_inside"], "rmsprop_inside: ε inside the root"] = "adam"
    epsilon: Annotated[Positive, "of the optimiser"] = 1e-5
    decay: Annotated[BelowOne, "RMSProp's α or Adam's β₂"] = 0.99
    entropy_cost: Annotated[NonNegative, "c_e, weight of the entropy in the loss"] = 0.01
    value_cost: Annotated[NonNegative, "c_v, weight of both values' losses"] = 0.5
    max_grad_norm: Annotated[Positive, "gradients are clipped to this norm"] = 0.5
    reward_clip: Annotated[NonNegative, "rewards are clipped to ± this; 0 leaves them raw"] = 0.0
    network: Annotated[Literal["nature", "shallow"], "convolutions, for images"] = "nature"
    hidden: Annotated[tuple[PositiveInt, ...], "units per layer for vector observations"] = (64,)
    lstm: Annotated[PositiveInt, "units of the worker's LSTM"] = 32

    def experience(self) -> Experience:
        return Experience(self.unroll, (Items("items", self.batch_columns),))


@dataclass(frozen=True)
class Played:
    """The networks' answers to a fragment."""

    managed: Managed  # of T + 1 rows
    logits: Tensor  # [T+1, b, P]
    value: Tensor  # V^D [T+1, b]
    intrinsic: Tensor  # r^I of the rows that moves led to [T, b]
    transition: Tensor  # s_{t+c} − s_t [T, b, d]
    known: Tensor  # [T, b] bool


def rows_first(x: Tensor) -> Tensor:
    """Carry [b, n, …] as windows take it, [n, b, …]; and back."""
    return x.transpose(0, 1)


def played(config: Config, net: Feudal, batch: Trajectory) -> Played:
    """A fragment with the goals that were emitted; the bootstrap row has the manager's own."""
    carry, first = {name: rows_first(x) for name, x in batch.carry.items() if name != "worker"}, batch.first
    z = net.percept(batch.observation)
    managed = net.manage(z, first, carry["manager"], config.horizon)
    goals = torch.cat([batch.extras["goal"], managed.goal[-1:]]).detach()
    given = windows(carry["goals"], goals, first).sum(0)
    logits, value, _ = net.work(z, first, batch.carry["worker"], given)
    opens = first.clone()
    opens[1:] |= ~batch.valid  # nothing is measured over a move that is not valid
    states = managed.state.detach()
    reward = intrinsic_reward(windows(carry["states"], states, opens), windows(carry["goals"], goals, opens))
    return Played(managed, logits, value, reward[1:], *transition(states, opens, config.horizon))


def loss(
    config: Config, rows: Played, head: ActionDistribution, batch: Trajectory, reward: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Summed loss and the sums that FIGURES names, for rewards [T, b]."""
    weight = batch.valid.float()
    target = weight * rows.known
    log_prob, entropy = head.log_prob_entropy(rows.logits[:-1], batch.action)
    mixed = config.extrinsic * reward + config.intrinsic * rows.intrinsic
    own, managers = rows.value.detach(), rows.managed.value.detach()
    advantage = gae(mixed, config.worker_discount * batch.discount, own, weight, config.lambda_)
    above = gae(reward, config.manager_discount * batch.discount, managers, weight, config.lambda_)
    cosine = direction(rows.transition, rows.managed.goal[:-1])
    policy_loss = policy_gradient(log_prob, advantage, weight)
    value_loss = half_squared(rows.value[:-1], advantage + own[:-1], weight)
    manager_loss = policy_gradient(cosine, above, target)
    manager_value_loss = half_squared(rows.managed.value[:-1], above + managers[:-1], weight)
    bonus = (weight * entropy).sum()
    total = policy_loss + manager_loss + config.value_cost * (value_loss + manager_value_loss)
    losses = [policy_loss, value_loss, bonus, manager_loss, manager_value_loss]
    sums = [*losses, (weight * rows.intrinsic).sum(), (target * cosine).sum(), target.sum()]
    return total - config.entropy_cost * bonus, [to_device(x.detach(), "cpu") for x in sums]


class FeudalPolicy:
    """Samples π; goals are the manager's, or in a share ε · exploration of all fragments a random one."""

    def __init__(self, config: Config, net: Feudal, spec: Spec) -> None:
        self.config, self.net, self.head = config, net, ActionDistribution(spec.actions)
        c, r, d = config.horizon, config.dilation, config.goal_size
        self.noise, self.fragment_noise = self.head.noise, 1 + d
        self.extras: Schema = {"goal": Leaf((d,), "float32", "step", "", "unit vector that the manager emitted")}
        self.carry: Schema = {
            "manager": Leaf(
                (r, 2, d), "float32", "fragment", "", "hidden and cell states after the r rows before row 0"
            ),
            "worker": Leaf(
                (2, config.lstm), "float32", "fragment", "", "hidden and cell state of the worker before row 0"
            ),
            "states": Leaf((c, d), "float32", "fragment", "", "s of the c rows before row 0, zeros before the episode"),
            "goals": Leaf(
                (c, d), "float32", "fragment", "", "goals of the c rows before row 0, zeros before the episode"
            ),
        }

    def initial_carry(self, columns: int) -> dict[str, Tensor]:
        device = next(self.net.parameters()).device
        return {name: torch.zeros(columns, *leaf.shape, device=device) for name, leaf in self.carry.items()}

    @torch.no_grad()
    def act(self, step: Step, carry: dict[str, Tensor], exploration: Tensor, noise: Tensor) -> ActOutput:
        config, first = self.config, step.first[None]
        z = self.net.percept(step.observation[None])
        past = {name: rows_first(x) for name, x in carry.items() if name != "worker"}
        managed = self.net.manage(z, first, past["manager"], config.horizon)
        normal = torch.special.ndtri(noise[:, 1 : 1 + config.goal_size].double().clamp(_TINY, 1 - _TINY)).float()
        strays = noise[:, :1] < config.random_goal * exploration[:, None]
        goal = torch.where(strays, F.normalize(normal, dim=-1), managed.goal[0])
        goals = windows(past["goals"], goal[None], first)
        logits, _, worker = self.net.work(z, first, carry["worker"], goals.sum(0))
        rows = {"manager": managed.cells, "states": managed.state}
        after = {name: windows(past[name], x, first) for name, x in rows.items()} | {"goals": goals}
        kept = {name: rows_first(x[1:, 0]) for name, x in after.items()}
        action = self.head.sample(logits[0], noise[:, 1 + config.goal_size :], exploration)
        return ActOutput(action, {**kept, "worker": worker}, {"goal": goal})


def policy(config: Config, spec: Spec, rules: Rules | None) -> FeudalPolicy:
    """Raises Unsuited for a box of actions, and for a horizon that fragments or the dilated LSTM do not hold."""
    if spec.actions.kind == "box":
        raise Unsuited(f"FuN needs discrete choices, and {spec.id} has box actions; use HIRO, TD3 or SAC")
    for name, most in (("unroll", config.unroll), ("dilation", config.dilation)):
        if config.horizon > most:
            raise Unsuited(
                f"FuN in {spec.id}: fun.horizon = {config.horizon} rows are more than fun.{name} = {most}; "
                f"make fun.{name} as long, or the horizon shorter"
            )
    shape = (tuple(config.hidden), config.network, config.lstm, config.goal_size, config.embedding, config.dilation)
    return FeudalPolicy(config, Feudal(spec, *shape), spec)


class Learner(base.Learner):
    """One update = one optimiser step on one batch."""

    def __init__(self, config: Config, spec: Spec, rules: Rules | None, policy: FeudalPolicy, group: Group) -> None:
        self.config, self.policy, self.group = config, policy, group
        self.weights = flatten(policy.net)
        group.broadcast_(self.weights.data)
        rates = (config.optimizer, config.learning_rate, config.epsilon, config.decay)
        self.optimizer = make_optimizer(self.weights, *rates)
        self.optimizers = {"weights": self.optimizer}

    def update(self, batches: Mapping[str, Trajectory], progress: float) -> UpdateResult:
        config, batch = self.config, batches["items"]
        rate = annealed(config.learning_rate, progress, config.anneal)
        self.optimizer.learning_rate = rate
        rows = played(config, self.policy.net, batch)
        reward = batch.reward.clamp(-config.reward_clip, config.reward_clip) if config.reward_clip else batch.reward
        summed, sums = loss(config, rows, self.policy.head, batch, reward)
        count = torch.tensor(float(batch.valid.sum()))
        norm = self.group.apply_gradients(self.optimizer, summed, int(count), config.max_grad_norm)
        metrics = means(self.group, FIGURES, torch.stack([*sums, count]))
        metrics["direction"] /= max(metrics["targets"], 1e-8)  # over the moves that have a target
        goals = to_device((rows.managed.goal[:-1].detach() * batch.valid[..., None]).sum((0, 1)), "cpu")
        common = self.group.sum(torch.cat([goals, count[None]]))
        goal_mean = float((common[:-1] / common[-1].clamp(min=1)).norm())
        return UpdateResult({**metrics, "goal_mean": goal_mean, "grad_norm": norm, "learning_rate": rate})

    def state(self) -> StateDict:
        return {}

    def load(self, state: StateDict) -> None:
        """Nothing is held beyond weights and optimiser."""


ALGORITHM = base.Algorithm(config=Config, policy=policy, learner=Learner)
