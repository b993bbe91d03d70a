"""One job for each combination of seeds and values, for `hpc-rl submit --seeds --sweep`."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from hpc_rl import job as jobs
from hpc_rl.config import BadJob
from hpc_rl.settings import Job

MOST_TASKS = 100_000


@dataclass(frozen=True)
class Task:
    """One run of a submission: its place in the array, what it changes, its resolved job."""

    index: int
    changes: tuple[str, ...]
    job: Job


def tasks(source: str, overrides: Sequence[str], seeds: str | None, sweeps: Sequence[str]) -> list[Task]:
    """The product of seeds and sweeps over one job; a single task without changes where neither is given.

    Raises:
        BadJob: a range or a sweep that cannot be read, or any of the jobs is wrong.
    """
    axes: list[list[str]] = []
    for item in sweeps:
        key, equals, values = item.partition("=")
        if not equals or not values:
            raise BadJob(f"--sweep {item!r} cannot be read; write KEY=VALUE,VALUE…")
        axes.append([f"{key}={value}" for value in _split(values)])
    if seeds is not None:
        axes.append([f"seed={seed}" for seed in _seeds(seeds)])
    if (count := math.prod(len(axis) for axis in axes)) > MOST_TASKS:
        raise BadJob(f"--sweep and --seeds make {count} tasks, more than {MOST_TASKS}; submit a part of the sweep")
    combined = enumerate(itertools.product(*axes))
    return [Task(k, changes, jobs.load(source, (*overrides, *changes))) for k, changes in combined]


def _seeds(text: str) -> list[int]:
    """``0-4`` or ``1,3,5-7``. Raises BadJob; of too many before any of them is made."""
    seeds: list[int] = []
    for part in text.split(","):
        bounds = re.fullmatch(r"([0-9]{1,18})(?:-([0-9]{1,18}))?", part)
        if not bounds:
            raise BadJob(f"--seeds {text!r} cannot be read; write 0-4 or 1,3,5")
        interval = range(int(bounds[1]), int(bounds[2] or bounds[1]) + 1)
        if len(seeds) + len(interval) > MOST_TASKS:
            raise BadJob(f"--seeds {text!r} names more than {MOST_TASKS} seeds; submit a part of them")
        seeds += interval
    if not seeds or len(set(seeds)) != len(seeds):
        raise BadJob(f"--seeds {text!r} names {'no seed' if not seeds else 'a seed twice'}; write 0-4 or 1,3,5")
    return seeds


def _split(values: str) -> list[str]:
    """Values between commas; a TOML array keeps its own: ``[64, 64],[128]``."""
    parts, depth, part = [], 0, ""
    for letter in values:
        depth += {"[": 1, "]": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            parts.append(part)
            part = ""
        else:
            part += letter
    return [*parts, part]
