"""Target networks: older parameters that bootstrap values, in a Flat of their own."""

from __future__ import annotations

from hpc_rl.optim.flat import Flat


def polyak_(target: Flat, source: Flat, tau: float) -> None:
    """θ⁻ ← (1 − τ) θ⁻ + τ θ (Lillicrap et al. 2016, arXiv 1509.02971); τ = 1 copies (Mnih et al. 2015, Nature 518)."""
    target.data.lerp_(source.data, tau)
