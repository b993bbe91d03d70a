"""The learning bars: jobs × seeds, one after the other, each a whole `hpc-rl run`; prints a line for each.

python -m tests.learning.run --out runs/learn [--only ppo_cartpole]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

FIVE, THREE = (1, 2, 3, 4, 5), (1, 2, 3)
SEEDS = {
    "a2c_cartpole": FIVE,
    "a3c_cartpole": FIVE,
    "ga3c_cartpole": FIVE,
    "impala_cartpole": FIVE,
    "impala_cartpole_two_learners": FIVE,
    "ppo_cartpole": FIVE,
    "seed_cartpole": FIVE,
    "ppo_pendulum": FIVE,
    "ppo_masked_cartpole": FIVE,
    "impala_masked_cartpole": FIVE,
    "impala_catch": FIVE,
    "impala_pong": THREE,
    "ppo_pong": THREE,
    "a2c_pong": THREE,
}


def trained(job: str, seed: int, out: Path, name: str = "", sets: tuple[str, ...] = ()) -> dict[str, float]:
    """summary.json of one run; a run that exists is not repeated."""
    folder = out / (name or f"{job}-{seed}")
    if not (folder / "summary.json").exists():
        tool = Path(sys.executable).parent / "hpc-rl"
        settings = [part for item in (f"seed={seed}", *sets) for part in ("--set", item)]
        subprocess.run([tool, "run", job, *settings, "--out", folder], check=True)
    found: dict[str, float] = json.loads((folder / "summary.json").read_text())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/learn"))
    parser.add_argument("--only", choices=SEEDS)
    chosen = parser.parse_args()
    for job, seeds in SEEDS.items():
        if chosen.only not in (None, job):
            continue
        rows = [trained(job, seed, chosen.out) for seed in seeds]
        for seed, row in zip(seeds, rows, strict=True):
            print(job, f"seed {seed}", f"return {row['mean_return_100']:.2f}", f"steps {row['env_steps']}", end=" ")
            print(f"minutes {row['wall_s'] / 60:.1f}")
        print(job, "median minutes", f"{statistics.median(row['wall_s'] for row in rows) / 60:.1f}")


if __name__ == "__main__":
    main()
