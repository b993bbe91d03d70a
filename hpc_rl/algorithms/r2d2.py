"""R2D2 (Kapturowski et al., ICLR 2019): recurrent double Q-learning from replayed sequences.

An item is ``burn_in`` + ``length`` moves. From the recurrent state that the actor had, both networks are unrolled over
the first ``burn_in`` rows without gradients, then over the others, each move of which is learned from:

    ½ (y_t − Q(x_t, a_t; θ))²,   y_t = h(Σ_{k<n} γᵏ r_{t+k} + γⁿ h⁻¹(Q(x_{t+n}, argmax_a Q(x_{t+n}, a; θ); θ⁻)))
    h(x) = sign(x) (√(|x| + 1) − 1) + ε x                                    (Pohlen et al. 2018, arXiv 1805.11593)

weighted with P(item)^(−β), P(item) ∝ p^α, p = η max |δ_t| + (1 − η) mean |δ_t| over the moves learned from. Every
``target_every`` updates θ⁻ ← θ. Column i of N acts ε_i-greedily for life, ε_i = ε^(1 + 7 i/(N − 1)) (Horgan et al.
2018, Ape-X, arXiv 1803.00933).

``state = "zero"`` begins each item with a state of zeros, and burn_in = 0 without a burn-in: the paper's ablation.

Published settings (Atari, table 2), in the fields of Config: burn_in 40, length 80, stride 40, n_step 5, discount
0.997, capacity 4e6, batch_size 64, target_every 2500, priority_exponent 0.9, importance_exponent 0.6, eta 0.9, Adam
1e-4 with ε 1e-3, lstm 512, nature, 0.8 replays of each move (samples_per_insert 0.01); max_grad_norm 40 is Ape-X's.

What differs from the paper: sequences may span episodes. The state is reset inside where one opens, and moves that
never happened are masked, so every move is learned from, those before a time limit too. The last n − 1 moves of a
sequence have shorter returns. The loss is a mean over moves, not a sum over time: with the paper's Adam ε, divide it by
the length. An item begins in every ``stride``-th row of a column's life, at a move; each row keeps the state before it.
First priorities are the actors' own, whose largest Q value bootstraps.

Needs in extras: the carry (lstm, last_action, moves) and the last reward before each move, q_action, q_max, opens.
Topologies: solo, allreduce, actor_replay_learner.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from hpc_rl.algorithms import base
from hpc_rl.config import BelowOne, Fraction, NonNegative, NonNegativeInt, Positive, PositiveInt
from hpc_rl.devices import to_device, to_host
from hpc_rl.experience import Experience, Items, Unsuited
from hpc_rl.formulas.losses import weighted
from hpc_rl.formulas.q_learning import (
    epsilon_greedy,
    epsilon_ladder,
    greedy_value,
    importance_weights,
    mixed_priority,
    n_step_targets,
    rescaled,
    unscaled,
)
from hpc_rl.nets.q import RecurrentQNetwork
from hpc_rl.optim.flat import StateDict, flatten
from hpc_rl.optim.group import Group, means
from hpc_rl.optim.optimizers import annealed, make_optimizer
from hpc_rl.optim.targets import polyak_
from hpc_rl.types import ActOutput, Array, Leaf, Rules, Schema, Spec, Step, Trajectory, Tree, UpdateResult

FIGURES = ("loss", "q_mean", "target_mean", "error")
TOPOLOGIES = ("solo", "allreduce", "actor_replay_learner")
LADDER = 7.0  # Ape-X's α


@dataclass(frozen=True)
class Config:
    unroll: Annotated[PositiveInt, "moves per column between updates"] = 5
    burn_in: Annotated[NonNegativeInt, "moves at the start of an item that only warm the state up"] = 10
    length: Annotated[PositiveInt, "m, moves of an item that are learned from"] = 20
    stride: Annotated[PositiveInt, "rows of a column between the starts of two items"] = 10
    state: Annotated[Literal["stored", "zero"], "recurrent state that an item begins with"] = "stored"
    n_step: Annotated[PositiveInt, "n, moves of a return"] = 5
    capacity: Annotated[PositiveInt, "of the replay, env steps over all columns"] = 100_000
    min_size: Annotated[NonNegativeInt, "env steps before the first update"] = 5_000
    batch_size: Annotated[PositiveInt, "items per update, over all learners"] = 32
    samples_per_insert: Annotated[Positive, "items drawn per env step; times length, replays of each move"] = 0.5
    target_every: Annotated[PositiveInt, "updates between two copies to the target network"] = 200
    learning_rate: Annotated[Positive, "of Adam"] = 1e-3
    anneal: Annotated[bool, "learning rate falls linearly to 0 over the budget"] = False
    adam_epsilon: Annotated[Positive, "of Adam"] = 1e-5
    beta_1: Annotated[BelowOne, "of Adam"] = 0.9
    beta_2: Annotated[BelowOne, "of Adam"] = 0.999
    max_grad_norm: Annotated[Positive, "gradients are clipped to this norm"] = 40.0
    discount: Annotated[Fraction, "γ"] = 0.997
    rescale: Annotated[NonNegative, "ε of the value rescaling h"] = 1e-3
    priority_exponent: Annotated[Fraction, "α of priorities; 0 draws uniformly"] = 0.9
    importance_exponent: Annotated[Fraction, "β of importance weights"] = 0.6
    eta: Annotated[Fraction, "η, weight of the largest error in a priority; the rest is the mean's"] = 0.9
    epsilon: Annotated[Fraction, "ε of column 0; the last column has its eighth power"] = 0.4
    network: Annotated[Literal["nature", "shallow"], "convolutions, for images"] = "nature"
    hidden: Annotated[tuple[PositiveInt, ...], "units per layer for vector observations"] = (64,)
    lstm: Annotated[PositiveInt, "units of the recurrent layer"] = 64

    def experience(self) -> Experience:
        moves, drawn = self.burn_in + self.length, self.samples_per_insert
        items = Items("items", self.batch_size, moves, "opens", samples_per_insert=drawn, alpha=self.priority_exponent)
        return Experience(self.unroll, (items,), self.capacity, self.min_size)


def targets(config: Config, reward: Tensor, discount: Tensor, value: Tensor, valid: Tensor) -> Tensor:
    """y [L, n] for rescaled values [L+1, n] of the greedy actions; discount without γ."""
    bootstrap = unscaled(value, config.rescale)
    y = n_step_targets(reward, config.discount * discount, bootstrap, valid, config.n_step)
    return rescaled(y, config.rescale)


def loss(config: Config, q: Tensor, target_q: Tensor, batch: Trajectory) -> tuple[Tensor, list[Tensor], Tensor]:
    """Summed loss, the sums that FIGURES names and priorities [n], for [L+1, n, A] of the rows behind the burn-in."""
    rows = slice(config.burn_in, None)
    action, reward, discount, valid = batch.action[rows], batch.reward[rows], batch.discount[rows], batch.valid[rows]
    target = targets(config, reward, discount, greedy_value(target_q, q.detach()), valid)
    q_action = q[:-1].gather(-1, action[..., None]).squeeze(-1)
    error = target - q_action
    weight = valid * importance_weights(batch.chance, config.importance_exponent)
    summed = 0.5 * weighted(weight, error.square())
    values = [unscaled(x.detach(), config.rescale) for x in (q_action, target)]
    sums = [summed.detach(), *(weighted(valid, x) for x in (*values, error.detach().abs()))]
    return summed, [to_device(x, "cpu") for x in sums], mixed_priority(error.detach(), valid, config.eta)


class RecurrentEpsilonGreedy:
    """Takes the action of the largest Q value, or with probability ``exploration`` = ε any, all as likely.

    ``moves`` counts the rows since an item began; one that would begin at LAST begins at the row behind it.
    """

    noise, fragment_noise = 2, 0  # one uniform for whether, one for which

    def __init__(self, net: RecurrentQNetwork, lstm: int, stride: int) -> None:
        self.net, self.stride = net, stride
        self.carry: Schema = {
            "lstm": Leaf((2, lstm), "float32", "fragment", "", "hidden and cell state before row 0"),
            "last_action": Leaf((), "int64", "fragment", "", "of the move before row 0"),
            "moves": Leaf((), "int64", "fragment", "", "rows since an item began; 0 begins one"),
        }
        self.extras: Schema = {
            "lstm": Leaf((2, lstm), "float32", "step", "", "hidden and cell state before the move"),
            "last_action": Leaf((), "int64", "step", "", "of the move before"),
            "moves": Leaf((), "int64", "step", "", "rows since an item began"),
            "last_reward": Leaf((), "float32", "step", "", "of the move before"),
            "opens": Leaf((), "bool", "step", "", "an item begins here"),
            "q_action": Leaf((), "float32", "step", "", "Q of the action under the acting weights, rescaled"),
            "q_max": Leaf((), "float32", "step", "", "the largest Q under the acting weights, rescaled"),
        }

    def initial_carry(self, columns: int) -> dict[str, Tensor]:
        device = next(self.net.parameters()).device
        state = torch.zeros(columns, *self.carry["lstm"].shape, device=device)
        zeros = torch.zeros(columns, dtype=torch.int64, device=device)
        return {"lstm": state, "last_action": zeros, "moves": zeros.clone()}

    @torch.no_grad()
    def act(self, step: Step, carry: dict[str, Tensor], exploration: Tensor, noise: Tensor) -> ActOutput:
        one_row = (x[None] for x in (step.observation, carry["last_action"], step.reward, step.first))
        rows, state = self.net(*one_row, carry["lstm"])
        q = rows[0]
        action = epsilon_greedy(q, exploration, noise)
        moves = torch.where(step.first & (carry["moves"] == 1), 0, carry["moves"])
        extras = {
            **carry,
            "last_reward": step.reward,
            "opens": moves == 0,
            "q_action": q.gather(-1, action[:, None]).squeeze(-1),
            "q_max": q.amax(-1),
        }
        return ActOutput(action, {"lstm": state, "last_action": action, "moves": (moves + 1) % self.stride}, extras)


def policy(config: Config, spec: Spec, rules: Rules | None) -> RecurrentEpsilonGreedy:
    """Raises Unsuited where the environment does not offer one discrete choice."""
    if spec.actions.kind != "discrete":
        raise Unsuited(
            f"R2D2 needs one discrete choice, and {spec.id} has {spec.actions.kind} actions; use a method that has a "
            "distribution over them"
        )
    net = RecurrentQNetwork(spec, tuple(config.hidden), config.network, config.lstm)
    return RecurrentEpsilonGreedy(net, config.lstm, config.stride)


def exploration(config: Config, columns: Array, total: int, progress: float) -> Array:
    """ε_i [b] for life; a column that is alone has column 0's."""
    return epsilon_ladder(columns, total, config.epsilon, LADDER)


