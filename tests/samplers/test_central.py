"""Central inference gives the trajectories of `vector`, and a lane whose rank is lost never fills its fragment.

Mutations seen to fail: the stack rebuilt without padding; the carry of a lane taken from the whole batch's order; a
fragment handed out before its last row; the answer released before it was copied.
"""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from hpc_rl.assembly import columns_of
from hpc_rl.envs.make import describe, make
from hpc_rl.fragments import allocate, trajectory_schema
from hpc_rl.roles.env_worker import env_worker
from hpc_rl.samplers.base import Timings, episode_seeds, streams
from hpc_rl.samplers.central import Central, Remote
from hpc_rl.samplers.lanes import Lane
from hpc_rl.transport.local import LocalLink, run_threads
from hpc_rl.transport.ports import Ports
from hpc_rl.transport.waiting import Deadline, Waiting
from hpc_rl.types import Tree
from tests.contract.batches import WHOLE, config_of, policy_of
from tests.samplers.test_samplers import COLUMNS, FRAGMENTS, PLACES, STEPS, fragments, same, vector

SHARES = [range(0, 2), range(2, 4), range(4, 6)]  # columns of ranks 1, 2, 3


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent:
        def __init__(self, *arguments: Any) -> None: ...

        def due(self) -> bool:
            return False

        def report(self, *arguments: Any) -> None: ...

        def close(self) -> None: ...

    monkeypatch.setattr("hpc_rl.roles.env_worker.Reporter", Silent)


def context(link: LocalLink, id: str, arguments: dict[str, Any], deadline_s: float = 20.0) -> Any:
    return SimpleNamespace(
        ports=Ports(link, Waiting(deadline_s)),
        rank_spec=SimpleNamespace(peers=(0,), columns=SHARES[link.rank - 1], threads=1),
        method=SimpleNamespace(spec=describe(id, arguments)),
        files=None,
        limits=SimpleNamespace(started=0.0),
        job=SimpleNamespace(seed=3),
        resume=None,
        attempt=0,
        make_columns=lambda columns, threads: columns_of(make(id, arguments, columns)),
    )


def served(link: LocalLink, id: str, arguments: dict[str, Any], deadline_s: float = 20.0) -> Central:
    spec, waiting = describe(id, arguments), Waiting(deadline_s)
    policy = policy_of("ppo", spec, config_of("ppo", **WHOLE))
    remotes = [Remote(link, waiting, k + 1, spec, len(columns)) for k, columns in enumerate(SHARES)]
    lanes = []
    for remote, columns in zip(remotes, SHARES, strict=True):
        lane = Lane(remote, policy, np.array(columns), streams(3, "act", columns, 0))
        lane.start(episode_seeds(3, "episode", columns, 0))
        lanes.append(lane)
    schema = trajectory_schema(spec, policy.extras, policy.carry, policy.fragment_noise)
    return Central(
        lanes, remotes, lambda lane: allocate(schema, STEPS, len(lane.columns), spec.stack), waiting, Timings()
    )


def by_central(id: str, arguments: dict[str, Any]) -> dict[int, list[Tree]]:
    """First column of each lane -> its first fragments."""
    found: dict[int, list[Tree]] = {share.start: [] for share in SHARES}

    def rank(link: LocalLink) -> None:
        if link.rank:
            env_worker(cast(Any, context(link, id, arguments)))
            return
        central = served(link, id, arguments)
        while min(len(trees) for trees in found.values()) < FRAGMENTS:
            tree = central.allocate(central.lanes[0])
            central.collect(tree, lambda: 0)
            found[int(tree["column"][0])].append(tree)
        central.close()

    run_threads(1 + len(SHARES), rank, 60.0)
    return found


@pytest.mark.parametrize(("id", "arguments"), PLACES, ids=[id for id, _ in PLACES])
def test_central_inference_changes_nothing(id: str, arguments: dict[str, Any]) -> None:
    expected, parts = fragments(*vector(id, arguments, 1)), by_central(id, arguments)
    for share in SHARES:
        for one, other in zip(expected, parts[share.start], strict=False):
            flat = [name for name, x in one.items() if x.ndim == 1 or name.startswith("carry/")]
            columns = slice(share.start, share.stop)
            columns_of_rank = {name: x[columns] if name in flat else x[:, columns] for name, x in one.items()}
            same({**columns_of_rank, "version": columns_of_rank["version"] * 0}, other)
    assert sum(len(share) for share in SHARES) == COLUMNS


def test_a_silent_rank_is_named_and_its_half_unroll_dropped() -> None:
    """Rank 2 answers three times and is gone; the others go on until the deadline names it."""
    full: list[int] = []
    end = threading.Event()

    def rank(link: LocalLink) -> None:
        if link.rank == 0:
            central = served(link, "toy/counter", {}, deadline_s=1.0)
            with pytest.raises(Deadline, match="rank 2"):
                while True:
                    tree = central.allocate(central.lanes[0])
                    central.collect(tree, lambda: 0)
                    full.append(int(tree["column"][0]))
            end.set()
            return
        rank_context = context(link, "toy/counter", {}, 20.0)
        if link.rank == 2:
            rank_context.make_columns = lambda columns, threads: Vanishing(make("toy/counter", {}, columns), end)
        else:
            rank_context.ports.waiting.deadline_s = 3.0
        with pytest.raises((Deadline, SystemExit)):
            env_worker(cast(Any, rank_context))

    class Vanishing:
        def __init__(self, inner: Any, until: threading.Event) -> None:
            self.inner, self.until, self.moves = inner, until, 0
            self.reset, self.send = inner.reset, inner.send

        def recv(self) -> Any:
            self.moves += 1
            if self.moves > 3:
                self.until.wait(30.0)
                raise SystemExit
            time.sleep(0.001)
            return vars(self.inner.recv())

    run_threads(1 + len(SHARES), rank, 60.0)
    assert SHARES[1].start not in full and {SHARES[0].start, SHARES[2].start} <= set(full)
