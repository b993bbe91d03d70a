"""How much of an environment's states runs have seen, by stage of training: different observations, or occupied cells.

A program to copy and edit: `python coverage.py RUN [RUN…] --out FOLDER`. It reads every recorded observation once,
block by block, and remembers a sketch of what differs: 16,384 hashes a stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import dask
import numpy as np
import pandas as pd

from hpc_rl.analysis import RecordedRun, programs
from hpc_rl.analysis.moves import Moves, Sums, has, total
from hpc_rl.analysis.sections import NotRecorded, Section
from hpc_rl.analysis.stages import NAMES, STAGES, borders
from hpc_rl.analysis.tallies import KEPT, Distinct, hashes
from hpc_rl.storage.recorded import moves
from hpc_rl.types import Array

SIDE, GREYS = 16, 16  # an image is seen as this many means each way, in so many greys
WIDTH, ENTRIES = 0.5, 6  # of a cell, in standard deviations of the first recorded segment; entries of a vector


def cells(frames: Array, unit: Array) -> Array:
    """[n, …] what counts as one state: of an image its means in a grid of 16 × 16, in 16 greys; of a vector of reals
    the cells of its first six entries, 0.5 ``unit`` [6] wide; else the observation itself."""
    if frames.ndim >= 3 and frames.dtype == np.uint8 and min(frames.shape[-2:]) >= SIDE:
        return coarse(frames)
    flat = frames.reshape(len(frames), -1)
    if frames.dtype.kind != "f" or not len(unit):
        return flat
    return np.round(np.nan_to_num(flat[:, :ENTRIES]) / (WIDTH * unit)).clip(-(2**15), 2**15 - 1).astype(np.int16)


def coarse(frames: Array) -> Array:
    """[n, 16 × 16] uint8: means of images [n, (channels,) H, W] over a grid, in `GREYS` greys."""
    high, wide = (extent // SIDE for extent in frames.shape[-2:])
    images = frames.reshape(-1, *frames.shape[-2:])[:, : high * SIDE, : wide * SIDE]
    rows = images[:, ::high].astype(np.uint16)
    for k in range(1, high):  # whole rows at a time: several times as fast as a mean over axes
        rows += images[:, k::high]
    sums = rows[:, :, ::wide].astype(np.uint32)
    for k in range(1, wide):
        sums += rows[:, :, k::wide]
    return (sums // (high * wide * (256 // GREYS))).astype(np.uint8).reshape(len(frames), -1)


def unit(run: RecordedRun) -> Array:
    """[6] standard deviations of the first entries of the first segment's observations; empty where what differs is
    counted as it is: images, whole numbers, zeros and ones."""
    if not has(run)["observation"].dtype.startswith("float"):
        return np.empty(0)
    frames = moves(run.segments[0], "observation", 0, 4096)
    flat = np.nan_to_num(frames.reshape(frames.shape[0] * frames.shape[1], -1))
    if np.isin(flat, (0, 1)).all():
        return np.empty(0)
    spread: Array = flat[:, :ENTRIES].std(0, dtype=np.float64)
    return np.where(spread > 0, spread, 1.0)


def sums(block: Moves, width: Array) -> Sums:
    """Of one block: the sketch of its states, and moves by stage."""
    kept, frames = block.kept.ravel(), block.leaves["observation"]
    stage = block.stage().ravel()[kept]
    states = hashes(cells(frames.reshape(-1, *frames.shape[2:]), width))[kept]
    return {"states": Distinct.of(states, stage), "moves": np.bincount(stage, minlength=STAGES)}


def analyze(runs: Sequence[RecordedRun]) -> Section:
    """States by stage, and their growth. Raises NotRecorded."""
    recorded = [run for run in runs if "observation" in has(run)]
    if not recorded:
        raise NotRecorded(f"{runs[0].path} has no recorded observations; record it (output.record > 0)")
    width = unit(recorded[0])  # the same for all, so that runs can be compared
    lazy = [total(run, ["observation"], partial(sums, width=width), borders(run)) for run in recorded]
    parts = {run.name: part for run, part in zip(recorded, dask.compute(*lazy), strict=True) if part}
    table = pd.DataFrame([row for name, part in parts.items() for row in rows_of(name, part)])

    def draw(figure: Any) -> None:
        left, right = figure.subplots(1, 2)
        for name, rows in table.groupby("run", sort=False):
            end = [(NAMES.index(stage) + 1) * 100 / STAGES for stage in rows["stage"]]
            left.plot([0, *end], [0, *rows["states_until_then"]], "o-", label=name)
            right.plot(np.array(end) - 50 / STAGES, 100 * rows["new_states"] / rows["moves"], "o-", label=name)
        left.set(xlabel="% of env steps", ylabel="different states until then", xlim=(0, 100), ylim=(0, None))
        right.set(xlabel="% of env steps", ylabel="moves that saw a new state, %", xlim=(0, 100), ylim=(0, None))
        left.legend()

    return Section(
        "State coverage",
        tuple(finding(name, rows) for name, rows in table.groupby("run", sort=False)),
        "All recorded moves that count, by tenths of the job's env steps. A state is an observation (of stacked frames"
        f" the newest): of images the means in a grid of {SIDE} × {SIDE}, in {GREYS} greys; of vectors the cell of"
        f" their first {ENTRIES} entries, {WIDTH:g} standard deviations of the first run's first segment wide; of whole"
        f" numbers, zeros and ones the whole observation. Counts are exact up to {KEPT:,}, and above it within about"
        f" {100 / KEPT**0.5:.1f} % (by the smallest hashes); states seen before count as new by that error, too.",
        {"states_seen": draw},
        {"coverage": table},
    )


def rows_of(name: str, part: Sums) -> list[dict[str, Any]]:
    """A row for each stage that has moves."""
    own, until = part["states"].counts()
    new = np.diff(until, prepend=0)
    return [
        {"run": name, "stage": NAMES[k], "moves": int(part["moves"][k]), "states": own[k],
         "new_states": max(new[k], 0.0), "states_until_then": until[k]}
        for k in range(STAGES) if part["moves"][k]
    ]  # fmt: skip


def finding(name: Any, rows: pd.DataFrame) -> str:
    """How many states, and whether there are still new ones."""
    last = rows.iloc[-1]
    share = last["new_states"] / max(last["states_until_then"], 1)
    return (
        f"{name}: {last['states_until_then']:,.0f} different states in {rows['moves'].sum():,} moves;"
        f" {share:.0%} of them were first seen in the last stage."
    )


if __name__ == "__main__":
    programs.main(analyze, __doc__)
