"""Checks that run on every rank of one mpiexec: ``mpiexec -n N python suite.py N``; test_mpi.py reads its lines.

Each check is a plain function of the link. Rank 0 prints ``ok name`` once all ranks are through; a rank whose check
fails prints ``FAIL name: why`` and ends the whole world, because the others would only wait for it. A check that raises
``Noted`` has kept the ranks in step, so that the suite goes on.
"""

from __future__ import annotations

import gc
import os
import sys
import time
import weakref
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import numpy as np
import psutil

from hpc_rl.fragments import allocate, trajectory_schema
from hpc_rl.transport.base import Inbox, Outbox
from hpc_rl.transport.layout import Layout
from hpc_rl.transport.ports import Ports
from hpc_rl.transport.waiting import Deadline, Waiting
from hpc_rl.types import Actions, Leaf, Spec, Tree

Link = Any
DEADLINE_S = 20.0
CREDITS = 2
LATE_S = 1.5
KEPT: list[Any] = []  # what must outlive a check: buffers and channels with open requests


class Noted(AssertionError):
    """A check failed on this rank; all ranks are through it."""


def _ports(link: Link, deadline_s: float = DEADLINE_S) -> Ports:
    return Ports(link, Waiting(deadline_s))


def _world(link: Link) -> range:
    return range(link.size)


def _trajectory_layout() -> Layout:
    spec = Spec("suite", (16, 16), "uint8", Actions("discrete", (3,)), stack=4)
    extras = {"log_prob": Leaf((), "float32"), "logits": Leaf((3,), "float32")}
    return Layout(trajectory_schema(spec, extras, {"hidden": Leaf((5,), "float32", "fragment")}), 9, 2, 4)


def _filled(layout: Layout, seed: int) -> Tree:
    rng = np.random.default_rng(seed)
    tree = allocate(layout.schema, layout.steps, layout.columns, layout.stack)
    for x in tree.values():
        x[...] = rng.integers(0, 2 if x.dtype == bool else 200, x.shape)
    return tree


def check_trajectories_arrive_bit_for_bit(link: Link) -> None:
    layout, rounds = _trajectory_layout(), 20
    if link.rank:
        out = Outbox(link, 0, 10, layout, Waiting(DEADLINE_S))
        KEPT.append(out)
        for k in range(rounds):
            out.put(_filled(layout, 1000 * link.rank + k), k)
        out.flush()
        return
    box = Inbox(link, list(_world(link))[1:], 10, layout, Waiting(DEADLINE_S))
    KEPT.append(box)
    counts = dict.fromkeys(box.peers, 0)
    for _ in range(rounds * len(counts)):
        message = box.get()
        assert message.version == counts[message.peer], (
            f"message {message.version} of rank {message.peer} came out of order"
        )
        expected = _filled(layout, 1000 * message.peer + message.version)
        assert all(np.array_equal(message.tree[name], x) for name, x in expected.items())
        counts[message.peer] += 1
        box.release(message)


def _stalling(link: Link, nbytes: int, tag: int) -> None:
    """Rank 0 grants and then sleeps without touching MPI: rank 1 must send exactly what was granted."""
    layout, total = Layout({"x": Leaf((nbytes,), "uint8", "fragment")}, 1, 1), 12
    ports = _ports(link)
    tree = {"x": np.full((1, nbytes), 7, np.uint8)}
    if link.rank == 1:
        out = Outbox(link, 0, tag, layout, Waiting(DEADLINE_S), slots=CREDITS + 2)
        KEPT.append(out)
        ports.barrier([0, 1])
        begin = time.monotonic()
        while time.monotonic() - begin < 0.7:
            if out.ready():
                out.put(tree, out.sent)
            time.sleep(0.001)
        assert out.sent == CREDITS, f"sent {out.sent} messages with {CREDITS} credits"
        while out.sent < total:
            out.put(tree, out.sent)
        out.flush()
    elif link.rank == 0:
        box = Inbox(link, [1], tag, layout, Waiting(DEADLINE_S), CREDITS)
        KEPT.append(box)
        for buffer in box.buffers:
            buffer.fill(1)  # so that its pages exist before memory is measured
        ports.barrier([0, 1])
        before = psutil.Process().memory_info().rss
        time.sleep(1.0)
        for k in range(total):
            message = box.get()
            assert message.version == k and (message.tree["x"] == 7).all()
            box.release(message)
        growth = psutil.Process().memory_info().rss - before
        assert growth < 3 * nbytes + (8 << 20), f"the receiver grew by {growth >> 20} MiB"


