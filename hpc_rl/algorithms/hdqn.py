"""h-DQN (Kulkarni et al. 2016, arXiv 1604.06057): a meta-controller chooses goals, a controller actions to reach them.

Goals g of a finite list are named in the job; a critic says where an observation reaches one (nets/goals.py). An option
is what follows the choice of a goal in state x_0: N moves, until the goal is reached, the episode ends or
``option_limit`` moves are made. Two DQNs learn, each by Huber's loss from a replay of its own (equations 1 to 4):

    controller       y₁ = r^int + γ (1 − reached ∨ terminated) max_a Q₁(x', a; g; θ₁⁻),  r^int = 1 if reached else 0
    meta-controller  y₂ = F + Γ (1 − terminated) max_g Q₂(x_N, g; θ₂⁻),  F = Σ_{k<N} r_k,  Γ = γ: one for the option

    option_discount = "move" is the semi-Markov form: F = Σ_{k<N} γᵏ r_k, Γ = γ^N  (Sutton, Precup and Singh 1999)

A move is learned from for the goal that it was made for; an option from the state x_0 where the goal was chosen. A time
limit bootstraps both, an end of the option by ``option_limit`` the controller, too.

Both explore ε-greedily. The controller has an ε for each goal, by its success rate s_g, an exponential mean over the
options of all ranks that ended, in which one weighs 1 / success_window; it falls with time as well:

    ε_g = min(1 − (1 − ε) min(s_g / success_threshold, 1), ε_time),   ε = epsilon_final

During ``pretrain`` of the budget goals are random and the controller alone learns; then the meta-controller's ε falls.
``exploration`` scales both: 0 is greedy, 1 the ε of the weights that act.

Published settings (section 4), in the fields of Config, as far as remembered: γ 0.99, learning rates 2.5e-4, replays of
1e6 and 5e4, ε 1 → 0.1. The authors' chain adds rewards of 50 at the goal, −0.01 a move and for coming closer; these
here are the paper's 1 and 0.

What differs from the paper: both replays are kinds of items of one ring, so an option is as old as its moves; Adam;
the loss is a mean over the batch; ε_time is there because a goal that chance often denies (the chain's last state: one
in five) would stay random for ever; option_limit, because items have a longest length. Boxes on images are reached by
what moves in them, where the paper's object detector compares places.

Needs in extras: pursued and moves (the carry), goal, decides, and for success rates ended, reached. Topologies: solo,
allreduce, actor_replay_learner.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from math import inf
from typing import Annotated, Literal

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from hpc_rl.algorithms import base
from hpc_rl.config import Fraction, NonNegative, NonNegativeInt, Positive, PositiveInt, Range
from hpc_rl.devices import to_device
from hpc_rl.experience import Experience, Items, Unsuited
from hpc_rl.formulas.q_learning import falling_epsilon, greedy_value, huber, item_rows, n_step_return
from hpc_rl.nets.goals import GoalPolicy, TwoLevelQ, named_goals
from hpc_rl.optim.flat import StateDict, flatten
from hpc_rl.optim.group import Group, means
from hpc_rl.optim.optimizers import make_optimizer
from hpc_rl.optim.targets import polyak_
from hpc_rl.types import Rules, Spec, Trajectory, UpdateResult

FIGURES = ("loss", "q_mean", "reached")
META_FIGURES = ("meta_loss", "meta_q_mean", "option_reward", "option_moves")
TOPOLOGIES = ("solo", "allreduce", "actor_replay_learner")


@dataclass(frozen=True)
class Config:
    unroll: Annotated[PositiveInt, "moves per column between updates"] = 4
    goals: Annotated[tuple[NonNegativeInt, ...], "entries of the observation that are to become 1; none is each"] = ()
    boxes: Annotated[tuple[tuple[NonNegativeInt, ...], ...], "goals on images, each x0, y0, x1, y1 in pixels"] = ()
    option_limit: Annotated[PositiveInt, "moves after which a new goal is chosen"] = 50
    option_discount: Annotated[Literal["option", "move"], "γ once for an option, or for each of its moves"] = "option"
    capacity: Annotated[PositiveInt, "of the replay, env steps over all columns"] = 100_000
    min_size: Annotated[NonNegativeInt, "env steps before the first update"] = 1_000
    batch_size: Annotated[PositiveInt, "moves per update, over all learners"] = 64
    meta_batch_size: Annotated[PositiveInt, "options per update, over all learners"] = 64
    samples_per_insert: Annotated[Positive, "moves drawn per env step"] = 8.0
    meta_every: Annotated[PositiveInt, "updates of the controller for one of the meta-controller"] = 1
    target_every: Annotated[PositiveInt, "updates between two steps of the target networks"] = 1
    tau: Annotated[float, Range(0, 1, open_low=True), "τ, how far they go each time"] = 0.01
    learning_rate: Annotated[Positive, "of the controller's Adam"] = 1e-3
    meta_learning_rate: Annotated[Positive, "of the meta-controller's Adam"] = 1e-3
    adam_epsilon: Annotated[Positive, "of Adam"] = 1e-8
    error_clip: Annotated[NonNegative, "κ of Huber's loss; 0 is the squared error"] = 0.0
    discount: Annotated[Fraction, "γ"] = 0.99
    pretrain: Annotated[Fraction, "of the budget, in which the controller alone learns, of random goals"] = 0.0
    epsilon_final: Annotated[Fraction, "ε of both at the end"] = 0.1
    epsilon_fraction: Annotated[Fraction, "of the budget, until the controller's ε is final for all goals"] = 0.5
    meta_epsilon_fraction: Annotated[Fraction, "of the budget behind pretrain, until the other's is final"] = 0.5
    success_threshold: Annotated[float, Range(0, 1, open_low=True), "success rate at which a goal's ε is final"] = 0.9
    success_window: Annotated[PositiveInt, "options of a goal that its success rate looks back on"] = 100
    max_grad_norm: Annotated[Positive, "gradients are clipped to this norm"] = 10.0
    network: Annotated[Literal["nature", "shallow"], "convolutions, for images"] = "nature"
    hidden: Annotated[tuple[PositiveInt, ...], "units per layer for vector observations"] = (64, 64)

    def experience(self) -> Experience:
        rate, share = self.samples_per_insert, self.meta_batch_size / self.batch_size
        items = (
            Items("controller", self.batch_size, 1, samples_per_insert=rate),
            Items(
                "meta", self.meta_batch_size, self.option_limit, "decides", "decides", samples_per_insert=share * rate
            ),
        )
        options = ("column", "extras/ended", "extras/pursued", "extras/reached")
        return Experience(self.unroll, items, self.capacity, self.min_size, options)


def controller_target(config: Config, reached: Tensor, discount: Tensor, value: Tensor) -> Tensor:
    """y₁ [n] for max_a Q₁(x', a; g) [n]; ``discount`` [n] is 0 where the move terminated."""
    intrinsic = reached.float()
    return intrinsic + config.discount * discount * (1 - intrinsic) * value


def option_return(config: Config, batch: Trajectory) -> tuple[Tensor, Tensor, Tensor]:
    """F [n], Γ [n] with the termination in it, and N [n], of options [L, n]."""
    if config.option_discount == "move":
        return n_step_return(batch.reward, config.discount * batch.discount, batch.valid)
    total, factor, moves = n_step_return(batch.reward, batch.discount, batch.valid)
    return total, config.discount * factor, moves


def success_rates(rate: Tensor, attempts: Tensor, successes: Tensor, window: int) -> Tensor:
    """[G] the exponential means after so many more options of each goal, as if their successes were spread evenly."""
    kept = (1 - 1 / window) ** attempts
    return kept * rate + (1 - kept) * successes / attempts.clamp(min=1)


def epsilons(config: Config, success: Tensor, progress: float) -> Tensor:
    """ε [G + 1] of the controller for each goal, and of the meta-controller."""
    final, rest = config.epsilon_final, max(1 - config.pretrain, 1e-9)
    by_success = 1 - (1 - final) * (success / config.success_threshold).clamp(max=1)
    by_time = falling_epsilon(progress, config.epsilon_fraction, final)
    joint = (progress - config.pretrain) / rest
    meta = falling_epsilon(joint, config.meta_epsilon_fraction, final) if joint >= 0 else 1.0
    return torch.cat([by_success.clamp(max=by_time), torch.full((1,), meta)])


def policy(config: Config, spec: Spec, rules: Rules | None) -> GoalPolicy:
    """Raises Unsuited where actions are no discrete choice, or the goals are none of the observation's."""
    if spec.actions.kind != "discrete":
        raise Unsuited(
            f"h-DQN needs one discrete choice, and {spec.id} has {spec.actions.kind} actions; use HAC or HIRO"
        )
    try:
        goals = named_goals(spec, config.goals, config.boxes)
    except ValueError as error:
        raise Unsuited(f"h-DQN: {error}") from None
    return GoalPolicy(TwoLevelQ(spec, goals, tuple(config.hidden), config.network), config.option_limit)


class Learner(base.Learner):
    """One update = one step of the meta-controller, one of the controller, and new success rates."""

    def __init__(self, config: Config, spec: Spec, rules: Rules | None, policy: GoalPolicy, group: Group) -> None:
        self.config, self.policy, self.group, self.net = config, policy, group, policy.net
        self.weights = flatten(self.net)
        group.broadcast_(self.weights.data)
        self.target_net = deepcopy(self.net)
        self.target = flatten(self.target_net)
        adam = ("adam", config.adam_epsilon, 0.999, 0.9)
        controller, meta = (self.weights.part(net) for net in (self.net.controller, self.net.meta))
        self.optimizers = {
            "controller": make_optimizer(controller, adam[0], config.learning_rate, *adam[1:]),
            "meta": make_optimizer(meta, adam[0], config.meta_learning_rate, *adam[1:]),
        }
        self.success = torch.zeros(self.net.goals.count)
        self.options: dict[str, Tensor] = {}  # since the last update, of each column: how many ended, how many reached
        self.rounds = 0

    def arrived(self, rows: Mapping[str, Tensor]) -> None:
        column, ended, pursued, reached = (to_device(rows[name], "cpu") for name in self.config.experience().arrivals)
        attempts = one_hot(pursued, self.net.goals.count) * ended[..., None]
        new = {"column": column, "attempts": attempts.sum(0), "successes": (attempts * reached[..., None]).sum(0)}
        self.options = {name: torch.cat([self.options[name], x]) if self.options else x for name, x in new.items()}

    def update(self, batches: Mapping[str, Trajectory], progress: float) -> UpdateResult:
        config, norm = self.config, 0.0
        summed, sums = self._meta_loss(batches["meta"])
        if progress >= config.pretrain and self.rounds % config.meta_every == 0:
            norm = self._step("meta", summed, sums)
        metrics = means(self.group, META_FIGURES, sums) | {"meta_grad_norm": norm}
        if norm < inf:  # the same on every member
            summed, sums = self._controller_loss(batches["controller"])
            metrics |= {"grad_norm": self._step("controller", summed, sums)} | means(self.group, FIGURES, sums)
            self.rounds += 1
            if self.rounds % config.target_every == 0:
                polyak_(self.target, self.weights, config.tau)
        return UpdateResult(metrics | self._explore(progress))

    def _step(self, level: str, summed: Tensor, sums: Tensor) -> float:
        return self.group.apply_gradients(self.optimizers[level], summed, int(sums[-1]), self.config.max_grad_norm)

    def _controller_loss(self, batch: Trajectory) -> tuple[Tensor, Tensor]:
        """Summed loss, and the sums of FIGURES with their count."""
        goal, behind, valid = batch.extras["goal"][0], batch.observation[1], batch.valid[0].float()
        with torch.no_grad():
            reached = self.net.goals.reached(behind, goal)
            value = greedy_value(self.target_net.q1(behind, goal))
        y = controller_target(self.config, reached, batch.discount[0], value)
        q = self.net.q1(batch.observation[0], goal).gather(-1, batch.action[0][:, None]).squeeze(-1)
        summed = huber(y - q, valid, self.config.error_clip)
        return summed, _summed(valid, summed, q, reached)

    def _meta_loss(self, batch: Trajectory) -> tuple[Tensor, Tensor]:
        """Summed loss, and the sums of META_FIGURES with their count."""
        total, factor, moves = option_return(self.config, batch)
        goal, valid = batch.extras["goal"][0], batch.valid[0].float()
        with torch.no_grad():
            y = total + factor * greedy_value(self.target_net.q2(item_rows(batch.observation, moves)))
        q = self.net.q2(batch.observation[0]).gather(-1, goal[:, None]).squeeze(-1)
        summed = huber(y - q, valid, self.config.error_clip)
        return summed, _summed(valid, summed, q, total, moves)

    def _explore(self, progress: float) -> dict[str, float]:
        """New success rates, and the ε that follow from them. Collective."""
        ended = [self.options[name].sum(0) if self.options else 0 * self.success for name in ("attempts", "successes")]
        attempts, successes = self.group.sum(torch.stack(ended).float())
        self.options = {}
        self.success = success_rates(self.success, attempts, successes, self.config.success_window)
        epsilon = epsilons(self.config, self.success, progress)
        self.net.epsilon.data.copy_(epsilon)
        low, meta = float(epsilon[:-1].mean()), float(epsilon[-1])
        return {"success": float(self.success.mean()), "epsilon": low, "meta_epsilon": meta}

    def state(self) -> StateDict:
        return {"target": self.target.data.clone(), "success": self.success.clone(), "rounds": self.rounds}

    def load(self, state: StateDict) -> None:
        self.target.data.copy_(state["target"])
        self.success, self.rounds = state["success"].clone(), int(state["rounds"])

    def columns(self) -> dict[str, Tensor]:
        return dict(self.options)

    def load_columns(self, rows: dict[str, Tensor]) -> None:
        self.options = dict(rows)


def _summed(valid: Tensor, loss: Tensor, *figures: Tensor) -> Tensor:
    """The loss, the sums of figures [n] over valid items, and their number, on the host."""
    sums = [loss.detach(), *((valid * x.detach()).sum() for x in figures), valid.sum()]
    return to_device(torch.stack(sums), "cpu")


ALGORITHM = base.Algorithm(config=Config, policy=policy, learner=Learner)
