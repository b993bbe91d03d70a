"""The plain sampler: one environment object, one inference per step, fragments filled in place."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpc_rl.algorithms.base import Policy
from hpc_rl.envs.base import Environment
from hpc_rl.types import Array, Step, Tree, part

ACTIVITIES = ("step", "infer", "send", "wait", "learn", "record", "other")


@dataclass
class Split:
    """Seconds this rank spent in each activity; the live screen and summary.json show their shares."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(ACTIVITIES, 0.0))

    def timed(self, name: str, begin: float) -> float:
        """Book the time since ``begin`` under ``name``; returns the present, the next begin."""
        now = time.perf_counter()
        self.seconds[name] += now - begin
        return now


class Vector:
    """Steps b columns together. Everything random comes from one stream per column, whichever rank holds it."""

    def __init__(
        self,
        environment: Environment,
        policy: Policy,
        columns: Sequence[int],
        streams: Sequence[np.random.Generator],
        split: Split,
        pulse: Callable[[], None] = lambda: None,
    ) -> None:
        self.environment, self.policy, self.streams = environment, policy, list(streams)
        self.columns = np.array(columns, np.int32)
        self.split, self.pulse = split, pulse
        self.steps = np.zeros(len(columns), np.int64)  # env steps of each column so far, over all attempts
        self.attempt = 0
        self.device = next(policy.net.parameters()).device
        self.carry: dict[str, Tensor] = policy.initial_carry(len(columns))
        self.exploration = torch.ones(len(columns), device=self.device)

    def start(self, seeds: Array) -> None:
        """Open a new episode in every column from seeds [b]."""
        width = len(self.columns)
        self.observation = self.environment.reset(seeds)
        self.first = np.ones(width, bool)
        self.reward = np.zeros(width, np.float32)
        self.running_return = np.zeros(width, np.float64)
        self.running_length = np.zeros(width, np.int32)

    def collect(self, tree: Tree, version: int) -> None:
        """Fill ``tree`` (leaves of types.trajectory_schema) with T moves and the observations around them."""
        steps, stack = len(tree["reward"]), self.environment.spec.stack
        width = len(self.columns)
        noise = np.stack([stream.random((steps, self.policy.noise), np.float32) for stream in self.streams], 1)
        tree["column"][:], tree["start"][:], tree["attempt"][:] = self.columns, self.steps, self.attempt
        for name, x in part(tree, "carry").items():
            x[:] = self.carry[name].cpu().numpy()
        if stack > 1:
            tree["observation"][: stack - 1] = self.observation.swapaxes(0, 1)[:-1]
        extras = part(tree, "extras")
        for t in range(steps + 1):
            self._look(tree, t, stack)
            if t < steps:
                self._move(tree, extras, t, noise[t])
                self.pulse()
        tree["version"][:] = version
        valid = ~tree["first"][1:]
        self.steps = self.steps + valid.sum(0, dtype=np.int64)
        assert width == len(self.steps)

    def _look(self, tree: Tree, t: int, stack: int) -> None:
        tree["first"][t] = self.first
        if stack > 1:
            tree["observation"][t + stack - 1] = self.observation[:, -1]
        else:
            tree["observation"][t] = self.observation

    def _move(self, tree: Tree, extras: Tree, t: int, noise: Array) -> None:
        now = time.perf_counter()
        seen = (self.observation, self.first, self.reward, noise)
        observation, first, reward, uniforms = (torch.from_numpy(x).to(self.device) for x in seen)
        act = self.policy.act(Step(observation, first, reward), self.carry, self.exploration, uniforms)
        action = act.action.cpu().numpy()
        now = self.split.timed("infer", now)
        self.environment.send(action)
        tree["action"][t], self.carry = action, act.carry
        for name, x in extras.items():
            x[t] = act.extras[name].cpu().numpy()
        moves = self.environment.recv()
        self._book(tree, t, moves.reward, moves.first, moves.ended)
        tree["discount"][t] = moves.discount
        self.observation, self.first, self.reward = moves.observation, moves.first, moves.reward
        self.split.timed("step", now)

    def _book(self, tree: Tree, t: int, reward: Array, first: Array, ended: Array) -> None:
        """Raw rewards, and the returns of whole games at the move that ended them."""
        tree["reward"][t] = reward
        self.running_return += reward
        self.running_length += ~first
        tree["episode_return"][t] = np.where(ended, self.running_return, np.nan)
        tree["episode_length"][t] = np.where(ended, self.running_length, 0)
        self.running_return[ended] = 0
        self.running_length[ended] = 0

    def state(self) -> dict[str, Any]:
        """Everything `load` needs; the environments only where they can be cloned."""
        cloneable = self.environment.spec.cloneable
        return {
            "columns": self.columns.copy(),
            "steps": self.steps.copy(),
            "streams": [stream.bit_generator.state for stream in self.streams],
            "carry": {name: x.clone() for name, x in self.carry.items()},
            "first": self.first.copy(),
            "reward": self.reward.copy(),
            "running_return": self.running_return.copy(),
            "running_length": self.running_length.copy(),
            "environment": self.environment.state() if cloneable else None,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` was taken; environments that cannot be cloned keep the episode that `start` opened."""
        self.steps = np.asarray(state["steps"]).copy()
        for stream, saved in zip(self.streams, state["streams"], strict=True):
            stream.bit_generator.state = saved
        if state["environment"] is None:
            return
        self.observation = self.environment.load(state["environment"])
        self.carry = {name: x.clone() for name, x in state["carry"].items()}
        for name in ("first", "reward", "running_return", "running_length"):
            setattr(self, name, np.asarray(state[name]).copy())
