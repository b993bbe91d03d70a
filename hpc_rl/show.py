"""`hpc-rl show JOB`: who is which rank; what its networks are, what will travel, lie in memory and be written.

Starts nothing: the method's policy and learner are made without numbers (footprint.py).
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from hpc_rl.experience import Items
from hpc_rl.fragments import fragment_bytes
from hpc_rl.job import starts
from hpc_rl.launchers.options import nodes_of
from hpc_rl.memory import ATARI_RATIO, MIB, Figures, budget, gather
from hpc_rl.nets.precision import is_image
from hpc_rl.replay.stores import keeps_episodes
from hpc_rl.settings import Job
from hpc_rl.sources import source_of
from hpc_rl.transport.parameters import gradient_layout, parameter_layout

_TOLERATED = "lost actors are tolerated, as long as each learner or replay rank that takes fragments has one left"


def render(job: Job, nodes: int = 1) -> str:
    """The page.

    Raises:
        BadJob, BadEnvironment, Unsuited, Unreplayable: no plan, environment, method for it, or replay can be made.
    """
    figures = gather(job)
    parts = [_head(figures), _network(figures), _ranks(figures, nodes), _messages(figures), _memory(figures)]
    return "\n\n".join([*parts, _files(figures)])


def _head(figures: Figures) -> str:
    job, plan, spec = figures.job, figures.plan, figures.spec
    shape = "×".join(map(str, spec.observation)) or "one number"
    parts = "".join(f", {name} {list(x.shape)}" for name, x in spec.parts.items())
    return (
        f"{job.name}: {job.algorithm} on {plan.topology}, {job.environment.id} × {job.environment.columns} columns\n"
        f"observation {shape} {spec.dtype}{parts}\n"
        f"actions {spec.actions.kind} {list(spec.actions.sizes)}{_scaled(figures)}\n"
        f"T = {plan.steps} moves per fragment, {_batch(figures)}"
    )


def _scaled(figures: Figures) -> str:
    """How a box's −1..1 becomes what the environment takes."""
    actions = figures.spec.actions
    if actions.kind != "box":
        return ""
    text = ""
    for span, same in groupby(actions.scaled_to):
        count = len(list(same))
        range_text = "handed on as they are" if span is None else f"scaled from −1..1 to {span[0]:g}..{span[1]:g}"
        text += f", {count} {range_text}"
    return text


def _batch(figures: Figures) -> str:
    """What an update learns from."""
    plan, experience = figures.plan, figures.experience
    kinds = []
    for items in experience.items:
        if items.fresh:
            moves = plan.steps * plan.batch_columns
            kinds.append(f"{plan.batch_columns} columns per update ({moves:,} samples)")
        elif items.length and source_of(experience):
            kinds.append(f"{items.batch_size} {items.name} of {items.length} move(s) per update")
        elif items.length:
            batch = f"{items.batch_size} {items.name} of {items.length} move{'s' * (items.length > 1)} per update"
            kinds.append(f"{batch}, {items.samples_per_insert:g} drawn for each env step{_hindsight(items)}")
        else:
            kinds.append("an update takes whole episodes")
    passes = f", {experience.passes} passes" if experience.passes > 1 else ""
    parts = f" in {experience.minibatches} minibatches" if experience.minibatches > 1 else ""
    if source := source_of(experience):
        return " and ".join(kinds) + f"\nrecorded moves of {source.run or 'a run that is to be named'}"
    if not experience.capacity:
        return " and ".join(kinds) + passes + parts
    each = " in each worker" if plan.of("parameter_server") else ""
    replay = f"replay of {experience.capacity:,} env steps{each}, learning from {experience.min_size:,} on"
    return " and ".join(kinds) + passes + parts + f"\n{replay}"


def _hindsight(items: Items) -> str:
    """Of relabelled items, how many and from where."""
    relabel = items.relabel
    return f", {100 * relabel.share:g} % with goals in hindsight ({relabel.strategy})" if relabel else ""


