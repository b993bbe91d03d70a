"""The learner: takes whole fragments from its actors, updates, publishes weights. Blocks only on a full batch.

Several learners keep one set of parameters: each learns from its own actors, gradients are summed, and what all learned
from is booked together, so that all of them stop and save at the same update.
"""

from __future__ import annotations

import json
import time

from hpc_rl.algorithms.base import Group, Learner
from hpc_rl.fragments import trajectory
from hpc_rl.roles.agreement import CHECK_EVERY, booked
from hpc_rl.roles.base import Seat, schemas
from hpc_rl.roles.batches import next_ones, one_of_each
from hpc_rl.roles.beside import Beside
from hpc_rl.roles.evaluator import Evaluation
from hpc_rl.roles.messages import TRAJECTORIES
from hpc_rl.roles.orders import Command
from hpc_rl.roles.relay import Publisher
from hpc_rl.roles.reporter import Reporter, figures
from hpc_rl.roles.saving import Saver, learner_state
from hpc_rl.roles.snapshots import Snapshots
from hpc_rl.roles.summary import finish, steady
from hpc_rl.roles.tally import Tally, complete, reason_to_stop
from hpc_rl.roles.update import update as updated
from hpc_rl.samplers.base import Split
from hpc_rl.transport.base import Inbox, Message
from hpc_rl.transport.group import learners
from hpc_rl.transport.layout import Layout


def learner(seat: Seat) -> None:
    """Learn until the budget, the target or a signal says stop; then collect the actors and save."""
    link, waiting, plan, actors = seat.ports.link, seat.ports.waiting, seat.plan, list(seat.place.peers)
    group = learners(seat.ports, plan.learners, seat.job.resources.reduction, seat.device, seat.token)
    learn, tally = _begun(seat, group)
    split, free, count = Split(), seat.job.schedule == "free", plan.learning_columns // plan.fragment_columns
    layout = Layout(schemas(learn.policy, seat.spec)[1], plan.steps, plan.fragment_columns, seat.spec.stack)
    inbox = Inbox(link, actors, TRAJECTORIES, layout, waiting, credits=max(2, -(-2 * count // len(actors))))
    command = Command(seat, actors)
    publisher = Publisher(seat, learn.flat.parameter, every=not free)
    publisher.publish(tally.updates)
    beside = Beside(seat) if seat.place.rank in actors else None
    waiting.pulse = beside.check if beside else waiting.pulse
    saver, reporter, evaluation = Saver(seat, tally), Reporter(seat, split, tally.env_steps), Evaluation(seat)
    snapshots = Snapshots(saver, command.order)
    chief, give_up = group.rank == 0, seat.stop if group.size == 1 else lambda: False
    early: list[Message] = []
    reason = None
    while reason is None:
        now = time.perf_counter()
        messages = next_ones(inbox, count, give_up) if free else one_of_each(inbox, early, give_up)
        now = split.timed("wait", now)
        if not messages:
            reason = reason_to_stop(seat, tally)
            continue
        trees = [message.tree for message in messages]
        update = updated(seat, learn, trajectory(trees, seat.spec, seat.device), tally)
        saver.asked |= evaluation.maybe(learn.policy, tally)  # before booking: saved is the policy that was judged
        wishes = booked(group, tally, trees, seat, chief and snapshots.wanted())
        for message in messages:
            inbox.release(message)
        tally.updates += 1
        steady(tally, seat.started)
        if tally.updates % CHECK_EVERY == 0:
            group.check_identical(learn.flat.parameter.data)
        now = split.timed("learn", now)
        publisher.publish(tally.updates)
        split.timed("send", now)
        if reporter.due():
            reporter.report(tally.env_steps, figures(tally) | update.metrics)
        snapshots.closed |= wishes.closed
        if wishes.save:
            snapshots.begin(learner_state(learn) if chief else None)
        snapshots.write()
        reason = complete(seat.job, tally) or wishes.stop
    command.order(snapshots.rolls + 1, stop=True)
    words = command.last_words(inbox)
    if beside:
        beside.join()
    parts = seat.ports.gather(json.dumps(words).encode(), plan.learners)
    publisher.close()
    reporter.report(tally.env_steps, figures(tally))
    if not chief:
        reporter.close()
        return
    snapshots.finish(learner_state(learn))
    finish(seat, tally, reason, reporter, saver, split, [word for part in parts for word in json.loads(part)])


def _begun(seat: Seat, group: Group) -> tuple[Learner, Tally]:
    """A learner and its figures, as they were saved where the run is resumed."""
    learn, tally = seat.algorithm.learner(seat.config, seat.spec, seat.make_policy(), group), Tally()
    if seat.resume:
        learn.load(seat.resume[0]["learner"])
        tally.take_up(seat.resume[1])
    return learn, tally
