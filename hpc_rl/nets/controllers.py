"""Controllers whose action on a Gaussian has moments in closed form: radial basis functions, and a linear one.

Parameters travel as one float32 row; all that is computed from them is float64. F features, U choices. With each move
of the policy goes what was predicted for it, so that a recording shows both.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor, nn

from hpc_rl.formulas.moment_matching import Moments, features, squashed
from hpc_rl.formulas.process_moments import Processes, prediction, process_moments
from hpc_rl.formulas.rollouts import Control
from hpc_rl.types import ActOutput, Leaf, Schema, Step

FIRST = 0.1  # deviation of a new controller's weights

Parameters = Mapping[str, Tensor]


class RadialBasis:
    """π(f) = Σ_i w_i exp(−½ Σ_d (f_d − c_id)² / ℓ_d²): the mean of a Gaussian process, without its variance."""

    def __init__(self, inputs: int, outputs: int, centres: int) -> None:
        self.shapes = {"centres": (centres, inputs), "weights": (outputs, centres), "log_length": (outputs, inputs)}

    def start(self, rows: Tensor, target: Tensor, generator: torch.Generator) -> Tensor:
        """Parameters [P] of a new controller. Centres lie anywhere between rows [n, F] of features and the target [F],
        where it will have to act; length-scales are their deviations."""
        (count, _), outputs = self.shapes["centres"], self.shapes["weights"][0]
        at = torch.randint(len(rows), (count,), generator=generator)
        way = torch.rand(count, 1, generator=generator, dtype=torch.float64)
        noise = torch.randn(count, rows.shape[1], generator=generator, dtype=torch.float64)
        std = rows.std(0, correction=0).clamp(min=0.1)
        centres = rows[at] + way * (target - rows[at]) + 0.5 * std * noise
        length = centres.std(0, correction=0).clamp(min=0.1).log()
        weights = FIRST * torch.randn(outputs, count, generator=generator, dtype=torch.float64)
        return torch.cat([centres.flatten(), weights.flatten(), length.repeat(outputs)])

    def output(self, parameters: Tensor, rows: Tensor) -> Tensor:
        """[b, U] of features [b, F], before it is squashed."""
        return prediction(self._processes(parameters), rows)

    def control(self, parameters: Tensor) -> Control:
        processes = self._processes(parameters)
        return lambda mean, covariance: Moments(*process_moments(processes, mean, covariance))

    def _processes(self, parameters: Tensor) -> Processes:
        own = _split(parameters, self.shapes)
        weights = own["weights"]
        return Processes(own["centres"].expand(len(weights), -1, -1), weights, own["log_length"], 0 * weights[:, 0])


class Linear:
    """π(f) = f A + b."""

    def __init__(self, inputs: int, outputs: int) -> None:
        self.shapes = {"matrix": (inputs, outputs), "bias": (outputs,)}

    def start(self, rows: Tensor, target: Tensor, generator: torch.Generator) -> Tensor:
        """Parameters [P] of a new controller, whatever the rows [n, F] and the target [F]."""
        size = sum(prod(x) for x in self.shapes.values())
        return FIRST * torch.randn(size, generator=generator, dtype=torch.float64)

    def output(self, parameters: Tensor, rows: Tensor) -> Tensor:
        """[b, U] of features [b, F]."""
        own = _split(parameters, self.shapes)
        return rows @ own["matrix"] + own["bias"]

    def control(self, parameters: Tensor) -> Control:
        own = _split(parameters, self.shapes)
        matrix, bias = own["matrix"], own["bias"]
        return lambda mean, covariance: Moments(mean @ matrix + bias, matrix.T @ covariance @ matrix, matrix)


def _split(parameters: Tensor, shapes: Mapping[str, tuple[int, ...]]) -> Parameters:
    parts = torch.split(parameters, [prod(shape) for shape in shapes.values()])
    return {name: x.reshape(shape) for (name, shape), x in zip(shapes.items(), parts, strict=True)}


Controller = RadialBasis | Linear


class Controlled(nn.Module):
    """A controller's parameters, whether they were optimised yet, and what was predicted of them: mean and deviation of
    the observations of H moves, [H + 1, 2, D]. With a filter K of each and H of the move that led there, too,
    [H + 1, 2, D, D] (formulas/rollouts.py). None is stepped by a gradient."""

    def __init__(self, controller: Controller, horizon: int, entries: int, filtered: bool = False) -> None:
        super().__init__()
        self.controller = controller
        size = sum(prod(shape) for shape in controller.shapes.values())
        self.coefficients = nn.Parameter(torch.zeros(size))
        self.ready = nn.Parameter(torch.zeros(1))
        self.plan = nn.Parameter(torch.zeros(horizon + 1, 2, entries))
        self.filter = nn.Parameter(torch.zeros(horizon + 1, 2, entries, entries)) if filtered else None

    def forward(self, rows: Tensor) -> Tensor:
        """Outputs [b, U] float64 of features [b, F], before they are squashed."""
        return self.controller.output(self.coefficients.detach().double(), rows)


class Pilot:
    """Acts by the controller once it is optimised; until then each entry of an action is uniform in −1..1, and the
    untrained controller's where exploration is 0. Nothing else explores. With a filter, a belief's mean [D] before the
    observation is carried; moves beyond the plan are chosen by their observations."""

    fragment_noise = 0

    def __init__(self, net: Controlled, angles: tuple[int, ...], actions: int) -> None:
        self.net, self.angles, self.noise = net, angles, actions
        entries = net.plan.shape[-1]
        self.extras: Schema = {
            "predicted_mean": Leaf((entries,), "float32", "step", "", "of this row's observation, before the episode"),
            "predicted_std": Leaf((entries,), "float32", "step", "", "0 where nothing was predicted"),
        }
        self.carry: Schema = {"move": Leaf((), "float32", "fragment", "", "number in its episode of the row before")}
        if net.filter is not None:
            self.carry = {**self.carry, "belief": Leaf((entries,), "float32", "fragment", "", "mean before the row")}

    def initial_carry(self, columns: int) -> dict[str, Tensor]:
        return {k: torch.zeros(columns, *leaf.shape, device=self.net.plan.device) for k, leaf in self.carry.items()}

    @torch.no_grad()
    def act(self, step: Step, carry: dict[str, Tensor], exploration: Tensor, noise: Tensor) -> ActOutput:
        following = {"move": torch.where(step.first, 0.0, carry["move"] + 1)}
        move, last, seen = following["move"].long(), len(self.net.plan) - 1, step.observation
        inside, at = move <= last, move.clamp(max=last)
        if self.net.filter is not None:
            means, filtered, onward = self.net.plan[:, 0], self.net.filter[at, 0], (at + 1).clamp(max=last)
            before = torch.where(step.first[:, None], means[0], carry["belief"])
            belief = before + (filtered @ (seen - before)[..., None])[..., 0]
            seen = torch.where(inside[:, None], belief, seen)
            turned = self.net.filter[onward, 1].mT @ (seen - means[at])[..., None]
            following["belief"] = means[onward] + turned[..., 0]
        action = squashed(self.net(features(seen.double(), self.angles))).float()
        random = (exploration > 0) & (self.net.ready.detach() == 0)
        action = torch.where(random[:, None], 2 * noise - 1, action)
        plan = torch.where(inside[:, None, None], self.net.plan.detach()[at], 0.0)
        return ActOutput(action, following, {"predicted_mean": plan[:, 0], "predicted_std": plan[:, 1]})
