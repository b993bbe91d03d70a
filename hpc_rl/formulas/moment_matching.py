"""Moments of functions of a Gaussian x ~ N(m, S): sines, angles, squashed actions, the saturating cost (PILCO).

Deisenroth and Rasmussen 2011 (ICML), equations 10 to 25; Deisenroth, Fox and Rasmussen 2015 (TPAMI 37), appendix A. All
in float64: covariances are differences of numbers of the same size. Shapes: D inputs, E outputs.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor


class Moments(NamedTuple):
    """Of f(x): mean [E], covariance [E, E], and gain G [D, E] with Cov(x, f(x)) = S G."""

    mean: Tensor
    covariance: Tensor
    gain: Tensor


def sine(mean: Tensor, covariance: Tensor) -> Moments:
    """sin of each entry of x; of its gain, which is diagonal, the diagonal [D]. With e_ij = ½ exp(−(S_ii + S_jj)/2):

    E sin x_i = exp(−S_ii/2) sin m_i,   Cov(x, sin x_j) = S_:j exp(−S_jj/2) cos m_j,
    Cov(sin x_i, sin x_j) = e_ij [(exp(S_ij) − 1) cos(m_i − m_j) − (exp(−S_ij) − 1) cos(m_i + m_j)]
    """
    variance = covariance.diagonal()
    shrunk = (-variance / 2).exp()
    half = (variance[:, None] + variance) / 2
    # exp(S_ij) alone overflows where a variance is large; S_ij is at most (S_ii + S_jj) / 2
    near = (covariance - half).exp() - (-half).exp()
    far = (-covariance - half).exp() - (-half).exp()
    both = near * (mean[:, None] - mean).cos() - far * (mean[:, None] + mean).cos()
    return Moments(shrunk * mean.sin(), both / 2, shrunk * mean.cos())


def features(x: Tensor, angles: tuple[int, ...]) -> Tensor:
    """Rows [.., D] -> [.., F]: the entries that are no angles, then sin and cos of each angle."""
    plain = [i for i in range(x.shape[-1]) if i not in angles]
    return torch.cat([x[..., plain], *(f(x[..., i : i + 1]) for i in angles for f in (torch.sin, torch.cos))], -1)


@functools.cache
def _selection(entries: int, angles: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Of features: which entry each is made of [D, F], the phase of its sine [F], and whether it is one [F] bool."""
    plain = [i for i in range(entries) if i not in angles]
    chosen = torch.eye(entries, dtype=torch.float64)[:, plain + [i for i in angles for _ in range(2)]]
    waves = torch.arange(len(plain) + 2 * len(angles)) >= len(plain)
    phase = torch.tensor([0.0] * len(plain) + [0.0, math.pi / 2] * len(angles), dtype=torch.float64)
    return chosen, phase, waves


def feature_moments(mean: Tensor, covariance: Tensor, angles: tuple[int, ...]) -> Moments:
    """Of `features`: cos x is sin(x + π/2), so that each is an entry or the `sine` of one; an entry has gain 1."""
    if not angles:
        return Moments(mean, covariance, torch.eye(len(mean), dtype=mean.dtype))
    chosen, phase, waves = _selection(len(mean), angles)
    entry, spread = mean @ chosen + phase, chosen.T @ covariance @ chosen
    sines = sine(entry, spread)
    slope = torch.where(waves, sines.gain, 1.0)
    both = waves[:, None] & waves
    return Moments(
        torch.where(waves, sines.mean, entry),
        torch.where(both, sines.covariance, spread * slope[:, None] * slope),
        chosen * slope,
    )


def fading(covariance: Tensor, angles: tuple[int, ...]) -> Tensor:
    """E `features`(x) over `features`(E x), [F]: exp(−S_ii/2) for sin and cos of angle i, 1 for an entry."""
    chosen, _, waves = _selection(len(covariance), angles)
    return torch.where(waves, (-0.5 * covariance.diagonal() @ chosen).exp(), 1.0)


def squashed(x: Tensor) -> Tensor:
    """(9 sin x + sin 3x) / 8, within −1..1 and with a flat top: ±1 at ±π/2."""
    return (9 * x.sin() + (3 * x).sin()) / 8


def squashed_moments(mean: Tensor, covariance: Tensor) -> Moments:
    """Of `squashed`, from those of the sines of (x, 3x)."""
    size = len(mean)
    identity = torch.eye(size, dtype=mean.dtype)
    stretch, weight = torch.cat([identity, 3 * identity], 1), torch.cat([9 * identity, identity]) / 8
    waves = sine(mean @ stretch, stretch.T @ covariance @ stretch)
    return Moments(waves.mean @ weight, weight.T @ waves.covariance @ weight, (stretch * waves.gain) @ weight)


def saturating(distance: Tensor) -> Tensor:
    """1 − exp(−½ ‖d‖²) of distances d [.., k] in units of the cost's width."""
    return 1 - (-0.5 * distance.square().sum(-1)).exp()


def saturating_mean(mean: Tensor, covariance: Tensor) -> Tensor:
    """E `saturating` of d ~ N(m, S): 1 − |I + S|^(−½) exp(−½ mᵀ (I + S)⁻¹ m)."""
    wide = covariance + torch.eye(len(mean), dtype=mean.dtype)
    root = torch.linalg.cholesky(wide + 1e-9 * torch.eye(len(mean), dtype=mean.dtype))
    z = torch.linalg.solve_triangular(root, mean[:, None], upper=False)
    density: Tensor = (-0.5 * z.square().sum() - root.diagonal().log().sum()).exp()
    return 1 - density
