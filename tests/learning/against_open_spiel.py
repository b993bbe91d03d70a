"""Self-play of Connect Four beside OpenSpiel's Python AlphaZero: games an hour of one actor on one core each, in turn.

    python -m tests.learning.against_open_spiel --python PYTHON

PYTHON has open_spiel, jax, flax and optax. Both have a residual network of 3 blocks of 32 channels before its first
update and 100 simulations a move, drawn by visits in the first twelve plies; here no game is cut short as decided.
Kept trees count towards the simulations here, and evaluations are cached there, as each program has it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import torch

from hpc_rl.algorithms.alphazero import Config, policy
from hpc_rl.envs.games import connect_four
from hpc_rl.host_memory import keep_freed
from hpc_rl.types import Step

SCRIPT = Path(__file__).with_name("open_spiel_self_play.py")


def ours(seconds: float, columns: int, seed: int) -> dict[str, float]:
    """Games that ended, moves and seconds of self-play whose columns begin a new game where one ended."""
    rules, generator = connect_four(torch).rules, torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    config = replace(Config(), simulations=100, c_puct=2.0, temperature_moves=12, decided=1.0, channels=32, blocks=3)
    player = policy(config, rules.spec, rules)
    state, carry = rules.begin(torch.zeros(columns, 0)), player.initial_carry(columns)
    first, games, moves, begin = torch.ones(columns, dtype=torch.bool), 0, 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        step = Step(rules.show(state), first, torch.zeros(columns), state)
        output = player.act(step, carry, torch.ones(columns), torch.rand(columns, player.noise, generator=generator))
        state, _, discount, _ = rules.move(state, output.action, torch.zeros(columns, 0))
        first, carry = discount == 0, output.carry
        fresh = rules.begin(torch.zeros(columns, 0))
        state = {name: torch.where(first, fresh[name], x) for name, x in state.items()}
        games, moves = games + int(first.sum()), moves + columns
    return {"games": games, "moves": moves, "seconds": time.perf_counter() - begin}


def theirs(python: Path, seconds: float, core: int) -> dict[str, float]:
    command = ["taskset", "-c", str(core), str(python), str(SCRIPT), f"--seconds={seconds}"]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    answer: dict[str, float] = json.loads(lines[-1])
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=40.0, help="of each in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--columns", type=int, default=128, help="games at once here")
    arguments = parser.parse_args()
    core = min(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    keep_freed()
    ratios = list[float]()
    for k in range(arguments.rounds):
        both = ours(arguments.seconds, arguments.columns, k), theirs(arguments.python, arguments.seconds, core)
        games, moves = ([3600 * x[name] / x["seconds"] for x in both] for name in ("games", "moves"))
        ratios.append(games[0] / games[1])
        print(
            f"games an hour {games[0]:,.0f} and {games[1]:,.0f}, {ratios[-1]:.1f}; moves an hour {moves[0]:,.0f} and "
            f"{moves[1]:,.0f}, {moves[0] / moves[1]:.1f}",
            flush=True,
        )
    print(f"median {statistics.median(ratios):.1f}")


if __name__ == "__main__":
    main()
