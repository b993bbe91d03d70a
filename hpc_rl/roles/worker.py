"""The worker of synchronous training: steps its columns, joins every reduction, leaves at the same update as all."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from hpc_rl.fragments import allocate, trajectory
from hpc_rl.roles.agreement import CHECK_EVERY, booked
from hpc_rl.roles.base import Seat, sampler, schemas
from hpc_rl.roles.evaluator import Evaluation
from hpc_rl.roles.records import Records
from hpc_rl.roles.reporter import Reporter, figures
from hpc_rl.roles.saving import Saver, learner_state
from hpc_rl.roles.summary import finish, steady
from hpc_rl.roles.tally import Tally, complete
from hpc_rl.roles.update import update as updated
from hpc_rl.samplers.base import ACTIVITIES, Split
from hpc_rl.samplers.columns import merged
from hpc_rl.samplers.vector import Vector
from hpc_rl.storage.packing import from_bytes, to_bytes
from hpc_rl.transport.group import learners


def worker(seat: Seat) -> None:
    """Collect, update, record, until all ranks agree to stop. One rank of ``allreduce``, or all of ``solo``."""
    group = learners(seat.ports, seat.plan.learners, seat.job.resources.reduction, seat.device, seat.token)
    learn = seat.algorithm.learner(seat.config, seat.spec, seat.make_policy(), group)
    recorded, _ = schemas(learn.policy, seat.spec)
    tally, split = Tally(), Split()
    vector = sampler(seat, learn.policy, split, lambda: None, max(1, seat.place.threads))
    if seat.resume:
        learn.load(seat.resume[0]["learner"])
        tally.take_up(seat.resume[1])
        vector.load(seat.resume[0]["sampler"])
    record = Records(seat, recorded, [vector.columns], [seat.place.name])
    saver, reporter, evaluation = Saver(seat, tally), Reporter(seat, split, tally.env_steps), Evaluation(seat)
    tree = allocate(recorded, seat.plan.steps, len(seat.place.columns), seat.spec.stack)
    reason = None
    while reason is None:
        vector.collect(tree, lambda: tally.updates)
        now = time.perf_counter()
        record.write(tree)
        now = split.timed("record", now)
        batch = trajectory([tree], seat.spec, seat.device)
        update = updated(seat, learn, batch, tally)
        now = split.timed("learn", now)
        saver.asked |= evaluation.maybe(learn.policy, tally)  # before booking: saved is the policy that was judged
        wishes = booked(group, tally, [tree], seat, saver.due())
        tally.updates += 1
        steady(tally, seat.started)
        if tally.updates % CHECK_EVERY == 0:
            group.check_identical(learn.flat.parameter.data)
        reason = complete(seat.job, tally) or wishes.stop
        if reason or wishes.save:
            record.roll()
            _save(seat, saver, learner_state(learn), vector, last=bool(reason))
        split.timed("send", now)
        if reporter.due():
            reporter.report(int(tally.env_steps), figures(tally) | update.metrics | vector.figures())
    record.close()
    reporter.report(tally.env_steps, figures(tally) | vector.figures())
    _end(seat, tally, reason, reporter, saver, split)


def _save(seat: Seat, saver: Saver, state: dict[str, Any], vector: Vector, last: bool) -> None:
    """Gather every rank's columns at rank 0, which writes the one file."""
    members = seat.plan.learners
    parts = seat.ports.gather(to_bytes(vector.state()), members)
    if parts:
        columns = merged([from_bytes(part) for part in parts])
        saver.save({**state, "sampler": columns}, saver.meta(), last)
    saver.last = time.monotonic()
    seat.ports.barrier(members)


def _end(seat: Seat, tally: Tally, reason: str, reporter: Reporter, saver: Saver, split: Split) -> None:
    """Rank 0 collects everybody's time split and memory, and writes the summary."""
    mine = np.array([*(split.seconds[name] for name in ACTIVITIES), float(reporter.peak)])
    parts = seat.ports.gather(mine.tobytes(), seat.plan.learners)
    others = []
    for rank, part in list(enumerate(parts))[1:]:
        values = np.frombuffer(part)
        others.append({"rank": rank, "split_s": values[:-1].tolist(), "peak_rss_bytes": values[-1]})
    if parts:
        finish(seat, tally, reason, reporter, saver, split, others)
    else:
        reporter.close()