def check_small_messages_wait_for_credits(link: Link) -> None:
    _stalling(link, 2 << 10, 20)


def check_large_messages_wait_for_credits(link: Link) -> None:
    _stalling(link, 2 << 20, 24)


def check_group_sums_and_means(link: Link) -> None:
    import torch

    from hpc_rl.transport.group import AllReduce

    group, n = AllReduce(_ports(link), _world(link)), link.size
    assert group.sum(torch.full((3, 2), link.rank + 1.0)).tolist() == [[n * (n + 1) / 2] * 2] * 3
    assert float(group.mean(torch.tensor(2.0 * link.rank), torch.tensor(float(link.rank)))) == 2.0
    data = torch.arange(5.0) + link.rank
    group.broadcast_(data)
    assert data.tolist() == [0, 1, 2, 3, 4]


def check_group_of_some_ranks(link: Link) -> None:
    """Communicators of parts of the world, more than one at a time, are made without the others."""
    members = [0, link.size - 1]
    if link.rank in members:
        link.prepare(members)
        data = np.array([link.rank + 1.0])
        _ports(link).reduce(data, members)
        assert data[0] == link.size + 1


def check_odd_parameters_are_named(link: Link) -> None:
    import torch

    from hpc_rl.transport.group import AllReduce

    group = AllReduce(_ports(link), _world(link))
    data = torch.linspace(-1, 1, 1001)
    group.check_identical([data])
    odd = link.size - 1
    if link.rank == odd:
        data[500] = torch.nextafter(data[500], torch.tensor(9.0))
    try:
        group.check_identical([data])
    except RuntimeError as error:
        assert f"rank {odd} differ" in str(error), error
    else:
        raise AssertionError("a difference of one bit was not seen")


def check_gather_and_broadcast(link: Link) -> None:
    ports, everyone = _ports(link), _world(link)
    for k in range(5):
        data = bytes([link.rank]) * (k * 50_000 * link.rank)
        parts = ports.gather(data, everyone)
        expected = [bytes([rank]) * (k * 50_000 * rank) for rank in everyone] if link.rank == 0 else []
        assert parts == expected
        value = {"k": k, "list": [1, None, "π"] * 1000}
        assert ports.broadcast(value if link.rank == 0 else None, everyone) == value


def _by_gloo(link: Link, members: Any, deadline_s: float = DEADLINE_S) -> tuple[Any, Any]:
    """(group that sums by gloo, what closes it); torch.distributed allows one at a time in a process."""
    from hpc_rl.transport.group import AllReduce
    from hpc_rl.transport.torch_group import TorchReduce

    ports = _ports(link, deadline_s)
    reduce = TorchReduce(ports, members, "gloo", "cpu", "suite")
    return AllReduce(ports, members, reduce), reduce.close


def _trained(group: Any, link: Link) -> Any:
    """Parameters after ten clipped steps on shares of unequal size, one of them empty; and a broadcast before."""
    import torch

    from hpc_rl.optim.flat import Optimizer, flatten

    torch.manual_seed(link.rank)
    net = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 1))
    flat = flatten(net)
    group.broadcast_(flat.parameter.data)
    optimizer = Optimizer(flat, lambda x, g, state, rate: x.sub_(g, alpha=rate), 0.5)
    for k in range(10):
        count = (link.rank + k) % link.size
        loss = net(torch.randn(count, 5)).square().sum() if count else None
        group.stop = k == 9 and link.rank == 1
        assert group.apply_gradients(optimizer, loss, count, 0.1) > 0
    assert group.stop, "one member's wish to stop reaches all"
    group.check_identical([flat.parameter.data])
    return flat.parameter.data


