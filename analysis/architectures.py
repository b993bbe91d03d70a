"""Ways to sample, side by side: `python architectures.py FOLDER --out architectures.png`

A program to copy and edit. FOLDER holds table.json, rows of {job, columns, env_steps_per_s, ideal}: what each way made
on the latency environment, and what it could have made if nothing but the environment took time.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from hpc_rl.storage.untrusted import Unreadable, checked, parse_json, read_bytes

ROW = {"job": str, "columns": int, "env_steps_per_s": float, "ideal": float}
NAMES = {
    "a2c_latency_step": "A2C, sync-step",
    "a2c_latency_trajectory": "A2C, sync-trajectory",
    "a3c_latency": "A3C",
    "impala_latency": "IMPALA",
    "seed_latency": "SEED",
}


def read(folder: Path) -> list[dict[str, Any]]:
    """The rows of table.json. Raises SystemExit with a sentence where there is none."""
    file = folder / "table.json"
    if not file.exists():
        raise SystemExit(f"{file} does not exist; measure first: python -m tests.learning.architectures --out {folder}")
    try:
        rows: list[dict[str, Any]] = parse_json(read_bytes(file), str(file))
        if not isinstance(rows, list):
            raise Unreadable(f"{file} is not a list of rows")
        for row in rows:
            if checked(row, ROW, ROW, f"a row of {file}")["ideal"] <= 0:
                raise Unreadable(f"{file} has a row whose ideal is not above 0")
        if not any(row["job"] in NAMES for row in rows):
            raise Unreadable(f"{file} has no row of {', '.join(NAMES)}")
    except Unreadable as error:
        raise SystemExit(f"{error}; measure again: python -m tests.learning.architectures --out {folder}") from None
    return rows


def draw(rows: list[dict[str, Any]], out: Path) -> None:
    """One group of bars for each number of columns; a line over each bar is its ideal."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = sorted({row["columns"] for row in rows})
    jobs = [job for job in NAMES if any(row["job"] == job for row in rows)]
    figure, axes = plt.subplots(figsize=(9, 4.5), layout="constrained")
    wide = 0.8 / len(jobs)
    for k, job in enumerate(jobs):
        row_of = {row["columns"]: row for row in rows if row["job"] == job}
        at = [i + (k - (len(jobs) - 1) / 2) * wide for i, c in enumerate(columns) if c in row_of]
        job_rows = [row_of[c] for c in columns if c in row_of]
        bars = axes.bar(at, [row["env_steps_per_s"] for row in job_rows], 0.9 * wide, label=NAMES[job])
        shares = [f"{row['env_steps_per_s'] / row['ideal']:.0%}" for row in job_rows]
        axes.bar_label(bars, shares, label_type="center", color="white", fontsize=7)  # above, the line would cross it
        for x, row in zip(at, job_rows, strict=True):
            axes.hlines(row["ideal"], x - wide / 2, x + wide / 2, colors="black", linewidth=1.2)
    axes.hlines([], 0, 0, colors="black", linewidth=1.2, label="ideal")
    axes.set_xticks(range(len(columns)), [f"{c} columns" for c in columns])
    axes.set_ylabel("env steps per second")
    axes.set_title("Who waits for whom, on an environment that only takes time")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left")
    figure.savefig(out, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("architectures.png"))
    arguments = parser.parse_args()
    rows = read(arguments.folder)
    print(f"{'job':<26}{'columns':>8}{'env steps/s':>13}{'ideal':>9}{'share':>7}")
    for row in rows:
        share = row["env_steps_per_s"] / row["ideal"]
        print(f"{row['job']:<26}{row['columns']:>8}{row['env_steps_per_s']:>13.1f}{row['ideal']:>9.1f}{share:>7.0%}")
    draw(rows, arguments.out)
    print(f"drawn to {arguments.out}")


if __name__ == "__main__":
    main()
