"""Which rewards made up the returns of runs, and when in an episode; and whether predicted values came true.

A program to copy and edit: `python returns.py RUN [RUN…] --out FOLDER`. It looks at every recorded move whose episode's
end was recorded, over segments, and sums block by block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import dask
import numpy as np
import pandas as pd

from hpc_rl.analysis import RecordedRun, figures, programs
from hpc_rl.analysis.futures import UNKNOWN, after, endings, returns
from hpc_rl.analysis.moves import Moves, Sums, has, total
from hpc_rl.analysis.predictions import Prediction, prediction
from hpc_rl.analysis.sections import NotRecorded, Section
from hpc_rl.analysis.stages import NAMES, STAGES, borders
from hpc_rl.analysis.tallies import CENTRES, FEW, Tally

MOST = 8  # runs of a picture
TENTHS = 10  # of an episode
BINS = 20  # of predicted values
MOMENTS = ("n", "v", "g", "vv", "vg", "gg", "abs")


def sums(moves: Moves, predicted: Prediction | None, low: float, high: float) -> Sums:
    """Of moves of a block whose episode's end was recorded: by the stage of the end [STAGES, TENTHS] gains and losses,
    [STAGES] episodes; by the stage of the move [STAGES, BINS] moments of predicted values v and of the discounted
    returns g that followed."""
    end, length = endings(moves)
    known = moves.kept & (end != UNKNOWN) & (length > 0)
    stage, reward = moves.stage(end - 1)[known], moves.leaves["reward"][known].astype(np.float64)
    place = (length - (end - moves.step))[known] * TENTHS // length[known]  # move k of n lies in tenth 10 k / n
    cell, shape = stage * TENTHS + np.clip(place, 0, TENTHS - 1), (STAGES, TENTHS)
    part: Sums = {
        "gains": np.bincount(cell, np.maximum(reward, 0), STAGES * TENTHS).reshape(shape),
        "losses": np.bincount(cell, np.minimum(reward, 0), STAGES * TENTHS).reshape(shape),
        "episodes": np.bincount(stage, (end - moves.step == 1)[known], STAGES),
        "rewards": Tally.of(reward, stage),
    }
    if predicted is None:
        return part
    value, later = predicted.moves(moves.leaves), returns(moves, predicted, predicted.gamma)
    known &= np.isfinite(value) & np.isfinite(later)
    v, g = value[known], later[known]
    place = np.clip((v - low) / max(high - low, 1e-12) * BINS, 0, BINS - 1).astype(np.int64)
    cell, shape = moves.stage()[known] * BINS + place, (STAGES, BINS)
    moments = (np.ones_like(v), v, g, v * v, v * g, g * g, np.abs(v - g))
    return part | {
        name: np.bincount(cell, x, STAGES * BINS).reshape(shape) for name, x in zip(MOMENTS, moments, strict=True)
    }


def calibration(name: str, part: Sums) -> list[dict[str, Any]]:
    """A row for each stage: predicted against what followed; slope and correlation of g over v."""
    rows = []
    for stage in range(STAGES):
        n, *moments = (part[key][stage].sum() for key in MOMENTS)
        if n < 2:
            continue
        v, g, vv, vg, gg, absolute = (x / n for x in moments)
        spread_v, spread_g, both = max(vv - v * v, 0), max(gg - g * g, 0), vg - v * g
        error = v - g
        root = np.sqrt(max(vv - 2 * vg + gg, 0))
        slope = both / spread_v if spread_v > 1e-12 else np.nan
        correlation = both / np.sqrt(spread_v * spread_g) if spread_v * spread_g > 1e-24 else np.nan
        rows.append({"run": name, "stage": NAMES[stage], "moves": int(n), "mean_predicted": v, "mean_return": g,
                     "mean_error": error, "mean_absolute_error": absolute, "root_mean_square_error": root,
                     "slope": slope, "correlation": correlation})  # fmt: skip
    return rows


def by_reward(name: str, part: Sums) -> list[dict[str, Any]]:
    """A row for each reward, or decade of rewards where many differ: how often it came and its part of the returns."""
    tally: Tally = part["rewards"]
    episodes = max(part["episodes"].sum(), 1)
    if tally.many or len(tally.values) > FEW:
        edges = [-np.inf, -100, -10, -1, -0.1, -1e-6, 1e-6, 0.1, 1, 10, 100, np.inf]
        counts, rows = tally.binned.sum(0), []
        for low, high in pairwise(edges):
            own = (low < CENTRES) & (high >= CENTRES)
            total_of = float((counts * CENTRES)[own].sum())
            rows.append({"run": name, "reward": f"{low:g} to {high:g}", "per_episode": counts[own].sum() / episodes,
                         "return_per_episode": total_of / episodes})  # fmt: skip
        return [row for row in rows if row["per_episode"] > 0]
    counts = tally.counts.sum(0)
    return [{"run": name, "reward": f"{x:g}", "per_episode": k / episodes, "return_per_episode": k * x / episodes}
            for x, k in zip(tally.values, counts, strict=True)]  # fmt: skip


def by_time(name: str, part: Sums) -> list[dict[str, Any]]:
    """A row for each stage and tenth of an episode: what an episode gains and loses there on average."""
    return [
        {"run": name, "stage": NAMES[stage], "tenth_of_episode": tenth + 1, "episodes": int(count),
         "gained": part["gains"][stage, tenth] / count, "lost": part["losses"][stage, tenth] / count}
        for stage, count in enumerate(part["episodes"]) if count
        for tenth in range(TENTHS)
    ]  # fmt: skip


def analyze(runs: Sequence[RecordedRun]) -> Section:
    """Decomposition of returns, and calibration of values where they were recorded. Raises NotRecorded."""
    recorded = [run for run in runs if "reward" in has(run)]
    if not recorded:
        raise NotRecorded(f"{runs[0].path} has no recorded moves; record it (output.record > 0)")
    predicted: dict[str, Prediction] = {}
    remarks = []
    for run in recorded:
        try:
            predicted[run.name] = prediction(run)
        except NotRecorded as error:
            remarks.append(f"{error}.")
    lazy = []
    for run in recorded:
        values = predicted.get(run.name)
        behind = after(run, values.leaves, values, values.gamma) if values else after(run, ())
        names = dict.fromkeys(("reward", "episode_length", *(values.leaves if values else ())))
        reduce = partial(sums, predicted=values, low=behind.low, high=behind.high)
        lazy.append(total(run, list(names), reduce, borders(run), behind.of))
    results = zip(recorded, dask.compute(*lazy), strict=True)
    parts = {run.name: part for run, part in results if part and part["episodes"].sum()}
    if not parts:
        raise NotRecorded(f"{runs[0].path} has no finished episode yet; wait until the next segment is closed")
    values = pd.DataFrame([row for name, part in parts.items() if "n" in part for row in calibration(name, part)])
    times = pd.DataFrame([row for name, part in parts.items() for row in by_time(name, part)])
    kinds = pd.DataFrame([row for name, part in parts.items() for row in by_reward(name, part)])
    pictures: dict[str, Any] = {"rewards_in_an_episode": lambda figure: draw_times(figure, times)}
    tables = {"returns_by_reward": kinds, "returns_by_time": times}
    findings = [time_finding(name, times[times["run"] == name]) for name in parts]
    if len(values):
        pictures["predicted_and_realised_values"] = lambda figure: draw_values(figure, parts, predicted)
        tables["value_calibration"] = values
        findings += [value_finding(name, values[values["run"] == name]) for name in parts if "n" in parts[name]]
    return Section("Returns and predicted values", (*findings, *remarks), HOW, pictures, tables)


HOW = (
    "Moves that count and whose episode's end was recorded by the same attempt, by tenths of the job's env steps. Gains"
    " and losses are raw rewards in each tenth of an episode, per episode that ended in the stage; where many"
    " rewards differ their sizes are known within 3 %. A realised value is Σ γᵏ r with the method's γ over the rewards"
    " that it learns from (clipped or scaled as its settings say): until a termination, and at a time limit with the"
    " prediction for the last observation. Predictions are those of the weights that acted; Q of a method that explores"
    " is meant for its greedy policy, so that what explored may fall short of it. Slope: of realised over predicted"
    " values, 1 where differences between states are predicted in their true size."
)


def time_finding(name: str, rows: pd.DataFrame) -> str:
    """What the last stage's episodes gain and lose, and in which half."""
    last = rows[rows["stage"] == rows["stage"].iloc[-1]]
    gained, lost = last["gained"].sum(), last["lost"].sum()
    late = last[last["tenth_of_episode"] > TENTHS // 2]
    if gained == lost == 0:
        return f"{name}: no episode of the last stage has a reward."
    text = f"{name}: in the last stage an episode gains {gained:.4g} and loses {abs(lost):.4g}"
    difference = late["gained"].sum() + late["lost"].sum()
    return f"{text}; its second half brings {difference:.4g} of the difference."


def value_finding(name: str, rows: pd.DataFrame) -> str:
    """How far the last stage's predictions were off."""
    last = rows.iloc[-1]
    side = "above" if last["mean_error"] > 0 else "below"
    same = not np.isfinite(last["correlation"])
    related = (
        "one of the two never changes" if same else f"slope {last['slope']:.2f}, correlation {last['correlation']:.2f}"
    )
    return (
        f"{name}: in the last stage predicted values are {last['mean_predicted']:.3g} on average,"
        f" {abs(last['mean_error']):.3g} {side} what followed ({related})."
    )


def draw_times(figure: Any, times: pd.DataFrame) -> None:
    """Gains above, losses below the axis, of the first and of the last stage."""
    names = list(dict.fromkeys(times["run"]))[:MOST]
    for axis, name in zip(figures.axes(figure, len(names)), names, strict=True):
        rows = times[times["run"] == name]
        stages = list(dict.fromkeys([rows["stage"].iloc[0], rows["stage"].iloc[-1]]))
        for place, stage in enumerate(stages):
            own = rows[rows["stage"] == stage]
            at = own["tenth_of_episode"] * TENTHS - TENTHS / 2 + (place - (len(stages) - 1) / 2) * 4
            colour = figures.COLOURS[place]
            axis.bar(at, own["gained"], 3.8, color=colour, label=f"{stage} of env steps")
            axis.bar(at, own["lost"], 3.8, color=colour, alpha=0.5)
        axis.axhline(0, color="grey", linewidth=1)
        axis.set(xlabel="% of the episode", ylabel="gained and lost in an episode", title=name)
    figures.legend(figure)


def draw_values(figure: Any, parts: Mapping[str, Sums], predicted: Mapping[str, Prediction]) -> None:
    """Realised over predicted values, early and late; on the grey line predictions came true."""
    names = [name for name, part in parts.items() if "n" in part][:MOST]
    for axis, name in zip(figures.axes(figure, len(names)), names, strict=True):
        ends = []
        for label, stages in (("first third", slice(0, 3)), ("last third", slice(STAGES - 3, STAGES))):
            n, v, g = (parts[name][key][stages].sum(0) for key in ("n", "v", "g"))
            enough = n >= max(30, 0.001 * n.sum())
            axis.plot(
                (v / np.maximum(n, 1))[enough], (g / np.maximum(n, 1))[enough], "o-", label=f"{label} of env steps"
            )
            ends += [*(v / np.maximum(n, 1))[enough]]
        if ends:
            axis.plot([min(ends), max(ends)], [min(ends), max(ends)], color="grey", linewidth=1, label="as predicted")
        axis.set(xlabel=f"predicted {predicted[name].name}", ylabel="mean discounted return that followed", title=name)
    figures.legend(figure)


if __name__ == "__main__":
    programs.main(analyze, __doc__)
