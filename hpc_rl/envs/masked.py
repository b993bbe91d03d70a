"""Any Gymnasium environment with parts of its observation hidden, to ask for memory: ``hpc_rl.envs.masked:make``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import gymnasium


def make(id: str = "CartPole-v1", keep: tuple[int, ...] = (0, 2), **arguments: Any) -> gymnasium.Env[Any, Any]:
    """``id`` showing only the entries ``keep`` of its vector; the defaults hide CartPole's velocities.

    Raises:
        ValueError: the observation is no vector, or has no such entry.
    """
    import gymnasium
    from gymnasium.spaces import Box

    env = gymnasium.make(id, **{"disable_env_checker": True, **arguments})
    space, kept = env.observation_space, list(keep)
    if not isinstance(space, Box) or len(space.shape) != 1 or not set(kept) <= set(range(space.shape[0])):
        raise ValueError(f"{id} shows {space}; keep = {kept} must name entries of a vector")
    seen = Box(space.low[kept], space.high[kept], dtype=np.float32)
    return gymnasium.wrappers.TransformObservation(env, lambda x: np.asarray(x[kept], np.float32), seen)
