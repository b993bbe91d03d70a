"""Learning curves from the recorded episodes of runs: `python learning_curve.py RUN [RUN…] --out curve.png`

A program to copy and edit. It reads every closed segment with Dask, one task each, leaves out what a later attempt made
again, draws the mean return of the last 100 episodes, and prints a table. A mixture has a curve for each environment.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import Any

import numpy as np

from hpc_rl.storage import metrics
from hpc_rl.storage.recorded import ends
from hpc_rl.storage.segments import BadSegment, describe, kept_from, segments
from hpc_rl.storage.untrusted import Unreadable, checked, read_toml

WINDOW = 100  # episodes
WORKERS: dict[str, Any] = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None}


def read_runs(runs: list[Path]) -> list[dict[str, Any]]:
    """The curves of all runs: episodes in the order in which they ended, env steps of the whole job and raw returns."""
    from distributed import Client

    with Client(**WORKERS) as client:  # type: ignore[no-untyped-call]
        # A task opens its own file: HDF5 handles do not travel between processes.
        described = [[describe(path) for path in segments(run)] for run in runs]
        limits = [kept_from(run, own) for run, own in zip(runs, described, strict=True)]
        tasks = [client.map(ends, own, limits=kept) for own, kept in zip(described, limits, strict=True)]
        parts_of_runs = client.gather(tasks)
    return [curve for run, parts in zip(runs, parts_of_runs, strict=True) for curve in in_order(run, parts)]


def in_order(run: Path, parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All episodes of a run, those of each environment by themselves where it is a mixture of n: column k plays the
    (k mod n)-th. A column counts its own steps; as all move alike, the job's are that × columns.
    """
    kinds = {"columns": int, "arguments": dict}
    job = checked(read_toml(run / "job.toml"), {"environment": dict}, ("environment",), f"{run}/job.toml")
    environment = checked(job["environment"], kinds, ("columns",), f"{run}/job.toml")
    ids = list(environment.get("arguments", {}).get("ids", ())) if job["environment"].get("id") == "mixture" else []
    steps = np.concatenate([part["end"] for part in parts]) * environment["columns"]
    order = np.argsort(steps, kind="stable")
    steps, returns = steps[order], np.concatenate([part["return"] for part in parts])[order]
    turn = np.concatenate([part["column"] for part in parts])[order] % max(1, len(ids))
    name = run.resolve().name
    return [
        {"name": f"{name}: {id}" if id else name, "path": run, "steps": steps[turn == k], "returns": returns[turn == k]}
        for k, id in enumerate(ids or [""])
    ]


def running_mean(returns: Any, window: int = WINDOW) -> Any:
    """Entry i: mean of the last ``window`` returns up to and with i, of fewer at the beginning."""
    total = np.concatenate([[0.0], np.cumsum(returns, dtype=np.float64)])
    end = np.arange(1, len(total))
    begin = np.maximum(0, end - window)
    return (total[end] - total[begin]) / (end - begin)


def reached(run: dict[str, Any], target: float) -> int | None:
    """Env steps at which the mean of 100 episodes first was ``target``, or None."""
    indices = np.flatnonzero((running_mean(run["returns"]) >= target) & (np.arange(len(run["returns"])) >= WINDOW - 1))
    return int(run["steps"][indices[0]]) if len(indices) else None


def clock(run: dict[str, Any]) -> tuple[Any, Any] | None:
    """(env steps, minutes of training) along a run, from the metrics of rank 0; pauses between attempts left out."""
    for name in metrics.CHIEFS:
        path = run["path"] / "metrics" / f"{name}.jsonl"
        rows = []
        with contextlib.suppress(FileNotFoundError, Unreadable):
            rows = [row for row in metrics.rows(path) if {"step", "time"} <= row.keys()]
        if len(rows) > 1:
            steps = np.array([row["step"] for row in rows], float)
            gaps = np.diff([row["time"] for row in rows])
            minutes = np.concatenate([[0.0], np.cumsum(np.where(gaps < 60, gaps, 0.0))]) / 60
            advancing = np.concatenate([[True], np.diff(np.maximum.accumulate(steps)) > 0])  # later attempts go back
            return steps[advancing], minutes[advancing]
    return None


def draw(runs: list[dict[str, Any]], out: Path) -> None:
    """One line for each run; minutes on a second axis where there is one run."""
    from matplotlib.figure import Figure  # without pyplot: needs no screen

    figure = Figure(figsize=(8, 5), layout="constrained")
    axis = figure.subplots()
    for run in runs:
        begin = min(WINDOW - 1, len(run["steps"]) // 10)  # a mean of very few episodes only hides the curve
        axis.plot(run["steps"][begin:], running_mean(run["returns"])[begin:], label=run["name"], linewidth=1.5)
    axis.set(xlabel="env steps", ylabel=f"mean raw return of the last {WINDOW} episodes")
    axis.set_xlim(0, max(run["steps"][-1] for run in runs))
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    if len(runs) == 1 and (ticks := clock(runs[0])) is not None:
        minutes_of, steps_of = (lambda x: np.interp(x, *ticks)), (lambda x: np.interp(x, ticks[1], ticks[0]))
        axis.secondary_xaxis("top", functions=(minutes_of, steps_of)).set_xlabel("minutes of training")
    figure.savefig(out, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description="Learning curves from recorded episodes.")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directory")
    parser.add_argument("--out", type=Path, default=Path("curve.png"), help="picture [curve.png]")
    parser.add_argument("--target", type=float, default=18.0, help="return to look for [18]")
    arguments = parser.parse_args()
    for run in arguments.runs:
        if not (run / "job.toml").is_file():
            sys.exit(f"error: {run} is not a run directory (it has no job.toml); name the folder of --out")
        if not segments(run):
            sys.exit(f"error: {run} has no closed segments; record it (output.record > 0) and let it save once")
    try:
        runs = read_runs(arguments.runs)
    except (BadSegment, Unreadable) as error:
        sys.exit(f"error: {error}")
    for run in runs:
        if not len(run["returns"]):
            sys.exit(f"error: {run['name']} has no finished episode yet; wait until the next segment is closed")
    draw(runs, arguments.out)
    wide = max(24, *(len(run["name"]) + 2 for run in runs))
    print(f"{'run':<{wide}}{'episodes':>10}{'env steps':>13}{'last 100':>10}  env steps to {arguments.target:g}")
    for run in runs:
        score, step = running_mean(run["returns"])[-1], reached(run, arguments.target)
        reached_at = "never" if step is None else f"{step:,}"
        print(f"{run['name']:<{wide}}{len(run['returns']):>10,}{run['steps'][-1]:>13,}{score:>10.2f}  {reached_at}")


if __name__ == "__main__":  # the worker processes import this file, too
    main()
