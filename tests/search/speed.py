"""Self-play beside the network alone: evaluations of positions a second, on one core, in turn.

python -m tests.search.speed [--columns 128] [--rounds 5] [--rows 6] [--precision bf16]

Self-play is `Searcher.act` from position to position of Connect Four with 32 channels × 3 blocks and 100 simulations,
trees kept; the network alone is asked about batches of the same sizes, which shrink where a tree has enough visits.
Prints both rates of each round, and the median of their ratios.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch

from hpc_rl.algorithms.alphazero import Config, policy
from hpc_rl.envs.games import connect_four
from hpc_rl.host_memory import keep_freed
from hpc_rl.nets.precision import set_precision
from hpc_rl.types import Rules, Step

MOVES = 6  # of each round


def alone(net: Any, rules: Rules, sizes: list[int]) -> float:
    """Evaluations a second of such batches."""
    state = rules.begin(torch.zeros(max(sizes), 0))
    assert rules.legal is not None
    frames, legal = rules.show(state), rules.legal(state)
    start = time.perf_counter()
    with torch.no_grad():
        for size in sizes:
            net(frames[:size], legal[:size])
    return sum(sizes) / (time.perf_counter() - start)


def self_play(player: Any, columns: int, seed: int) -> tuple[float, list[int]]:
    """(evaluations a second, sizes of the network's batches) of `MOVES` moves from the start."""
    rules, generator, sizes = player.rules, torch.Generator().manual_seed(seed), list[int]()
    handle = player.net.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    state, carry = rules.begin(torch.zeros(columns, 0)), player.initial_carry(columns)
    start = time.perf_counter()
    for move in range(MOVES):
        step = Step(rules.show(state), torch.full((columns,), move == 0), torch.zeros(columns), state)
        output = player.act(step, carry, torch.ones(columns), torch.rand(columns, player.noise, generator=generator))
        state, carry = rules.move(state, output.action, torch.zeros(columns, 0))[0], output.carry
    took = time.perf_counter() - start
    handle.remove()
    return sum(sizes) / took, sizes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--columns", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=6)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed()  # as ranks do: new pages for every activation would cost as much as computing it
    torch.manual_seed(0)
    rules = connect_four(torch, rows=arguments.rows).rules
    player = policy(Config(), rules.spec, rules)
    set_precision(player.net, arguments.precision)
    ratios = []
    for k in range(arguments.rounds):
        rate, sizes = self_play(player, arguments.columns, k)
        bare = alone(player.net, rules, sizes)
        ratios.append(rate / bare)
        print(f"self-play {rate:,.0f}, network alone {bare:,.0f} evaluations/s: {ratios[-1]:.2f}", flush=True)
    print(f"median {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
