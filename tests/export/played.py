"""Games that were played, as lists of what happened in them, and the fragments that a sampler makes of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from hpc_rl import job as jobs
from hpc_rl.fragments import trajectory_schema
from hpc_rl.storage.run_dir import RunDir, create
from hpc_rl.storage.trajectories import Recorder
from hpc_rl.types import Actions, Array, Leaf, Spec, Tree


@dataclass
class Game:
    """One episode, with T moves."""

    observation: Array  # [T + 1, *frame]
    action: Array
    reward: Array
    terminated: bool
    start: int  # env-step number of its first move


class Played:
    """``games[k]`` of column k, in order; the last of each is not over. ``columns`` are their global numbers."""

    def __init__(self, moves: int = 120, columns: int = 3, seed: int = 0, spec: Spec | None = None) -> None:
        rng = np.random.default_rng(seed)
        self.spec = spec or Spec("CartPole-v1", (2,), "float32", Actions("discrete", (4,)))
        self.schema = trajectory_schema(self.spec, {"value": Leaf((), "float32", "step", "reward", "V")}, {})
        self.columns = np.arange(4, 4 + columns, dtype=np.int32)
        self.games: list[list[Game]] = []
        streams = [self._column(rng, moves) for _ in range(columns)]
        self.rows = {name: np.stack([stream[name] for stream in streams], 1) for name in streams[0]}
        valid = ~self.rows["first"][1:]
        self.step = np.concatenate([np.zeros((1, columns), np.int64), np.cumsum(valid, 0)])

    def _column(self, rng: np.random.Generator, moves: int) -> Tree:
        shown, first, ends, games, step = [], [], [], [], 0
        while len(first) < moves + 1:
            count = int(rng.integers(1, 12))
            observation = rng.integers(0, 200, (count + 1, *self.spec.frame)).astype(self.spec.dtype)
            box = self.spec.actions.kind == "box"
            shape = (count, *self.spec.actions.shape)
            action = rng.uniform(-1, 1, shape) if box else rng.integers(0, self.spec.actions.sizes[0], shape)
            reward = rng.normal(size=count).astype(np.float32)
            game = Game(observation, action.astype(self.spec.actions.dtype), reward, bool(rng.random() < 0.5), step)
            games.append(game)
            shown.append(observation)
            first += [True] + [False] * count
            ends.append(len(first) - 2)  # the move of its end
            step += count
        self.games.append(games)
        return self._stream(games, np.concatenate(shown), np.array(first), ends, moves)

    def _stream(self, games: list[Game], shown: Array, first: Array, ends: list[int], moves: int) -> Tree:
        """Rows of one column; between two games a move that never happened."""
        rows = len(first)
        action = np.zeros((rows, *self.spec.actions.shape), self.spec.actions.dtype)
        reward, discount = np.zeros(rows, np.float32), np.ones(rows, np.float32)
        score, length = np.full(rows, np.nan, np.float32), np.zeros(rows, np.int32)
        for game, end in zip(games, ends, strict=True):
            begin = end + 1 - len(game.reward)
            action[begin : end + 1], reward[begin : end + 1] = game.action, game.reward
            discount[end] = 0 if game.terminated else 1
            score[end], length[end] = game.reward.sum(), len(game.reward)
        steps = {"action": action, "reward": reward, "discount": discount, "episode_return": score,
                 "episode_length": length}  # fmt: skip
        return {name: x[:moves] for name, x in steps.items()} | {
            "observation": shown[: moves + 1],
            "first": first[: moves + 1],
        }

    def whole(self, moves: int | None = None) -> dict[int, list[Game]]:
        """Column -> its games that were over after the first ``moves`` rows."""
        last = len(self.rows["reward"]) if moves is None else moves
        return {
            int(column): [game for game in games if game.start + len(game.reward) <= self.step[last, k]]
            for k, (column, games) in enumerate(zip(self.columns, self.games, strict=True))
        }

    def fragment(self, begin: int, end: int, attempt: int = 0) -> Tree:
        columns, moves = len(self.columns), end - begin
        edges = {name: self.rows[name][begin : end + 1] for name in ("observation", "first")}
        if self.spec.stack > 1:  # the environment's own stack of row 0, of which only the newest frame is looked at
            older = np.zeros((self.spec.stack - 1, *edges["observation"].shape[1:]), self.spec.dtype)
            edges["observation"] = np.concatenate([older, edges["observation"]])
        names = ("action", "reward", "discount", "episode_return", "episode_length")
        return edges | {name: self.rows[name][begin:end] for name in names} | {
            "episode_success": np.full((moves, columns), np.nan, np.float32),
            "version": np.tile(np.arange(begin, end)[:, None], (1, columns)),
            "extras/value": 2 * self.rows["reward"][begin:end],
            "column": self.columns,
            "start": self.step[begin],
            "attempt": np.full(columns, attempt, np.int32),
        }  # fmt: skip

    def record(self, run: Path, rows: list[int], attempt: int = 0, keep: list[bool] | None = None) -> list[Path]:
        """Segments between these rows, each of two fragments, as worker 0 of this attempt."""
        folder = run / "trajectories" / f"a{attempt}-worker-0"
        mask = np.array(keep or [True] * len(self.columns))
        recorder = Recorder(folder, self.schema, self.spec, self.columns, mask, attempt)
        for begin, end in pairwise(rows):
            middle = (begin + end) // 2
            for piece in ((begin, middle), (middle, end)):
                recorder.write(self.fragment(*piece, attempt))
            recorder.roll()
        return sorted(folder.glob("segment-*.h5"))


def began(run: Path, attempt: int, file: str | None, steps: dict[int, int]) -> None:
    """What an attempt's provenance says of its start."""
    resumed: dict[str, Any] = {"resumed_from": {"file": file, "steps": {str(k): n for k, n in steps.items()}}}
    (run / "provenance").mkdir(exist_ok=True)
    (run / "provenance" / f"{attempt:04d}.json").write_text(json.dumps(resumed))


def new_run(path: Path, *overrides: str) -> RunDir:
    """A run directory without a step."""
    return create(path, jobs.dumps(jobs.load("ppo_cartpole", overrides)))
