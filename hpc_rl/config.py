"""Types of configuration values.

A field's type hint states all that checking.py checks::

    unroll: PositiveInt = 20                                  a whole number >= 1
    decay: Annotated[float, Range(0, 1, open_high=True)]      a number >= 0 and < 1
    loss: Literal["mean", "sum"] = "mean"                     a choice
    hidden: tuple[PositiveInt, ...] = (64, 64)                a list, each item in its own range
    target: float | None = None                               may be left out; TOML has no word for None
    tau: Annotated[Positive, "of the softmax, nat"] = 0.03    any of them with what it means, for docs/job-file.md
    names: dict[str, str]                                     a table; of dict[str, Any] anything that TOML can hold
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated


class BadJob(ValueError):
    """The job cannot run; the message names the value and the remedy."""


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``; an open end is not one of them."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        return above and (value < self.high if self.open_high else value <= self.high)

    def __str__(self) -> str:
        """What a value must do: "lie in 0..1", "be > 0", "be < 1 and >= 0"."""
        if math.isfinite(self.low) and math.isfinite(self.high) and not (self.open_low or self.open_high):
            return f"lie in {self.low}..{self.high}"
        high = [f"{'<' if self.open_high else '<='} {self.high}"] if math.isfinite(self.high) else []
        low = [f"{'>' if self.open_low else '>='} {self.low}"] if math.isfinite(self.low) else []
        return "be " + " and ".join(high + low)


PositiveInt = Annotated[int, Range(1)]
NonNegativeInt = Annotated[int, Range(0)]
Positive = Annotated[float, Range(0, open_low=True)]
NonNegative = Annotated[float, Range(0)]
Fraction = Annotated[float, Range(0, 1)]
BelowOne = Annotated[float, Range(0, 1, open_high=True)]  # decays and momenta: at 1 an average would never move
