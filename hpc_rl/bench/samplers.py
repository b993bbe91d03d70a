"""What alternating is worth where inference and stepping take equal time.

The environments sleep as long as their columns would take to step one after the other, as Python environments do: half
the columns take half the time to step, and (the network is large enough for it) half the time to act for.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hpc_rl.samplers.vector import Vector
    from hpc_rl.settings import Job

COLUMNS, STEPS, PAIRS = 256, 20, 7
HIDDEN = (512,) * 8  # inference is then bound by arithmetic, and weights stay in the cache


def measure() -> dict[str, float]:
    """Seconds of one step of all environments, of one inference, and of a move by either sampler; medians of pairs."""
    import torch

    from hpc_rl import job as jobs

    torch.set_num_threads(1)
    job = jobs.load("a2c_latency_step", [f"a2c.hidden={list(HIDDEN)}"])
    alone = _sampler(job, 1, 1e-9)
    move = _mover(alone)
    move()
    alone.timings.seconds["infer"] = 0.0
    move()
    infer_s = alone.timings.seconds["infer"] / STEPS
    vector, alternating = (_mover(_sampler(job, lanes, infer_s)) for lanes in (1, 2))
    vector(), alternating()
    pairs = [(vector(), alternating()) for _ in range(PAIRS)]
    vector_s = median(a for a, _ in pairs)
    return {
        "step_s": vector_s - infer_s,
        "infer_s": infer_s,
        "vector_s": vector_s,
        "alternating_s": median(b for _, b in pairs),
        "ratio": median(a / b for a, b in pairs),
    }


def _sampler(job: Job, lanes: int, step_s: float) -> Vector:
    """All columns in ``lanes`` lanes, which share ``step_s``: a lane's step lasts its share of the columns of it."""
    import numpy as np

    from hpc_rl.agent import agent_of
    from hpc_rl.envs.make import make
    from hpc_rl.samplers.base import Timings, episode_seeds, streams
    from hpc_rl.samplers.lanes import Lane
    from hpc_rl.samplers.vector import Vector

    agent = agent_of(job)
    arguments = {"step_s": step_s / lanes, "cv": 0.0, "reset_s": 0.0, "end_probability": 0.0}
    lane_list = []
    for columns in np.array_split(np.arange(COLUMNS), lanes):
        environment = make("toy/latency", arguments, len(columns))
        policy = agent.make_policy()
        lane_list.append(Lane(environment, policy, columns, streams(1, "act", columns.tolist(), 0)))
        lane_list[-1].start(episode_seeds(1, "episode", columns.tolist(), 0))
    return Vector(lane_list, Timings())


def _mover(sampler: Vector) -> Callable[[], float]:
    """A function that fills one fragment and gives the seconds of one move of all columns."""
    from hpc_rl.fragments import allocate, trajectory_schema

    lane = sampler.lanes[0]
    schema = trajectory_schema(lane.environment.spec, lane.policy.extras, lane.policy.carry, lane.policy.fragment_noise)
    tree = allocate(schema, STEPS, COLUMNS, 1)

    def move() -> float:
        begin = time.perf_counter()
        sampler.collect(tree, lambda: 0)
        return (time.perf_counter() - begin) / STEPS

    return move


def render(figures: dict[str, float]) -> str:
    rows = [("one step of the environments", "step_s"), ("one inference of all columns", "infer_s")]
    rows += [("a move, vector", "vector_s"), ("a move, alternating", "alternating_s")]
    lines = [f"{text:<32}{1e3 * figures[key]:>8.2f} ms" for text, key in rows]
    return "\n".join([*lines, f"{'alternating is faster':<32}{figures['ratio']:>8.2f} times"])
