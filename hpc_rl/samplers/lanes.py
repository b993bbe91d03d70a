"""A lane: columns that step together behind one environment object. What every sampler is made of."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpc_rl.algorithms.base import Policy
from hpc_rl.devices import to_device, to_host
from hpc_rl.envs.base import Environment
from hpc_rl.fragments import part
from hpc_rl.samplers.bad_rows import BadRows
from hpc_rl.samplers.base import Timings
from hpc_rl.types import Array, Step, Tree


class Lane:
    """b columns, what their policy sees next, and the fragment they are filling.

    Everything random comes from one stream per column, drawn when a fragment is opened: the same numbers whatever rank,
    lane or sampler the column belongs to.
    """

    def __init__(
        self, environment: Environment, policy: Policy, columns: Array, streams: Sequence[np.random.Generator]
    ) -> None:
        self.environment, self.policy, self.streams = environment, policy, list(streams)
        self.columns = columns
        self.steps = np.zeros(len(columns), np.int64)  # env steps of each column so far, over all attempts
        self.attempt = 0
        self.bad_rows = BadRows(environment.spec.id, columns)
        self.device = next(policy.net.parameters()).device
        self.carry: dict[str, Tensor] = policy.initial_carry(len(columns))
        self.exploration = torch.ones(len(columns), device=self.device)
        self.tree: Tree = {}
        self.extras: Tree = {}
        self.row = self.rows = 0  # of the fragment: next move, and T

    def start(self, seeds: Array) -> None:
        """Open a new episode in every column from seeds [b]."""
        width = len(self.columns)
        self.first = np.ones(width, bool)
        self._show(self.environment.reset(seeds), np.zeros(width, np.float32))
        self.running_return = np.zeros(width, np.float64)
        self.running_length = np.zeros(width, np.int32)

    def begin_fragment(self, tree: Tree) -> None:
        """Begin to fill ``tree``, leaves [.., b, ..] of `trajectory_schema`."""
        self.tree, self.extras, self.row, self.rows = tree, part(tree, "extras"), 0, len(tree["reward"])
        self._draw()
        tree["column"][:], tree["start"][:], tree["attempt"][:] = self.columns, self.steps, self.attempt
        for name, x in part(tree, "carry").items():
            x[:] = to_host(self.carry[name])
        if (stack := self.environment.spec.stack) > 1:
            tree["observation"][: stack - 1] = self.shown.swapaxes(0, 1)[:-1]
        self._store_observation()

    def _draw(self) -> None:
        """noise [T, b, M + K]: M uniforms that stay the same over the fragment, then K of each move."""
        fixed = self.policy.fragment_noise
        once = [stream.random(fixed, np.float32) for stream in self.streams] if fixed else []
        draws = [stream.random((self.rows, self.policy.noise), np.float32) for stream in self.streams]
        self.noise = np.stack(draws, 1)
        if fixed:
            self.tree["noise"][:] = once
            self.noise = np.concatenate([np.broadcast_to(once, (self.rows, *np.shape(once))), self.noise], -1)

    def explore(self, exploration: Array) -> None:
        """Act with ``exploration`` [b] from now on."""
        self.exploration = to_device(np.asarray(exploration, np.float32), self.device)

    @property
    def full(self) -> bool:
        """All T moves are made, and the observation after the last one is in place."""
        return self.row == self.rows

    def receive(self) -> None:
        """Wait for the environment's answer to the last action, and store it."""
        moves = self.environment.recv()
        t, tree = self.row, self.tree
        tree["reward"][t], tree["discount"][t] = moves.reward, moves.discount
        self._show(moves.observation, moves.reward)
        self.running_return += self.reward
        self.running_length += ~moves.first
        # Raw returns of whole games, at the move that ended them.
        tree["episode_return"][t] = np.where(moves.ended, self.running_return, np.nan)
        tree["episode_success"][t] = moves.success
        tree["episode_length"][t] = np.where(moves.ended, self.running_length, 0)
        self.running_return[moves.ended] = 0
        self.running_length[moves.ended] = 0
        self.first = moves.first
        self.steps = self.steps + ~moves.first
        self.row += 1
        self._store_observation()

    def _show(self, observation: Array, reward: Array) -> None:
        """What the environments show is what is recorded; the policy sees 0 where it is not finite."""
        self.shown = observation
        self.observation, self.reward = self.bad_rows.cleaned(observation, reward, self.steps)

    def _store_observation(self) -> None:
        stack = self.environment.spec.stack
        self.tree["first"][self.row] = self.first
        newest = self.shown[:, -1] if stack > 1 else self.shown
        self.tree["observation"][self.row + stack - 1] = newest

    def state(self) -> dict[str, Any]:
        """Everything `load` needs; ``environment`` is None where open episodes cannot be taken up."""
        return {
            "columns": self.columns.copy(),
            "steps": self.steps.copy(),
            "streams": [stream.bit_generator.state for stream in self.streams],
            "carry": {name: x.clone() for name, x in self.carry.items()},
            "first": self.first.copy(),
            "reward": self.reward.copy(),
            "running_return": self.running_return.copy(),
            "running_length": self.running_length.copy(),
            "bad_rows": self.bad_rows.counts.copy(),
            "environment": self.environment.state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` was taken; columns whose episode cannot be taken up begin a new one, and one is named.

        Where none can, they keep the episodes that `start` opened.
        """
        self.steps = np.asarray(state["steps"]).copy()
        for stream, saved in zip(self.streams, state["streams"], strict=True):
            stream.bit_generator.state = saved
        if state["environment"] is None:
            self.bad_rows.counts += np.asarray(state["bad_rows"])
            return
        begun = time.monotonic()
        resumed = self.environment.load(state["environment"])
        lost = resumed.lost != ""
        self._report(resumed.lost, time.monotonic() - begun)
        self.bad_rows.counts[:] = 0  # of the episodes that `start` opened for nothing
        self._show(resumed.observation, np.where(lost, np.float32(0), np.asarray(state["reward"])))
        self.bad_rows.counts = np.asarray(state["bad_rows"]) + np.where(lost, self.bad_rows.counts, 0)
        new = self.policy.initial_carry(len(self.columns))
        for name, x in state["carry"].items():
            self.carry[name] = to_device(x.clone(), self.device)
            self.carry[name][lost] = new[name][lost]
        self.first = np.asarray(state["first"]) | lost
        self.running_return = np.where(lost, 0, np.asarray(state["running_return"]))
        self.running_length = np.where(lost, np.int32(0), np.asarray(state["running_length"]))

    def _report(self, lost: Array, seconds: float) -> None:
        """One sentence for all columns whose episode could not be taken up, one where it took long."""
        places, id = np.flatnonzero(lost != ""), self.environment.spec.id
        if len(places):
            k, more = places[0], f", and in {len(places) - 1} more columns" if len(places) > 1 else ""
            print(
                f"warning: {id}, column {self.columns[k]}, env step {self.steps[k]}: {lost[k]}; a new episode begins "
                f"there{more}, so this run differs from one that was never interrupted",
                flush=True,
            )
        if seconds > 1:
            columns = f"{len(self.columns)} columns of {id}"
            print(f"it took {seconds:.1f} s to bring the open episodes of {columns} back", flush=True)


def _rules_state(lanes: Sequence[Lane], device: torch.device) -> dict[str, Tensor] | None:
    """That of all lanes' Rules; None where their environments have none."""
    if lanes[0].environment.rules_state is None:
        return None
    states = [lane.environment.rules_state or {} for lane in lanes]
    return {name: to_device(np.concatenate([state[name] for state in states]), device) for name in states[0]}


def act(lanes: Sequence[Lane], version: int, timings: Timings) -> None:
    """One inference for the next move of all ``lanes``; their environments begin to step."""
    now = time.perf_counter()
    policy, device = lanes[0].policy, lanes[0].device

    def together(arrays: list[Array]) -> Tensor:
        return to_device(arrays[0] if len(arrays) == 1 else np.concatenate(arrays), device)

    names = ("observation", "first", "reward")
    observation, first, reward = (together([getattr(lane, name) for lane in lanes]) for name in names)
    step = Step(observation, first, reward, _rules_state(lanes, device))
    noise = together([lane.noise[lane.row] for lane in lanes])
    carry = {name: torch.cat([lane.carry[name] for lane in lanes]) for name in policy.carry}
    exploration = torch.cat([lane.exploration for lane in lanes])
    output = policy.act(step, carry, exploration, noise)
    action = to_host(output.action)
    extras = {name: to_host(x) for name, x in output.extras.items()}
    now = timings.timed("infer", now)
    low = 0
    for lane in lanes:
        rows = slice(low, low := low + len(lane.columns))
        lane.environment.send(action[rows])
        t = lane.row
        lane.tree["action"][t], lane.tree["version"][t] = action[rows], version
        lane.carry = {name: x[rows] for name, x in output.carry.items()}
        for name, x in lane.extras.items():
            x[t] = extras[name][rows]
    timings.timed("step", now)
