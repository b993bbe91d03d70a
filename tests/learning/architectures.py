"""The IMPALA paper's Table 1 in miniature: five ways to sample, each against what it could reach.

python -m tests.learning.architectures --out runs/architectures [--columns 8 16 32]; about half an hour. Writes
table.json, which `python analysis/architectures.py runs/architectures` draws.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tests.learning.run import trained
from tests.topologies.simulation import ideal

WAYS = {  # job -> (who waits for whom, ranks besides one for each column)
    "a2c_latency_step": ("step", None),
    "a2c_latency_trajectory": ("trajectory", 0),
    "a3c_latency": ("free", 1),
    "impala_latency": ("free", 1),
    "seed_latency": ("free", 1),
}


def row(job: str, columns: int, out: Path) -> dict[str, float | str]:
    """One run and its ideal, env steps per second."""
    way, more = WAYS[job]
    ranks = 1 if more is None else columns + more
    sets = (f"environment.columns={columns}", f"resources.ranks={ranks}")
    figures = trained(job, 1, out, f"{job}-{columns}", sets)
    could = ideal(way, columns)
    rate = figures["env_steps_per_s"]
    return {"job": job, "columns": columns, "env_steps_per_s": rate, "ideal": could, "share": rate / could}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/architectures"))
    parser.add_argument("--columns", type=int, nargs="+", default=[8, 16, 32])
    arguments = parser.parse_args()
    rows = []
    for columns in arguments.columns:
        for job in WAYS:
            rows.append(row(job, columns, arguments.out))
            print("{job:<24} {columns:>3} {env_steps_per_s:>8.1f} of {ideal:>6.1f}/s {share:>5.0%}".format(**rows[-1]))
    (arguments.out / "table.json").write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
