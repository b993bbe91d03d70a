"""Networks that begin as those of other runs' policies: what a job names in fields such as `alphago.supervised`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from hpc_rl.algorithms.base import Policy
from hpc_rl.saved_policy import policy_of_run
from hpc_rl.sources import Start
from hpc_rl.storage.run_dir import BadRun
from hpc_rl.types import Spec


def begin(policy: Policy, starts: Iterable[Start], spec: Spec) -> None:
    """Overwrite the parts of a policy's networks that begin as other runs' networks.

    Raises:
        BadRun, NoUsableCheckpoint, …: no run with a policy for this environment and with this network is there.
    """
    for start in starts:
        trained = policy_of_run(Path(start.run), f"{start.key} = {start.run!r}", spec)[0].net
        part = policy.net.get_submodule(start.part)
        ours, theirs = ({name: list(x.shape) for name, x in net.state_dict().items()} for net in (part, trained))
        if ours != theirs:
            raise BadRun(f"{start.key} = {start.run!r} {_difference(ours, theirs)}; give both jobs the same network")
        part.load_state_dict(trained.state_dict())


def _difference(ours: dict[str, list[int]], theirs: dict[str, list[int]]) -> str:
    """The first parameter that is not alike, in words."""
    name = next(name for name in [*ours, *theirs] if ours.get(name) != theirs.get(name))
    if name not in theirs:
        return f"holds a network without {name}"
    if name not in ours:
        return f"holds a network with {name}, which this one has not"
    return f"holds a network whose {name} is {theirs[name]}, and this one's is {ours[name]}"
