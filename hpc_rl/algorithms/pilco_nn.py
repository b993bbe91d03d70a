"""PILCO with a Bayesian network in place of Gaussian processes (Gal, McAllister and Rasmussen 2016, ICML workshop).

    model        x' − x = f_W(φ(x), u) + ε,   f a network with dropout: to drop units is to draw W
    roll-out     K particles, each with a W of its own for all H moves;
                 x_t,k = m_t + L_t z_t,k,   m_{t+1}, S_{t+1}: mean and covariance of x_t,k + f_k(φ(x_t,k), u_t,k) + ε
    cost         J(θ) = 1/H Σ_{t=1..H} 1/K Σ_k 1 − exp(−½ ‖C (φ(x_t,k) − φ(x*))‖² / w²)

L_t L_tᵀ = S_t: each step matches a Gaussian to the particles and draws them anew from it, without which particles part
into groups and J has many minima. z, W and ε are drawn once for an update, so that J is a function that BFGS can
minimise; its gradient goes through the draws. Goal, controller and policy are those of PILCO (pilco.py).

Published settings, in the fields of Config: 2 layers of 200 sigmoids, p 0.05.

What differs from the paper: the network is fitted anew after every episode, from the data and a seed alone, so that no
state of it is kept; ε has the variance of the residuals.

Extras: what was predicted for a move before its episode. Topologies: solo, allreduce (restarts shared out).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from hpc_rl.algorithms import base
from hpc_rl.config import Fraction, NonNegative, NonNegativeInt, Positive, PositiveInt, Range
from hpc_rl.devices import to_device
from hpc_rl.experience import Experience, Items, Unsuited
from hpc_rl.formulas.moment_matching import features, squashed
from hpc_rl.formulas.rollouts import Goal, goal_of
from hpc_rl.nets.controllers import Controlled, Linear, Pilot, RadialBasis
from hpc_rl.nets.dropout import Ensemble, Masks, draws, fitted
from hpc_rl.optim.bfgs import minimum, with_gradient
from hpc_rl.optim.flat import StateDict, flatten
from hpc_rl.optim.group import Group, shared_seed
from hpc_rl.optim.tables import shared_out
from hpc_rl.optim.transitions import Transitions
from hpc_rl.types import Rules, Spec, Trajectory, UpdateResult

TOPOLOGIES = ("solo", "allreduce")
JITTER = 1e-9  # on the diagonal of S


@dataclass(frozen=True)
class Config:
    unroll: Annotated[PositiveInt, "moves per column between two looks for complete episodes"] = 1
    random_episodes: Annotated[PositiveInt, "played at random before the first model, over all columns"] = 1
    horizon: Annotated[PositiveInt, "H, moves that are planned"] = 40
    angles: Annotated[tuple[NonNegativeInt, ...], "entries of an observation that are angles, rad"] = ()
    target: Annotated[tuple[float, ...], "x*, each entry; none: all 0"] = ()
    distance: Annotated[tuple[tuple[float, ...], ...], "C, rows over features; none: each feature by itself"] = ()
    width: Annotated[Positive, "w, where the cost is 0.39"] = 0.5
    start_std: Annotated[tuple[NonNegative, ...], "of S_0, one for all entries or each its own"] = (0.1,)
    controller: Annotated[Literal["rbf", "linear"], "radial basis functions, or linear"] = "rbf"
    centres: Annotated[PositiveInt, "radial basis functions"] = 20
    restarts: Annotated[PositiveInt, "controllers optimised in an update; the first goes on from the last one"] = 1
    evaluations: Annotated[PositiveInt, "of J and its gradient for each of them"] = 75
    particles: Annotated[int, Range(2), "K"] = 50
    hidden: Annotated[tuple[PositiveInt, ...], "units per layer of the model"] = (200, 200)
    dropout: Annotated[float, Range(0, 1, open_high=True), "p, share of units that are dropped"] = 0.05
    model_steps: Annotated[PositiveInt, "of Adam, each over all moves"] = 2000
    learning_rate: Annotated[Positive, "of Adam"] = 5e-3
    decay: Annotated[Fraction, "of the model's squared weights"] = 1e-6

    def experience(self) -> Experience:
        return Experience(self.unroll, (Items("items", 0, complete="episode"),), columnless=True)


def goal(config: Config, spec: Spec) -> Goal:
    """Of the Config. Raises Unsuited where it does not fit the observations."""
    entries = spec.observation[0]
    try:
        if len(config.start_std) not in (1, entries):
            raise ValueError(f"start_std has {len(config.start_std)} numbers, and {entries} are shown; give 1 or these")
        return goal_of(entries, config.angles, config.target, config.distance, config.width)
    except ValueError as error:
        raise Unsuited(f"{spec.id}: {error}") from None


def policy(config: Config, spec: Spec, rules: Rules | None) -> Pilot:
    """Raises Unsuited where observations are no row of numbers or actions no box, or the goal does not fit."""
    if spec.actions.kind != "box" or len(spec.observation) != 1 or spec.dtype == "uint8":
        raise Unsuited(
            f"a model of moves needs rows of numbers and a box of actions, and {spec.id} shows {spec.dtype} "
            f"{list(spec.observation)} and has {spec.actions.kind} actions; use PPO"
        )
    goal(config, spec)
    entries, actions = spec.observation[0], spec.actions.sizes[0]
    inputs, rbf = entries + len(config.angles), config.controller == "rbf"
    controller = RadialBasis(inputs, actions, config.centres) if rbf else Linear(inputs, actions)
    return Pilot(Controlled(controller, config.horizon, entries), config.angles, actions)


@dataclass(frozen=True)
class World:
    """The model with all that is drawn for an update: masks of K particles, z [H + 1, K, D] and ε [H, K, D]."""

    model: Ensemble
    masks: Masks
    z: Tensor
    noise: Tensor
    angles: tuple[int, ...]

    def particles(self, mean: Tensor, covariance: Tensor, move: int) -> Tensor:
        """[K, D] of N(m, S)."""
        root = torch.linalg.cholesky(covariance + JITTER * torch.eye(len(mean), dtype=mean.dtype))
        drawn: Tensor = mean + self.z[move] @ root.T
        return drawn

    def after(self, x: Tensor, action: Tensor, move: int) -> Tensor:
        """Particles [K, D] one move later."""
        return x + self.model(torch.cat([features(x, self.angles), action], 1), self.masks) + self.noise[move]


def drawn(config: Config, model: Ensemble, entries: int, generator: torch.Generator) -> World:
    """z have mean 0 and covariance I over the particles of each move, to the last digit: less to average out."""
    shape = (config.horizon + 1, config.particles, entries)
    z = torch.randn(shape, generator=generator, dtype=torch.float64)
    z = z - z.mean(1, keepdim=True)
    if config.particles > entries:
        covariance = z.mT @ z / (config.particles - 1)
        z = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), z.mT, upper=False).mT
    noise = model.noise.sqrt() * torch.randn(shape, generator=generator, dtype=torch.float64)[1:]
    masks = draws(config.hidden, config.particles, config.dropout, generator)
    return World(model, masks, z, noise, config.angles)


def rolled_out(
    world: World, net: Controlled, row: Tensor, goal: Goal, mean: Tensor, covariance: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Of the controller with parameters ``row`` [P]: J, and means and deviations [H + 1, D] of the states."""
    moments, costs = [(mean, covariance.diagonal().sqrt())], []
    for move in range(len(world.noise)):
        x = world.particles(mean, covariance, move)
        following = world.after(x, squashed(net.controller.output(row, features(x, world.angles))), move)
        mean, covariance = following.mean(0), torch.cov(following.T).reshape(len(mean), -1)
        costs.append(goal.cost(world.particles(mean, covariance, move + 1)).mean())
        moments.append((mean, covariance.diagonal().sqrt()))
    means, deviations = (torch.stack(list(x)) for x in zip(*moments, strict=True))
    return torch.stack(costs).mean(), means, deviations


