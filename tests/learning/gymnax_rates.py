"""Env steps per second of gymnax's CartPole and Pendulum, and of Gymnasium's vector environments, on one core.

What `hpc-rl bench env ppo_cartpole_device` is to be compared with: all columns step by random actions, drawn before
the clock starts, and begin anew where an episode ends. gymnax runs 32 steps inside one compiled scan, as its users
write it; Gymnasium steps one call a move. Needs gymnax and jax, in an environment of their own.

    taskset -c 0 python tests/learning/gymnax_rates.py --columns 256 --columns 4096
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from statistics import median
from typing import Any

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
STEPS = 32
NAMES = {"CartPole-v1": "CartPole-v1", "Pendulum-v1": "Pendulum-v1"}


def of_gymnax(name: str, columns: int) -> Callable[[], int]:
    import gymnax
    import jax
    import jax.numpy as jnp

    environment, parameters = gymnax.make(name)
    key = jax.random.PRNGKey(0)
    _, state = jax.vmap(environment.reset, in_axes=(0, None))(jax.random.split(key, columns), parameters)
    discrete = name.startswith("CartPole")
    shape = (STEPS, columns) if discrete else (STEPS, columns, 1)
    actions = jax.random.randint(key, shape, 0, 2) if discrete else jax.random.uniform(key, shape, minval=-2, maxval=2)

    @jax.jit
    def played(key: Any, state: Any) -> Any:
        def move(carry: Any, action: Any) -> Any:
            key, state = carry
            key, own = jax.random.split(key)
            own = jax.random.split(own, columns)
            observation, state, reward, *ends = jax.vmap(environment.step, in_axes=(0, 0, 0, None))(
                own, state, action, parameters
            )
            return (key, state), (observation, reward, ends[0])

        return jax.lax.scan(move, (key, state), actions)

    holder = [(key, state)]

    def work() -> int:
        after, rows = played(*holder[0])
        jax.block_until_ready(rows)
        holder[0] = after
        return STEPS * columns

    assert jnp.isfinite(played(key, state)[1][1]).all()
    return work


def of_gymnasium(name: str, columns: int) -> Callable[[], int]:
    import gymnasium
    import numpy as np

    mode = "vector_entry_point" if name.startswith("CartPole") else "sync"
    environment = gymnasium.make_vec(name, columns, vectorization_mode=mode)
    environment.reset(seed=0)
    draw = np.random.default_rng(0)
    discrete = name.startswith("CartPole")
    actions = draw.integers(0, 2, (STEPS, columns)) if discrete else draw.uniform(-2, 2, (STEPS, columns, 1))

    def work() -> int:
        for action in actions:
            environment.step(action)
        return STEPS * columns

    return work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--columns", type=int, action="append")
    parser.add_argument("--seconds", type=float, default=0.5)
    options = parser.parse_args()
    makers = {"gymnax": of_gymnax, "gymnasium": of_gymnasium}
    for name in NAMES:
        for columns in options.columns or [256, 4096]:
            for kind, make in makers.items():
                work, rates = make(name, columns), []
                for block in range(6):
                    begin, count = time.perf_counter(), 0
                    while (taken := time.perf_counter() - begin) < options.seconds or not count:
                        count += work()
                    rates += [count / taken] if block else []
                print(
                    json.dumps({"what": kind, "task": name, "columns": columns, "rate": round(median(rates))}),
                    flush=True,
                )


if __name__ == "__main__":
    main()
