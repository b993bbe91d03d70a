"""Self-play beside the network alone: evaluations of positions a second, on one core, in turn.

python -m tests.search.speed [--columns 128] [--rounds 5] [--rows 6]

Self-play is `Searcher.act` from position to position of Connect Four with 32 channels × 3 blocks and 100 simulations,
trees kept; the network alone is asked about batches of as many positions. Evaluations are counted where the network is
called. Prints both rates of each round, and the median of their ratios.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch

from hpc_rl.algorithms.alphazero import Config, policy
from hpc_rl.envs.games import connect_four
from hpc_rl.types import Rules, Step

MOVES = 6  # of each round


def alone(net: Any, rules: Rules, columns: int, seconds: float) -> float:
    state = rules.begin(torch.zeros(columns, 0))
    assert rules.legal is not None
    frames, legal = rules.show(state), rules.legal(state)
    count, start = 0, time.perf_counter()
    with torch.no_grad():
        while time.perf_counter() - start < seconds:
            net(frames, legal)
            count += columns
    return count / (time.perf_counter() - start)


def self_play(player: Any, columns: int, seed: int) -> tuple[float, float]:
    """(evaluations a second, seconds) of `MOVES` moves from the start."""
    rules, generator, counted = player.rules, torch.Generator().manual_seed(seed), [0]
    handle = player.net.register_forward_pre_hook(lambda _, inputs: counted.append(len(inputs[0])))
    state, carry = rules.begin(torch.zeros(columns, 0)), player.initial_carry(columns)
    start = time.perf_counter()
    for move in range(MOVES):
        step = Step(rules.show(state), torch.full((columns,), move == 0), torch.zeros(columns), state)
        output = player.act(step, carry, torch.ones(columns), torch.rand(columns, player.noise, generator=generator))
        state, carry = rules.move(state, output.action, torch.zeros(columns, 0))[0], output.carry
    took = time.perf_counter() - start
    handle.remove()
    return sum(counted) / took, took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--columns", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=6)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rules = connect_four(torch, rows=arguments.rows).rules
    player = policy(Config(), rules.spec, rules)
    alone(player.net, rules, arguments.columns, 1.0)
    ratios = []
    for k in range(arguments.rounds):
        rate, took = self_play(player, arguments.columns, k)
        bare = alone(player.net, rules, arguments.columns, took)
        ratios.append(rate / bare)
        print(f"self-play {rate:,.0f}, network alone {bare:,.0f} evaluations/s: {ratios[-1]:.2f}", flush=True)
    print(f"median {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
