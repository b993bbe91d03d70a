"""The best and the worst recorded episode of a run, as a film of its frames or a plot of its rewards and actions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hpc_rl.analysis.episodes import episodes
from hpc_rl.analysis.runs import RecordedRun
from hpc_rl.analysis.sections import Draw, NotRecorded
from hpc_rl.gif import animated, shows
from hpc_rl.storage import recorded
from hpc_rl.storage.segments import Segment
from hpc_rl.storage.specs import spec_of
from hpc_rl.types import Array, Tree

MOST_FRAMES = 400  # of a film
MOST_RUNS = 3
_ROWS = 128  # that are read at once, of all columns of a segment
_ENTRIES = 32  # of a box's action that are drawn
_TRIES = 20  # episodes of which a part was not recorded are passed over


@dataclass(frozen=True)
class Clip:
    """``film`` is a GIF where observations are images, else ``draw`` makes a picture. ``stem`` names the file."""

    stem: str
    title: str
    film: bytes | None = None
    draw: Draw | None = None


def find(runs: Sequence[RecordedRun]) -> list[Clip]:
    """The best and the worst whole episode by return of each of the first `MOST_RUNS` runs.

    Raises:
        NotRecorded: no run has a recorded episode.
    """
    clips = [clip for run in runs[:MOST_RUNS] if run.segments for clip in _of_run(run)]
    if not clips:
        raise NotRecorded(f"{runs[0].path} has no finished episode yet; wait until the next segment is closed")
    return clips


def _of_run(run: RecordedRun) -> list[Clip]:
    table = episodes([run]).compute().sort_values("return", kind="stable")
    if table.empty:
        return []
    names = ["return", "column", "start", "end", "env_steps"]
    ascending = [dict(zip(names, row, strict=True)) for row in table[names].itertuples(index=False)]
    sides = {"best": ascending[: -_TRIES - 1 : -1], "worst": ascending[:_TRIES]}
    clips = (_first(run, side, entries) for side, entries in sides.items())
    return [clip for clip in clips if clip is not None]


def _first(run: RecordedRun, side: str, entries: Sequence[dict[str, Any]]) -> Clip | None:
    for entry in entries:
        stretches = located(run, int(entry["column"]), int(entry["start"]), int(entry["end"]))
        moves = sum(end - begin for _, _, begin, end in stretches)
        if moves == entry["end"] - entry["start"]:
            return _clip(run, side, entry, stretches, moves)
    return None


def _clip(run: RecordedRun, side: str, entry: dict[str, Any], stretches: Sequence[Stretch], moves: int) -> Clip:
    title = (
        f"{run.name}: {side} recorded episode, return {entry['return']:.6g} in {moves:,} moves,"
        f" at {entry['env_steps']:,} env steps (column {entry['column']})"
    )
    stem = f"{side}_episode_{run.name}".replace("/", "_")
    if not shows(spec_of(run.segments[0].path)):
        return Clip(stem, title, draw=_drawing(rows(stretches, ("reward", "action")), title))
    every = -(-moves // MOST_FRAMES)
    film = list(rows(stretches, ("observation",), every)["observation"])
    return Clip(stem, title + (f"; every {every}. frame" if every > 1 else ""), film=animated(film))


Stretch = tuple[Segment, int, int, int]
"""Moves ``begin`` to ``end`` − 1 of the column at a place of a segment: (segment, place, begin, end)."""


def located(run: RecordedRun, column: int, start: int, end: int) -> list[Stretch]:
    """Where the kept moves lie that a column made as its env steps ``start`` to ``end`` − 1."""
    stretches: list[Stretch] = []
    for segment in run.segments:
        for place in np.flatnonzero(segment.columns == column).tolist():
            if segment.start[place] < end and start < segment.stop[place]:
                kept, step = recorded.kept(segment, run.limits)
                inside = np.flatnonzero(kept[:, place] & (start <= step[:, place]) & (step[:, place] < end))
                if len(inside):
                    stretches.append((segment, place, int(inside[0]), int(inside[-1]) + 1))
    return sorted(stretches, key=lambda x: int(x[0].start[x[1]]))


def rows(stretches: Sequence[Stretch], names: Sequence[str], every: int = 1) -> Tree:
    """Leaf -> [n, *shape]: every so many moves of an episode, in their order."""
    parts: dict[str, list[Array]] = {name: [] for name in names}
    done = 0
    for segment, place, first, last in stretches:
        for begin in range(first, last, _ROWS):
            end = min(begin + _ROWS, last)
            for name in names:
                leaf = recorded.moves(segment, name, begin, end)[:, place]
                parts[name].append(leaf[-done % every :: every].copy())
            done += end - begin
    return {name: np.concatenate(part) for name, part in parts.items()}


def _drawing(leaves: Tree, title: str) -> Draw:
    reward, action = leaves["reward"], leaves["action"].reshape(len(leaves["reward"]), -1)

    def draw(figure: Any) -> None:
        above, below = figure.subplots(2, 1, sharex=True)
        above.plot(np.cumsum(reward, dtype=np.float64))
        above.set(ylabel="return so far", title=title)
        above.title.set_fontsize(9)
        if leaves["action"].dtype.kind == "i":
            for k in range(action.shape[1]):
                below.plot(action[:, k], ".", markersize=3)
            below.yaxis.get_major_locator().set_params(integer=True)
        else:
            most = float(np.abs(action).max(initial=1e-9))
            colours = below.imshow(action[:, :_ENTRIES].T, aspect="auto", cmap="RdBu", vmin=-most, vmax=most)
            figure.colorbar(colours, ax=below, label="chosen")
            below.grid(False)
        below.set(xlabel="move of the episode", ylabel="action" if action.shape[1] == 1 else "entry of the action")

    return draw
