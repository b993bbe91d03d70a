"""What alternating is worth where inference and stepping take equal time, on environments that sleep."""

from __future__ import annotations

import time
from statistics import median

COLUMNS, STEPS, PAIRS = 256, 20, 7
HIDDEN = 512  # units of both layers: inference is then bound by arithmetic, and half the columns take half the time


def measure() -> dict[str, float]:
    """Seconds of a step of the environments, of one inference, and of a move by either sampler; medians of pairs."""
    import numpy as np
    import torch

    from hpc_rl import job as jobs
    from hpc_rl.envs.make import make
    from hpc_rl.samplers.base import Split, episode_seeds, streams
    from hpc_rl.samplers.lanes import Lane
    from hpc_rl.samplers.vector import Vector
    from hpc_rl.types import allocate, trajectory_schema

    torch.set_num_threads(1)
    job = jobs.load("a2c_latency_step", [f"a2c.hidden=[{HIDDEN}, {HIDDEN}]"])
    algorithm, config = jobs.algorithm(job.algorithm), jobs.method_config(job)

    def sampler(lanes: int, step_s: float, split: Split) -> Vector:
        made = []
        for columns in np.array_split(np.arange(COLUMNS), lanes):
            arguments = {"step_s": step_s, "cv": 0.0, "reset_s": 0.0, "end_probability": 0.0}
            environment = make("toy/latency", arguments, len(columns))
            policy = algorithm.policy(config, environment.spec)
            lane = Lane(environment, policy, columns, streams(1, "act", columns.tolist(), 0))
            lane.start(episode_seeds(1, "episode", columns.tolist(), 0))
            made.append(lane)
        return Vector(made, split)

    def move_s(made: Vector) -> float:
        lane = made.lanes[0]
        schema = trajectory_schema(lane.environment.spec, lane.policy.extras, lane.policy.carry)
        tree = allocate(schema, STEPS, COLUMNS, 1)
        made.collect(tree, lambda: 0)
        begin = time.perf_counter()
        made.collect(tree, lambda: 0)
        return (time.perf_counter() - begin) / STEPS

    split = Split()
    alone = sampler(1, 1e-9, split)
    move_s(alone)
    split.seconds["infer"] = 0.0
    move_s(alone)
    infer_s = split.seconds["infer"] / (2 * STEPS)
    pairs = [(move_s(sampler(1, infer_s, Split())), move_s(sampler(2, infer_s, Split()))) for _ in range(PAIRS)]
    return {
        "step_s": infer_s,
        "infer_s": infer_s,
        "vector_s": median(a for a, _ in pairs),
        "alternating_s": median(b for _, b in pairs),
        "ratio": median(a / b for a, b in pairs),
    }


def render(found: dict[str, float]) -> str:
    rows = [("one step of the environments", "step_s"), ("one inference of all columns", "infer_s")]
    rows += [("a move, vector", "vector_s"), ("a move, alternating", "alternating_s")]
    lines = [f"{text:<32}{1e3 * found[key]:>8.2f} ms" for text, key in rows]
    return "\n".join([*lines, f"{'alternating is faster':<32}{found['ratio']:>8.2f} times"])
