"""The learner: takes whole fragments from its actors, updates, publishes weights. Blocks only on a full batch."""

from __future__ import annotations

import time

from hpc_rl.roles.base import Seat, schemas
from hpc_rl.roles.evaluator import Evaluation
from hpc_rl.roles.messages import TRAJECTORIES
from hpc_rl.roles.orders import Command
from hpc_rl.roles.relay import Publisher
from hpc_rl.roles.reporter import Reporter, figures
from hpc_rl.roles.saving import Saver, Snapshots, learner_state
from hpc_rl.roles.summary import finish, steady
from hpc_rl.roles.tally import Tally, reason_to_stop
from hpc_rl.roles.update import update as updated
from hpc_rl.samplers.base import Split
from hpc_rl.transport.base import Inbox, Message
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
    command = Command(seat, actors, width)
    publisher = Publisher(seat, learn.flat.parameter)
    publisher.publish(tally.updates)
    saver, reporter, evaluation = Saver(seat), Reporter(seat, split), Evaluation(seat)
    snapshots = Snapshots(saver, command.order)
    reason = None
    while reason is None:
        messages = _batch(inbox, plan.batch_columns // width, split, seat)
        if messages:
            now = time.perf_counter()
            batch = trajectory([m.tree for m in messages], seat.spec, seat.device)
            update = updated(seat, learn, batch, tally)
            for message in messages:
                tally.add(message.tree, tally.updates)
                snapshots.book(message.tree)
                inbox.release(message)
            tally.updates += 1
            steady(tally, seat.started)
            now = split.timed("learn", now)
            publisher.publish(tally.updates)
            split.timed("send", now)
            saver.asked |= evaluation.maybe(learn.policy, tally)
            if reporter.due():
                reporter.report(tally.env_steps, figures(tally) | update.metrics)
        snapshots.step(tally, lambda: learner_state(learn))
        reason = reason_to_stop(seat, tally)
    command.order(snapshots.rolls + 1, stop=True)
    last = command.last_words(inbox)
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
