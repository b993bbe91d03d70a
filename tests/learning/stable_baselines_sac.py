"""SAC of Stable-Baselines3 on a task, in an environment of its own: nothing of this package is imported.

    PYTHON tests/learning/stable_baselines_sac.py TASK --out FILE [--seed 1] [--threads 1] [--env-steps 300000]

Its defaults but for 10 000 random moves before the first update (``--random``): two layers of 256, batches of 256, one
update of all networks for each env step. FILE gets a JSON line every half second, {"time", "env_steps"}, and with
``--every`` one for each evaluation: {"env_steps", "greedy_return"}, the mean of ten deterministic episodes.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import gymnasium
import torch
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

LINE_S = 0.5


class Lines(BaseCallback):
    """Writes the lines of FILE."""

    def __init__(self, path: Path, task: str, every: int) -> None:
        super().__init__()
        self.path, self.every, self.last = path, every, 0.0
        self.task = Monitor(gymnasium.make(task)) if every else None

    def _on_step(self) -> bool:
        if time.time() - self.last > LINE_S:
            self.last = time.time()
            self._write(time=self.last, env_steps=self.num_timesteps)
        if self.task and self.num_timesteps % self.every == 0:
            mean, _ = evaluate_policy(self.model, self.task, n_eval_episodes=10)
            self._write(env_steps=self.num_timesteps, greedy_return=float(mean))  # type: ignore[arg-type]
        return True

    def _write(self, **figures: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(figures) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--env-steps", type=int, default=300_000)
    parser.add_argument("--random", type=int, default=10_000)
    parser.add_argument("--every", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    task = gymnasium.make(arguments.task)
    model = SAC("MlpPolicy", task, learning_starts=arguments.random, seed=arguments.seed, device="cpu")
    model.learn(arguments.env_steps, callback=Lines(arguments.out, arguments.task, arguments.every))


if __name__ == "__main__":
    main()
