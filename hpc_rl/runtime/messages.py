"""The messages between ranks of a run: tags, layouts, and the control channel that closes segments and ends the run.

Each channel also uses the tag after its own. Tags from 60 on belong to the transport: parameters.py, ports.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hpc_rl.algorithms.base import Policy
from hpc_rl.fragments import trajectory_schema
from hpc_rl.runtime.reporter import cpu_s
from hpc_rl.samplers.base import ACTIVITIES, Timings
from hpc_rl.transport.base import Inbox, Outbox
from hpc_rl.transport.layout import Layout
from hpc_rl.transport.ports import Link
from hpc_rl.transport.waiting import Waiting
from hpc_rl.types import Leaf, Schema, Spec

TRAJECTORIES, WEIGHTS, CONTROL, REPLIES, REPORTS, SCORES = 10, 20, 30, 40, 50, 56
ALIVE = -1  # the version of a message that only says that its sender is at work

_CONTROL_SCHEMA = {
    "stop": Leaf((), "int64", "fragment", "", "1: finish, close files, reply"),
    "roll": Leaf((), "int64", "fragment", "", "number of the checkpoint that wants segments closed"),
    "save": Leaf((), "int64", "fragment", "", "the same where a worker's replay belongs to it, else 0"),
}
_REPLY_SCHEMA = {
    "split_s": Leaf((len(ACTIVITIES),), "float64", "fragment", "s", "time spent in each activity"),
    "peak_rss_bytes": Leaf((), "int64", "fragment", "byte", "largest resident memory"),
    "cpu_s": Leaf((), "float64", "fragment", "s", "CPU seconds of the process and its children"),
}
_CONTROL, _REPLY = Layout(_CONTROL_SCHEMA, 1, 1), Layout(_REPLY_SCHEMA, 1, 1)


def schemas(policy: Policy, spec: Spec) -> tuple[Schema, Schema]:
    """(what is recorded, what is sent): messages also say how far each column's closed segments reach."""
    recorded = trajectory_schema(spec, policy.extras, policy.carry, policy.fragment_noise)
    closed = Leaf((), "int64", "fragment", "env step", "up to here the column lies in closed segments")
    return recorded, {**recorded, "closed": closed}


def score_layout(sets: int) -> Layout:
    """What an evaluator found, of each set of arguments; its version is the env steps of the weights, or ALIVE."""
    returns = Leaf((sets,), "float64", "fragment", "reward", "mean raw return of the greedy games")
    success = Leaf((sets,), "float64", "fragment", "", "part of the games that reached their goal")
    return Layout({"returns": returns, "success": success}, 1, 1)


def weights_layout(nbytes: int) -> Layout:
    """One version of all parameters, and the env steps of the job when it was made."""
    steps = Leaf((), "int64", "fragment", "env step", "of the whole job, for what actors anneal")
    return Layout({"parameters": Leaf((nbytes,), "uint8", "fragment"), "env_steps": steps}, 1, 1)


@dataclass(frozen=True)
class FinalReport:
    """What the summary tells of one rank."""

    rank: int
    split_s: list[float]  # seconds by activity, in the order of ACTIVITIES
    peak_rss_bytes: int
    cpu_s: float  # of its process and children, so far

    @staticmethod
    def of(rank: int, timings: Timings, peak_rss_bytes: int) -> FinalReport:
        return FinalReport(rank, [timings.seconds[name] for name in ACTIVITIES], peak_rss_bytes, cpu_s())


class ControlServer:
    """The learning side. ``watch`` raises Deadline where a peer has been silent for too long before an order, too."""

    def __init__(
        self, link: Link, waiting: Waiting, peers: Sequence[int], watch: Callable[[], bool] = lambda: False
    ) -> None:
        self.peers, self.waiting, self.watch = list(peers), waiting, watch
        self.control = [Outbox(link, peer, CONTROL, _CONTROL, waiting) for peer in peers]
        self.replies = Inbox(link, peers, REPLIES, _REPLY, waiting, credits=1)

    def order(self, roll: int, save: bool = False, stop: bool = False) -> None:
        """Have segments closed for checkpoint ``roll``, with what a worker saves if ``save``; or the ranks leave."""
        give_up = self.watch if not stop else lambda: False  # a peer that leaves is silent, and rightly so
        for outbox in self.control:
            numbers = {"stop": int(stop), "roll": roll, "save": roll * save}
            outbox.put({name: np.array([x]) for name, x in numbers.items()}, 0, give_up)

    def final_reports(self, *inboxes: Inbox) -> list[FinalReport]:
        """Wait for every rank's report. What is still on its way to ``inboxes`` is dropped, so that no send is left."""
        reports: list[FinalReport] = []

        def complete() -> bool:
            for inbox in inboxes:
                if (message := inbox.poll()) is not None:
                    inbox.release(message)
            if (reply := self.replies.poll()) is not None:
                reports.append(FinalReport(reply.peer, **{name: x[0].tolist() for name, x in reply.tree.items()}))
            return {*self.peers} <= {*(report.rank for report in reports), *self.waiting.lost()}

        count = len(self.peers)
        self.waiting.until(complete, lambda: f"the final reports of {count - len(reports)} of {count} ranks")
        return reports


class ControlClient:
    """The collecting side. ``pulse`` is what else this rank must keep going while it waits."""

    def __init__(self, link: Link, waiting: Waiting, chief: int, pulse: Callable[[], None] = lambda: None) -> None:
        self.control = Inbox(link, [chief], CONTROL, _CONTROL, waiting)
        self.replies = Outbox(link, chief, REPLIES, _REPLY, waiting)
        self.pulse = pulse
        self.stop, self.roll, self.rolled, self.save = False, 0, 0, 0

    def stopping(self) -> bool:
        """Receive new orders; True once one was to stop."""
        self.pulse()
        for message in iter(self.control.poll, None):
            self.stop |= bool(message.tree["stop"][0])
            self.roll = max(self.roll, int(message.tree["roll"][0]))
            self.save = max(self.save, int(message.tree["save"][0]))
            self.control.release(message)
        return self.stop

    def called(self) -> bool:
        """Receive new orders; True while one is not carried out. Ends a wait for ranks that may wait for the chief."""
        return self.stopping() or self.roll > self.rolled

    def due(self) -> bool:
        """Whether segments are to be closed; once for every order."""
        due, self.rolled = self.roll > self.rolled, self.roll
        return due

    def send_final_report(self, timings: Timings, peak_rss_bytes: int) -> None:
        """What the summary tells of this rank."""
        figures = vars(FinalReport.of(0, timings, peak_rss_bytes))  # whose they are shows where they arrive
        self.replies.put({name: np.array([figures[name]]) for name in _REPLY_SCHEMA}, 0)
        self.replies.flush()