def check_gloo_learns_what_mpi_learns(link: Link) -> None:
    import torch

    from hpc_rl.transport.group import AllReduce

    members = list(_world(link))[::-1]  # the first member is not rank 0
    link.prepare(members)
    over_mpi = AllReduce(_ports(link), members)
    group, close = _by_gloo(link, members)
    expected, actual = _trained(over_mpi, link), _trained(group, link)
    assert float((actual - expected).abs().max()) <= 1e-6
    data = torch.randn(2, 3, dtype=torch.float64).T  # not contiguous
    count = torch.tensor(float(link.rank), dtype=torch.float64)
    assert torch.allclose(group.sum(data), over_mpi.sum(data), rtol=0, atol=1e-12)
    assert torch.allclose(group.mean(data[0, 0], count), over_mpi.mean(data[0, 0], count), rtol=0, atol=1e-12)
    actual[3] = torch.nextafter(actual[3], torch.tensor(9.0)) if link.rank == 0 else actual[3]
    try:
        group.check_identical([actual])
    except RuntimeError as error:
        assert "rank 0 differ" in str(error), error
    else:
        raise AssertionError("a difference of one bit was not seen")
    _ports(link).barrier(_world(link))
    close()


def check_gloo_names_a_silent_rank(link: Link) -> None:
    """The last rank joins too late: the others end at their own deadline, and it is still alive to be called."""
    import torch

    last, deadline_s, late_s = link.size - 1, 0.3, 0.9
    group, close = _by_gloo(link, list(_world(link)), deadline_s if link.rank != last else DEADLINE_S)
    if link.rank == last:
        time.sleep(late_s)
        group.sum(torch.ones(4))  # nothing may stay open when gloo ends
        _ports(link)._roll_call(_world(link))
    else:
        begin = time.monotonic()
        try:
            group.sum(torch.ones(4))
        except Deadline as error:
            assert f"waited 0 s for rank {last} to join a reduction" in str(error), error
            assert 0.3 <= time.monotonic() - begin < late_s - 0.1
        else:
            raise AssertionError("no deadline of 0.3 s")
    _ports(link).barrier(_world(link))
    close()


def check_gloo_names_a_rank_that_is_gone(link: Link) -> None:
    """At 4 ranks the first and the third notice at once, the second only because they tell it."""
    import torch

    last, deadline_s = link.size - 1, 0.8
    group, close = _by_gloo(link, list(_world(link)), deadline_s)
    group.sum(torch.ones(4))
    if link.rank == last:
        close()
        time.sleep(deadline_s + 0.3)
        _ports(link)._roll_call(_world(link))
        return
    begin = time.monotonic()
    try:
        group.sum(torch.ones(4))
    except Deadline as error:
        assert f"gloo lost rank {last} in a reduction" in str(error), error
        assert time.monotonic() - begin < deadline_s + 0.6, "waited for the deadline"
    else:
        raise AssertionError("a sum without the last rank")


def check_gloo_names_who_does_not_come(link: Link) -> None:
    """The last rank hears where to meet and then dawdles: it is named before gloo itself would wait, for a minute."""
    everyone, last = list(_world(link)), link.size - 1
    if link.rank == last:
        _ports(link).broadcast(None, everyone)
        time.sleep(0.8)
        _ports(link).barrier(everyone)
        _ports(link)._roll_call(everyone)
        return
    try:
        _by_gloo(link, everyone, 0.3)
    except Deadline as error:
        assert f"waited 0 s for rank {last} to join" in str(error), error
    else:
        raise AssertionError("met without the last rank")


@contextmanager
def _pretending(ranks: str | None) -> Any:
    variable = "HPC_RL_RANKS_PER_NODE"
    before = os.environ.pop(variable, None)
    if ranks:
        os.environ[variable] = ranks
    yield
    os.environ.pop(variable, None)
    if before:
        os.environ[variable] = before