def _network(figures: Figures) -> str:
    """The networks that act, layer by layer, and what else the learner holds."""
    method = figures.method
    rows = [("networks", "", "parameters")]
    rows += [(layer.name or "all that act", layer.text, f"{layer.parameters:,}") for layer in method.layers]
    rows += [(f"optimizer {name}", kind, f"{size:,}") for name, (kind, size) in method.optimizers.items()]
    rows += [(f"learner's {name}", "", f"{size:,}") for name, size in method.own.items()]
    begins = [f"\n{start.part} begins as the network of {start.run} ({start.key})" for start in starts(figures.job)]
    return _table(rows) + "".join(begins)


def _ranks(figures: Figures, nodes: int) -> str:
    """One row for consecutive ranks that differ in nothing but their columns; a node is filled before the next."""
    plan = figures.plan
    own = "1" if not is_image(figures.spec) else "all cores" if len(plan.ranks) == 1 else "its share"
    rows = [("rank", "role", "index", "node", "columns", "threads", "device")]
    node_of = nodes_of(len(plan.ranks), nodes)
    alike = lambda rank: (rank.role, len(rank.columns), rank.threads, rank.device, node_of[rank.rank])  # noqa: E731
    for _, group in groupby(plan.ranks, alike):
        ranks = list(group)
        first, last = ranks[0], ranks[-1]
        columns = _span(first.columns.start, last.columns.stop - 1) if first.columns else "–"
        each = f" ({len(first.columns)} each)" if len(ranks) > 1 and first.columns else ""
        threads = str(first.threads) if first.threads else own
        device = "CPU or GPU" if first.device == "accelerator" else "CPU"
        index = _span(first.index, last.index)
        node = str(node_of[first.rank])
        rows.append((_span(first.rank, last.rank), first.role, index, node, columns + each, threads, device))
    tolerated = figures.job.resources.tolerate_lost_actors
    return _table(rows) + (f"\n{_TOLERATED}" if tolerated else "")


def _messages(figures: Figures) -> str:
    plan, method = figures.plan, figures.method
    roles = {rank.role for rank in plan.ranks}
    rows = [("messages", "bytes", "")]
    if "env_worker" in roles:
        each = figures.columns * (math.prod(figures.spec.frame) * (1 if figures.spec.dtype == "uint8" else 4) + 10)
        rows.append(("observation", _size(each), "environment worker → its server, every move; an action comes back"))
    if "actor" in roles:
        taker = "replay rank" if "replay_server" in roles else "learner"
        rows.append(("fragment", _size(figures.message_bytes), f"actor → {taker}, one every T moves"))
        rows.append(("weights", _size(figures.weights_message_bytes), "learner → each node, one every update at most"))
    if "parameter_server" in roles:
        gradient, parameters = gradient_layout(method.weights).nbytes, parameter_layout(method.weights).nbytes
        rows.append(("gradient", _size(gradient), "worker → its servers together, at every optimiser step"))
        rows.append(("parameters", _size(parameters), "servers → worker, in answer"))
    elif len(plan.learners) > 1:
        for name, (_, size) in method.optimizers.items():
            of = f" of {name}" if len(method.optimizers) > 1 else ""
            text = "summed over all learners at every optimiser step"
            rows.append((f"gradient{of}", _size(4 * (size + 2)), text))  # with the count, and the vote to stop
        if not method.optimizers:
            rows.append(("sums", "", "the method's own, over all learners at every update"))
    if "replay_server" in roles:
        rows.append(("batch", _size(method.batch_bytes), "replay ranks together → learner, one an update"))
    if plan.evaluator is not None:
        message = _size(figures.weights_message_bytes)
        rows.append(("weights", message, "rank 0 → evaluator, one an evaluation; the mean return comes back"))
    if len(plan.ranks) == 1:
        rows.append(("none", "", "a single rank needs no MPI"))
    return _table(rows)


