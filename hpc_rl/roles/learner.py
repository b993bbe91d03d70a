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
from hpc_rl.roles.inference_thread import InferenceThread
from hpc_rl.runtime.checkpoint_scheduler import CheckpointScheduler
from hpc_rl.runtime.checkpoint_writer import CheckpointWriter
from hpc_rl.runtime.conclusion import conclude
from hpc_rl.runtime.context import RankContext, learned_columns, schemas
from hpc_rl.runtime.control import ControlServer
from hpc_rl.runtime.counters import complete, reason_to_stop
from hpc_rl.runtime.evaluation import Evaluation
from hpc_rl.runtime.learner_state import joined_columns, learner_state
from hpc_rl.runtime.messages import TRAJECTORIES
from hpc_rl.runtime.reporter import Reporter, figures
from hpc_rl.runtime.summary import finish
from hpc_rl.runtime.training import Metrics, Training, restored, train
from hpc_rl.runtime.votes import settled
from hpc_rl.runtime.weights import WeightPublisher
from hpc_rl.samplers.base import Timings
from hpc_rl.storage.packing import from_bytes, to_bytes
from hpc_rl.transport.base import Inbox
from hpc_rl.transport.group import learners
from hpc_rl.transport.layout import Layout


def learner(context: RankContext) -> None:
    """Learn until the budget, the target or a signal says stop; then collect the actors and save."""
    ports, waiting, plan, actors = context.ports, context.ports.waiting, context.plan, list(context.rank_spec.peers)
    group = learners(ports, plan.learners, context.job.resources.reduction, context.device, context.token, context.stop)
    learn, counters = restored(context, group, learned_columns(plan, context.rank_spec))
    timings, free, count = Timings(), context.job.schedule == "free", plan.learning_columns // plan.fragment_columns
    layout = Layout(schemas(learn.policy, context.spec)[1], plan.steps, plan.fragment_columns, context.spec.stack)
    inbox = Inbox(ports.link, actors, TRAJECTORIES, layout, waiting, credits=max(2, -(-2 * count // len(actors))))
    arriving, store = Arriving(inbox, count, in_turn=not free), Fresh(context.experience.items[0].name)
    training = Training(context, learn, store, counters, timings)
    command = ControlServer(context, actors)
    publisher = WeightPublisher(context, learn.weights.parameter, every=not free)
    publisher.publish(training.clock)
    beside = InferenceThread(context) if context.rank_spec.rank in actors else None
    waiting.pulse = beside.check if beside else waiting.pulse
    writer, reporter = CheckpointWriter(context, counters), Reporter(context, timings, counters.env_steps)
    evaluation = Evaluation(context, learn.policy, counters)
    scheduler = CheckpointScheduler(writer, evaluation, command.order)
    chief, give_up = group.rank == 0, context.stop if group.size == 1 else lambda: False

    def fill() -> str | None:
        now, reason = time.perf_counter(), None
        while reason is None and not arriving.receive(store, give_up):
            reason = reason_to_stop(context, counters)
        timings.timed("wait", now)
        return reason

    def settle(metrics: Metrics, version: int) -> str | None:
        now = time.perf_counter()
        votes = settled(training, scheduler, version)
        arriving.release()
        now = timings.timed("learn", now)
        publisher.publish(training.clock)
        timings.timed("send", now)
        if reporter.due():
            reporter.report(counters.env_steps, figures(counters) | metrics)
        np.maximum(scheduler.closed, votes.closed, out=scheduler.closed)
        if votes.save or votes.judge:
            state = _state(training)
            scheduler.begin(state if chief else None)
        scheduler.write()
        return complete(context.job, counters) or votes.stop

    reason = train(training, fill, settle)
    command.order(scheduler.rolls + 1, stop=True)
    words = command.final_reports(inbox)
    if beside:
        beside.join()
    parts = ports.gather(json.dumps(words).encode(), plan.learners)
    publisher.close()
    reporter.report(counters.env_steps, figures(counters))
    state = _state(training)
    if not chief:
        reporter.close()
        return
    scheduler.finish(state, reason)
    greedy, last = conclude(evaluation, reason, state, scheduler.write)
    others = [word for part in parts for word in json.loads(part)] + last
    finish(context, counters, reason, reporter, writer, timings, others, greedy)


def _state(training: Training) -> StateDict:
    """What a checkpoint holds of all learners, on the first; every learner sends the rows that only it has."""
    context = training.context
    parts = context.ports.gather(to_bytes(training.learner.columns()), context.plan.learners)
    return {**learner_state(training.learner), "columns": joined_columns([from_bytes(part) for part in parts])}