class Learner(base.Learner):
    """One update = all episodes since the last one become data; a network is fitted, the controller is optimised."""

    def __init__(self, config: Config, spec: Spec, rules: Rules | None, policy: Pilot, group: Group) -> None:
        self.config, self.policy, self.group = config, policy, group
        self.goal, self.seed = goal(config, spec), shared_seed(group)
        self.weights = flatten(policy.net)
        group.broadcast_(self.weights.data)
        self.optimizers = {}
        self.data = Transitions(spec.observation[0], spec.actions.sizes[0])

    @torch.no_grad()
    def update(self, batches: Mapping[str, Trajectory], progress: float) -> UpdateResult:
        config, data, net = self.config, self.data, self.policy.net
        new = data.add(self.group, batches["items"])
        figures = {"cost": float(self.goal.cost(new.after).mean()), **new.agreement()}
        figures |= {"moves": float(len(data)), "episodes": float(data.episodes)}
        if data.episodes < config.random_episodes:
            return UpdateResult(figures)
        generator = torch.Generator().manual_seed(self.seed + 1000 * data.episodes)
        before, action, after = data.parts()
        shown = features(before, config.angles)
        model = fitted(
            torch.cat([shown, action], 1),
            after - before,
            config.hidden,
            config.dropout,
            config.model_steps,
            config.learning_rate,
            config.decay,
            generator,
            self.group.alive,
        )
        world = drawn(config, model, before.shape[1], generator)
        std = torch.tensor(config.start_std, dtype=torch.float64).expand(before.shape[1])
        start = data.first.mean(0), torch.diag(std.square())
        best, evaluations = self._best(world, start, shown)
        cost, means, deviations = rolled_out(world, net, best, self.goal, *start)
        net.coefficients.data.copy_(best)
        net.plan.data.copy_(torch.stack([means, deviations], 1))
        net.ready.data.fill_(1.0)
        left = float((model.noise / model.scale[1].square()).mean())
        planned = {"predicted_cost": float(cost), "evaluations": evaluations, "model_error": left}
        return UpdateResult({**figures, **planned})

    def _best(self, world: World, start: tuple[Tensor, Tensor], shown: Tensor) -> tuple[Tensor, float]:
        """The best controller's parameters [P], and the evaluations of each one. Collective."""
        config, net = self.config, self.policy.net
        present = to_device(net.coefficients.detach().double(), "cpu")

        def loss(row: Tensor) -> Tensor:
            return config.horizon * rolled_out(world, net, row, self.goal, *start)[0]

        def solve(task: int) -> Tensor:
            generator = torch.Generator().manual_seed(self.seed + 1000 * self.data.episodes + 500 + task)
            begin = net.controller.start(shown, self.goal.target, generator)
            if task == 0 and bool(net.ready > 0):
                begin = present
            best = minimum(with_gradient(loss), begin, config.evaluations, self.group.alive)
            return torch.cat([best.point, torch.tensor([best.loss, best.evaluations], dtype=torch.float64)])

        table = shared_out(self.group, config.restarts, len(present) + 2, solve)
        return table[table[:, -2].argmin(), :-2], float(table[:, -1].mean())

    def state(self) -> StateDict:
        return {"seed": self.seed, "data": self.data.state()}

    def load(self, state: StateDict) -> None:
        self.seed = int(state["seed"])
        self.data.load(state["data"])


ALGORITHM = base.Algorithm(config=Config, policy=policy, learner=Learner)