def _memory(figures: Figures) -> str:
    rows = [("memory per rank", "about", "of which")]
    total = 0.0
    for (role, _), group in groupby(figures.plan.ranks, lambda rank: (rank.role, bool(rank.columns))):
        ranks = list(group)
        parts = budget(figures, ranks[0])
        total += len(ranks) * sum(parts.values())
        largest = sorted(parts.items(), key=lambda item: -item[1])[:3]
        largest_parts = ", ".join(f"{name} {_size(count)}" for name, count in largest if count >= MIB)
        label = role if len(ranks) == 1 else f"{role} ×{len(ranks)}"
        rows.append((label, _size(sum(parts.values())), largest_parts))
    rows.append(("all ranks", _size(total), "pages that ranks of one node share are counted for each of them"))
    return "\n".join([_table(rows), *_episodes(figures), *figures.method.uncounted])


def _episodes(figures: Figures) -> list[str]:
    """What cannot be counted before episodes are known."""
    if not keeps_episodes(figures.experience):
        return []
    move = fragment_bytes(figures.method.recorded, 1001, 1, figures.spec.stack) / 1001
    return [
        "not counted: whole episodes, kept until every column has a complete one, and once more while they are learned "
        f"from; {_size(1000 * move)} for one of 1,000 moves"
    ]


def _files(figures: Figures) -> str:
    job = figures.job
    output = job.output
    recorded_bytes = figures.step_bytes * job.budget.env_steps * output.record * figures.plan.acts
    atari = "ALE/" in figures.spec.id and output.compression != "none"
    size = _compressed(recorded_bytes, atari)
    recording = sum(1 for rank in figures.plan.ranks if rank.columns) if output.record else 0
    every = min(output.segment_s, job.checkpoint.interval_s)
    replay, items, queue = figures.replays_bytes, figures.items_bytes, figures.queues_bytes
    ratio = ATARI_RATIO if atari else 1
    best = figures.method.checkpoint_bytes + queue
    free = shutil.disk_usage(Path.cwd()).free
    rows = [("files", "", "")]
    rows.append(("trajectories", size, f"{_size(figures.step_bytes)} per env step" if recording else "none recorded"))
    if recording:
        rows.append(("segments", f"{recording * 3600 / every:,.0f} an hour", f"{recording} rank(s), every {every:g} s"))
    schedule = f"last {job.checkpoint.keep} and the best, every {job.checkpoint.interval_s:g} s"
    contents = "weights, optimiser states and learner" + (f"; {_size(queue)} of queues" if queue else "")
    contents += f"; {_size(items)} of the replay's items, not in the best" if replay else ""
    rows.append(("checkpoint", _size(best + items), f"{contents}; {schedule}"))
    if replay:
        written = "each written once, for all checkpoints together"
        rows.append(("replay's rows", _compressed(replay, atari), written))
    elif figures.replay_bytes:
        rows.append(("replay's rows", "not kept", "a resumed run fills the replay again before its first update"))
    numbered = (job.checkpoint.keep + 1) * (best + items)  # the newest is written before the oldest goes
    need = (recorded_bytes + replay) / ratio + numbered + 2 * best
    less = "lower output.record" + (", set checkpoint.replay = false" if replay else "")
    enough = "" if need < free else f"; {less} or pass --out on another disk"
    rows.append(("free disk", _size(free), f"{os.getcwd()}, about {_size(need)} needed{enough}"))
    return _table(rows)


def _compressed(count: float, atari: bool) -> str:
    return f"{_size(count)} uncompressed" + (f", about {_size(count / ATARI_RATIO)} as written" if atari else "")


def _span(low: int, high: int) -> str:
    return str(low) if low == high else f"{low}–{high}"


def _size(count: float) -> str:
    for unit, scale in (("GiB", 1 << 30), ("MiB", MIB), ("KiB", 1 << 10)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}" if count < 1000 * scale else f"{count / scale:,.0f} {unit}"
    return f"{count:.0f} B"


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
