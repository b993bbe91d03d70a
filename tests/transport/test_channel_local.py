"""Channels, waiting and small exchanges over threads.

Mutations seen to fail: a credit not used up; receives taken in the wrong order; ``release`` without a grant; one peer
always first; ``give_up`` not looked at.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hpc_rl.transport import waiting
from hpc_rl.transport.base import Inbox, Outbox
from hpc_rl.transport.layout import Layout
from hpc_rl.transport.local import LocalLink, alone, run_threads
from hpc_rl.transport.ports import Ports
from hpc_rl.transport.waiting import Deadline, Stopped, Waiting
from hpc_rl.types import Leaf, Tree

LAYOUT = Layout({"x": Leaf((), "int64", "step"), "pixel": Leaf((3,), "uint8", "edge")}, 4, 2)
TAG = 10


def message(number: int) -> Tree:
    return {"x": np.full((4, 2), number, np.int64), "pixel": np.full((5, 2, 3), number % 256, np.uint8)}


def two(sender: Callable[[LocalLink], None], receiver: Callable[[LocalLink], None]) -> None:
    run_threads(2, lambda link: (receiver, sender)[link.rank](link), 20.0)


def outbox(link: LocalLink, slots: int = 8, deadline_s: float = 10.0, tag: int = TAG) -> Outbox:
    return Outbox(link, 0, tag, LAYOUT, Waiting(deadline_s), slots)


def inbox(link: LocalLink, credits: int, peers: tuple[int, ...] = (1,), tag: int = TAG) -> Inbox:
    return Inbox(link, peers, tag, LAYOUT, Waiting(10.0), credits)


@pytest.mark.parametrize("credits", [1, 2, 5])
def test_a_stalled_receiver_holds_exactly_what_it_granted(credits: int) -> None:
    stalled = threading.Event()
    sent = []

    def sender(link: LocalLink) -> None:
        out = outbox(link, deadline_s=0.2)
        with pytest.raises(Deadline, match="rank 0 to grant a message"):
            for number in range(20):
                out.put(message(number), number)
        sent.append(out.sent)
        stalled.set()
        out.waiting.deadline_s = 10.0
        out.put(message(99), 99)  # one slot given back is one message more

    def receiver(link: LocalLink) -> None:
        box = inbox(link, credits)
        assert stalled.wait(10)
        messages = [box.get() for _ in range(credits)]
        assert [m.version for m in messages] == list(range(credits)) and box.poll() is None
        box.release(messages[0])
        assert box.get().version == 99

    two(sender, receiver)
    assert sent == [credits]


@pytest.mark.parametrize("lent", [True, False])
def test_messages_arrive_whole_and_in_order(lent: bool) -> None:
    def sender(link: LocalLink) -> None:
        out = outbox(link, slots=2)
        for number in range(50):
            tree = out.reserve() if lent else message(number)
            for name, x in message(number).items():
                tree[name][...] = x
            out.put(tree, number)
            if not lent:  # it was copied, so the caller may go on writing
                tree["x"][...] = -1
        out.flush()

    def receiver(link: LocalLink) -> None:
        box = inbox(link, 2)
        for number in range(50):
            got = box.get()
            assert (got.version, got.peer) == (number, 1)
            assert all(np.array_equal(got.tree[name], x) for name, x in message(number).items())
            box.release(got)
        assert box.poll() is None

    two(sender, receiver)


def test_newest_skips_and_gives_back_the_older_ones() -> None:
    def sender(link: LocalLink) -> None:
        out = outbox(link)
        for number in range(7):  # three at once, three more for the released ones and the last
            out.put(message(number), number)
        out.flush()

    def receiver(link: LocalLink) -> None:
        box = inbox(link, 3)
        Waiting(10).until(lambda: all(arrived() for arrived in box.arrived), "three messages")
        message = box.newest()
        assert message is not None and message.version >= 2 and (message.tree["x"] == message.version).all()
        last = message.version
        box.release(message)
        while last < 6:
            message = box.newest()
            if message is not None:
                assert message.version > last
                last = message.version
                box.release(message)
        assert box.newest() is None
        assert len(box.queues[1]) == 3, "a slot was not given back"

    two(sender, receiver)


def test_peers_are_taken_in_turn() -> None:
    def body(link: LocalLink) -> None:
        if link.rank:
            out = outbox(link)
            for number in range(4):
                out.put(message(number), number)
            out.flush()
            return
        box = inbox(link, 4, (1, 2, 3))
        Waiting(10).until(lambda: all(arrived() for arrived in box.arrived), "all messages")
        peers = [box.get().peer for _ in range(12)]
        assert all(set(peers[k : k + 3]) == {1, 2, 3} for k in range(0, 12, 3))

    run_threads(4, body, 20.0)


def test_a_message_is_not_overwritten_before_it_is_released() -> None:
    def sender(link: LocalLink) -> None:
        out = outbox(link)
        for number in range(6):
            out.put(message(number), number)

    def receiver(link: LocalLink) -> None:
        box = inbox(link, 2)
        first = box.get()
        for number in range(1, 6):
            message = box.get()
            assert message.version == number and (first.tree["x"] == 0).all()
            box.release(message)

    two(sender, receiver)


def test_a_wait_is_given_up_when_the_run_stops() -> None:
    stop = threading.Event()

    def sender(link: LocalLink) -> None:
        with pytest.raises(Stopped):
            outbox(link).put(message(0), 0, give_up=stop.is_set)

    def receiver(link: LocalLink) -> None:
        with pytest.raises(Stopped):
            begin = time.monotonic()
            box = Inbox(link, [1], TAG + 50, LAYOUT, Waiting(10.0))  # nobody sends there
            box.get(give_up=lambda: time.monotonic() - begin > 0.1)
        stop.set()

    two(sender, receiver)


def test_deadlines_name_who_is_missing() -> None:
    link, ports = alone(), Ports(alone(), Waiting(0.05))
    with pytest.raises(Deadline, match=r"a message from rank 3, rank 5.*is that rank alive"):
        Inbox(link, [3, 5], TAG, LAYOUT, Waiting(0.05)).get()
    with pytest.raises(Deadline, match=r"rank 1 to join a reduction; is that rank alive"):
        ports.reduce(np.zeros(2), [0, 1])
    with pytest.raises(Deadline, match="rank 1 to broadcast"):
        ports.broadcast(None, [1, 0])


def test_of_many_peers_the_silent_one_is_named_with_its_host() -> None:
    """The others' messages keep a learner busy for ever, and would hide the loss."""

    def body(link: LocalLink) -> None:
        if link.rank == 0:
            waiting = Waiting(0.3, hosts=("n1", "n2", "n3"))
            box = Inbox(link, [1, 2], TAG, LAYOUT, waiting)
            with pytest.raises(Deadline, match="waited 0 s for a message from rank 2 on n3; is that rank alive"):
                for _ in range(1000):
                    box.release(box.get())
            stop.set()
        elif link.rank == 1:
            out = outbox(link)
            while not stop.is_set():
                time.sleep(0.005)
                if out.ready():
                    out.put(message(0), 0)

    stop = threading.Event()
    run_threads(3, body, 20.0)


