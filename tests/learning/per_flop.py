"""What an update gets out of a core, for each FLOP of its networks: a method against its plain one.

    python -m tests.learning.per_flop rnd_montezuma=ppo_pong hiro_pointmaze=td3_pointmaze … [--seconds 3]

Prints for each pair the GFLOP/s of both updates on random moves, in turn on one core, and the median of their ratios.
FLOPs are those of matrix products and convolutions, forward and backward. Further settings follow the name of a job:
`fun_keychest,budget.env_steps=1000`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from contextlib import ExitStack

import torch

from hpc_rl import job as jobs
from hpc_rl.bench.pieces import Pieces, pieces

ROUNDS = 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", nargs="+")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for pair in arguments.pairs:
        names = pair.split("=", 1)
        method, plain = names[0], names[1]
        with ExitStack() as stack:
            ours, theirs = (stack.enter_context(pieces(loaded(name))) for name in (method, plain))
            rates = [(rate(ours, arguments.seconds), rate(theirs, arguments.seconds)) for _ in range(ROUNDS)]
        one, other = (statistics.median(column) for column in zip(*rates, strict=True))
        ratio = statistics.median(a / b for a, b in rates)
        print(f"{method:<34}{one:8.2f} GFLOP/s   {plain:<28}{other:8.2f} GFLOP/s   {ratio:.2f}", flush=True)


def loaded(text: str) -> jobs.Job:
    name, *changes = text.split(",")
    return jobs.load(name, (*changes, 'resources.device="cpu"', "resources.ranks=1", 'topology="solo"'))


def rate(work: Pieces, seconds: float) -> float:
    """GFLOP/s of updates one after the other."""
    moves, begin = 0.0, time.perf_counter()
    while (span := time.perf_counter() - begin) < seconds:
        moves += work.work["learn"]()
    return moves * work.learn_flops / span / 1e9


if __name__ == "__main__":
    main()
