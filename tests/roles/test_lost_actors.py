"""Actors that are lost on the way: the others go on, in threads of one process.

Mutations seen to fail: a lost peer's receives and slots not given to others; waiting for its credit, its report, or
its place in turn; sending to it. Silence without end; a pause of rank 0 taken for silence; no longer start; what MPI
reports not looked at; a slow actor not told; never too few. No heir, one of another node, one that waits for the
relay's memory or does not remove it; a takeover that does nothing, overwrites the newest version, or believes a torn
one. Checkpoints with steps of lost actors that no segment holds. Several learners or central inference not refused.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from hpc_rl import job as jobs
from hpc_rl.job import BadJob
from hpc_rl.optim.flat import flatten
from hpc_rl.plan import Plan, RankSpec, WeightRoutes, weight_routes
from hpc_rl.runtime.context import RankContext
from hpc_rl.runtime.counters import Limits
from hpc_rl.runtime.losses import SILENCE, tolerate
from hpc_rl.runtime.messages import ControlServer
from hpc_rl.runtime.subscriber import WeightSubscriber
from hpc_rl.runtime.weights import WeightPublisher
from hpc_rl.samplers.vector import Vector
from hpc_rl.settings import TOO_FEW
from hpc_rl.storage import checkpoint
from hpc_rl.storage.segments import describe, read, segments
from hpc_rl.transport.base import Inbox, Outbox
from hpc_rl.transport.layout import Layout
from hpc_rl.transport.local import LocalLink, _Exchange
from hpc_rl.transport.ports import Ports
from hpc_rl.transport.waiting import Waiting
from hpc_rl.transport.weights import SharedWeights, shared_path
from hpc_rl.types import Clock, Leaf
from tests.contract import seats
from tests.contract.test_witness import check_column, column_of, table_of

LAYOUT = Layout({"x": Leaf((), "int64", "fragment")}, 1, 1)
TAG = 10


def links(size: int) -> list[LocalLink]:
    exchange = _Exchange()
    return [LocalLink(exchange, rank, size) for rank in range(size)]


def waiting_without(lost: Collection[int], deadline_s: float = 5.0) -> Waiting:
    return Waiting(deadline_s, lost=lambda: lost)


def plan_of(actors: int) -> Plan:
    """A learner, and actors that send to it."""
    ranks = [RankSpec(0, "learner", 0, range(0), 1, True, peers=tuple(range(1, actors + 1)))]
    ranks += [RankSpec(r, "actor", r - 1, range(r, r + 1), 1, peers=(0,)) for r in range(1, actors + 1)]
    return Plan("actor_learner", tuple(ranks), 1, 1, 1)


# ---- channels -------------------------------------------------------------------------------------------------------


def message(number: int) -> dict[str, Any]:
    return {"x": np.array([number])}


def test_what_a_lost_peer_might_have_sent_the_others_may_send() -> None:
    """A batch of four fragments is held until it is learned from: two credits alone would never fill it."""
    learner, actor, _ = links(3)
    lost: set[int] = set()
    box = Inbox(learner, [1, 2], TAG, LAYOUT, waiting_without(lost), credits=2)
    out = Outbox(actor, 0, TAG, LAYOUT, Waiting(0.2), slots=4)
    for number in range(2):
        out.put(message(number), number)
    assert not out.ready()
    held = [box.get() for _ in range(2)]
    lost.add(2)
    assert box.poll() is None
    for number in range(2, 4):
        out.put(message(number), number)
    held += [box.get() for _ in range(2)]
    assert [m.version for m in held] == [0, 1, 2, 3] and not out.ready()
    box.release(held[0])
    assert out.ready()


def test_a_message_of_a_lost_peer_is_given_back_to_another() -> None:
    learner, actor, victim = links(3)
    lost: set[int] = set()
    box = Inbox(learner, [1, 2], TAG, LAYOUT, waiting_without(lost), credits=1)
    Outbox(victim, 0, TAG, LAYOUT, Waiting(1.0)).put(message(7), 7)
    held = box.get()
    lost.add(2)
    out = Outbox(actor, 0, TAG, LAYOUT, Waiting(0.2), slots=4)
    out.put(message(0), 0)
    assert box.get().peer == 1 and not out.ready()
    box.release(held)
    assert out.ready()


def test_nobody_waits_for_a_lost_peer() -> None:
    learner, _, _ = links(3)
    lost: set[int] = set()
    waiting = waiting_without(lost, 0.3)
    box, control = Inbox(learner, [1, 2], TAG, LAYOUT, waiting), ControlServer(learner, waiting, [2])
    time.sleep(0.4)
    lost.update({1, 2})
    box.watch()
    for _ in range(5):
        control.order(1)
    assert control.final_reports(box) == [] and control.control[0].sent == 0


# ---- how a loss is noticed ------------------------------------------------------------------------------------------


class Actor:
    """One that beats when it is told to."""

    def __init__(self, link: LocalLink, plan: Plan, deadline_s: float) -> None:
        self.left = 0
        ports = Ports(link, Waiting(deadline_s))
        self.beat = tolerate(ports, plan, Limits(lambda: False), lambda rank, how: None, self._leave)

    def _leave(self) -> None:
        self.left += 1


def watched(deadline_s: float) -> tuple[Waiting, Limits, list[tuple[int, str]], list[Actor], list[LocalLink]]:
    plan, ends = plan_of(2), links(3)
    told: list[tuple[int, str]] = []
    waiting, limits = Waiting(deadline_s), Limits(lambda: False)
    tolerate(Ports(ends[0], waiting), plan, limits, lambda rank, how: told.append((rank, how)), pytest.fail)
    return waiting, limits, told, [Actor(link, plan, deadline_s) for link in ends[1:]], ends


def live(seconds: float, waiting: Waiting, *actors: Actor) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for actor in actors:
            actor.beat()
        waiting.lost()
        time.sleep(0.005)


def test_silence_is_a_loss_and_a_slow_actor_leaves() -> None:
    waiting, limits, told, (one, other), _ = watched(1.6)
    live(0.1, waiting, one, other)
    assert not waiting.lost() and not limits.requested()
    live(1.6 * SILENCE + 0.2, waiting, one)
    assert set(waiting.lost()) == {2} and told == [(2, "nothing was heard of it for 0 s")]
    assert not limits.requested() and (one.left, other.left) == (0, 0)
    live(0.1, waiting, one, other)
    assert other.left > 0 and set(waiting.lost()) == {2}, "it comes back, and leaves"
    live(1.6 * SILENCE + 0.2, waiting)
    assert limits.requested() and limits.why == f"{TOO_FEW}: none sends to learner-0 any more"


def test_a_pause_of_the_first_rank_is_not_the_silence_of_the_others() -> None:
    waiting, _, told, (one, other), _ = watched(1.6)
    live(0.1, waiting, one, other)
    time.sleep(1.6 * SILENCE + 0.2)
    assert not waiting.lost(), "their signs of life have not come yet"
    live(0.1, waiting, one, other)
    assert told == []


def test_an_actor_that_makes_its_environments_has_longer() -> None:
    waiting, _, told, (one, _), _ = watched(1.6)
    live(1.6 * SILENCE + 0.2, waiting, one)
    assert told == []


def test_an_end_that_the_library_reports_is_a_loss_at_once() -> None:
    waiting, _, told, (one, other), ends = watched(60.0)
    live(0.1, waiting, one, other)
    ends[0].failed.add(1)
    live(0.1, waiting, other)
    assert told == [(1, "it has ended")]


# ---- weights --------------------------------------------------------------------------------------------------------


def routes(token: str) -> WeightRoutes:
    """The learner and an actor on nodes of their own, three actors on another."""
    return weight_routes(plan_of(4), [0, 1, 2, 2, 2], token, tolerated=True)


def half_written(shared: SharedWeights, version: int) -> None:
    """As a relay leaves the memory that is killed while it writes."""
    head, payload = shared._slot(shared.turn)
    head[0] += 1
    head[1] = version
    payload[: len(payload) // 2] = 255


@pytest.mark.parametrize("versions", [0, 1, 2, 3])
@pytest.mark.parametrize("torn", [False, True])
def test_an_heir_writes_over_what_is_torn_or_old(versions: int, torn: bool) -> None:
    path = shared_path(f"t-slots-{versions}", 0)
    first, heir, data = (
        SharedWeights(path, 64, create=True),
        SharedWeights(path, 64, create=False),
        np.zeros(64, np.uint8),
    )
    try:
        for version in range(versions):
            first.write(np.full(64, version, np.uint8), Clock(version, 0))
        if torn:
            half_written(first, versions)
        heir.take_over()
        half_written(heir, versions + 1)  # it is killed, too
        assert heir.read(data, Clock(-1, 0)).version == -1, "the newest is torn"
        heir.take_over()
        heir.write(np.full(64, versions + 2, np.uint8), Clock(versions + 2, 0))
        kept = sorted(int(heir._slot(k)[0][1]) for k in range(2))
        assert kept == [versions - 1 if versions else -1, versions + 2], "the last whole version is still there"
        assert heir.read(data, Clock(-1, 0)).version == versions + 2 and (data == versions + 2).all()
    finally:
        heir.close(remove=True)


@pytest.mark.parametrize("moment", ["before the first weights", "between writes", "during a write"])
def test_the_next_actor_takes_over_the_slots_of_a_lost_relay(moment: str) -> None:
    token, lost, ends = f"t-heir-{len(moment)}", set[int](), links(5)
    nets = [nn.Linear(3, 1) for _ in range(5)]
    other, relay, heir, reader = (
        WeightSubscriber(ends[r], Waiting(5.0), flatten(nets[r]), routes(token)) for r in (1, 2, 3, 4)
    )
    publisher = WeightPublisher(ends[0], waiting_without(lost), flatten(nets[0]), routes(token))

    def publish(version: int) -> None:
        nn.init.constant_(nets[0].weight, float(version))
        publisher.publish(Clock(version, 10 * version))
        for actor in (other, heir, reader) if lost else (other, relay, heir, reader):
            actor.relay()

    def seen() -> list[int]:
        versions = [actor.pull().version for actor in (heir, reader)]
        assert all((net.weight == max(0, v)).all() for net, v in zip(nets[3:], versions, strict=True) if v >= 0)
        return versions

    try:
        if moment != "before the first weights":
            publish(1)
            publish(2)
            assert seen() == [2, 2]
        if moment == "during a write":
            half_written(relay.shared, 3)
        lost.add(2)
        before = [2, 2] if moment != "before the first weights" else [-1, -1]
        assert seen() == before, "the last whole version stays"
        for version in range(4, 8):
            publish(version)
            assert seen() == [version, version] and other.pull().version == version
        assert {int(heir.shared._slot(k)[0][1]) for k in range(2)} == {6, 7}, "both slots are written"
    finally:
        for actor in (reader, heir, other):
            actor.close()
        left = [path.exists() for path in (shared_path(token, 1), shared_path(token, 2))]
        shared_path(token, 2).unlink(missing_ok=True)
    assert left == [False, False], "whoever takes over also removes"


def test_a_relay_may_be_lost_before_it_has_made_room() -> None:
    token, ends, nets = "t-room", links(5), [nn.Linear(3, 1) for _ in range(5)]
    actors: dict[int, WeightSubscriber] = {}

    def begin(rank: int) -> None:
        actors[rank] = WeightSubscriber(ends[rank], Waiting(5.0), flatten(nets[rank]), routes(token))

    begin(1)
    threads = [threading.Thread(target=begin, args=(rank,)) for rank in (3, 4)]
    for thread in threads:
        thread.start()
    publisher = WeightPublisher(ends[0], waiting_without({2}), flatten(nets[0]), routes(token))
    publisher.publish(Clock(1, 10))
    for thread in threads:
        thread.join(10)
    try:
        for actor in actors.values():
            actor.relay()
        assert [actors[rank].pull().version for rank in (1, 3, 4)] == [1, 1, 1]
    finally:
        for actor in actors.values():
            actor.close()
    assert not shared_path(token, 2).exists()


# ---- whole jobs -----------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """In the place of a SIGKILL."""


def run_and_kill(folder: Path, table: dict[str, Any], victims: set[int], monkeypatch: pytest.MonkeyPatch) -> seats.Ran:
    """Run a job whose learner is alone on its node; the actors that own these columns end after 40 env steps each."""
    first: list[LocalLink] = []
    collect, run = Vector.collect, seats._run

    def dying(vector: Vector, tree: Any, newest: Callable[[], int]) -> None:
        if int(vector.columns[0]) in victims and int(vector.steps.min()) > 40:
            raise Killed
        collect(vector, tree, newest)

    def survived(context: RankContext) -> None:
        if context.rank_spec.rank == 0:
            first.append(context.ports.link)  # type: ignore[arg-type]
        try:
            run(context)
        except Killed:
            first[0].failed.add(context.rank_spec.rank)

    monkeypatch.setattr(Vector, "collect", dying)
    monkeypatch.setattr(seats, "_run", survived)
    monkeypatch.setattr(LocalLink, "nodes", lambda link: [0] + [1] * (link.size - 1))
    return seats.run_job(table, folder)


def newest_version(run: Path, column: int) -> int:
    """Of the weights that this column acted by, at the end of its recorded steps."""
    paths = [path for path in segments(run) if column in describe(path).columns]
    return int(read(paths[-1], "version").max())


def recorded(run: Path, column: int) -> int:
    """How many moves of a column lie in closed segments, in order and without a gap."""
    some = any(column in describe(path).columns for path in segments(run))
    return check_column(column_of(run, column)) if some else 0


def table_for(topology: str, env_steps: int) -> dict[str, Any]:
    method, ranks, more = ("impala", 5, {"batch_columns": 3}) if topology == "actor_learner" else ("dqn", 6, {})
    if method == "dqn":
        more = {"min_size": 100, "capacity": 4000, "n_step": 3}
    table = table_of(method, topology, ranks, env_steps, **more)
    table["resources"] |= {"threads": 1, "tolerate_lost_actors": True}
    table["output"]["segment_s"] = 0.2
    return {**table, "checkpoint": {"interval_s": 0.5}}


CASES = [("actor_learner", {0}), ("actor_learner", {1, 2}), ("actor_replay_learner", {0, 1})]


@pytest.mark.parametrize(("topology", "victims"), CASES, ids=["relay", "two others", "relay and heir, replay"])
def test_the_others_go_on(topology: str, victims: set[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = run_and_kill(tmp_path / "run", table_for(topology, 500), victims, monkeypatch)
    summary = json.loads(ran.run.summary_file.read_text())
    assert summary["reason"].startswith("done") and summary["env_steps"] >= 500
    assert summary["lost_actors"] == [f"actor-{k}" for k in sorted(victims)]
    _, meta = checkpoint.load(sorted(ran.run.checkpoints.glob("0*.h5"))[-1])
    for column in set(range(4)) - victims:
        rows = column_of(ran.run.path, column)
        assert check_column(rows) >= meta["steps"][str(column)] > 70
        assert newest_version(ran.run.path, column) > summary["updates"] / 2, "no new weights came"
    for column in victims:
        assert meta["steps"][str(column)] <= recorded(ran.run.path, column) <= 60
    assert seats.left_over(ran) == []


@pytest.mark.parametrize("topology", ["actor_learner", "actor_replay_learner"])
def test_without_any_actor_it_stops(topology: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = run_and_kill(tmp_path / "run", table_for(topology, 100_000), {0, 1, 2, 3}, monkeypatch)
    state = ran.run.read_state()
    assert state["state"] == "stopped" and state["reason"].startswith(TOO_FEW) and state["env_steps"] > 50
    assert checkpoint.load(sorted(ran.run.checkpoints.glob("0*.h5"))[-1])[1]["env_steps"] == state["env_steps"]


REFUSED = [
    ({"algorithm": "ppo", "topology": "allreduce"}, "applies to topology actor_learner or actor_replay_learner only"),
    ({"algorithm": "ppo", "topology": "parameter_server"}, "applies to topology actor_learner or"),
    ({"sampler": "central"}, "does not go with an inference server"),
    ({"schedule": "deterministic"}, "does not go with schedule"),
    ({"resources": {"learners": 2}}, "does not go with several learners"),
]


@pytest.mark.parametrize(("change", "words"), REFUSED, ids=lambda x: x if isinstance(x, str) else "")
def test_what_cannot_go_on_is_refused(change: dict[str, Any], words: str) -> None:
    table = {"algorithm": "impala", "topology": "actor_learner", "environment": {"id": "toy/catch"}, **change}
    table["resources"] = {"ranks": 4, "tolerate_lost_actors": True, **change.get("resources", {})}
    with pytest.raises(BadJob, match=words):
        jobs.plan(jobs.parse(table, "test"))
