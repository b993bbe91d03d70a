"""What runs did and what it earned them, by stage of training: shares of actions, their entropy, and rewards.

A program to copy and edit: `python actions.py RUN [RUN…] --out FOLDER`. It sums over all recorded moves, block by
block, so that it needs the memory of one block however long the runs were.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import dask
import numpy as np
import pandas as pd

from hpc_rl.analysis import RecordedRun, figures, programs
from hpc_rl.analysis.moves import Moves, Sums, has, total
from hpc_rl.analysis.sections import NotRecorded, Section
from hpc_rl.analysis.stages import NAMES, STAGES, borders
from hpc_rl.analysis.tallies import FEW, Tally
from hpc_rl.storage.specs import spec_of
from hpc_rl.types import Actions, Array

MOST = 8  # entries of an action, and runs of a picture
CELLS = 24  # of the range of an entry of a box
QUANTILES = np.array([0.05, 0.25, 0.5, 0.75, 0.95])


def sums(moves: Moves, actions: Actions) -> Sums:
    """Of one block, by stage: [STAGES, choices] how often each was made, the rewards, and Σ −log μ(a|x)."""
    stage, chosen = moves.stage()[moves.kept], moves.of("action")
    chosen = chosen.reshape(len(chosen), -1)[:, :MOST].astype("f8" if actions.kind == "box" else "i8")
    reward = moves.of("reward").astype(np.float64)
    part: Sums = {"moves": of_stages(stage), "rewards": Tally.of(reward, stage)}
    part |= {"reward": of_stages(stage, reward), "squares": of_stages(stage, reward**2)}
    if "extras/log_prob" in moves.leaves:
        part["surprise"] = of_stages(stage, -moves.of("extras/log_prob").astype(np.float64))
    for k, entry in enumerate(chosen.T):
        if actions.kind == "box":
            half = span(actions, k)
            cell = np.clip((np.nan_to_num(entry) / half + 1) / 2 * CELLS, 0, CELLS - 1).astype(np.int64)
            part |= {
                f"sum {k}": of_stages(stage, entry.astype(float)),
                f"squares {k}": of_stages(stage, entry.astype(float) ** 2),
            }
            part[f"bounds {k}"] = of_stages(stage[np.abs(entry) >= 0.99])
        else:
            cell = entry
        count = CELLS if actions.kind == "box" else actions.sizes[k]
        part[f"choices {k}"] = np.bincount(stage * count + cell, minlength=STAGES * count).reshape(STAGES, count)
    return part


def of_stages(stage: Array, weights: Array | None = None) -> Array:
    """[STAGES] how many there are of each stage, or the sum of their weights."""
    return np.bincount(stage, weights, minlength=STAGES)


def span(actions: Actions, entry: int) -> float:
    """A policy chooses −1..1 where the environment has bounds; else ±3 is looked at."""
    return 1.0 if actions.scaled_to[entry] else 3.0


def entropy(counts: Array) -> Array:
    """[STAGES] nats, of the shares of [STAGES, choices]; NaN where there were no moves."""
    share = counts / np.where(counts.sum(1) > 0, counts.sum(1), np.nan)[:, None]
    logs = np.log(share, out=np.zeros_like(share), where=share > 0)
    result: Array = -(share * logs).sum(1)
    return result


def action_rows(name: str, part: Sums, actions: Actions) -> list[dict[str, Any]]:
    """A row for each stage, entry of the action and choice; of a box for each stage and entry."""
    rows: list[dict[str, Any]] = []
    entries = sum(key.startswith("choices") for key in part)
    for stage, k in ((s, k) for s in range(STAGES) if part["moves"][s] for k in range(entries)):
        head = {"run": name, "stage": NAMES[stage], "entry": k}
        count = part["moves"][stage]
        if actions.kind == "box":
            mean = part[f"sum {k}"][stage] / count
            std = np.sqrt(max(part[f"squares {k}"][stage] / count - mean**2, 0))
            rows.append(head | {"mean": mean, "std": std, "at_the_bounds": part[f"bounds {k}"][stage] / count})
        else:
            rows += [head | {"action": a, "share": x / count} for a, x in enumerate(part[f"choices {k}"][stage])]
    return rows


def reward_rows(name: str, part: Sums, actions: Actions) -> list[dict[str, Any]]:
    """A row for each stage: rewards of a move, and how far actions were spread."""
    count = np.where(part["moves"] > 0, part["moves"], np.nan)
    mean = part["reward"] / count
    std = np.sqrt(np.maximum(part["squares"] / count - mean**2, 0))
    spread = entropy(part["choices 0"]) if actions.kind == "discrete" else np.full(STAGES, np.nan)
    surprise = part.get("surprise", np.full(STAGES, np.nan)) / count
    tally: Tally = part["rewards"]
    zeros = tally.binned[:, tally.binned.shape[1] // 2]
    quantiles = tally.quantiles(QUANTILES)
    return [
        {"run": name, "stage": NAMES[k], "moves": part["moves"][k], "mean_reward": mean[k], "std": std[k],
         "not_zero": 1 - zeros[k] / count[k]}
        | {f"q{round(100 * q):02}": x for q, x in zip(QUANTILES, quantiles[k], strict=True)}
        | {"entropy_of_shares": spread[k], "mean_minus_log_prob": surprise[k]}
        for k in range(STAGES) if part["moves"][k]
    ]  # fmt: skip


def analyze(runs: Sequence[RecordedRun]) -> Section:
    """Actions and rewards by stage. Raises NotRecorded."""
    recorded = [run for run in runs if "action" in has(run)]
    if not recorded:
        raise NotRecorded(f"{runs[0].path} has no recorded moves; record it (output.record > 0)")
    kinds = {run.name: spec_of(run.segments[0].path).actions for run in recorded}
    names = ("action", "reward", "extras/log_prob")
    lazy = [
        total(run, [n for n in names if n in has(run)], partial(sums, actions=kinds[run.name]), borders(run))
        for run in recorded
    ]
    parts = {run.name: part for run, part in zip(recorded, dask.compute(*lazy), strict=True) if part}
    rewards = pd.DataFrame([row for name, part in parts.items() for row in reward_rows(name, part, kinds[name])])
    actions = pd.DataFrame([row for name, part in parts.items() for row in action_rows(name, part, kinds[name])])
    shown = dict(list(parts.items())[:MOST])

    pictures = {
        "actions": lambda figure: draw_actions(figure, shown, kinds),
        "rewards": lambda figure: draw_rewards(figure, shown),
    }
    curves = {"entropy_of_shares": "entropy of the shares of actions", "mean_minus_log_prob": "mean −log μ(a|x)"}
    if rewards[list(curves)].notna().any(axis=None):
        pictures["entropy"] = lambda figure: draw_entropy(figure, rewards, curves, list(kinds.values()))
    return Section(
        "Actions and rewards",
        tuple(finding(name, rewards[rewards["run"] == name], kinds[name]) for name in parts),
        "All recorded moves that count, by tenths of the job's env steps (a move's stage follows from its column's env"
        " step and the pace of the columns). Entropy of shares: of how often each action was chosen in a stage,"
        " whatever the observation; mean −log μ(a|x): of the recorded log-probabilities, the policy's own entropy in"
        " nats. Quantiles of rewards lie within 3 % (fifty bins a decade). Entries of a box: what the policy"
        " chose, −1..1 where the environment has bounds; at the bounds: beyond ±0.99."
        + (f" Pictures show the first {MOST} of {len(parts)} runs." if len(parts) > MOST else ""),
        pictures,
        {"rewards_by_stage": rewards, "actions_by_stage": actions},
    )


def finding(name: str, rows: pd.DataFrame, actions: Actions) -> str:
    """From the first to the last stage of a run."""
    first, last = rows.iloc[0], rows.iloc[-1]
    text = f"{name}: the mean reward of a move went from {first['mean_reward']:.4g} to {last['mean_reward']:.4g}"
    if np.isfinite(last["entropy_of_shares"]):
        most = np.log(actions.sizes[0])
        was, now = first["entropy_of_shares"], last["entropy_of_shares"]
        text += f"; the entropy of its actions from {was:.2f} to {now:.2f} nats of at most {most:.2f}"
    if np.isfinite(last["mean_minus_log_prob"]):
        text += f"; −log μ(a|x) from {first['mean_minus_log_prob']:.2f} to {last['mean_minus_log_prob']:.2f}"
    return text + "."


def draw_actions(figure: Any, parts: dict[str, Sums], kinds: dict[str, Actions]) -> None:
    """Shares of actions by stage, stacked; of a box the density of each entry, darker where it chose more often."""
    panels = [(n, k) for n, p in parts.items() for k in range(6) if f"choices {k}" in p][:MOST]
    axes = figures.axes(figure, len(panels), 3)
    for axis, (name, k) in zip(axes, panels, strict=True):
        counts, kind = parts[name][f"choices {k}"], kinds[name]
        share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        if kind.kind == "box":
            half = span(kind, k)
            axis.imshow(share.T, origin="lower", aspect="auto", cmap="Blues", extent=(0, 100, -half, half))
            axis.set(ylabel=f"entry {k} of the action" if k == 0 else f"entry {k}")
        else:
            centre, below = (np.arange(STAGES) + 0.5) * 100 / STAGES, np.zeros(STAGES)
            for action, x in enumerate(share.T):
                label = f"{action}" if action < 10 else None
                axis.bar(centre, x, 9.4, below, label=label, color=figures.COLOURS[action % len(figures.COLOURS)])
                below += x
            axis.set(ylim=(0, 1), ylabel="share of moves")
        axis.set(xlabel="% of env steps", title=name if k == 0 else "")
        axis.grid(False)
    if kinds[panels[0][0]].kind != "box":
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", title="action")


def draw_rewards(figure: Any, parts: dict[str, Sums]) -> None:
    """How often each reward came where there are few; else their median and the middle half and 90 %."""
    axes = figures.axes(figure, len(parts))
    centre = (np.arange(STAGES) + 0.5) * 100 / STAGES
    for axis, (name, part) in zip(axes, parts.items(), strict=True):
        tally: Tally = part["rewards"]
        if not tally.many and len(tally.values) <= FEW:
            for value, counts in zip(tally.values, tally.counts.T, strict=True):
                if value != 0 or len(tally.values) == 1:
                    axis.plot(centre, 100 * counts / np.maximum(part["moves"], 1), "o-", label=f"{value:+g}")
            axis.set(ylabel="moves with this reward, %", ylim=(0, None))
            axis.legend(title="reward")
        else:
            low, quarter, median, upper, high = tally.quantiles(QUANTILES).T
            axis.fill_between(centre, low, high, alpha=0.2, color=figures.COLOURS[0], label="middle 90 %")
            axis.fill_between(centre, quarter, upper, alpha=0.4, color=figures.COLOURS[0], label="middle half")
            axis.plot(centre, median, color=figures.COLOURS[0], label="median")
            axis.set(ylabel="reward of a move")
            axis.legend()
        axis.set(xlabel="% of env steps", title=name, xlim=(0, 100))


def draw_entropy(figure: Any, rewards: pd.DataFrame, curves: dict[str, str], kinds: Sequence[Actions]) -> None:
    """One line for each run and kind of entropy."""
    axis = figure.subplots()
    for place, (name, rows) in enumerate(rewards.groupby("run", sort=False)):
        for key, label in curves.items():
            if rows[key].notna().any():
                at = [(NAMES.index(stage) + 0.5) * 100 / STAGES for stage in rows["stage"]]
                dashed = "--" if key == "entropy_of_shares" else "-"
                colour = figures.COLOURS[place % len(figures.COLOURS)]
                axis.plot(at, rows[key], f"o{dashed}", color=colour, label=f"{name}: {label}")
    whole = all(kind.kind == "discrete" for kind in kinds)
    if whole:
        axis.axhline(max(np.log(kind.sizes[0]) for kind in kinds), color="grey", linewidth=1, label="all actions alike")
    axis.set(xlabel="% of env steps", ylabel="nats", xlim=(0, 100), ylim=(0, None) if whole else None)
    axis.legend(loc="best")


if __name__ == "__main__":
    programs.main(analyze, __doc__)
