"""The learner: takes whole fragments from its actors, updates, publishes weights. Blocks only on a full batch.

Several learners keep one set of parameters: each learns from its own actors, gradients are summed, and what all learned
from is counted together, so that all of them stop and save at the same update.
"""

from __future__ import annotations

import json
import time

import numpy as np

from hpc_rl.optim.flat import StateDict
from hpc_rl.replay.arriving import Arriving
from hpc_rl.replay.fresh import Fresh
from hpc_rl.roles.agreement import settled
from hpc_rl.roles.base import Seat, learned_columns, schemas
from hpc_rl.roles.beside import Beside
from hpc_rl.roles.conclusion import conclude
from hpc_rl.roles.evaluation import Evaluation
from hpc_rl.roles.messages import TRAJECTORIES
from hpc_rl.roles.orders import Command
from hpc_rl.roles.relay import Publisher
from hpc_rl.roles.reporter import Reporter, figures
from hpc_rl.roles.saving import Saver
from hpc_rl.roles.snapshots import Snapshots
from hpc_rl.roles.summary import finish
from hpc_rl.roles.training import Metrics, Training, restored, train
from hpc_rl.runtime.learner_state import joined_columns, learner_state
from hpc_rl.runtime.tally import complete, reason_to_stop
from hpc_rl.samplers.base import Split
from hpc_rl.storage.packing import from_bytes, to_bytes
from hpc_rl.transport.base import Inbox
from hpc_rl.transport.group import learners
from hpc_rl.transport.layout import Layout


def learner(seat: Seat) -> None:
    """Learn until the budget, the target or a signal says stop; then collect the actors and save."""
    link, waiting, plan, actors = seat.ports.link, seat.ports.waiting, seat.plan, list(seat.place.peers)
    group = learners(seat.ports, plan.learners, seat.job.resources.reduction, seat.device, seat.token, seat.stop)
    learn, tally = restored(seat, group, learned_columns(plan, seat.place))
    split, free, count = Split(), seat.job.schedule == "free", plan.learning_columns // plan.fragment_columns
    layout = Layout(schemas(learn.policy, seat.spec)[1], plan.steps, plan.fragment_columns, seat.spec.stack)
    inbox = Inbox(link, actors, TRAJECTORIES, layout, waiting, credits=max(2, -(-2 * count // len(actors))))
    arriving, store = Arriving(inbox, count, in_turn=not free), Fresh(seat.experience.items[0].name)
    training = Training(seat, learn, store, tally, split)
    command = Command(seat, actors)
    publisher = Publisher(seat, learn.weights.parameter, every=not free)
    publisher.publish(training.clock)
    beside = Beside(seat) if seat.place.rank in actors else None
    waiting.pulse = beside.check if beside else waiting.pulse
    saver, reporter = Saver(seat, tally), Reporter(seat, split, tally.env_steps)
    evaluation = Evaluation(seat, learn.policy, tally)
    snapshots = Snapshots(saver, evaluation, command.order)
    chief, give_up = group.rank == 0, seat.stop if group.size == 1 else lambda: False

    def fill() -> str | None:
        now, reason = time.perf_counter(), None
        while reason is None and not arriving.receive(store, give_up):
            reason = reason_to_stop(seat, tally)
        split.timed("wait", now)
        return reason

    def settle(metrics: Metrics, version: int) -> str | None:
        now = time.perf_counter()
        votes = settled(training, snapshots, version)
        arriving.release()
        now = split.timed("learn", now)
        publisher.publish(training.clock)
        split.timed("send", now)
        if reporter.due():
            reporter.report(tally.env_steps, figures(tally) | metrics)
        np.maximum(snapshots.closed, votes.closed, out=snapshots.closed)
        if votes.save or votes.judge:
            state = _state(training)
            snapshots.begin(state if chief else None)
        snapshots.write()
        return complete(seat.job, tally) or votes.stop

    reason = train(training, fill, settle)
    command.order(snapshots.rolls + 1, stop=True)
    words = command.last_words(inbox)
    if beside:
        beside.join()
    parts = seat.ports.gather(json.dumps(words).encode(), plan.learners)
    publisher.close()
    reporter.report(tally.env_steps, figures(tally))
    state = _state(training)
    if not chief:
        reporter.close()
        return
    snapshots.finish(state, reason)
    greedy, last = conclude(evaluation, reason, state, snapshots.write)
    others = [word for part in parts for word in json.loads(part)] + last
    finish(seat, tally, reason, reporter, saver, split, others, greedy)


def _state(training: Training) -> StateDict:
    """What a checkpoint holds of all learners, on the first; every learner sends the rows that only it has."""
    seat = training.seat
    parts = seat.ports.gather(to_bytes(training.learner.columns()), seat.plan.learners)
    return {**learner_state(training.learner), "columns": joined_columns([from_bytes(part) for part in parts])}
