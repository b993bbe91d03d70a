"""The learner: takes whole fragments from its actors, updates, publishes weights. Blocks only on a full batch."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from hpc_rl.roles.base import Seat, schemas
from hpc_rl.roles.evaluator import Evaluation
from hpc_rl.roles.messages import CONTROL, CONTROL_SCHEMA, REPLIES, REPLY_SCHEMA, TRAJECTORIES
from hpc_rl.roles.relay import Publisher
from hpc_rl.roles.reporter import Reporter, figures
from hpc_rl.roles.saving import Pending, Saver, learner_state
from hpc_rl.roles.summary import finish, steady
from hpc_rl.roles.tally import Tally, reason_to_stop
from hpc_rl.roles.update import update as updated
from hpc_rl.samplers.vector import Split
from hpc_rl.transport.base import Inbox, Message, Outbox
from hpc_rl.transport.group import learners
from hpc_rl.transport.layout import Layout
from hpc_rl.transport.waiting import Stopped
from hpc_rl.types import trajectory


def learner(seat: Seat) -> None:
    """Learn until the budget, the target or a signal says stop; then collect the actors and save."""
    link, waiting, plan, actors = seat.ports.link, seat.ports.waiting, seat.plan, list(seat.place.peers)
    group = learners(seat.ports, plan.learners, seat.job.resources.reduction, seat.device, seat.token)
    learn = seat.algorithm.learner(seat.config, seat.spec, seat.make_policy(), group)
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
            batch = trajectory([m.tree for m in messages], seat.spec, seat.device)
            update = updated(seat, learn, batch, tally)
            for message in messages:
                tally.add(message.tree, tally.updates)
                closed |= {int(c): int(s) for c, s in zip(message.tree["column"], message.tree["closed"], strict=True)}
                inbox.release(message)
            tally.updates += 1
            steady(tally, seat.started)
            now = split.timed("learn", now)
            publisher.publish(tally.updates)
            split.timed("send", now)
            saver.asked |= evaluation.maybe(learn.policy, tally)
            if reporter.due():
                reporter.report(tally.env_steps, figures(tally) | update.metrics)
        if saver.asked or (pending is None and saver.due()):
            saver.asked, pending = False, Pending(learner_state(learn), tally.meta(seat), seat)
            rolls += 1
            _order(control, rolls, stop=False)
        elif pending is not None and pending.covered(closed):
            saver.save(pending.state, tally, pending.meta)
            pending = None
        reason = reason_to_stop(seat, tally)
    _order(control, rolls + 1, stop=True)
    last = collect_replies(replies, inbox, len(actors))
    state, meta = learner_state(learn), tally.meta(seat)
    saver.save(state, tally, meta, last=True)
    reporter.report(tally.env_steps, figures(tally))
    publisher.close()
    finish(seat, tally, reason, reporter, saver, split, last)


def _batch(inbox: Inbox, count: int, split: Split, seat: Seat) -> list[Message]:
    """``count`` fragments, or none if the run is asked to stop while waiting."""
    begin = time.perf_counter()
    messages: list[Message] = []
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
