"""Central inference: the environments are other ranks', the weights are here (SEED, Espeholt et al. 2020; GA3C).

Each remote rank is a lane with a fragment of its own. The lanes that have answered are acted for together, so the batch
is as large as the traffic, and lanes do not wait for each other. A lane whose rank is lost never fills its fragment.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from hpc_rl.envs.base import Resumed, TimeSteps
from hpc_rl.samplers.base import Timings
from hpc_rl.samplers.lanes import Lane, act
from hpc_rl.transport.base import Inbox, Outbox
from hpc_rl.transport.layout import Layout
from hpc_rl.transport.ports import Link
from hpc_rl.transport.waiting import Waiting
from hpc_rl.types import Array, Leaf, Spec, Tree

OBSERVATIONS, ACTIONS = 100, 110  # tags; runtime/messages.py lists the others
STOP = -1  # the version of an action that ends an environment rank


def layouts(spec: Spec, columns: int) -> tuple[Layout, Layout]:
    """(what b environments answer, one action each); of a stack only the newest frame travels."""
    answer = {
        "frame": Leaf(spec.frame, spec.dtype, "fragment"),
        "reward": Leaf((), "float32", "fragment"),
        "discount": Leaf((), "float32", "fragment"),
        "first": Leaf((), "bool", "fragment"),
        "ended": Leaf((), "bool", "fragment"),
        "success": Leaf((), "float32", "fragment"),
    }
    action = {"action": Leaf(spec.actions.shape, spec.actions.dtype, "fragment")}
    return Layout(answer, 1, columns), Layout(action, 1, columns)


class Remote:
    """b environments of rank ``peer``, which resets them by itself; see `Environment`."""

    rules_state = None  # it stays with the rank: a policy that searches needs its environments in its own process

    def __init__(self, link: Link, waiting: Waiting, peer: int, spec: Spec, columns: int) -> None:
        answer, action = layouts(spec, columns)
        self.spec, self.columns, self.peer = spec, columns, peer
        self.inbox = Inbox(link, [peer], OBSERVATIONS, answer, waiting, credits=1)
        self.outbox = Outbox(link, peer, ACTIONS, action, waiting)
        self.shown = np.zeros((columns, *spec.observation), spec.dtype)

    def reset(self, seeds: Array) -> Array:
        """First observations [b, *O], as soon as the rank has sent them."""
        return self.recv().observation

    def send(self, action: Array) -> None:
        self.outbox.put({"action": action}, 0)

    def recv(self) -> TimeSteps:
        message = self.inbox.get()
        tree = {name: x.copy() for name, x in message.tree.items()}
        self.inbox.release(message)
        frame, first = tree.pop("frame"), tree["first"]
        if self.spec.stack == 1:
            self.shown = frame
        else:
            self.shown = np.concatenate([self.shown[:, 1:], frame[:, None]], 1)
            self.shown[first, :-1] = frame[first, None] if self.spec.padding == "repeat" else 0
        return TimeSteps(self.shown, **tree)

    def close(self) -> None:
        """End the rank."""
        self.outbox.put({"action": np.zeros_like(self.outbox.reserve()["action"])}, STOP)
        self.outbox.flush()

    def state(self) -> None:
        """Open episodes stay with the rank; a resumed run begins new ones."""

    def load(self, state: dict[str, Any]) -> Resumed:
        raise NotImplementedError(f"{self.spec.id} gave no state")


class Central:
    """Fills the fragments of many remote lanes of equal width at once, and hands them out as they become full."""

    def __init__(
        self,
        lanes: Sequence[Lane],
        remotes: Sequence[Remote],
        allocate: Callable[[Lane], Tree],
        waiting: Waiting,
        timings: Timings,
        pulse: Callable[[], None] = lambda: None,
    ) -> None:
        self.lanes, self.remotes, self.allocate, self.waiting = list(lanes), list(remotes), allocate, waiting
        self.timings, self.pulse = timings, pulse
        self.columns = np.concatenate([lane.columns for lane in self.lanes])
        self.full: deque[Tree] = deque()
        self.spare: list[Tree] = []
        self.requests = self.inferences = 0  # moves of one lane asked for, and calls of the policy that answered them
        self.begun = False

    @property
    def steps(self) -> Array:
        """[b] env steps of each column so far, over all attempts."""
        return np.concatenate([lane.steps for lane in self.lanes])

    def collect(self, tree: Tree, newest: Callable[[], int]) -> None:
        """Copy the next full fragment, of any one lane, into ``tree``. Raises Deadline, naming a silent rank."""
        if not self.begun:
            self.begun = True
            for lane in self.lanes:
                lane.begin_fragment(self.allocate(lane))
            self._act(self.lanes, newest())
        while not self.full:
            self._turn(newest)
        fragment = self.full.popleft()
        for name, x in fragment.items():
            tree[name][...] = x
        self.spare.append(fragment)

    def _turn(self, newest: Callable[[], int]) -> None:
        """Take every answer that is here, at least one, and act for those lanes together."""
        now = time.perf_counter()
        ready: list[Lane] = []

        def answered() -> bool:
            ready.extend(lane for lane, remote in zip(self.lanes, self.remotes, strict=True) if remote.inbox.ready())
            return bool(ready)

        self.waiting.until(answered, lambda: f"observations of {self._who()}")
        for remote in self.remotes:
            remote.inbox.check_peers()  # one that is silent while others answer
        now = self.timings.timed("step", now)
        for lane in ready:
            lane.receive()
            if lane.full:
                self.full.append(lane.tree)
                lane.begin_fragment(self.spare.pop() if self.spare else self.allocate(lane))
        self.timings.timed("record", now)
        self._act(ready, newest())
        self.pulse()

    def _act(self, lanes: Sequence[Lane], version: int) -> None:
        self.requests, self.inferences = self.requests + len(lanes), self.inferences + 1
        act(lanes, version, self.timings)

    def explore(self, exploration: Array) -> None:
        """See `Sampler`; ``columns`` are those of the lanes in their order."""
        edges = np.cumsum([len(lane.columns) for lane in self.lanes])[:-1]
        for lane, part in zip(self.lanes, np.split(exploration, edges), strict=True):
            lane.explore(part)

    def figures(self) -> dict[str, float]:
        """Requests so far, how many were answered at a time, and rows so far that were not finite."""
        bad_rows = float(sum(lane.bad_rows.count for lane in self.lanes))
        batch = self.requests / max(1, self.inferences)
        return {"requests": float(self.requests), "inference_batch": batch, "bad_rows": bad_rows}

    def _who(self) -> str:
        return self.waiting.who(remote.peer for remote in self.remotes)

    def close(self) -> None:
        for lane in self.lanes:
            lane.environment.close()
