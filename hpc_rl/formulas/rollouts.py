"""What a controller is predicted to do: the states of the next moves as Gaussians, and their cost (PILCO).

A controller u = π(features of the observation) acts on N(m, S); the model predicts differences of states from features
and action. D entries of a state, F features, U choices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from hpc_rl.formulas.moment_matching import (
    Moments,
    feature_moments,
    features,
    saturating,
    saturating_mean,
    squashed_moments,
)
from hpc_rl.formulas.process_moments import Processes, process_moments

Control = Callable[[Tensor, Tensor], Moments]
"""(mean [F], covariance [F, F]) of features -> moments of the controller's outputs [U], before they are squashed."""


class State(NamedTuple):
    """Mean [D] and covariance [D, D] of a state, and the moments of its features."""

    mean: Tensor
    covariance: Tensor
    shown: Moments


@dataclass(frozen=True)
class Goal:
    """The saturating cost 1 − exp(−½ ‖C (f − f*)‖² / width²) of features f."""

    angles: tuple[int, ...]
    target: Tensor  # f* [F]
    distance: Tensor  # C / width [k, F]

    def cost(self, x: Tensor) -> Tensor:
        """Of states [.., D]."""
        return saturating((features(x, self.angles) - self.target) @ self.distance.T)

    def expected(self, shown: Moments) -> Tensor:
        """Of features with these moments."""
        wide = self.distance @ shown.covariance @ self.distance.T
        return saturating_mean(self.distance @ (shown.mean - self.target), wide)


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
    return Goal(angles, features(at, angles), rows / width)


@dataclass(frozen=True)
class Dynamics:
    """The model of the differences of states, with the variance [D] of what is observed of a state."""

    model: Processes
    angles: tuple[int, ...]
    noise: Tensor

    def state(self, mean: Tensor, covariance: Tensor) -> State:
        return State(mean, covariance, feature_moments(mean, covariance, self.angles))

    def after(self, state: State, control: Control) -> State:
        """The state one move later. As in PILCO's released code the controller sees the state with noise, and Cov(x, u)
        is Cov(x, f) times the controller's gain."""
        mean, covariance, shown = state
        noisy = feature_moments(mean, covariance + torch.diag(self.noise), self.angles)
        output = control(noisy.mean, noisy.covariance)
        action = squashed_moments(output.mean, output.covariance)
        gain = output.gain @ action.gain
        mixed = shown.covariance @ gain
        upper, lower = torch.cat([shown.covariance, mixed], 1), torch.cat([mixed.T, action.covariance], 1)
        inputs = torch.cat([shown.mean, action.mean]), torch.cat([upper, lower])
        change = Moments(*process_moments(self.model, *inputs))
        cross = covariance @ shown.gain
        both = torch.cat([cross, cross @ gain], 1) @ change.gain
        total = covariance + change.covariance + both + both.T
        return self.state(mean + change.mean, (total + total.T) / 2)


def predicted(dynamics: Dynamics, control: Control, start: State, horizon: int) -> list[State]:
    """The states of ``horizon`` moves, ``start`` before them."""
    states = [start]
    for _ in range(horizon):
        states.append(dynamics.after(states[-1], control))
    return states


def mean_cost(goal: Goal, states: list[State]) -> Tensor:
    """Of the states after the first one, 0..1."""
    return torch.stack([goal.expected(state.shown) for state in states[1:]]).mean()
