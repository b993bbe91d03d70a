"""A replay on other ranks: the messages between them and the learners, and the learner's `Store` over them.

A learner asks every replay rank for its part of a batch, which is drawn by the masses of the last answers; the request
carries the priorities of the batch before. The answer to request n + 1 travels while update n is made, so batch n + 1
is drawn after the priorities of batch n - 1. A replay rank answers once its rate limiter allows that update, and sends
the first learner the small leaves of every fragment that it took.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from hpc_rl.experience import Experience
from hpc_rl.optim.flat import StateDict
from hpc_rl.replay.base import ARRIVALS, Batches, RemoteReplay
from hpc_rl.replay.room import part
from hpc_rl.samplers.base import PURPOSES
from hpc_rl.transport.base import Inbox, Message, Outbox
from hpc_rl.transport.layout import Layout
from hpc_rl.transport.ports import Link
from hpc_rl.transport.waiting import DOZE_S, Done, Stopped, Waiting
from hpc_rl.types import Array, Leaf, Tree

REQUESTS, SUMMARIES, BATCHES = 82, 84, 120  # tags; a kind of items each has its own from BATCHES on
ALIVE = -1  # the version of an answer that only says that its sender is at work
RANK = 1 << 52  # a key of the store is the replay rank's number times this, plus the rank's own


@dataclass(frozen=True)
class ReplayLayouts:
    """Messages of a replay rank; ``items`` has one for each kind, of as many columns as a learner draws of it."""

    items: tuple[Layout, ...]
    arrivals: Layout

    @property
    def request(self) -> Layout:
        most = sum(layout.columns for layout in self.items)
        schema = {
            "counts": Leaf((len(self.items),), "int64", "fragment", "", "items of each kind"),
            "returned": Leaf((), "int64", "fragment", "", "how many priorities follow"),
            "key": Leaf((most,), "int64", "fragment"),
            "priority": Leaf((most,), "float64", "fragment"),
        }
        return Layout(schema, 1, 1)

    @property
    def summary(self) -> Layout:
        kinds = (len(self.items),)
        schema = {
            "mass": Leaf(kinds, "float64", "fragment", "", "Σ p^α of the complete items of each kind"),
            "smallest": Leaf(kinds, "float64", "fragment", "", "the least p^α of each kind"),
            "fragments": Leaf((), "int64", "fragment", "", "taken so far"),
        }
        return Layout(schema, 1, 1)


class Remote:
    """The store of a learner whose replay lies on the ranks ``servers``.

    Args:
        learner, learners: its number, and how many share each batch. The first one counts what arrives.
        seed: of the job; shares of update n come from the stream (seed, "replay", n, learner).
        in_turn: arrivals are shown with the batch that was drawn after them, so that a run repeats itself.
    """

    def __init__(
        self,
        link: Link,
        waiting: Waiting,
        servers: list[int],
        layouts: ReplayLayouts,
        experience: Experience,
        learner: int,
        learners: int,
        seed: int,
        in_turn: bool,
    ) -> None:
        self.servers, self.waiting, self.experience, self.in_turn = servers, waiting, experience, in_turn
        self.learner, self.seed, self.first = learner, seed, learner == 0
        self.counts = [part(items, learners, learner) for items in experience.items]
        self.requests = [Outbox(link, r, REQUESTS, layouts.request, waiting) for r in servers]
        self.summary_box = Inbox(link, servers, SUMMARIES, layouts.summary, waiting, credits=3)
        self.boxes = [Inbox(link, servers, BATCHES + 2 * k, x, waiting) for k, x in enumerate(layouts.items)]
        self.arrival_box = Inbox(link, servers if self.first else [], ARRIVALS, layouts.arrivals, waiting, credits=8)
        self.update, self.probing = 0, True  # the first request asks for masses alone
        self.summaries: dict[int, Tree] = {}
        self.parts: dict[tuple[int, int], Message] = {}  # (kind, server) -> items of the batch under way
        self.awaited: set[tuple[int, int]] = set()
        self.held: list[tuple[int, Message]] = []  # of the last batch, which may be read until the next one
        self.returned: Tree = {"key": np.zeros(0, np.int64), "priority": np.zeros(0)}
        self.early: dict[int, list[Tree]] = {r: [] for r in servers}
        self.shown: list[Tree] = []
        self.taken = dict.fromkeys(servers, 0)  # fragments shown so far

    def replay(self) -> RemoteReplay:
        """As the learner's program sees it."""
        return RemoteReplay(self, self.open, self.receive)

    def open(self, update: int) -> None:
        """Ask for the batch of the first update; called once."""
        self.update = update
        self._ask(np.zeros((len(self.servers), len(self.counts)), np.int64))

    def receive(self, seconds: float, give_up: Done) -> None:
        """Wait for the next batch for at most so long. Raises Deadline, naming a replay rank that is silent."""
        end = time.monotonic() + seconds
        with suppress(Stopped):
            awaited = f"a batch of {self.waiting.who(self.servers)}"
            late = lambda: give_up() or time.monotonic() > end  # noqa: E731
            self.waiting.until(self._complete, awaited, late, longest_sleep_s=DOZE_S)
        self.summary_box.check_peers()
        if not self.in_turn or self._complete():
            self._show()

    def insert(self, tree: Tree) -> None:
        """Nothing: actors send to the replay ranks."""

    def due(self) -> int:
        return int(self._complete())

    def sample(self, update: int) -> Batches:
        for k, message in self.held:
            self.boxes[k].release(message)
        smallest = np.min([x["smallest"][0] for x in self.summaries.values()], 0)
        self.held = [(k, self.parts[k, r]) for k, r in sorted(self.awaited)]
        batches: Batches = {}
        for k, items in enumerate(self.experience.items):
            messages = [message for kind, message in self.held if kind == k]
            trees = [{**x.tree, "chance": (x.tree["chance"] / smallest[k]).astype(np.float32)} for x in messages]
            keys = [self.servers.index(x.peer) * RANK + x.tree["key"] for x in messages]
            batches[items.name] = (trees, np.concatenate(keys))
        self.update += 1
        self._ask(self._shares())
        return batches

    def reprioritize(self, keys: Array, priorities: Array) -> None:
        """Sent with the next request."""
        joined = {"key": keys, "priority": priorities.astype(np.float64)}
        self.returned = {name: np.concatenate([x, joined[name]]) for name, x in self.returned.items()}

    def figures(self) -> dict[str, float]:
        """Nothing: the replay ranks report theirs."""
        return {}

    def arrivals(self) -> list[Tree]:
        return list(self.shown)

    def release(self) -> None:
        self.shown = []

    def state(self) -> StateDict:
        return {}

    def load(self, parts: list[StateDict]) -> None:
        """Nothing: the replay ranks load their own."""

    def _complete(self) -> bool:
        """Take what has arrived; whether the batch is whole, and in turn all fragments before it are here."""
        for message in iter(self.arrival_box.poll, None):
            self.early[message.peer].append({name: x.copy() for name, x in message.tree.items()})
            self.arrival_box.release(message)
        for k, box in enumerate(self.boxes):
            for message in iter(box.poll, None):
                self.parts[k, message.peer] = message
        for message in iter(self.summary_box.poll, None):
            if message.version != ALIVE:
                self.summaries[message.peer] = {name: x.copy() for name, x in message.tree.items()}
            self.summary_box.release(message)
        whole = len(self.summaries) == len(self.servers) and self.awaited <= self.parts.keys()
        if whole and self.probing:
            self.probing = False
            self._ask(self._shares())
            return False
        if whole and self.in_turn and self.first:
            return all(self.taken[r] + len(self.early[r]) >= self._before(r) for r in self.servers)
        return whole

    def _before(self, r: int) -> int:
        """Fragments that a replay rank had taken when it answered."""
        return int(self.summaries[r]["fragments"][0])

    def _show(self) -> None:
        for r in self.servers:
            count = self._before(r) - self.taken[r] if self.in_turn and self.first else len(self.early[r])
            self.shown += self.early[r][:count]
            self.taken[r] += count
            del self.early[r][:count]

    def _shares(self) -> Array:
        """[servers, kinds] items to draw from each, by the masses of the last answers."""
        key = (PURPOSES["replay"], self.update, self.learner)
        draw = np.random.Generator(np.random.PCG64(np.random.SeedSequence(self.seed, spawn_key=key)))
        mass = np.array([self.summaries[r]["mass"][0] for r in self.servers])
        shares = [draw.multinomial(count, x / x.sum()) for count, x in zip(self.counts, mass.T, strict=True)]
        return np.stack(shares, 1)

    def _ask(self, shares: Array) -> None:
        """Send the request for the batch of update ``update``."""
        keys, priorities = self.returned["key"], self.returned["priority"]
        ranks = keys // RANK
        for number, outbox in enumerate(self.requests):
            own, tree = ranks == number, outbox.reserve()
            tree["counts"][0], tree["returned"][0] = shares[number], own.sum()
            tree["key"][0, : own.sum()], tree["priority"][0, : own.sum()] = keys[own] % RANK, priorities[own]
            outbox.put(tree, self.update)
        self.returned = {name: x[:0] for name, x in self.returned.items()}
        self.parts, self.summaries = {}, {}
        self.awaited = {(k, r) for k in range(len(self.counts)) for j, r in enumerate(self.servers) if shares[j, k]}
