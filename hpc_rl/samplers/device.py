"""The sampler whose environments are tensors: Rules on torch move all columns at once, on the device of their policy.

No number leaves the device while a fragment is filled. On a CPU the fragment's arrays are the tensors' own memory; on a
GPU it is copied to the host once, when it is full. A move is the same arithmetic for all columns: where an episode has
ended the new one is put in its place by ``where``, as indices would have the host wait.

Whatever is drawn is a hash of (seed, column, row of the column, purpose, number): the moves of a column depend neither
on how many there are beside it nor on the rank that steps it. Whether an action is legal is not looked at here: a
policy that knows `Rules.legal` makes no other.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpc_rl.algorithms.base import Policy
from hpc_rl.devices import to_device, to_host
from hpc_rl.envs.toy import Toy
from hpc_rl.fragments import part
from hpc_rl.samplers.bad_rows import BadRows
from hpc_rl.samplers.base import Timings
from hpc_rl.samplers.columns import chosen
from hpc_rl.samplers.tensor_rules import checked
from hpc_rl.samplers.uniforms import ACT, BEGIN, FRAGMENT, MOVE, Uniforms
from hpc_rl.types import Array, RulesState, Step, Tree

SAVED = ("keys", "rows", "first", "ended", "reward", "running_return", "running_length")
"""Of a column, beside its steps, its policy's carry and its environment."""


