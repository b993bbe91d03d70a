"""What rollouts and the value are worth to AlphaGo's search, at equal time: points against another policy, for each λ.

    python -m tests.search.mixes RUN --opponent checkpoint:OTHER [--simulations 100] [--games 100] [--mix 0 0.5 1]

The time of a move is measured with ``--simulations`` at λ = 0.5, in the first moves of 32 games at once; every other λ
gets as many simulations as take that long. A row without a search comes first. Games are half from each side, after
openings of two to six random moves.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch

from hpc_rl import job as jobs
from hpc_rl.agent import agent_of
from hpc_rl.opponents import consulted
from hpc_rl.pool import play_pool
from hpc_rl.saved_policy import saved_policy
from hpc_rl.storage.run_dir import open_run

TOGETHER, ROUNDS = 32, 5


def move_s(run: Path, overrides: list[str]) -> float:
    """Seconds of a move of 32 games at once, the median of some."""
    directory = open_run(run)
    job = jobs.load(directory.job_file, overrides)
    agent = agent_of(job)
    policy, rules = saved_policy(directory, job, agent, None, print)[0], agent.rules
    assert rules is not None
    state = {name: x.numpy() for name, x in rules.begin(torch.zeros(TOGETHER, rules.begin_uniforms)).items()}
    u, times = np.linspace(0.1, 0.9, TOGETHER), []
    for _ in range(ROUNDS + 1):
        began = time.perf_counter()
        consulted(policy, rules, state, u)
        times.append(time.perf_counter() - began)
    return median(times[1:])


def settings(mix: float, simulations: int) -> list[str]:
    return [f"alphago.mix={mix}", f"alphago.simulations={simulations}"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", type=Path)
    parser.add_argument("--opponent", required=True)
    parser.add_argument("--simulations", type=int, default=100)
    parser.add_argument("--games", type=int, default=100)
    parser.add_argument("--mix", type=float, nargs="+", default=[0.0, 0.5, 1.0])
    given = parser.parse_args()
    torch.set_num_threads(1)
    sets = f'evaluate.arguments=[{{opponent="{given.opponent}", opening_plies=[2, 6]}}]'
    wanted = move_s(given.run, settings(0.5, given.simulations))
    print(f"{'λ':>5} {'simulations':>12} {'ms a move':>10} {'points':>8}  95 % interval", flush=True)
    for mix in (None, *given.mix):
        simulations, took = 0, 0.0
        if mix is not None:
            once = move_s(given.run, settings(mix, given.simulations))
            simulations = max(2, round(given.simulations * wanted / once))
            took = move_s(given.run, settings(mix, simulations))
        changes = [*settings(mix or 0.0, simulations), sets]
        row = play_pool(given.run, given.games // 2, None, overrides=changes)["opponents"][0]
        shown = "–" if mix is None else f"{mix:g}"
        points = f"{row['points']:8.3f}  [{row['low']:.3f}, {row['high']:.3f}]"
        print(f"{shown:>5} {simulations:12d} {1e3 * took / TOGETHER:10.2f} {points}", flush=True)


if __name__ == "__main__":
    main()
