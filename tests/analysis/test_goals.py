"""Maps and lengths of goals against loops over the history that was recorded.

Mutations seen to fail: goals that are being set put on the maps; the place after the move; thirds from the wrong end; x
and y in the other order; lengths of all goals in "left"; the position as place + offset.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hpc_rl.analysis import figures, open_runs, programs
from hpc_rl.analysis.sections import NotRecorded
from hpc_rl.analysis.stages import NAMES, borders
from hpc_rl.types import Leaf
from tests.analysis.histories import history, new_run, record, steps, valid

EXTRAS = {"goal": Leaf((2,), "float32"), "target": Leaf((2,), "float32"), "decides": Leaf((), "bool")}


def test_maps_and_lengths_are_those_of_the_history(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    tree = history(4, 240, [0, 1], extras=EXTRAS)
    tree["extras/decides"][:] = np.random.default_rng(1).random((240, 2)) < 0.3
    tree["extras/decides"][238:] = True  # a segment in which no goal stands
    tree["extras/target"][..., 1] *= 3.0
    record(run, tree, [100, 238], extras=EXTRAS)
    (opened,) = open_runs([run.path])
    module = programs.load("goals")
    made = module([opened])
    begins, numbers, kept = borders(opened), steps(tree), valid(tree)
    edges = module.__globals__["frame"](opened)  # type: ignore[attr-defined]
    maps = {name: np.zeros((3, 40, 40), int) for name in ("asked", "reached")}
    goals: dict[int, list[float]] = {k: [] for k in range(10)}
    left: dict[int, list[float]] = {k: [] for k in range(10)}
    for t, column in zip(*np.nonzero(kept), strict=True):
        stage = sum(int(numbers[t, column] >= x) for x in begins[int(tree["column"][column])])
        goal, place = (tree[f"extras/{name}"][t, column].astype(float) for name in ("goal", "target"))
        if tree["extras/decides"][t, column]:
            goals[stage].append(float(np.hypot(*goal)))
            continue
        left[stage].append(float(np.hypot(*goal)))
        for name, where in (("asked", place), ("reached", place - goal)):
            cell = [min(max(int((where[i] - edges[0, i]) / (edges[1, i] - edges[0, i]) * 40), 0), 39) for i in (0, 1)]
            maps[name][stage * 3 // 10, cell[0], cell[1]] += 1
    rows = made.tables["goals_by_stage"].to_dict("records")
    assert [row["stage"] for row in rows] == list(NAMES)
    for k, row in enumerate(rows):
        assert row["goals"] == len(goals[k]) and row["length"] == pytest.approx(np.mean(goals[k]))
        assert row["left"] == pytest.approx(np.mean(left[k]))
    assert f"{sum(map(len, goals.values())):,} goals" in made.findings[0]
    (draw,) = made.pictures.values()
    shown = draw.__closure__  # what the picture is drawn from
    (part,) = [cell.cell_contents for cell in shown or () if isinstance(cell.cell_contents, dict)]
    for name, expected in maps.items():
        assert (part[name] == expected).all() and part[name].sum() == sum(map(len, left.values()))
    assert figures.png(draw, size=(4, 3), dpi=20) and programs.as_json(made)


def test_runs_without_goals_are_a_sentence(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run")
    record(run, history(0, 40, [0, 1]), [20])
    with pytest.raises(NotRecorded, match="no goals of two levels"):
        programs.load("goals")(open_runs([run.path]))
