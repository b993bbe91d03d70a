"""For users: what a run would find wrong with an environment or a method, said before the run.

from hpc_rl.testing import check_environment, check_method

assert check_environment("my_pkg.my_module:make", {"size": 3}) == []
assert check_method("my_method") == []
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hpc_rl.testing.environments import check_environment

if TYPE_CHECKING:
    from hpc_rl.testing.methods import check_method

__all__ = ["check_environment", "check_method"]


def __getattr__(name: str) -> Any:
    """`check_method` needs torch, and an environment is checked without it."""
    if name == "check_method":
        from hpc_rl.testing.methods import check_method

        return check_method
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
