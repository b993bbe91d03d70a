"""The sampler whose environments are tensors: Rules on torch move all columns at once, on the device of their policy.

No number leaves the device while a fragment is filled. On a CPU the fragment's arrays are the tensors' own memory; on a
GPU it is copied to the host once, when it is full.

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
from hpc_rl.samplers.bad_rows import BadRows
from hpc_rl.samplers.base import Timings
from hpc_rl.samplers.columns import chosen
from hpc_rl.samplers.moves import Moves
from hpc_rl.samplers.tensor_rows import Row
from hpc_rl.samplers.uniforms import ACT, FRAGMENT, Uniforms
from hpc_rl.types import Array, Step, Tree


class Device:
    """Fills whole fragments of ``columns`` [b]; see `Sampler`. Their environments compute in float32 where they can.

    ``keys`` int64 [b] are those of the columns' uniforms, ``steps`` int64 [b] the env steps that earlier ``attempt``s
    made of each. With ``compiled`` torch compiles the moves: seconds at the first one, then several times as fast.
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
        compiled: bool = False,
    ) -> None:
        self.policy, self.timings, self.pulse = policy, timings, pulse
        self.columns, self.spec, self.attempt = columns, toy.rules.spec, attempt
        self.device = next(policy.net.parameters()).device
        self.bad_rows = BadRows(self.spec.id, columns)
        self.keys = to_device(keys, self.device)
        self.exploration = torch.ones(len(columns), device=self.device)
        self.carry = policy.initial_carry(len(columns))
        self.moves = Moves(toy, self.keys, compiled)
        self.row = self.moves.opened(to_device(steps, self.device))
        self.draws = Uniforms(self.keys, self.row.rows, ACT, policy.noise)

    @property
    def steps(self) -> Array:
        """[b] env steps of each column so far, over all attempts."""
        return to_host(self.row.steps).copy()

    @torch.no_grad()
    def collect(self, tree: Tree, newest: Callable[[], int]) -> None:
        """Fill ``tree`` (leaves of `trajectory_schema`) with T moves of all columns, all by the same weights."""
        leaves = {name: to_device(x, self.device) for name, x in tree.items()}
        fixed = self._open(leaves, newest())
        for t in range(len(tree["reward"])):
            now, row = time.perf_counter(), self.row
            noise = torch.cat([fixed, self.draws.row()], 1)
            step = Step(self._seen(), row.first, row.reward, row.memory)
            output = self.policy.act(step, self.carry, self.exploration, noise)
            self.carry = output.carry
            leaves["action"][t] = output.action
            for name, x in output.extras.items():
                leaves[f"extras/{name}"][t] = x
            now = self.timings.timed("infer", now)
            self.row, made = self.moves.after(row, output.action)
            for name, x in made.items():
                leaves[name][t] = x
            self._store_observation(leaves, t + 1)
            self.timings.timed("step", now)
            self.pulse()
        if self.device.type != "cpu":
            for name, array in tree.items():
                array[...] = to_host(leaves[name])
        self._look_for_bad_rows(tree)

    def _open(self, leaves: dict[str, Tensor], version: int) -> Tensor:
        """Fill what stands before the first move; returns the uniforms [b, M] of the whole fragment."""
        leaves["column"][:] = to_device(self.columns, self.device)
        leaves["start"][:] = self.row.steps
        leaves["attempt"][:] = self.attempt
        leaves["version"][:] = version
        for name, x in leaves.items():
            if name.startswith("carry/"):
                x[:] = self.carry[name.removeprefix("carry/")]
        fixed = Uniforms(self.keys, self.row.rows, FRAGMENT, self.policy.fragment_noise).row()
        if self.policy.fragment_noise:
            leaves["noise"][:] = fixed
        if self.spec.stack > 1:
            leaves["observation"][: self.spec.stack - 1] = self.row.shown.movedim(1, 0)[:-1]
        self._store_observation(leaves, 0)
        return fixed

    def _store_observation(self, leaves: dict[str, Tensor], t: int) -> None:
        leaves["first"][t] = self.row.first
        stack, shown = self.spec.stack, self.row.shown
        leaves["observation"][t + stack - 1] = shown[:, -1] if stack > 1 else shown

    def _seen(self) -> Tensor:
        """What the policy sees: 0 for what is not finite."""
        shown = self.row.shown
        return torch.nan_to_num(shown, 0.0, 0.0, 0.0) if shown.is_floating_point() else shown

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
        row = self.row._asdict()
        return {
            "columns": self.columns.copy(),
            "keys": self.keys,
            "bad_rows": self.bad_rows.counts.copy(),
            "carry": dict(self.carry),
            "environment": {"memory": dict(row.pop("memory")), "shown": row.pop("shown")},
            **row,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on exactly where a state of these columns was taken, on whatever rank each was."""
        place = {int(column): k for k, column in enumerate(state["columns"])}
        state = chosen(state, [place[int(column)] for column in self.columns])
        self.bad_rows.counts = np.asarray(state["bad_rows"]).copy()
        self.carry = _like(self.carry, state["carry"])
        self.keys = _like(self.keys, state["keys"])
        self.row = Row(**_like(self.row._asdict(), {**state, **state["environment"]}))
        self.moves.go_on(self.keys, self.row.rows)
        self.draws = Uniforms(self.keys, self.row.rows, ACT, self.policy.noise)

    def close(self) -> None:
        """Nothing is held."""


def _like(ours: Any, saved: Any) -> Any:
    """What was saved of tensors, in nested dicts, with the types and on the devices of ours."""
    if isinstance(ours, dict):
        return {name: _like(x, saved[name]) for name, x in ours.items()}
    return to_device(saved, ours.device).type(ours.dtype)
