"""The learner: takes whole fragments from its actors, updates, publishes weights. Blocks only on a full batch."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hpc_rl.algorithms.base import State
from hpc_rl.roles.base import Reporter, Seat, Tally, reason_to_stop, schemas
from hpc_rl.roles.evaluator import Evaluation
from hpc_rl.roles.messages import CONTROL, CONTROL_SCHEMA, REPLIES, REPLY_SCHEMA, TRAJECTORIES, WEIGHTS, parameters_layout
from hpc_rl.roles.saving import Saver, learner_state
from hpc_rl.roles.summary import finish
from hpc_rl.samplers.vector import Split
from hpc_rl.transport.base import Inbox, Message, Outbox, Stopped
from hpc_rl.transport.group import learners
from hpc_rl.transport.layout import Layout
from hpc_rl.transport.weights import Weights, shared_path
from hpc_rl.types import trajectory


@dataclass
class Pending:
    """A snapshot that becomes a checkpoint once its steps lie in closed segments of every column."""

    state: State
    meta: dict[str, Any]
    asked: float = field(default_factory=time.monotonic)

    def covered(self, closed: dict[int, int]) -> bool:
        return all(closed.get(int(column), 0) >= step for column, step in self.meta["steps"].items())


def learner(seat: Seat) -> None:
    """Learn until the budget, the target or a signal says stop; then collect the actors and save."""
    link, waiting, plan, actors = seat.ports.link, seat.ports.waiting, seat.plan, list(seat.place.peers)
    learn = seat.algorithm.learner(seat.config, seat.spec, seat.make_policy(), learners(seat.ports, plan.learners))
    tally, split = Tally(), Split()
    if seat.resume:
        learn.load(seat.resume[0]["learner"])
        tally.take_up(seat.resume[1])
    width = seat.job.environment.columns // len(actors)
    _, sent = schemas(learn.policy, seat.spec)
    inbox = Inbox(link, actors, TRAJECTORIES, Layout(sent, plan.steps, width, seat.spec.stack), waiting)
    control = [Outbox(link, a, CONTROL, Layout(CONTROL_SCHEMA, 1, 1), waiting) for a in actors]
    replies = Inbox(link, actors, REPLIES, Layout(REPLY_SCHEMA, 1, width), waiting, credits=1)
    publisher = Publisher(seat, learn.flat.parameter)
    publisher.publish(tally.updates)
    saver, reporter, evaluation = Saver(seat), Reporter(seat, split), Evaluation(seat)
    closed: dict[int, int] = {}
    pending: Pending | None = None
    rolls = 0
    reason = None
    while reason is None:
        messages = _batch(inbox, plan.batch_columns // width, split, seat)
        if messages:
            now = time.perf_counter()
            batch = trajectory([m.tree for m in messages], seat.spec)
            update = learn.update(batch, min(1.0, tally.env_steps / seat.job.budget.env_steps))
            for message in messages:
                tally.add(message.tree, tally.updates)
                closed |= {int(c): int(s) for c, s in zip(message.tree["column"], message.tree["closed"], strict=True)}
                inbox.release(message)
            tally.updates += 1
            now = split.timed("learn", now)
            publisher.publish(tally.updates)
            split.timed("send", now)
            evaluation.maybe(learn.policy, tally)
            if reporter.due():
                reporter.report(tally.env_steps, figures(tally) | update.metrics)
        if pending is None and saver.due():
            pending = Pending(learner_state(learn), tally.meta(seat))
            rolls += 1
            _order(control, rolls, stop=False)
        elif pending is not None and pending.covered(closed):
            saver.save(pending.state, tally, pending.meta)
            pending = None
        reason = reason_to_stop(seat, tally)
    _order(control, rolls + 1, stop=True)
    last = collect_replies(replies, inbox, len(actors))
    state, meta = learner_state(learn), tally.meta(seat)
    saver.save(state, tally, meta)
    publisher.close()
    finish(seat, tally, reason, reporter, saver, split, last)


def figures(tally: Tally) -> dict[str, float]:
    """The running figures that the screen shows."""
    lags = np.array(tally.lags or [0.0])
    return {
        "mean_return_100": tally.mean_return,
        "episodes": float(tally.episodes),
        "updates": float(tally.updates),
        "policy_lag": float(lags.mean()),
        "policy_lag_max": float(lags.max()),
    }


def _batch(inbox: Inbox, count: int, split: Split, seat: Seat) -> list[Message]:
    """``count`` fragments, or none if the run is asked to stop while waiting."""
    begin, messages = time.perf_counter(), []
    try:
        while len(messages) < count:
            messages.append(inbox.get(give_up=seat.stop))
    except Stopped:
        messages = []
    split.timed("wait", begin)
    return messages


def _order(control: list[Outbox], roll: int, stop: bool) -> None:
    for outbox in control:
        outbox.put({"stop": np.array([int(stop)]), "roll": np.array([roll])}, 0)


def collect_replies(replies: Inbox, inbox: Inbox, actors: int) -> list[dict[str, Any]]:
    """Wait for every actor's last word; fragments still on their way are taken and dropped, so that no send is left."""
    found: list[dict[str, Any]] = []

    def all_here() -> bool:
        if (message := inbox.poll()) is not None:
            inbox.release(message)
        if (reply := replies.poll()) is not None:
            found.append({name: x.copy() for name, x in reply.tree.items()} | {"rank": reply.peer})
        return len(found) == actors

    replies.waiting.until(all_here, lambda: f"the last words of {actors - len(found)} of {actors} actors")
    return found


class Publisher:
    """Sends each version to the relay of every node; a relay that is still busy with an older one misses this one."""

    def __init__(self, seat: Seat, parameter: Any) -> None:
        link, rank = seat.ports.link, seat.place.rank
        self.parameter = parameter.data
        nbytes = self.parameter.numel() * 4
        self.weights: Weights | None = None
        if seat.nodes[rank] == rank:  # this rank is its node's relay: no message needed there
            self.weights = Weights(shared_path(seat.token, rank), nbytes, create=True)
        others = sorted(set(seat.nodes) - {rank})
        self.relays = [Outbox(link, r, WEIGHTS, parameters_layout(nbytes), seat.ports.waiting, slots=1) for r in others]
        seat.ports.barrier(range(link.size))  # every node's file exists

    def publish(self, version: int) -> None:
        """Make ``version`` the newest; never waits."""
        data = self.parameter.detach().cpu().numpy().view(np.uint8)
        if self.weights is not None:
            self.weights.write(data, version)
        for relay in self.relays:
            if relay.ready():
                relay.put({"parameters": data[None]}, version)

    def close(self) -> None:
        if self.weights is not None:
            self.weights.close(remove=True)
