"""Counts by stage of training that can be added: of real values, however many differ, and of distinct items."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from hpc_rl.analysis.stages import STAGES
from hpc_rl.types import Array

FEW = 12  # distinct values that are listed one by one
_MOST = 64  # that are remembered
_PER_DECADE, _LOW, _HIGH = 50, -6, 9  # bins of a magnitude from 10^_LOW to 10^_HIGH
_DECADES = (_HIGH - _LOW) * _PER_DECADE
BINS = 2 * _DECADES + 3
KEPT = 16_384  # smallest hashes of a `Distinct`


def _empty() -> Array:
    return np.zeros((STAGES, 0), np.int64)


@dataclass
class Tally:
    """How often each value came in each stage: ``values`` [V] rising and ``counts`` [STAGES, V], no longer kept where
    there are more than 64 of them; ``binned`` [STAGES, BINS] always, by sign and magnitude, fifty bins a decade."""

    values: Array
    counts: Array
    binned: Array
    many: bool = False

    @staticmethod
    def of(values: Array, stages: Array) -> Tally:
        """Of values [n] in stages [n]; what is not finite is left out."""
        known = np.isfinite(values)
        values, stages = values[known].astype(np.float64), stages[known].astype(np.int64)
        binned = np.bincount(stages * BINS + _bin(values), minlength=STAGES * BINS).reshape(STAGES, BINS)
        distinct, place = np.unique(values, return_inverse=True)
        if len(distinct) > _MOST:
            return Tally(np.empty(0), _empty(), binned, True)
        counts = np.bincount(stages * len(distinct) + place, minlength=STAGES * len(distinct))
        return Tally(distinct, counts.reshape(STAGES, len(distinct)), binned)

    def __add__(self, other: Tally) -> Tally:
        binned = self.binned + other.binned
        values = np.union1d(self.values, other.values)
        if self.many or other.many or len(values) > _MOST:
            return Tally(np.empty(0), _empty(), binned, True)
        counts = np.zeros((STAGES, len(values)), np.int64)
        for part in (self, other):
            counts[:, np.searchsorted(values, part.values)] += part.counts
        return Tally(values, counts, binned)

    def quantiles(self, shares: Array) -> Array:
        """[STAGES, Q] values below which these shares of a stage's lie, within 3 %; NaN where there is none."""
        result = np.full((STAGES, len(shares)), np.nan)
        for stage in range(STAGES):
            reached = np.cumsum(self.binned[stage])
            if reached[-1]:
                result[stage] = CENTRES[np.searchsorted(reached, np.maximum(shares * reached[-1], 1e-9))]
        return result


def _bin(values: Array) -> Array:
    """Bins of values [n]: negative ones by falling magnitude, those next to 0, positive ones by magnitude."""
    with np.errstate(divide="ignore"):
        place = np.floor((np.log10(np.abs(values)) - _LOW) * _PER_DECADE)
    place = np.clip(place, -1, _DECADES).astype(np.int64) + 1  # 0: next to nothing
    bins: Array = _DECADES + 1 + np.sign(values).astype(np.int64) * place
    return np.clip(bins, 0, BINS - 1)


def _centres() -> Array:
    magnitude = 10 ** (_LOW + (np.arange(_DECADES + 1) + 0.5) / _PER_DECADE)
    return np.concatenate([-magnitude[::-1], [0.0], magnitude])


CENTRES = _centres()
"""[BINS] the value that stands for a bin: the middle of its magnitudes, 0 of those below 10⁻⁶."""


@dataclass
class Distinct:
    """How many different items came in each stage and until its end, by the `KEPT` smallest hashes of each stage
    (Bar-Yossef et al. 2002: k minimum values): exact up to k, then within about 1/√k = 0.8 %."""

    smallest: list[Array] = field(default_factory=lambda: [np.empty(0, np.uint64)] * STAGES)

    @staticmethod
    def of(hashes: Array, stages: Array) -> Distinct:
        """Of items with these uniform 64-bit hashes [n]."""
        counts = np.bincount(stages, minlength=STAGES)
        parts = [hashes if n == len(hashes) else hashes[stages == k] if n else hashes[:0] for k, n in enumerate(counts)]
        return Distinct([_least(part) for part in parts])

    def __add__(self, other: Distinct) -> Distinct:
        pairs = zip(self.smallest, other.smallest, strict=True)
        return Distinct(
            [_least(np.concatenate(pair)) if len(pair[0]) and len(pair[1]) else max(pair, key=len) for pair in pairs]
        )

    def counts(self) -> tuple[Array, Array]:
        """(of each stage, of all stages up to its end), float64 [STAGES] each."""
        until, reached = np.empty(0, np.uint64), []
        for own in self.smallest:
            until = _least(np.concatenate([until, own]))
            reached.append(_estimate(until))
        return np.array([_estimate(own) for own in self.smallest]), np.array(reached)


def _least(hashes: Array) -> Array:
    if not len(hashes):
        return hashes
    rising = np.sort(hashes)  # several times as fast as numpy.unique, which hashes again
    least: Array = rising[np.append(True, rising[1:] != rising[:-1])][:KEPT]
    return least


def _estimate(smallest: Array) -> float:
    if len(smallest) < KEPT:
        return float(len(smallest))
    return (KEPT - 1) / (float(smallest[-1]) / 2.0**64)


def hashes(rows: Array) -> Array:
    """Uniform 64-bit hashes [n] of the bytes of rows [n, …]: a polynomial in odd constants, stirred (splitmix64)."""
    flat = np.ascontiguousarray(rows.reshape(len(rows), -1))
    raw = flat.view(np.uint8).reshape(len(flat), -1)
    raw = np.pad(raw, ((0, 0), (0, -raw.shape[1] % 8))) if raw.shape[1] % 8 else raw
    words = raw.view(np.uint64)
    with np.errstate(over="ignore"):
        mixed = np.full(len(words), 0x9E3779B97F4A7C15, np.uint64)
        for k in range(words.shape[1]):
            mixed = _stirred(mixed ^ words[:, k]) + np.uint64(0x9E3779B97F4A7C15)
    return mixed


def _stirred(x: Array) -> Array:
    """splitmix64 (Steele, Lea and Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Array = x ^ (x >> np.uint64(31))
    return mixed
