"""The environment of Rules: next-step autoreset, frame stacks, streams and clones, for any pure functions."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from hpc_rl.envs.base import BadEnvironment, Resumed, TimeSteps
from hpc_rl.types import Array, Rules, RulesState

Follow = Callable[[RulesState, RulesState], RulesState]
"""(state [n] at the end of an episode, a fresh one) -> how the next episode begins, for what lasts over episodes."""

Effect = Callable[[RulesState, Array, float], None]
"""Called after every reset and move with the state, the columns [b] bool that moved, and the clock in seconds when the
work began: for environments that take time or fail. Rules do neither."""


class RulesEnvironment:
    """b columns of Rules made with NumPy; see `Environment`. A column's uniforms come from a generator of its own."""

    def __init__(self, rules: Rules, columns: int, follow: Follow | None = None, effect: Effect | None = None) -> None:
        self.spec, self.columns = rules.spec, columns
        self._rules, self._follow, self._effect = rules, follow, effect
        self._sent = (np.zeros(0), 0.0)  # action, clock in seconds
        self._generators = [np.random.default_rng(0) for _ in range(columns)]  # until `reset` or `load`
        self._state = rules.begin(np.zeros((columns, rules.begin_uniforms)))
        self._ended = np.zeros(columns, bool)
        self._shown = np.zeros((columns, *rules.spec.observation), rules.spec.dtype)
        self._unknown = np.full(columns, np.nan, np.float32)

    @property
    def rules_state(self) -> RulesState:
        """State {name: [b, …]} of the observations shown last; an ended column's is its last."""
        return self._state

    def reset(self, seeds: Array) -> Array:
        """First observations [b, *O]; seed [b] starts each column's own generator."""
        started, everywhere = time.monotonic(), np.arange(self.columns)
        self._generators = [np.random.default_rng(int(seed)) for seed in seeds]
        self._state = self._rules.begin(self._uniforms(everywhere, self._rules.begin_uniforms))
        self._ended = np.zeros(self.columns, bool)
        self._shown = np.zeros((self.columns, *self.spec.observation), self.spec.dtype)
        self._look(np.ones(self.columns, bool))
        if self._effect is not None:
            self._effect(self._state, self._ended, started)
        return self._shown

    def send(self, action: Array) -> None:
        """Take action [b, *A]; the clock of an environment that takes time starts here."""
        self._sent = (np.array(action), time.monotonic())

    def recv(self) -> TimeSteps:
        """Move the columns that play, begin anew those whose last move ended."""
        action, started = self._sent
        first = self._ended
        playing = ~first
        self._refuse_illegal(action, playing)
        reward, discount = np.zeros(self.columns, np.float32), np.ones(self.columns, np.float32)
        truncated = np.zeros(self.columns, bool)
        if not first.any():
            u = self._uniforms(np.arange(self.columns), self._rules.move_uniforms)
            self._state, reward[:], discount[:], truncated[:] = self._rules.move(self._state, action, u)
        else:
            old, at, anew = self._state, np.flatnonzero(playing), np.flatnonzero(first)
            u = self._uniforms(at, self._rules.move_uniforms)
            moved = _rows(old, at)
            if len(at):  # an engine may not know batches of nobody
                moved, reward[at], discount[at], truncated[at] = self._rules.move(moved, action[at], u)
            fresh = self._rules.begin(self._uniforms(anew, self._rules.begin_uniforms))
            if self._follow is not None:
                fresh = self._follow(_rows(old, anew), fresh)
            self._state = {name: _merged(x, at, moved[name], anew, fresh[name]) for name, x in old.items()}
        self._ended = playing & ((discount == 0) | truncated)
        self._look(first)
        if self._effect is not None:
            self._effect(self._state, playing, started)
        return TimeSteps(self._shown, reward, discount, first, self._ended, self._success())

    def _refuse_illegal(self, action: Array, playing: Array) -> None:
        """Raise BadEnvironment where a column that plays was sent a move that its Rules do not allow."""
        if self._rules.legal is None:
            return
        legal = np.asarray(self._rules.legal(self._state))
        wrong = playing & ~legal[np.arange(self.columns), action]
        if wrong.any():
            column = int(wrong.argmax())
            moves = ", ".join(map(str, np.flatnonzero(legal[column])))
            raise BadEnvironment(
                f"{self.spec.id}: action {action[column]} in column {column} is not legal there; {moves} would be. "
                "Use a method that looks at `Rules.legal`, or an environment in which every action is allowed"
            )

    def _uniforms(self, at: Array, count: int) -> Array:
        """[n, count] of the columns ``at`` [n]; none is drawn where Rules want none."""
        if not count:
            return np.zeros((len(at), 0))
        return np.array([self._generators[column].random(count) for column in at]).reshape(len(at), count)

    def _success(self) -> Array:
        if self._rules.success is None or not self._ended.any():
            return self._unknown
        success = np.asarray(self._rules.success(self._state), np.float32)
        return np.where(self._ended, success, self._unknown)

    def _look(self, first: Array) -> None:
        """Take the newest frame in; always into a fresh array, so that what was handed out stays as it was."""
        frame = np.asarray(self._rules.show(self._state)).astype(self.spec.dtype)
        if self.spec.stack == 1:
            self._shown = frame
            return
        self._shown = np.concatenate([self._shown[:, 1:], frame[:, None]], 1)
        self._shown[first, :-1] = frame[first, None] if self.spec.padding == "repeat" else 0

    def state(self) -> dict[str, Any]:
        """Plain values and arrays; large integers in ``generators`` are Python's."""
        return {
            "memory": {name: x.copy() for name, x in self._state.items()},
            "ended": self._ended.copy(),
            "shown": self._shown.copy(),
            "generators": [dict(generator.bit_generator.state) for generator in self._generators],
        }

    def load(self, state: dict[str, Any]) -> Resumed:
        """Go on exactly where `state` was taken.

        Raises:
            BadEnvironment: the state has another number of columns.
        """
        if len(state["generators"]) != self.columns:
            raise BadEnvironment(
                f"{self.spec.id}: a state of {len(state['generators'])} columns does not fit {self.columns}; "
                "resume with the layout it was saved with"
            )
        self._state = {name: np.asarray(state["memory"][name], x.dtype).copy() for name, x in self._state.items()}
        self._ended = np.asarray(state["ended"], bool).copy()
        self._shown = np.asarray(state["shown"], self.spec.dtype).copy()
        for generator, saved in zip(self._generators, state["generators"], strict=True):
            generator.bit_generator.state = saved
        return Resumed(self._shown, np.full(self.columns, ""))

    def close(self) -> None:
        """Nothing is held."""


def _rows(state: RulesState, at: Array) -> RulesState:
    return {name: x[at] for name, x in state.items()}


def _merged(like: Array, at: Array, moved: Array, anew: Array, fresh: Array) -> Array:
    """A new array whose rows ``at`` are ``moved`` and whose rows ``anew`` are ``fresh``."""
    merged = np.empty_like(like)
    merged[at], merged[anew] = moved, fresh
    return merged
