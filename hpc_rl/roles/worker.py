"""The worker of synchronous training: steps its columns, joins every reduction, leaves at the same update as all."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch

from hpc_rl.algorithms.base import Group
from hpc_rl.roles.base import Seat, recorder, sampler, schemas
from hpc_rl.roles.evaluator import Evaluation
from hpc_rl.roles.saving import Saver, learner_state
from hpc_rl.roles.summary import finish, steady
from hpc_rl.roles.tally import Reporter, Tally, figures, reason_to_stop
from hpc_rl.samplers.vector import ACTIVITIES, Split, Vector
from hpc_rl.storage.packing import from_bytes, to_bytes
from hpc_rl.transport.group import learners
from hpc_rl.types import Tree, allocate, trajectory

CHECK_EVERY = 100  # updates between comparisons of all ranks' parameters


def worker(seat: Seat) -> None:
    """Collect, update, record, until all ranks agree to stop. One rank of ``allreduce``, or all of ``solo``."""
    group = learners(seat.ports, seat.plan.learners)
    learn = seat.algorithm.learner(seat.config, seat.spec, seat.make_policy(), group)
    recorded, _ = schemas(learn.policy, seat.spec)
    tally, split = Tally(), Split()
    vector = sampler(seat, learn.policy, split, lambda: None, max(1, seat.place.threads))
    if seat.resume:
        learn.load(seat.resume[0]["learner"])
        tally.take_up(seat.resume[1])
        vector.load(_mine(seat.resume[0]["sampler"], vector))
    record = recorder(seat, recorded)
    saver, reporter, evaluation = Saver(seat), Reporter(seat, split), Evaluation(seat)
    tree = allocate(recorded, seat.plan.steps, len(seat.place.columns), seat.spec.stack)
    reason = None
    while reason is None:
        vector.collect(tree, tally.updates)
        now = time.perf_counter()
        record.write(tree)
        now = split.timed("record", now)
        batch = trajectory([tree], seat.spec, seat.device)
        update = learn.update(batch, min(1.0, tally.env_steps / seat.job.budget.env_steps))
        now = split.timed("learn", now)
        wishes = _book_everywhere(group, tally, tree, seat, saver)
        tally.updates += 1
        steady(tally, seat.started)
        if tally.updates % CHECK_EVERY == 0:
            group.check_identical(learn.flat.parameter.data)
        reason = reason_to_stop(seat, tally) if group.size == 1 else _agreed(seat, tally, wishes)
        if reason or wishes["save"]:
            record.roll()
            _save(seat, saver, learner_state(learn), vector, tally)
        now = split.timed("send", now)
        evaluation.maybe(learn.policy, tally)
        if reporter.due():
            reporter.report(int(tally.env_steps), figures(tally) | update.metrics)
    record.close()
    reporter.report(tally.env_steps, figures(tally))
    _end(seat, tally, reason, reporter, saver, split)
    vector.environment.close()


def _book_everywhere(group: Group, tally: Tally, tree: Tree, seat: Seat, saver: Saver) -> dict[str, bool]:
    """Add what all ranks collected, in column order, and learn who wants to stop or save: one reduction of sums."""
    total, low = seat.job.environment.columns, seat.place.columns.start
    mine = slice(low, low + len(seat.place.columns))
    valid = ~tree["first"][1:]
    returns = tree["episode_return"]
    table = np.zeros((3, len(returns), total))
    table[0, :, mine] = valid
    table[1, :, mine] = np.nan_to_num(returns)
    table[2, :, mine] = np.isfinite(returns)
    limit = seat.job.budget.time_limit_s
    late = bool(limit) and time.monotonic() - seat.started > limit
    wishes = [seat.stop(), late, saver.due()]
    packed = torch.from_numpy(np.concatenate([table.ravel(), np.array(wishes, float)]))
    reduced = group.sum(packed).numpy()
    table = reduced[:-3].reshape(table.shape)
    tally.env_steps += int(table[0].sum())
    for column in range(total):
        tally.through[column] = tally.through.get(column, 0) + int(table[0, :, column].sum())
    tally.finished(np.where(table[2] > 0, table[1], np.nan).ravel())
    tally.lags.append(0.0)
    return {"stop": reduced[-3] > 0, "late": reduced[-2] > 0, "save": reduced[-1] > 0}


def _agreed(seat: Seat, tally: Tally, wishes: dict[str, bool]) -> str | None:
    """The same answer on every rank: budgets are global sums, clocks and signals were reduced."""
    if wishes["stop"]:
        return "stopped: asked to stop"
    if wishes["late"]:
        return f"stopped: time limit of {seat.job.budget.time_limit_s:.0f} s"
    quiet = Seat(**{**seat.__dict__, "stop": lambda: False, "started": time.monotonic()})
    return reason_to_stop(quiet, tally)


def _save(seat: Seat, saver: Saver, state: dict[str, Any], vector: Vector, tally: Tally) -> None:
    """Gather every rank's columns at rank 0, which writes the one file."""
    members = seat.plan.learners
    parts = seat.ports.gather(to_bytes(vector.state()), members)
    if parts:
        columns = merged([from_bytes(part) for part in parts])
        saver.save({**state, "sampler": columns}, tally, tally.meta(seat))
    saver.last = time.monotonic()
    seat.ports.barrier(members)


def merged(parts: list[Any]) -> Any:
    """Per-column states of several ranks as one: arrays and lists are joined along the columns."""
    head = parts[0]
    if isinstance(head, dict):
        return {name: merged([part[name] for part in parts]) for name in head}
    if isinstance(head, list):
        return [x for part in parts for x in part]
    return None if head is None else torch.cat([torch.as_tensor(part) for part in parts])


def chosen(state: Any, rows: list[int]) -> Any:
    """The columns ``rows`` of a merged state; the inverse of `merged`."""
    if isinstance(state, dict):
        return {name: chosen(x, rows) for name, x in state.items()}
    if isinstance(state, list):
        return [state[row] for row in rows]
    return None if state is None else state[rows]


def _mine(state: dict[str, Any], vector: Vector) -> dict[str, Any]:
    where = {int(column): row for row, column in enumerate(state["columns"])}
    picked: dict[str, Any] = chosen(state, [where[int(column)] for column in vector.columns])
    return picked


def _end(seat: Seat, tally: Tally, reason: str, reporter: Reporter, saver: Saver, split: Split) -> None:
    """Rank 0 collects everybody's time split and memory, and writes the summary."""
    mine = np.array([*(split.seconds[name] for name in ACTIVITIES), float(reporter.peak)])
    parts = seat.ports.gather(mine.tobytes(), seat.plan.learners)
    others = []
    for rank, part in list(enumerate(parts))[1:]:
        values = np.frombuffer(part)
        others.append({"rank": rank, "split_s": values[:-1], "peak_rss_bytes": values[-1:]})
    if parts:
        finish(seat, tally, reason, reporter, saver, split, others)
    else:
        reporter.close()
