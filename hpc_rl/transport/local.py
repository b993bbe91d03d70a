"""Ranks as threads of one process: the same `Link` as MPI, for tests, debuggers and single-rank runs."""

from __future__ import annotations

import threading
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from hpc_rl.transport.waiting import Done
from hpc_rl.types import Array

_Key = tuple[int, int, int]  # source, destination, tag


@dataclass
class _Exchange:
    """What all threads share: messages on their way, receives waiting for them, reductions being filled."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    sends: dict[_Key, deque[tuple[Array, threading.Event]]] = field(default_factory=lambda: defaultdict(deque))
    receives: dict[_Key, deque[tuple[Array, threading.Event]]] = field(default_factory=lambda: defaultdict(deque))
    rounds: dict[tuple[int, ...], list[_Round]] = field(default_factory=lambda: defaultdict(list))


@dataclass
class _Round:
    parts: dict[int, Array] = field(default_factory=dict)
    done: threading.Event = field(default_factory=threading.Event)


class LocalLink:
    """One thread's end. A send completes once a receive has taken it, like MPI's rendezvous."""

    spin_s = 0.0  # the last thread to come does all the work

    def __init__(self, exchange: _Exchange, rank: int, size: int) -> None:
        self.exchange, self.rank, self.size = exchange, rank, size
        self.tolerated: Collection[int] = ()
        self.failed: set[int] = set()

    def isend(self, data: Array, peer: int, tag: int) -> Done:
        return self._match((self.rank, peer, tag), data, sending=True)

    def irecv(self, data: Array, peer: int, tag: int) -> Done:
        return self._match((peer, self.rank, tag), data, sending=False)

    def _match(self, key: _Key, data: Array, sending: bool) -> Done:
        exchange = self.exchange
        own_queue, peer_queue = (exchange.sends, exchange.receives) if sending else (exchange.receives, exchange.sends)
        done = threading.Event()
        with exchange.lock:
            if peer_queue[key]:
                peer_data, peer_done = peer_queue[key].popleft()
                source, target = (data, peer_data) if sending else (peer_data, data)
                _bytes(target)[: source.nbytes] = _bytes(source)
                peer_done.set()
                done.set()
            else:
                own_queue[key].append((data, done))
        return done.is_set

    def ireduce(self, data: Array, members: Sequence[int]) -> Done:
        key = tuple(members)
        with self.exchange.lock:
            rounds = self.exchange.rounds[key]
            current = next((r for r in rounds if self.rank not in r.parts), None)
            if current is None:
                current = _Round()
                rounds.append(current)
            current.parts[self.rank] = data
            if len(current.parts) == len(members):
                rounds.remove(current)
                ordered = [current.parts[m].copy() for m in members]  # a fixed order keeps sums repeatable
                total = np.add.reduce(ordered)
                for part in current.parts.values():
                    part[...] = total
                current.done.set()
        return current.done.is_set

    def prepare(self, members: Sequence[int]) -> None:
        pass

    def nodes(self) -> list[int]:
        return [0] * self.size


def run_threads(size: int, body: Callable[[LocalLink], None], timeout_s: float = 300.0) -> None:
    """Call ``body`` in ``size`` threads, each with its own link, and raise the first exception of any of them.

    Raises:
        TimeoutError: a thread was still running after ``timeout_s``.
    """
    exchange, errors = _Exchange(), []

    def guarded(link: LocalLink) -> None:
        try:
            body(link)
        except BaseException as error:  # a thread's error must end the caller, whatever it is
            errors.append(error)

    links = [LocalLink(exchange, rank, size) for rank in range(size)]
    threads = [threading.Thread(target=guarded, args=(link,), daemon=True) for link in links]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive() and not errors and timeout_s > 0:
            thread.join(0.05)
            timeout_s -= 0.05
        if thread.is_alive() and not errors:
            raise TimeoutError("a rank was still running when the time was up")
    if errors:
        raise errors[0]


def alone() -> LocalLink:
    """The world of one rank."""
    return LocalLink(_Exchange(), 0, 1)


def _bytes(data: Array) -> Array:
    return data.reshape(-1).view(np.uint8)