def test_a_slow_receiver_accuses_nobody() -> None:
    """Peers that used their credit and wait for the next are not silent, however long this rank takes."""

    def body(link: LocalLink) -> None:
        if link.rank:
            out = outbox(link)
            for number in range(3):
                time.sleep(0.02)
                out.put(message(number), number)
            return
        box = Inbox(link, [1, 2], TAG, LAYOUT, Waiting(0.2), credits=1)
        for _ in range(6):
            got = box.get()
            time.sleep(0.3)
            box.release(got)

    run_threads(3, body, 20.0)


def test_a_roll_call_names_who_did_not_join() -> None:
    def body(link: LocalLink) -> None:
        if link.rank == 2:
            return
        with pytest.raises(Deadline, match="for rank 2 to join a reduction"):
            Ports(link, Waiting(0.2)).reduce(np.zeros(2), [0, 1, 2])

    run_threads(3, body, 20.0)


def test_waiting_adds_up_and_pulses() -> None:
    pulses: list[int] = []
    waiting = Waiting(10.0, lambda: pulses.append(1))
    begin = time.monotonic()
    waiting.until(lambda: time.monotonic() - begin > 0.1, "time to pass")
    assert 0.09 < waiting.waited_s < 5 and len(pulses) > 10
    with pytest.raises(Stopped):
        waiting.until(lambda: False, "nothing", lambda: time.monotonic() - begin > 0.2)
    assert waiting.waited_s > 0.18


