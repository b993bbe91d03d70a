"""PILCO (Deisenroth and Rasmussen 2011, ICML): a controller from seconds of interaction, by a probabilistic model.

After every episode all moves so far are learned from anew:

    model        x' − x ~ GP_e(φ(x), u), one for each entry e of the observation; φ: sin and cos in place of angles
    prediction   x_0 ~ N(m_0, S_0);   p(x_{t+1}) ≈ N(m_{t+1}, S_{t+1})      moment matching, equations 10 to 25
    cost         J(θ) = 1/H Σ_{t=1..H} E[1 − exp(−½ ‖C (φ(x_t) − φ(x*))‖² / w²)]                  equation 24
    controller   u = squash(π_θ(φ(x))),  squash(a) = (9 sin a + sin 3a) / 8,  θ by BFGS on dJ/dθ through all H moves

Reward is not read: the goal x* (``target``), C (``distance``) and w (``width``) are. Columns of C are features: entries
that are no angles in their order, then sin and cos of each angle. The first ``random_episodes`` are played at random.

``filtered`` (McAllister and Rasmussen 2017, NIPS): u = π of the mean of a Gaussian belief, which is filtered from noisy
observations; planned are beliefs, with means that are random and covariances that are not (formulas/rollouts.py).

Outputs × restarts of the models' fits and restarts of the controller are shared out over learners: each is solved by
one of them alone, so results depend on no layout, to the bit. Of the controllers the lowest J wins.

Published settings (released code, pendulum · cart-pole): H 40, 1 random episode, 20 · 10 centres, w 0.5 · 0.25, S_0
0.1² I, 75 · 150 line searches, SNR 1000, 300 inducing points.

What differs from the papers: BFGS counts evaluations; fits begin where they were, and anew at the data's deviations;
above ``exact`` points they are to ``inducing`` of them, chosen among the data for FITC, too; m_0 is the mean first
observation without ``start``; no terminations; a belief moves as the plan's joint Gaussian of belief and next state.

Extras: what was predicted for a move before its episode. Topologies: solo, allreduce.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from hpc_rl.algorithms import base
from hpc_rl.config import NonNegative, NonNegativeInt, Positive, PositiveInt, Range
from hpc_rl.devices import to_device
from hpc_rl.experience import Experience, Items, Unsuited
from hpc_rl.formulas import gaussian_process as gp
from hpc_rl.formulas.moment_matching import features
from hpc_rl.formulas.rollouts import Dynamics, Goal, State, goal_of, mean_cost, predicted
from hpc_rl.nets.controllers import Controlled, Linear, Pilot, RadialBasis
from hpc_rl.optim.bfgs import minimum, with_gradient
from hpc_rl.optim.flat import StateDict, flatten
from hpc_rl.optim.group import Group, shared_seed
from hpc_rl.optim.tables import shared_out
from hpc_rl.optim.transitions import Transitions
from hpc_rl.types import Rules, Spec, Trajectory, UpdateResult

TOPOLOGIES = ("solo", "allreduce")


@dataclass(frozen=True)
class Config:
    unroll: Annotated[PositiveInt, "moves per column between two looks for complete episodes"] = 1
    random_episodes: Annotated[PositiveInt, "played at random before the first model, over all columns"] = 1
    horizon: Annotated[PositiveInt, "H, moves that are planned"] = 40
    angles: Annotated[tuple[NonNegativeInt, ...], "entries of an observation that are angles, rad"] = ()
    target: Annotated[tuple[float, ...], "x*, each entry; none: all 0"] = ()
    distance: Annotated[tuple[tuple[float, ...], ...], "C, rows over features; none: each feature by itself"] = ()
    width: Annotated[Positive, "w, where the cost is 0.39"] = 0.5
    filtered: Annotated[bool, "the controller acts on beliefs, filtered from noisy observations"] = False
    start: Annotated[tuple[float, ...], "m_0; none: the mean of the first observations"] = ()
    start_std: Annotated[tuple[NonNegative, ...], "of S_0, one for all entries or each its own"] = (0.1,)
    controller: Annotated[Literal["rbf", "linear"], "radial basis functions, or linear"] = "rbf"
    centres: Annotated[PositiveInt, "radial basis functions"] = 20
    restarts: Annotated[PositiveInt, "controllers optimised in an update; the first goes on from the last one"] = 1
    evaluations: Annotated[PositiveInt, "of J and its gradient for each of them"] = 75
    model_restarts: Annotated[PositiveInt, "fits of each GP; the first goes on from the last one"] = 2
    model_evaluations: Annotated[PositiveInt, "of the likelihood and its gradient for each of them"] = 150
    signal_to_noise: Annotated[float, Range(1, open_low=True), "SNR that is penalised"] = 1000.0
    exact: Annotated[PositiveInt, "moves above which the GPs are sparse"] = 500
    inducing: Annotated[PositiveInt, "points of a sparse GP"] = 300

    def experience(self) -> Experience:
        return Experience(self.unroll, (Items("items", 0, complete="episode"),), columnless=True)


def goal(config: Config, spec: Spec) -> Goal:
    """Of the Config. Raises Unsuited where it does not fit the observations."""
    entries = spec.observation[0]
    try:
        for name, row, few in (("start", config.start, 0), ("start_std", config.start_std, 1)):
            if len(row) not in (few, entries):
                raise ValueError(f"{name} has {len(row)} numbers, and {entries} are shown; give {few} or {entries}")
        return goal_of(entries, config.angles, config.target, config.distance, config.width)
    except ValueError as error:
        raise Unsuited(f"{spec.id}: {error}") from None


def policy(config: Config, spec: Spec, rules: Rules | None) -> Pilot:
    """Raises Unsuited where observations are no row of numbers or actions no box, or the goal does not fit."""
    if spec.actions.kind != "box" or len(spec.observation) != 1 or spec.dtype == "uint8":
        raise Unsuited(
            f"a Gaussian process needs rows of numbers and a box of actions, and {spec.id} shows {spec.dtype} "
            f"{list(spec.observation)} and has {spec.actions.kind} actions; use PPO"
        )
    goal(config, spec)
    entries, actions = spec.observation[0], spec.actions.sizes[0]
    inputs = entries + len(config.angles)
    rbf = config.controller == "rbf"
    controller = RadialBasis(inputs, actions, config.centres) if rbf else Linear(inputs, actions)
    return Pilot(Controlled(controller, config.horizon, entries, config.filtered), config.angles, actions)


def fitted(config: Config, group: Group, x: Tensor, y: Tensor, guesses: Tensor | None, seed: int) -> Tensor:
    """θ [E, D + 3]: hyper-parameters [D + 2] of each output of y [n, E], and their penalised loss. Collective.

    Raises Unsuited where a length-scale runs away.
    """
    outputs, width = y.shape[1], x.shape[1] + 3

    def solve(task: int) -> Tensor:
        restart, output = divmod(task, outputs)
        first = gp.first_guess(x, y[:, output])
        if restart == 0 and guesses is not None:
            first = guesses[output]
        elif restart:
            generator = torch.Generator().manual_seed(seed + task)
            first = first + 0.5 * torch.randn(len(first), generator=generator, dtype=torch.float64)
        loss = lambda theta: gp.penalised_loss(theta, x, y[:, output], config.signal_to_noise)  # noqa: E731
        point, reached, _ = minimum(loss, first, config.model_evaluations, group.alive)
        return torch.cat([point, torch.tensor([reached], dtype=torch.float64)])

    table = shared_out(group, outputs * config.model_restarts, width, solve).reshape(-1, outputs, width)
    theta = torch.stack([table[table[:, e, -1].argmin(), e] for e in range(outputs)])
    for output, row in enumerate(theta):
        if (entry := gp.run_away(row[:-1], x)) is not None:
            raise Unsuited(
                f"the GP of entry {output} does not fit: its length-scale over input {entry} is beyond 1e5 deviations; "
                "leave out what does not vary, or play more random_episodes"
            )
    return theta


class Learner(base.Learner):
    """One update = all episodes since the last one become data; the models are fitted, the controller is optimised."""

    def __init__(self, config: Config, spec: Spec, rules: Rules | None, policy: Pilot, group: Group) -> None:
        self.config, self.policy, self.group = config, policy, group
        self.goal, self.seed = goal(config, spec), shared_seed(group)
        self.weights = flatten(policy.net)
        group.broadcast_(self.weights.data)
        self.optimizers = {}
        self.data = Transitions(spec.observation[0], spec.actions.sizes[0])
        self.theta: Tensor | None = None  # [E, D + 3]

    @torch.no_grad()
    def update(self, batches: Mapping[str, Trajectory], progress: float) -> UpdateResult:
        new = self.data.add(self.group, batches["items"])
        figures = {"cost": float(self.goal.cost(new.after).mean()), **new.agreement()}
        figures |= {"moves": float(len(self.data)), "episodes": float(self.data.episodes)}
        if self.data.episodes < self.config.random_episodes:
            return UpdateResult(figures)
        dynamics, model = self._model()
        states, planned = self._improve(dynamics)
        net = self.policy.net
        deviation = [(x.covariance.diagonal() + dynamics.noise).clamp(min=0).sqrt() for x in states]
        net.plan.data.copy_(torch.stack([torch.stack([x.mean for x in states]), torch.stack(deviation)], 1))
        if net.filter is not None:
            net.filter.data.copy_(torch.stack([torch.stack([dynamics.gain(x), x.led]) for x in states]))
        net.ready.data.fill_(1.0)
        return UpdateResult({**figures, **model, **planned})

    def _model(self) -> tuple[Dynamics, dict[str, float]]:
        """The model of all moves, and figures of it. Collective."""
        config, (before, action, after) = self.config, self.data.parts()
        x, y = torch.cat([features(before, config.angles), action], 1), after - before
        few, sparse = torch.arange(len(x)), len(x) > config.exact
        if sparse:
            guess = gp.first_guess(x, y[:, 0]) if self.theta is None else self.theta[0, :-1]
            few = torch.tensor(gp.spread(guess, x, config.inducing))
        guesses = None if self.theta is None else self.theta[:, :-1]
        self.theta = fitted(config, self.group, x[few], y[few], guesses, self.seed + 1000 * self.data.episodes)
        theta = list(self.theta[:, :-1])
        model = gp.sparse_posterior(theta, x, y, config.inducing) if sparse else gp.posterior(theta, x, y)
        noise = (2 * self.theta[:, -2]).exp() / 2  # a difference holds the noise of both observations
        ratio = (self.theta[:, -3] - self.theta[:, -2]).exp()
        figures = {"signal_to_noise": float(ratio.mean()), "model_loss": float(self.theta[:, -1].mean())}
        return Dynamics(model, config.angles, noise, config.filtered), figures

    def _improve(self, dynamics: Dynamics) -> tuple[list[State], dict[str, float]]:
        """Put the best controller in place; what it is predicted to do, and figures of that. Collective."""
        config, net = self.config, self.policy.net
        std = torch.tensor(config.start_std, dtype=torch.float64).expand(len(self.data.first[0]))
        mean = torch.tensor(config.start).double() if config.start else self.data.first.mean(0)
        start = dynamics.start(mean, torch.diag(std.square()))
        present = to_device(net.coefficients.detach().double(), "cpu")
        rows = features(self.data.parts()[0], config.angles)

        def states(row: Tensor) -> list[State]:
            return predicted(dynamics, net.controller.control(row), start, config.horizon)

        def solve(task: int) -> Tensor:
            seed = self.seed + 1000 * self.data.episodes + 500 + task
            first = net.controller.start(rows, self.goal.target, torch.Generator().manual_seed(seed))
            if task == 0 and float(net.ready):
                first = present
            loss = with_gradient(lambda row: config.horizon * mean_cost(self.goal, states(row)))
            point, *figures = minimum(loss, first, config.evaluations, self.group.alive)
            return torch.cat([point, torch.tensor(figures, dtype=torch.float64)])

        table = shared_out(self.group, config.restarts, len(present) + 2, solve)
        best = table[table[:, -2].argmin()]
        net.coefficients.data.copy_(best[:-2])
        figures = {"predicted_cost": float(best[-2]) / config.horizon, "evaluations": float(table[:, -1].mean())}
        return states(best[:-2]), figures

    def state(self) -> StateDict:
        return {"seed": self.seed, "data": self.data.state(), "theta": self.theta}

    def load(self, state: StateDict) -> None:
        self.seed, self.theta = int(state["seed"]), state["theta"]
        self.data.load(state["data"])


ALGORITHM = base.Algorithm(config=Config, policy=policy, learner=Learner)