class Device:
    """Fills whole fragments of ``columns`` [b]; see `Sampler`. Their environments compute in float32 where they can.

    ``keys`` int64 [b] are those of the columns' uniforms, ``steps`` int64 [b] the env steps that earlier ``attempt``\ s
    made of each.
    """

    def __init__(
        self,
        toy: Toy,
        policy: Policy,
        columns: Array,
        keys: Array,
        steps: Array,
        attempt: int,
        timings: Timings,
        pulse: Callable[[], None] = lambda: None,
    ) -> None:
        self.rules, self.follow, self.policy, self.timings, self.pulse = toy.rules, toy.follow, policy, timings, pulse
        self.columns, self.spec, self.attempt = columns, toy.rules.spec, attempt
        self.device = next(policy.net.parameters()).device
        self.bad_rows = BadRows(self.spec.id, columns)
        self.keys = to_device(keys, self.device)
        self.rows = self._filled(0, torch.int64)  # of each column so far, those that only begin an episode included
        self._steps = to_device(steps, self.device)
        self.exploration = self._filled(1.0)
        self.carry = policy.initial_carry(len(columns))
        self.first, self.ended = self._filled(True), self._filled(False)
        self.reward, self.running_return = self._filled(0.0), self._filled(0.0, torch.float64)
        self.running_length = self._filled(0, torch.int32)
        self.memory, self.double = self._begun()
        shape, dtype = (len(columns), *self.spec.observation), getattr(torch, self.spec.dtype)
        self.shown = torch.zeros(shape, dtype=dtype, device=self.device)
        self._look()
        self._draw_from_here()

    def _filled(self, value: float | bool, dtype: torch.dtype | None = None) -> Tensor:
        return torch.full((len(self.columns),), value, dtype=dtype, device=self.device)

    def _begun(self) -> tuple[RulesState, bool]:
        """The state of the first row, and whether it has float64: a constant in it makes a state wider, and then it
        shall be that from its beginning. Raises BadEnvironment where an answer is not what Rules promise."""
        rules, double = self.rules, False
        while True:
            begin, move = (self._uniforms(purpose, double) for purpose in (BEGIN, MOVE))
            state = rules.begin(begin.row())
            wide = any(x.dtype == torch.float64 for x in checked(rules, state, move.row()).values())
            if wide == double:
                return state, double
            double = wide

    def _uniforms(self, purpose: int, double: bool = False) -> Uniforms:
        """From the present row of every column on."""
        rules, policy = self.rules, self.policy
        counts = {ACT: policy.noise, BEGIN: rules.begin_uniforms, MOVE: rules.move_uniforms}
        counts[FRAGMENT] = policy.fragment_noise
        return Uniforms(self.keys, self.rows, purpose, counts[purpose], double)

    def _draw_from_here(self) -> None:
        self.to_act, self.to_move = self._uniforms(ACT), self._uniforms(MOVE, self.double)
        self.to_begin = self._uniforms(BEGIN, self.double)
        self.to_begin.row()  # of the present row, which has begun

    @property
    def steps(self) -> Array:
        """[b] env steps of each column so far, over all attempts."""
        return to_host(self._steps).copy()

    @torch.no_grad()
    def collect(self, tree: Tree, newest: Callable[[], int]) -> None:
        """Fill ``tree`` (leaves of `trajectory_schema`) with T moves of all columns, all by the same weights."""
        leaves = {name: to_device(x, self.device) for name, x in tree.items()}
        fixed = self._open(leaves, newest())
        for t in range(len(tree["reward"])):
            now = time.perf_counter()
            noise = torch.cat([fixed, self.to_act.row()], 1)
            step = Step(self._seen(), self.first, self.reward, self.memory)
            output = self.policy.act(step, self.carry, self.exploration, noise)
            self.carry = output.carry
            leaves["action"][t] = output.action
            for name, x in part(leaves, "extras").items():
                x[t] = output.extras[name]
            now = self.timings.timed("infer", now)
            self._move(output.action, leaves, t)
            self.timings.timed("step", now)
            self.pulse()
        if self.device.type != "cpu":
            for name, array in tree.items():
                array[...] = to_host(leaves[name])
        self._look_for_bad_rows(tree)

    def _open(self, leaves: dict[str, Tensor], version: int) -> Tensor:
        """Fill what stands before the first move; returns the uniforms [b, M] of the whole fragment."""
        leaves["column"][:] = to_device(self.columns, self.device)
        leaves["start"][:] = self._steps
        leaves["attempt"][:] = self.attempt
        leaves["version"][:] = version
        for name, x in part(leaves, "carry").items():
            x[:] = self.carry[name]
        fixed = self._uniforms(FRAGMENT).row()
        if self.policy.fragment_noise:
            leaves["noise"][:] = fixed
        if self.spec.stack > 1:
            leaves["observation"][: self.spec.stack - 1] = self.shown.movedim(1, 0)[:-1]
        self._store_observation(leaves, 0)
        return fixed

    def _move(self, action: Tensor, leaves: dict[str, Tensor], t: int) -> None:
        """Move the columns that play and begin anew those whose last move ended."""
        rules, first, playing = self.rules, self.ended, ~self.ended
        moved, reward, discount, truncated = rules.move(self.memory, action, self.to_move.row())
        self.rows = self.rows + 1
        fresh = rules.begin(self.to_begin.row())
        if self.follow is not None:
            fresh = self.follow(self.memory, fresh)
        self.memory = {name: torch.where(_beside(first, x), fresh[name], x) for name, x in moved.items()}
        leaves["reward"][t] = torch.where(first, 0.0, reward)
        leaves["discount"][t] = torch.where(first, 1.0, discount)
        self.first, self.ended = first, playing & ((discount == 0) | truncated)
        self.reward = torch.nan_to_num(leaves["reward"][t], 0.0, 0.0, 0.0)
        self.running_return = self.running_return + self.reward
        self.running_length = self.running_length + playing
        self._steps = self._steps + playing
        leaves["episode_return"][t] = torch.where(self.ended, self.running_return, torch.nan)
        leaves["episode_length"][t] = torch.where(self.ended, self.running_length, 0)
        leaves["episode_success"][t] = torch.nan
        if rules.success is not None:
            leaves["episode_success"][t] = torch.where(self.ended, rules.success(self.memory), torch.nan)
        self.running_return = torch.where(self.ended, 0.0, self.running_return)
        self.running_length = torch.where(self.ended, 0, self.running_length)
        self._look()
        self._store_observation(leaves, t + 1)

    def _look(self) -> None:
        """Take the newest frame in, after what an episode's first stack is filled with."""
        frame = self.rules.show(self.memory).to(self.shown.dtype)
        if self.spec.stack == 1:
            self.shown = frame
            return
        older = frame if self.spec.padding == "repeat" else torch.zeros_like(frame)
        kept = torch.where(_beside(self.first, self.shown), older[:, None], self.shown)
        self.shown = torch.cat([kept[:, 1:], frame[:, None]], 1)

    def _store_observation(self, leaves: dict[str, Tensor], row: int) -> None:
        leaves["first"][row] = self.first
        stack = self.spec.stack
        leaves["observation"][row + stack - 1] = self.shown[:, -1] if stack > 1 else self.shown

    def _seen(self) -> Tensor:
        """What the policy sees: 0 for what is not finite."""
        return torch.nan_to_num(self.shown, 0.0, 0.0, 0.0) if self.shown.is_floating_point() else self.shown

    def _look_for_bad_rows(self, tree: Tree) -> None:
        """Once for each fragment, name and count rows that are not finite, each with the reward that led to it."""
        observation = tree["observation"][self.spec.stack :]
        finite = np.isfinite(tree["reward"]).all()
        if observation.dtype.kind == "f":
            finite = finite and np.isfinite(observation).all()
        if finite:
            return
        for t, reward in enumerate(tree["reward"]):
            steps = tree["start"] + (~tree["first"][1 : t + 2]).sum(0)
            self.bad_rows.cleaned(observation[t], reward, steps)

    def explore(self, exploration: Array) -> None:
        """See `Sampler`."""
        self.exploration = to_device(np.asarray(exploration, np.float32), self.device)

    def figures(self) -> dict[str, float]:
        """Rows so far that were not finite."""
        return {"bad_rows": float(self.bad_rows.count)}

    def state(self) -> dict[str, Any]:
        """Everything `load` needs, per column."""
        return {
            "columns": self.columns.copy(),
            "steps": self.steps,
            "bad_rows": self.bad_rows.counts.copy(),
            "carry": dict(self.carry),
            "environment": {"memory": dict(self.memory), "shown": self.shown},
            **{name: getattr(self, name) for name in SAVED},
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on exactly where a state of these columns was taken, on whatever rank each was."""
        row = {int(column): row for row, column in enumerate(state["columns"])}
        state = chosen(state, [row[int(column)] for column in self.columns])
        self._steps = self._like(self._steps, state["steps"])
        self.bad_rows.counts = np.asarray(state["bad_rows"]).copy()
        self.carry = {name: self._like(x, state["carry"][name]) for name, x in self.carry.items()}
        memory = state["environment"]["memory"]
        self.memory = {name: self._like(x, memory[name]) for name, x in self.memory.items()}
        self.shown = self._like(self.shown, state["environment"]["shown"])
        for name in SAVED:
            setattr(self, name, self._like(getattr(self, name), state[name]))
        self._draw_from_here()

    def _like(self, ours: Tensor, saved: Tensor) -> Tensor:
        return to_device(saved, ours.device).to(ours.dtype)

    def close(self) -> None:
        """Nothing is held."""


def _beside(mask: Tensor, x: Tensor) -> Tensor:
    """A mask [b] as it stands beside x [b, …]."""
    return mask.reshape(-1, *[1] * (x.ndim - 1))
