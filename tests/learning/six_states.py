"""Mean returns of runs on the six-state process over many episodes at once: greedy, and with exploration.

A run's newest checkpoint is judged, whose ε is the final one. ``--exploration`` is the policy's own: 1 has h-DQN act
with the ε of its weights; DQN takes it as its ε. A return is 0.01 or 1, so a mean m has an error of √(m (1 − m) / n).

python -m tests.learning.six_states RUN… [--episodes 20000] [--exploration 1.0]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from hpc_rl import job as jobs
from hpc_rl.agent import agent_of
from hpc_rl.algorithms.base import Policy
from hpc_rl.envs.chains import six_states
from hpc_rl.saved_policy import saved_policy
from hpc_rl.storage.run_dir import open_run
from hpc_rl.types import Step


def newest_policy(folder: Path) -> Policy:
    run = open_run(folder)
    job = jobs.load(run.job_file)
    newest = sorted(run.checkpoints.glob("0*.h5"))[-1]
    return saved_policy(run, job, agent_of(job), newest, print)[0]


def mean_return(policy: Policy, episodes: int, exploration: float, seed: int) -> float:
    """Of the first episode of so many columns; those that ended move on without counting."""
    rules, rng = six_states(np).rules, np.random.default_rng(seed)
    state, carry = rules.begin(np.zeros((episodes, 0))), policy.initial_carry(episodes)
    total, playing, first = np.zeros(episodes), np.ones(episodes, bool), True
    while playing.any():
        opens = torch.full((episodes,), first)
        step = Step(torch.from_numpy(rules.show(state)), opens, torch.zeros(episodes))
        noise = torch.from_numpy(rng.random((episodes, policy.noise), np.float32))
        act = policy.act(step, carry, torch.full((episodes,), exploration), noise)
        carry, first = act.carry, False
        state, reward, discount, _ = rules.move(state, act.action.numpy(), rng.random((episodes, 1)))
        total += playing * reward
        playing &= discount == 1
    return float(total.mean())


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--episodes", type=int, default=20_000)
    parser.add_argument("--exploration", type=float, default=1.0)
    options = parser.parse_args(arguments)
    for folder in options.runs:
        policy = newest_policy(folder)
        texts = []
        for name, exploration in (("greedy", 0.0), (f"exploration {options.exploration:g}", options.exploration)):
            mean = mean_return(policy, options.episodes, exploration, seed=7)
            texts.append(f"{name} {mean:.4f} ± {math.sqrt(mean * (1 - mean) / options.episodes):.4f}")
        print(f"{folder.name}: {', '.join(texts)} over {options.episodes:,} episodes", flush=True)


if __name__ == "__main__":
    main()
