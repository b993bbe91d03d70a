"""What one program of an analysis found: pictures, tables, a sentence, and how they were computed. Plain values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from hpc_rl.analysis.runs import RecordedRun

Draw = Callable[[Any], None]
"""Draws into an empty `matplotlib.figure.Figure`; called once for a light and once for a dark page."""


class NotRecorded(ValueError):
    """A program has nothing to work on in these runs; the message says what it looked for."""


@dataclass(frozen=True)
class Section:
    """``findings`` are sentences with figures in them; ``how`` says how each number came about; names of pictures,
    tables and films are stems of files and, with spaces for underscores, their captions."""

    title: str
    findings: tuple[str, ...]
    how: str
    pictures: Mapping[str, Draw] = field(default_factory=dict)
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    films: Mapping[str, bytes] = field(default_factory=dict)  # GIF files


Analyze = Callable[[Sequence[RecordedRun]], Section]
"""What a program of `analysis/` offers as ``analyze``. Raises NotRecorded where it does not apply."""
