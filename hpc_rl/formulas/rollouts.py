"""What a controller is predicted to do: the states of the next moves as Gaussians, and their cost (PILCO).

A controller u = π(features of the observation) acts on x ~ N(m, S); the model predicts differences of states from
features and action. D entries of a state, F features, U choices. Observations are x + ε, ε ~ N(0, E). With a filter
(McAllister and Rasmussen 2017, NIPS) the controller acts on the mean M of the belief N(M, V) in place of them; before
the episode that mean is a random variable, M ~ N(m, Σ) with Σ + V = S:

    observation  K = V (V + E)⁻¹,   M ← M + K (x + ε − M),   Σ ← Σ + K V,   V ← V − K V
    move         Cov(M, x') = Σ H,   M ← m' + Hᵀ (M − m),    Σ ← Hᵀ Σ H,    V ← S' − Hᵀ Σ H
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from hpc_rl.formulas import moment_matching as mm
from hpc_rl.formulas.process_moments import Processes, process_moments

Control = Callable[[Tensor, Tensor], mm.Moments]
"""(mean [F], covariance [F, F]) of features -> moments of the controller's outputs [U], before they are squashed."""


class State(NamedTuple):
    """Mean [D] and covariance [D, D] of a state, the moments of its features, and what a filter knows of it."""

    mean: Tensor
    covariance: Tensor
    shown: mm.Moments
    known: Tensor  # Σ [D, D] before the observation
    led: Tensor  # H [D, D] of the move that led here


@dataclass(frozen=True)
class Goal:
    """The saturating cost 1 − exp(−½ ‖C (f − f*)‖² / width²) of features f."""

    angles: tuple[int, ...]
    target: Tensor  # f* [F]
    distance: Tensor  # C / width [k, F]

    def cost(self, x: Tensor) -> Tensor:
        """Of states [.., D]."""
        return mm.saturating((mm.features(x, self.angles) - self.target) @ self.distance.T)

    def expected(self, shown: mm.Moments) -> Tensor:
        """Of features with these moments."""
        wide = self.distance @ shown.covariance @ self.distance.T
        return mm.saturating_mean(self.distance @ (shown.mean - self.target), wide)


def goal_of(
    entries: int, angles: tuple[int, ...], target: Sequence[float], distance: Sequence[Sequence[float]], width: float
) -> Goal:
    """Of a job: no target is 0 everywhere, no distance each feature by itself. Raises ValueError, a sentence."""
    if any(i >= entries for i in angles) or len(set(angles)) < len(angles):
        raise ValueError(f"angles = {list(angles)}, and entries 0 to {entries - 1} are shown; name each once")
    if len(target) not in (0, entries):
        raise ValueError(f"target has {len(target)} numbers, and {entries} are shown; give one for each entry")
    size = entries + len(angles)
    if any(len(row) != size for row in distance):
        raise ValueError(f"each row of distance needs {size} numbers, one for each feature")
    at = torch.tensor(target or [0.0] * entries, dtype=torch.float64)
    rows = torch.tensor(distance, dtype=torch.float64) if distance else torch.eye(size).double()
    return Goal(angles, mm.features(at, angles), rows / width)


@dataclass(frozen=True)
class Dynamics:
    """The model of the differences of states, with the variance [D] of what is observed of a state."""

    model: Processes
    angles: tuple[int, ...]
    noise: Tensor

    filtered: bool = False

    def start(self, mean: Tensor, covariance: Tensor) -> State:
        """Of which a filter knows the mean alone."""
        nothing = torch.zeros_like(covariance)
        return State(mean, covariance, mm.feature_moments(mean, covariance, self.angles), nothing, nothing)

    def gain(self, state: State) -> Tensor:
        """K [D, D] of its observation: V (V + E)⁻¹."""
        unsure = state.covariance - state.known
        ratio: Tensor = torch.linalg.solve(unsure + torch.diag(self.noise), unsure)  # Kᵀ
        return ratio.T

    def after(self, state: State, control: Control) -> State:
        """The state one move later, whose controller acts on s: the belief's mean, or the observation.

        Of a belief E[φ(x) | s] is φ(s) but for angles, whose sines shrink by exp(−V/2). Without a filter, as in PILCO's
        released code, Cov(φ(x), u) is Cov(φ(x)) times the controller's gain.
        """
        mean, covariance, shown, known, _ = state
        if self.filtered:
            known = known + self.gain(state) @ (covariance - known)
            known, left = (known + known.T) / 2, mm.fading(covariance - known, self.angles)
            acted = mm.feature_moments(mean, known, self.angles)
            cross, both = known @ acted.gain, left[:, None] * acted.covariance
        else:
            acted = mm.feature_moments(mean, covariance + torch.diag(self.noise), self.angles)
            left, cross, both = torch.ones_like(acted.mean), covariance @ shown.gain, shown.covariance
        output = control(acted.mean, acted.covariance)
        action = mm.squashed_moments(output.mean, output.covariance)
        gain = output.gain @ action.gain
        mixed = both @ gain
        upper, lower = torch.cat([shown.covariance, mixed], 1), torch.cat([mixed.T, action.covariance], 1)
        inputs = torch.cat([shown.mean, action.mean]), torch.cat([upper, lower])
        change = mm.Moments(*process_moments(self.model, *inputs))
        linked = torch.cat([covariance @ shown.gain, cross @ gain], 1) @ change.gain
        total = covariance + change.covariance + linked + linked.T
        total, following = (total + total.T) / 2, mean + change.mean
        slope = acted.gain @ torch.cat([torch.diag(left), gain], 1) @ change.gain
        slope = slope + torch.eye(len(mean), dtype=mean.dtype)
        return self.start(following, total)._replace(known=slope.T @ known @ slope, led=slope)


def predicted(dynamics: Dynamics, control: Control, start: State, horizon: int) -> list[State]:
    """The states of ``horizon`` moves, ``start`` before them."""
    states = [start]
    for _ in range(horizon):
        states.append(dynamics.after(states[-1], control))
    return states


def mean_cost(goal: Goal, states: list[State]) -> Tensor:
    """Of the states after the first one, 0..1."""
    return torch.stack([goal.expected(state.shown) for state in states[1:]]).mean()