def check_nodes(link: Link) -> None:
    expected = {None: lambda rank: 0, "1": lambda rank: rank, "2": lambda rank: rank // 2 * 2}
    for pretend, lowest in expected.items():
        with _pretending(pretend):
            assert link.nodes() == [lowest(rank) for rank in _world(link)], pretend


def _reduce_without_the_last(link: Link, members: list[int]) -> None:
    data = np.ones(4)
    KEPT.append(data)
    if link.rank == link.size - 1:
        time.sleep(LATE_S)
        _ports(link).reduce(data, members)  # nothing may stay open when MPI ends
        _ports(link)._roll_call(members)
        return
    begin = time.monotonic()
    try:
        _ports(link, 0.5).reduce(data, members)
    except Deadline as error:
        assert f"rank {link.size - 1} to join a reduction" in str(error) and "rank 0" not in str(error), error
        assert 0.4 < time.monotonic() - begin < LATE_S - 0.1
    else:
        raise Noted(f"no deadline of 0.5 s; the reduction took {time.monotonic() - begin:.1f} s and then ended")


def check_a_missing_rank_ends_the_wait(link: Link) -> None:
    _ports(link).barrier(_world(link))
    _reduce_without_the_last(link, list(_world(link)))


def check_a_silent_rank_is_named(link: Link) -> None:
    """Rank 1 sends only once rank 0 has given up, however busy the machine is."""
    ports = _ports(link)
    if link.rank == 0:
        box = Inbox(link, [1], 60, _trajectory_layout(), Waiting(0.3), credits=1)
        KEPT.append(box)
        try:
            box.get()
        except Deadline as error:
            assert "rank 1" in str(error), error
        else:
            raise AssertionError("a message came from nowhere")
        ports.barrier([0, 1])
    if link.rank == 1:  # take the grant and use it, so that nothing stays open
        ports.barrier([0, 1])
        KEPT.append(Outbox(link, 0, 60, _trajectory_layout(), Waiting(DEADLINE_S)))
        KEPT[-1].put(_filled(_trajectory_layout(), 0), 0)
        KEPT[-1].flush()


def check_buffers_outlive_their_channel(link: Link) -> None:
    """Roles return with receives still posted; what arrives then must not be written into freed memory."""
    ports = _ports(link)
    if link.rank == 0:
        data = np.zeros(100)
        alive = weakref.ref(data)
        link.irecv(data, 1, 70)
        del data
        gc.collect()
        held = alive() is not None
        ports.barrier([0, 1])
        if not held:
            raise Noted("the memory of a posted receive was freed")
    elif link.rank == 1:
        KEPT.append(np.ones(100))
        ports.barrier([0, 1])
        link.isend(KEPT[-1], 0, 70)


CHECKS: list[Callable[[Link], None]] = [
    check_trajectories_arrive_bit_for_bit,
    check_small_messages_wait_for_credits,
    check_large_messages_wait_for_credits,
    check_group_sums_and_means,
    check_group_of_some_ranks,
    check_odd_parameters_are_named,
    check_gather_and_broadcast,
    check_nodes,
    check_a_missing_rank_ends_the_wait,
    check_a_silent_rank_is_named,
    check_buffers_outlive_their_channel,
    check_gloo_learns_what_mpi_learns,
    check_gloo_names_a_silent_rank,
    check_gloo_names_a_rank_that_is_gone,
    check_gloo_names_who_does_not_come,
]


def main() -> None:
    from hpc_rl.transport import mpi

    link = mpi.world(int(sys.argv[1]))
    if link.rank < 2:
        link.prepare([0, 1])  # several checks use only two ranks
    ports = _ports(link)
    for check in CHECKS:
        name = check.__name__.removeprefix("check_")
        try:
            passed = _passed(check, link, name)
            table = np.array([float(passed)])
            ports.reduce(table, _world(link))
        except BaseException as error:
            print(f"FAIL {name}: rank {link.rank}: {type(error).__name__}: {error}", flush=True)
            time.sleep(0.2)  # the line must be through before the world ends
            mpi.abort(1)
        if link.rank == 0 and table[0] == link.size:
            print(f"ok {name}", flush=True)


def _passed(check: Callable[[Link], None], link: Link, name: str) -> bool:
    try:
        check(link)
    except Noted as error:
        print(f"FAIL {name}: rank {link.rank}: {error}", flush=True)
        return False
    return True


if __name__ == "__main__":
    main()
