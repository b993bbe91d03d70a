"""How often a policy of Connect Four keeps what a position is worth, in positions that search/connect_four.py solves.

Positions have at least so many stones and come from games of alpha–beta of depth 2 against itself, each position once.
Beside the policy stand what a random move keeps on average and what alpha–beta of depth 4 keeps; once more over those
positions in which not every move keeps the value.

python -m tests.learning.connect_four runs/alphazero_connect4 [--positions 500] [--plies 16] [--checkpoint FILE]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np

from hpc_rl import job as jobs
from hpc_rl.agent import agent_of
from hpc_rl.devices import to_host
from hpc_rl.envs.games import connect_four
from hpc_rl.envs.opponents import player_of
from hpc_rl.opponents import consulted
from hpc_rl.saved_policy import saved_policy
from hpc_rl.search.connect_four import Solver
from hpc_rl.search.levels import at
from hpc_rl.storage.run_dir import open_run
from hpc_rl.types import Array, Rules, RulesState

AT_ONCE = 100


def solved_positions(rules: Rules, count: int, plies: int, seed: int = 7) -> tuple[RulesState, Array]:
    """(positions [count], values [count, columns] of their moves, NaN where a column is full)."""
    rows, columns = rules.spec.frame[1:]
    player, rng, solver = (
        player_of("alphabeta:2", rules, "positions"),
        np.random.default_rng(seed),
        Solver(rows, columns),
    )
    seen: dict[tuple[int, int], list[float]] = {}
    while len(seen) < count:
        state, stop = rules.begin(np.zeros((1, 0))), rng.integers(plies, rows * columns - 4)
        for _ in range(stop):
            state, _, discount, _ = rules.move(state, player(state, rng.random(1)), np.zeros((1, 0)))
            if not discount[0]:
                break
        else:
            mine, theirs = int(state["mine"][0]), int(state["theirs"][0])
            moves = solver.move_values(mine, theirs)
            seen[mine, theirs] = [moves.get(column, np.nan) for column in range(columns)]
    mine, theirs = np.array(list(seen)).T
    return {"mine": mine, "theirs": theirs}, np.array(list(seen.values()))


def kept(values: Array, action: Array) -> dict[str, float]:
    """Shares of moves [n] that keep what their position is worth, over all positions and where not all moves do."""
    best = values == np.nanmax(values, 1)[:, None]
    keeps, differ = best[np.arange(len(action)), action], best.sum(1) < np.isfinite(values).sum(1)
    return {"all": round(float(keeps.mean()), 4), "where_moves_differ": round(float(keeps[differ].mean()), 4)}


def by_chance(values: Array) -> dict[str, float]:
    """What `kept` gives for random moves on average."""
    count = np.isfinite(values).sum(1)
    share = (values == np.nanmax(values, 1)[:, None]).sum(1) / count
    return {"all": round(float(share.mean()), 4), "where_moves_differ": round(float(share[share < 1].mean()), 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--positions", type=int, default=500)
    parser.add_argument("--plies", type=int, default=16)
    parser.add_argument("--checkpoint", type=Path)
    arguments = parser.parse_args()
    directory = open_run(arguments.run)
    job = jobs.load(directory.job_file)
    agent = agent_of(job)
    policy, path, meta = saved_policy(directory, job, agent, arguments.checkpoint, print)
    rules = connect_four(np, **{k: v for k, v in job.environment.arguments.items() if k in ("rows", "columns")}).rules
    state, values = solved_positions(rules, arguments.positions, arguments.plies)
    assert agent.rules is not None
    actions = []
    for begin in range(0, len(values), AT_ONCE):
        rows = np.arange(begin, min(begin + AT_ONCE, len(values)))
        actions.append(to_host(consulted(policy, agent.rules, at(state, rows), np.full(len(rows), 0.5)).action))
    deep = player_of("alphabeta:4", rules, "positions")(state, np.random.default_rng(8).random(len(values)))
    about = {
        "checkpoint": str(path),
        "env_steps": meta["env_steps"],
        "positions": len(values),
        "plies": arguments.plies,
    }
    shares = {"policy": np.concatenate(actions), "alphabeta:4": deep}
    found = {name: kept(values, action) for name, action in shares.items()}
    print(json.dumps({**about, **found, "random": by_chance(values)}))


if __name__ == "__main__":
    main()
