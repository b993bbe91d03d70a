"""What a manager's goals are worth: games of a run of FuN whose worker gets other goals than its own.

python -m tests.learning.goals RUN… [--groups 6] [--games 2] [--sampled]

The worker plays by the manager's goals ("own"), by those of another column at the same time ("permuted"), by the mean
of all of the run's goals, as a unit vector ("mean"), and by none ("zero": all actions alike). Groups of columns begin
their first games at different times, so that another column is elsewhere in its game, and these games do not count. A
manager that has collapsed loses nothing in "permuted" and "mean"; "zero" alone proves nothing. Runs of another method
have one figure, for comparison.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpc_rl.api import open_run
from hpc_rl.devices import to_host
from hpc_rl.envs.make import make
from hpc_rl.types import Step

TOGETHER, APART = 8, 23  # columns that begin their first game in the same row, and rows until the next ones do
Change = Callable[[Tensor], Tensor]
"""Goals [b, d] of all columns -> those that the worker gets."""


def games(run: Path, groups: int, count: int, exploration: float, change: Change) -> tuple[list[float], Tensor | None]:
    """Raw returns of ``count`` games of each column by changed goals, and the mean of the manager's or None."""
    environment, b = open_run(run).job.environment, groups * TOGETHER
    policy: Any = open_run(run).policy()._policy
    manage, changing, emitted = getattr(policy.net, "manage", None), False, list[Tensor]()

    def managed(*arguments: Any) -> Any:
        assert manage is not None
        answer = manage(*arguments)
        emitted.append(answer.goal[0])
        return replace(answer, goal=change(answer.goal[0])[None]) if changing else answer

    policy.net.manage = managed
    parts = [make(environment.id, environment.arguments, TOGETHER) for _ in range(groups)]
    shown = np.concatenate([part.reset(np.arange(TOGETHER)) for part in parts])
    first, reward, sums, counts = np.ones(b, bool), np.zeros(b, np.float32), np.zeros(b), np.zeros(b, bool)
    carry, draw, returns, row = policy.initial_carry(b), np.random.default_rng(0), [list[float]() for _ in range(b)], 0
    while min(map(len, returns)) < count:
        changing = row >= APART * groups
        if not changing and row % APART == 0:
            k = slice(row // APART * TOGETHER, (row // APART + 1) * TOGETHER)
            shown[k], first[k] = parts[row // APART].reset(1000 + np.arange(b)[k]), True
        sums[first], counts[first] = 0.0, changing  # games that open from now on count
        step = Step(torch.tensor(shown), torch.tensor(first), torch.tensor(reward))
        noise = torch.tensor(draw.random((b, policy.fragment_noise + policy.noise), np.float32))
        noise[:, : policy.fragment_noise] = 1.0  # no random goals
        output = policy.act(step, carry, torch.full((b,), exploration), noise)
        carry, action = output.carry, to_host(output.action)
        for part, own in zip(parts, np.split(action, groups), strict=True):
            part.send(own)
        moves = [part.recv() for part in parts]
        shown, first, reward = (
            np.concatenate([getattr(x, n) for x in moves]) for n in ("observation", "first", "reward")
        )
        sums += reward
        for k in np.flatnonzero(np.concatenate([x.ended for x in moves]) & counts):
            returns[k].append(float(sums[k]))
        row += 1
    return [x for column in returns for x in column[:count]], torch.cat(emitted).mean(0) if emitted else None


def ablation(run: Path, groups: int, count: int, exploration: float) -> dict[str, list[float]]:
    """Returns by the kind of goals that the worker got."""
    own, mean = games(run, groups, count, exploration, lambda goals: goals)
    if mean is None:
        return {"own": own}
    unit = mean / mean.norm().clamp(min=1e-8)
    changes: dict[str, Change] = {
        "permuted": lambda goals: goals.roll(groups // 2 * TOGETHER, 0),
        "mean": unit.expand_as,
        "zero": torch.zeros_like,
    }
    return {"own": own} | {name: games(run, groups, count, exploration, x)[0] for name, x in changes.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--groups", type=int, default=6, help=f"of {TOGETHER} columns")
    parser.add_argument("--games", type=int, default=2, help="of each column")
    parser.add_argument("--sampled", action="store_true", help="actions as in training; else greedy ones")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for run in arguments.runs:
        rows = ablation(run, arguments.groups, arguments.games, float(arguments.sampled))
        own = float(np.mean(rows["own"]))
        told = [f"{name} {np.mean(x):.2f} ({100 * (np.mean(x) / own - 1):+.0f} %)" for name, x in rows.items()]
        print(f"{run.name}: {', '.join(told)}", flush=True)


if __name__ == "__main__":
    main()
