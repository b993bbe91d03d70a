"""Deep reinforcement learning as SLURM batch jobs of MPI ranks.

What a program uses; each is imported when it is first asked for, so that ``import hpc_rl`` costs nothing::

    load_job    a checked Job, from a file or the name of a shipped one
    run         train it on this machine; the Run
    open_run    a Run: its job, state, metrics, environment, and the policy that acts
    evaluate    greedy and sampled games of a run's policy
    Algorithm   what a method's file ends in
    Environment columns that step together
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpc_rl.algorithms.base import Algorithm
    from hpc_rl.api import evaluate, load_job, open_run, run
    from hpc_rl.envs.base import Environment

    __version__: str

__all__ = ["Algorithm", "Environment", "__version__", "evaluate", "load_job", "open_run", "run"]


def __getattr__(name: str) -> Any:
    if name in ("evaluate", "load_job", "open_run", "run"):
        from hpc_rl import api

        return getattr(api, name)
    if name == "Algorithm":
        from hpc_rl.algorithms.base import Algorithm

        return Algorithm
    if name == "Environment":
        from hpc_rl.envs.base import Environment

        return Environment
    if name == "__version__":
        from importlib.metadata import version

        return version("hpc-rl")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