def annotate(config: Config, rows: Tree) -> dict[str, Array] | None:
    """First priorities of items [L, n], from the Q values of the policy that acted."""
    if not config.priority_exponent:
        return None
    names = ("reward", "discount", "extras/q_action", "extras/q_max")
    reward, discount, q_action, value = (to_device(rows[name][config.burn_in :], "cpu") for name in names)
    valid = ~to_device(rows["first"][config.burn_in + 1 :], "cpu") & reward.isfinite()
    error = targets(config, reward.nan_to_num(0.0, 0.0, 0.0), discount, value, valid) - q_action[:-1]
    return {"priority": to_host(mixed_priority(error, valid, config.eta))}


class Learner(base.Learner):
    """One update = one optimiser step on one batch of sequences."""

    def __init__(
        self, config: Config, spec: Spec, rules: Rules | None, policy: RecurrentEpsilonGreedy, group: Group
    ) -> None:
        self.config, self.policy, self.group = config, policy, group
        self.weights = flatten(policy.net)
        group.broadcast_(self.weights.data)
        self.target_net = deepcopy(policy.net)
        self.target = flatten(self.target_net)
        adam = ("adam", config.learning_rate, config.adam_epsilon, config.beta_2, config.beta_1)
        self.optimizer = make_optimizer(self.weights, *adam)
        self.optimizers = {"weights": self.optimizer}
        self.rounds = 0

    def update(self, batches: Mapping[str, Trajectory], progress: float) -> UpdateResult:
        config, batch = self.config, batches["items"]
        rate = annealed(config.learning_rate, progress, config.anneal)
        self.optimizer.learning_rate = rate
        with torch.no_grad():
            target_q = self._unrolled(self.target_net, batch)
        summed, sums, priorities = loss(config, self._unrolled(self.policy.net, batch), target_q, batch)
        count = int(batch.valid[config.burn_in :].sum())
        norm = self.group.apply_gradients(self.optimizer, summed, count, config.max_grad_norm)
        self.rounds += 1
        if self.rounds % config.target_every == 0:
            polyak_(self.target, self.weights, 1.0)
        metrics = means(self.group, FIGURES, torch.stack([*sums, torch.tensor(float(count))]))
        metrics |= {"grad_norm": norm, "learning_rate": rate}
        return UpdateResult(metrics, priorities if config.priority_exponent else None)

    def _unrolled(self, net: RecurrentQNetwork, batch: Trajectory) -> Tensor:
        """Q values [L+1, n, A] of the rows behind the burn-in."""
        config = self.config
        last_action = torch.cat([batch.carry["last_action"][None], batch.action])
        last_reward = torch.cat([batch.extras["last_reward"][:1], batch.reward])
        rows = (batch.observation, last_action, last_reward, batch.first)
        state = batch.carry["lstm"] * (config.state == "stored")
        if config.burn_in:
            with torch.no_grad():
                _, state = net(*(x[: config.burn_in] for x in rows), state)
        q: Tensor = net(*(x[config.burn_in :] for x in rows), state)[0]
        return q

    def state(self) -> StateDict:
        return {"target": self.target.data.clone(), "rounds": self.rounds}

    def load(self, state: StateDict) -> None:
        self.target.data.copy_(state["target"])
        self.rounds = int(state["rounds"])


ALGORITHM = base.Algorithm(config=Config, policy=policy, learner=Learner, exploration=exploration, annotate=annotate)
