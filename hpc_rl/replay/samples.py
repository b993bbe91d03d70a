"""What was drawn of late, as figures: how old items were, with which priorities, and how much likelier than others."""

from __future__ import annotations

from collections import deque

import numpy as np

from hpc_rl.types import Array

KEPT = 32  # batches
QUANTILES = (10, 50, 90)  # %


class Samples:
    """Quantiles over the last `KEPT` batches."""

    def __init__(self) -> None:
        self.batches: dict[str, deque[Array]] = {}

    def add(self, **columns: Array) -> None:
        """One batch: name -> [n]. The arrays are kept, not copied."""
        for name, x in columns.items():
            self.batches.setdefault(name, deque(maxlen=KEPT)).append(x)

    def figures(self) -> dict[str, float]:
        """ "replay/<name>_<quantile>" of what was added."""
        figures: dict[str, float] = {}
        for name, batches in self.batches.items():
            numbers = np.percentile(np.concatenate(batches), QUANTILES)
            figures |= {f"replay/{name}_{q}": float(x) for q, x in zip(QUANTILES, numbers, strict=True)}
        return figures
