"""A trained policy outside of training: observations in, actions out, one call a move."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hpc_rl.algorithms.base import Policy
from hpc_rl.devices import to_device, to_host
from hpc_rl.types import Array, RulesState, Spec, Step


class ActingPolicy:
    """Acts in b columns at once and keeps what the policy carries from move to move (a recurrent state).

    ``spec`` says what an observation and an action are, ``checkpoint`` which file the weights are from, ``env_steps``
    how long they were trained.
    """

    def __init__(self, policy: Policy, spec: Spec, checkpoint: Path, env_steps: int) -> None:
        self.spec, self.checkpoint, self.env_steps = spec, checkpoint, env_steps
        self._policy = policy
        self._device = next(policy.net.parameters()).device
        self.reset()

    def reset(self, seed: int = 0) -> None:
        """Forget all episodes; ``seed`` starts the stream that explores."""
        self._carry: dict[str, Tensor] | None = None
        self._draw = np.random.default_rng(seed)

    def act(
        self,
        observation: Array,
        first: Array | None = None,
        reward: Array | None = None,
        exploration: float = 0.0,
        state: RulesState | None = None,
    ) -> Array:
        """Actions [b, *A] for observations [b, *O].

        ``first`` [b] bool: the observation opens an episode; left out, it does at the first call and never after it.
        ``reward`` [b] led here. ``exploration`` in 0..1 is the method's: 0 is greedy, 1 acts as in training. ``state``
        is the environment's ``rules_state``, for methods that look ahead.

        Raises:
            ValueError: observations of another shape, or of another number of columns than before.
        """
        row = np.array(observation, self.spec.dtype)
        if row.shape[1:] != self.spec.observation or not len(row):
            raise ValueError(
                f"observations of shape {list(row.shape)} were given to a policy for [b, "
                f"{', '.join(map(str, self.spec.observation))}]; one observation x goes in as x[None], and one of a "
                "space that is no Box as gymnasium.spaces.flatten(space, x)[None]"
            )
        columns = len(row)
        first = np.full(columns, self._carry is None) if first is None else np.asarray(first, bool)
        reward = np.zeros(columns) if reward is None else reward
        if self._carry is None:
            self._carry = self._policy.initial_carry(columns)
        if any(len(x) != columns for x in (first, reward, *self._carry.values())):
            raise ValueError(f"{columns} columns came to a policy that acts in others; call reset() before that")
        led = np.asarray(reward, np.float32)
        led_here, rules_state = to_device(led, self._device), None
        if state is not None:
            rules_state = {name: to_device(x, self._device) for name, x in state.items()}
        step = Step(to_device(row, self._device), to_device(first, self._device), led_here, rules_state)
        draws = self._draw.random((columns, self._policy.fragment_noise + self._policy.noise), np.float32)
        with torch.no_grad():
            scale = torch.full((columns,), exploration, device=self._device)
            output = self._policy.act(step, self._carry, scale, to_device(draws, self._device))
        self._carry = output.carry
        return to_host(output.action)
