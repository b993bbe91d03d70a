"""Runs that were cut short and resumed beside ones that never were: two methods, environments, topologies and ways.

Prints a line for each of the sixteen: env steps of the last checkpoint and a digest of all its arrays, of both runs.

python -m tests.learning.restarts
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch

from tests.run.test_restart import last_of_both


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, bytes]]:
    """Every array, number and text of a checkpoint's state by its key, in a fixed order."""
    if isinstance(value, dict | list):
        items = sorted(value.items()) if isinstance(value, dict) else enumerate(value)
        for name, item in items:
            yield from leaves(item, f"{key}/{name}")
    elif isinstance(value, torch.Tensor):
        yield f"{key} {value.dtype} {tuple(value.shape)}", value.numpy().tobytes()
    else:
        yield key, repr(value).encode()


def digest(state: Any) -> str:
    whole = hashlib.blake2b(digest_size=6)
    for key, content in leaves(state):
        whole.update(key.encode() + content)
    return whole.hexdigest()


def main() -> None:
    ways = product(("ppo", "a2c"), ("CartPole-v1", "Pendulum-v1"), ("solo", "allreduce"), ("signal", "kill"))
    for method, environment, topology, how in ways:
        with tempfile.TemporaryDirectory() as folder:
            (resumed, about), (whole, same) = last_of_both(Path(folder), method, environment, topology, how)
        digests, steps = (digest(resumed), digest(whole)), (about["env_steps"], same["env_steps"])
        verdict = "equal" if digests[0] == digests[1] and steps[0] == steps[1] else "DIFFERENT"
        line = (method, environment, topology, how, f"{steps[0]:,} env steps", *digests, verdict)
        print(" | ".join(line), flush=True)


if __name__ == "__main__":
    main()