class Asleep:
    """A clock that passes in sleeps alone."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[tuple[float, float]] = []  # (when, for how long)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append((self.now, seconds))
        self.now += seconds


@pytest.mark.parametrize("longest", [1e-3, 5e-3])
def test_sleeps_grow_no_longer_than_a_share_of_the_wait(longest: float, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Asleep()
    monkeypatch.setattr(waiting, "time", clock)
    with pytest.raises(Stopped):
        Waiting(10.0).until(lambda: False, "nothing", lambda: clock.now > 1.0, longest_sleep_s=longest)
    assert max(seconds for _, seconds in clock.slept) == pytest.approx(longest)
    assert all(seconds <= max(1e-3, 0.05 * when) for when, seconds in clock.slept)
    assert len(clock.slept) < (1100 if longest == 1e-3 else 300)


def everywhere(size: int, body: Callable[[Ports], Any]) -> list[Any]:
    results: list[Any] = [None] * size

    def rank(link: LocalLink) -> None:
        results[link.rank] = body(Ports(link, Waiting(10.0)))

    run_threads(size, rank, 20.0)
    return results


def test_gather_broadcast_and_reduce() -> None:
    members = range(3)
    texts = [b"", b"one", b"two" * 1000]
    assert everywhere(3, lambda p: p.gather(texts[p.link.rank], members)) == [texts, [], []]
    value = {"a": [1, None, "π"], "b": 0.5}
    assert everywhere(3, lambda p: p.broadcast(value if p.link.rank == 0 else None, members)) == [value] * 3

    def reduced(ports: Ports) -> Any:
        for _ in range(3):  # rounds in a row do not mix
            data = np.array([ports.link.rank, -ports.link.rank, 1.5])
            ports.reduce(data, members)
        return data.tolist()

    assert everywhere(3, reduced) == [[3, -3, 4.5]] * 3


def test_gather_among_some_in_their_order() -> None:
    assert everywhere(3, lambda p: p.gather(b"%d" % p.link.rank, [2, 0]) if p.link.rank != 1 else None) == [
        [],
        None,
        [b"2", b"0"],
    ]


def test_a_threads_error_ends_the_caller() -> None:
    def body(link: LocalLink) -> None:
        if link.rank == 1:
            raise KeyError("rank 1")
        time.sleep(30)

    begin = time.monotonic()
    with pytest.raises(KeyError):
        run_threads(2, body, 10.0)
    with pytest.raises(TimeoutError):
        run_threads(1, lambda link: time.sleep(30), 0.1)
    assert time.monotonic() - begin < 5


def test_a_pause_of_ones_own_is_nobody_elses_silence() -> None:
    """A learner that evaluates or saves for long may find only some of the messages arrived when it comes back."""

    def body(link: LocalLink) -> None:
        if link.rank == 0:
            box = Inbox(link, [1, 2], TAG, LAYOUT, Waiting(0.4))
            time.sleep(0.6)
            back.set()
            assert {box.get().peer for _ in range(2)} == {1, 2}
        else:
            out = outbox(link)
            back.wait(5.0)
            time.sleep(0.05 * link.rank)
            out.put(message(0), 0)

    back = threading.Event()
    run_threads(3, body, 20.0)


def test_a_pause_of_ones_own_is_nobody_elses_silence_to_whoever_asks_first() -> None:
    """A replay rank that was suspended asks who is silent before it looks at what has arrived."""

    def body(link: LocalLink) -> None:
        if link.rank == 0:
            box = Inbox(link, [1], TAG, LAYOUT, Waiting(0.4))
            time.sleep(0.6)
            box.check_peers()
            box.watch()
            time.sleep(0.09)
            with pytest.raises(Deadline, match="a message from rank 1"):
                while True:
                    box.check_peers()
                    time.sleep(0.02)
        else:
            outbox(link)

    run_threads(2, body, 20.0)


def test_silence_before_a_wait_counts_in_it() -> None:
    """Rank 0 waits for a credit of a rank that has been lost for a while: its silence does not begin anew."""

    def body(link: LocalLink) -> None:
        if link.rank:
            box, control = (
                Outbox(link, 0, TAG, LAYOUT, Waiting(5.0)),
                Inbox(link, [0], TAG + 2, LAYOUT, Waiting(5.0), 1),
            )
            box.put(message(0), 0)
            lost.wait(5.0)
            assert control.peers == [0]
            return
        waiting = Waiting(1.0)
        box, control = Inbox(link, [1], TAG, LAYOUT, waiting), Outbox(link, 1, TAG + 2, LAYOUT, waiting)
        box.release(box.get())
        control.put(message(1), 0)  # the only credit
        end = time.monotonic() + 0.6
        while time.monotonic() < end:
            box.watch()
            time.sleep(0.01)
        with pytest.raises(Deadline, match="for a message from rank 1"):
            control.put(message(2), 0, box.watch)
        lost.set()

    lost = threading.Event()
    run_threads(2, body, 20.0)
