"""Catch by weights that are always 50 updates old: V-trace against no correction (IMPALA paper, Table 2).

python -m tests.learning.lag [--lag 50] [--updates 2000]; five seeds of each, in this process.
"""

from __future__ import annotations

import argparse
from collections import deque
from statistics import median

import numpy as np
import torch

from hpc_rl import job as jobs
from hpc_rl.agent import agent_of
from hpc_rl.envs.make import make
from hpc_rl.fragments import allocate, trajectory, trajectory_schema
from hpc_rl.optim.alone import Alone
from hpc_rl.samplers.base import Timings, episode_seeds, streams
from hpc_rl.samplers.lanes import Lane
from hpc_rl.samplers.vector import Vector

SEEDS, LAST = (1, 2, 3, 4, 5), 1000  # episodes at the end that count


def final_return(correction: str, lag: int, updates: int, seed: int) -> float:
    """Mean raw return of the last episodes, whose moves were made by weights ``lag`` updates old."""
    job = jobs.load("impala_catch", [f"impala.correction={correction}"])
    agent = agent_of(job)
    columns = list(range(job.environment.columns))
    environment = make(job.environment.id, {}, len(columns))
    torch.manual_seed(seed)
    learner = agent.make_learner(agent.make_policy(), Alone())
    acting = agent.make_learner(agent.make_policy(), Alone())
    lane = Lane(environment, acting.policy, np.array(columns), streams(seed, "act", columns, 0))
    lane.start(episode_seeds(seed, "episode", columns, 0))
    sampler = Vector([lane], Timings())
    schema = trajectory_schema(
        environment.spec, acting.policy.extras, acting.policy.carry, acting.policy.fragment_noise
    )
    tree = allocate(schema, agent.experience.unroll, len(columns), 1)
    old = deque([learner.weights.data.clone()], maxlen=lag + 1)
    returns: deque[float] = deque(maxlen=LAST)
    for k in range(updates):
        acting.weights.data.copy_(old[0])
        sampler.collect(tree, lambda: k)  # noqa: B023  # called before the next round
        learner.update({"items": trajectory([tree], environment.spec)}, k / updates)
        old.append(learner.weights.data.clone())
        returns.extend(x for x in tree["episode_return"].ravel() if np.isfinite(x))
    return float(np.mean(returns))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lag", type=int, default=50)
    parser.add_argument("--updates", type=int, default=2000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    fresh = 0.0
    for correction, lag in (("vtrace", 0), ("vtrace", arguments.lag), ("none", arguments.lag)):
        returns = [final_return(correction, lag, arguments.updates, seed) for seed in SEEDS]
        fresh = median(returns) if not lag else fresh
        each = ", ".join(f"{x:.2f}" for x in returns)
        middle = median(returns)
        print(f"{correction:<7} lag {lag:<3} median {middle:.3f} ({each}), {middle / fresh:.2f} of lag 0")


if __name__ == "__main__":
    main()
