"""`hpc-rl show JOB`: who is which rank; what will travel, lie in memory and be written. Needs no torch, no MPI."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from hpc_rl import job as jobs
from hpc_rl.envs.column_shares import split_columns
from hpc_rl.envs.make import describe
from hpc_rl.fragments import fragment_bytes, trajectory_schema
from hpc_rl.job import Job
from hpc_rl.methods import extras
from hpc_rl.nets import sizes
from hpc_rl.plan import Plan, RankSpec, nodes_of
from hpc_rl.samplers.base import EVALUATED_TOGETHER
from hpc_rl.transport.layout import Layout
from hpc_rl.types import Leaf, Schema, Spec

MIB = 1 << 20
ATARI_RATIO = 100  # frames of Atari games with zstd; measured on Pong

# Resident memory of processes with torch 2.13 for the CPU on Linux. A learning rank with CUDA needs some GiB more.
CODE_BYTES = 284 * MIB  # an actor with next to no data: Python, torch, mpi4py, h5py
OPTIMIZER_CODE_BYTES = 72 * MIB  # what torch.optim and TensorBoard import on top
ATARI_CODE_BYTES = 8 * MIB
SERVER_BYTES = 46 * MIB  # the fork server of environment processes, and Python's tracker beside it
CHILD_BYTES = 7 * MIB  # what one of those processes does not share with the server
GAME_BYTES = int(1.7 * MIB)  # one emulator with its frames
BUFFER_BYTES = 32 * MIB  # the most that a recorder holds back of one leaf


@dataclass(frozen=True)
class Figures:
    """Everything the pages below are computed from; sizes in bytes."""

    job: Job
    plan: Plan
    spec: Spec
    schema: Schema  # of a recorded fragment
    columns: int  # of one stepping rank
    parameters: int  # of the network
    activations: int  # float32 numbers kept for the backward pass of one sample

    @property
    def weights_bytes(self) -> int:
        return 4 * self.parameters

    @property
    def message_bytes(self) -> int:
        """One fragment between two ranks: what is recorded, and how far each column's segments are closed."""
        sent = {**self.schema, "closed": Leaf((), "int64", "fragment")}
        return Layout(sent, self.plan.steps, self.columns, self.spec.stack).nbytes

    @property
    def step_bytes(self) -> float:
        """One env step on disk before compression."""
        longer, shorter = (fragment_bytes(self.schema, t, 1, self.spec.stack) for t in (1001, 1))
        return (longer - shorter) / 1000


def render(job: Job, nodes: int = 1) -> str:
    """The page.

    Raises:
        BadJob, BadEnvironment: the job cannot be planned, or its environment not be made.
    """
    figures = gather(job)
    parts = [_head(figures), _ranks(figures.plan, nodes), _messages(figures), _memory(figures), _files(figures)]
    return "\n\n".join(parts)


def gather(job: Job) -> Figures:
    """Plan, environment and network of a job. Raises BadJob, BadEnvironment."""
    plan = jobs.topology(job.topology).plan(job)
    spec = describe(job.environment.id, job.environment.arguments)
    hidden, network = tuple(job.method.get("hidden", ())), str(job.method.get("network", "nature"))
    lstm, filtered = int(job.method.get("lstm", 0)), bool(job.method.get("normalize_reward", False))
    schema = trajectory_schema(
        spec, sizes.remembered(extras(job.algorithm), filtered), sizes.carried(spec, lstm, filtered)
    )
    standardize = bool(job.method.get("normalize_observation", False))
    parameters = sizes.actor_critic(spec, hidden, network, lstm, standardize)
    activations = sizes.activations(spec, hidden, network, lstm)
    columns = next(len(rank.columns) for rank in plan.ranks if rank.columns)
    split_columns(spec.id, columns, job.environment.processes)  # refuses those that do not fit
    return Figures(job, plan, spec, schema, columns, parameters, activations)


# --- the page ---


def _head(figures: Figures) -> str:
    job, plan, spec = figures.job, figures.plan, figures.spec
    shape = "×".join(map(str, spec.observation)) or "one number"
    return (
        f"{job.name}: {job.algorithm} on {plan.topology}, {job.environment.id} × {job.environment.columns} columns\n"
        f"observation {shape} {spec.dtype}, {_network(figures)}; {figures.parameters:,} parameters\n"
        f"actions {spec.actions.kind} {list(spec.actions.sizes)}{_scaled(figures)}\n"
        f"T = {plan.steps} moves per fragment, {plan.batch_columns} columns per update "
        f"({plan.steps * plan.batch_columns:,} samples)"
    )


def _network(figures: Figures) -> str:
    """Which network the observations go through: a user who set ``network`` sees whether it counts."""
    spec, method = figures.spec, figures.job.method
    planes = sizes.image(spec.observation, spec.dtype)
    if planes is not None:
        return f"as images of {'×'.join(map(str, planes))} through the {method.get('network', 'nature')} network"
    many = math.prod(spec.observation)
    why = f" (images are bytes, {sizes.SMALLEST} pixels or more a side)" if len(spec.observation) > 1 else ""
    return f"as {many:,} numbers{why} through hidden = {list(method.get('hidden', ()))}"


def _scaled(figures: Figures) -> str:
    """How a box's −1..1 becomes what the environment takes."""
    actions = figures.spec.actions
    if actions.kind != "box":
        return ""
    told = ""
    for span, same in groupby(actions.scaled_to):
        count = len(list(same))
        what = "handed on as they are" if span is None else f"scaled from −1..1 to {span[0]:g}..{span[1]:g}"
        told += f", {count} {what}"
    return f"{told}; σ begins at {figures.job.method.get('initial_std', 1.0):g}"


def _ranks(plan: Plan, nodes: int) -> str:
    """One row for consecutive ranks that differ in nothing but their columns; a node is filled before the next."""
    rows = [("rank", "role", "index", "node", "columns", "threads", "device")]
    node_of = nodes_of(len(plan.ranks), nodes)
    alike = lambda rank: (rank.role, len(rank.columns), rank.threads, rank.device, node_of[rank.rank])  # noqa: E731
    for _, group in groupby(plan.ranks, alike):
        ranks = list(group)
        first, last = ranks[0], ranks[-1]
        columns = _span(first.columns.start, last.columns.stop - 1) if first.columns else "–"
        each = f" ({len(first.columns)} each)" if len(ranks) > 1 and first.columns else ""
        threads = str(first.threads) if first.threads else "all cores" if len(plan.ranks) == 1 else "its share"
        device = "CPU or GPU" if first.device == "accelerator" else "CPU"
        index = _span(first.index, last.index)
        node = str(node_of[first.rank])
        rows.append((_span(first.rank, last.rank), first.role, index, node, columns + each, threads, device))
    return _table(rows)


def _messages(figures: Figures) -> str:
    plan = figures.plan
    roles, weights = {rank.role for rank in plan.ranks}, _size(figures.weights_bytes)
    rows = [("messages", "bytes", "")]
    if "env_worker" in roles:
        each = figures.columns * (math.prod(figures.spec.frame) * (1 if figures.spec.dtype == "uint8" else 4) + 10)
        rows.append(("observation", _size(each), "environment worker → its server, every move; an action comes back"))
    if "actor" in roles:
        rows.append(("fragment", _size(figures.message_bytes), "actor → learner, one every T moves"))
        rows.append(("weights", weights, "learner → each node, one every update at most"))
    if "parameter_server" in roles:
        rows.append(("gradient", weights, "worker → its servers together, at every optimiser step"))
        rows.append(("parameters", weights, "servers → worker, in answer"))
    elif len(plan.learners) > 1:
        rows.append(("gradient", _size(figures.weights_bytes + 8), "summed over all learners at every optimiser step"))
    if plan.evaluator is not None:
        rows.append(("weights", weights, "rank 0 → evaluator, one an evaluation; the mean return comes back"))
    if len(plan.ranks) == 1:
        rows.append(("none", "", "a single rank needs no MPI"))
    return _table(rows)


def _memory(figures: Figures) -> str:
    rows = [("memory per rank", "about", "of which")]
    total = 0.0
    for role, group in groupby(figures.plan.ranks, lambda rank: rank.role):
        ranks = list(group)
        parts = budget(figures, ranks[0])
        total += len(ranks) * sum(parts.values())
        largest = sorted(parts.items(), key=lambda item: -item[1])[:3]
        what = ", ".join(f"{name} {_size(count)}" for name, count in largest if count >= MIB)
        label = role if len(ranks) == 1 else f"{role} ×{len(ranks)}"
        rows.append((label, _size(sum(parts.values())), what))
    rows.append(("all ranks", _size(total), "pages that ranks of one node share are counted for each of them"))
    return _table(rows)


def _files(figures: Figures) -> str:
    job = figures.job
    output = job.output
    whole = figures.step_bytes * job.budget.env_steps * output.record
    atari = figures.spec.id.startswith("ALE/") and output.compression != "none"
    size = f"{_size(whole)} uncompressed" + (f", about {_size(whole / ATARI_RATIO)} as written" if atari else "")
    recording = sum(1 for rank in figures.plan.ranks if rank.columns) if output.record else 0
    every = min(output.segment_s, job.checkpoint.interval_s)
    checkpoint = 3 * figures.weights_bytes
    free = shutil.disk_usage(Path.cwd()).free
    rows = [("files", "", "")]
    rows.append(("trajectories", size, f"{_size(figures.step_bytes)} per env step" if recording else "none recorded"))
    if recording:
        rows.append(("segments", f"{recording * 3600 / every:,.0f} an hour", f"{recording} rank(s), every {every:g} s"))
    kept = f"last {job.checkpoint.keep} and the best, every {job.checkpoint.interval_s:g} s"
    rows.append(("checkpoint", _size(checkpoint), f"weights and optimiser; {kept}"))
    need = whole / (ATARI_RATIO if atari else 1) + (job.checkpoint.keep + 2) * checkpoint
    enough = "" if need < free else "; lower output.record or pass --out on another disk"
    rows.append(("free disk", _size(free), f"{os.getcwd()}, about {_size(need)} needed{enough}"))
    return _table(rows)


def budget(figures: Figures, rank: RankSpec) -> dict[str, float]:
    """Bytes of one rank by purpose: its largest resident memory, within 15 % of the runs that were measured."""
    plan, weights = figures.plan, figures.weights_bytes
    actors, workers = plan.of("actor"), plan.of("worker")
    width, atari = len(rank.columns), figures.spec.id.startswith("ALE/")
    parts: dict[str, float] = {"code": CODE_BYTES + ATARI_CODE_BYTES * atari}
    serving, judging = rank.role == "parameter_server", rank.role == "evaluator"
    if rank.learns or serving:
        parts["code"] += OPTIMIZER_CODE_BYTES
        parts["weights and optimiser"] = 4 * weights + 3 * weights  # with gradient and moments, and a checkpoint's copy
    if rank.learns:
        parts["learning"] = _learning_bytes(figures)
    elif rank.role == "actor" or judging:
        parts["weights"] = 3 * weights  # with a gradient buffer, and a copy while new ones are taken
    if actors and rank.role not in ("env_worker", "evaluator"):
        parts["shared weights"] = 2 * weights
        parts["messages"] = 2 * figures.message_bytes * (len(actors) if rank.learns else 1)
    if (servers := plan.of("parameter_server")) and not judging:
        parts["messages"] = 4 * weights * (len(workers) / len(servers) if serving else 1)
    if width and rank.role != "env_worker":
        spec = figures.spec
        parts["recorder"] = _recorder_bytes(figures, width)
        parts["inference"] = 8 * width * figures.activations
        if rank.learns:
            parts["rollout"] = fragment_bytes(figures.schema, plan.steps, width, spec.stack)
    if judging or (rank.rank == 0 and plan.evaluator is None and figures.job.evaluate.every_steps):
        games = min(EVALUATED_TOGETHER, figures.job.evaluate.episodes)
        parts["evaluation"] = games * (GAME_BYTES if atari else 16 << 10) + 8 * games * figures.activations
    if width and (rank.role != "actor" or not plan.of("env_worker")):
        parts["environments"] = width * (GAME_BYTES if atari else 16 << 10)
        if processes := figures.job.environment.processes:
            parts["environment processes"] = SERVER_BYTES + processes * CHILD_BYTES
    return parts


def _learning_bytes(figures: Figures) -> float:
    """The batch with its frames stacked, one minibatch of it, and the activations and their gradients."""
    plan, spec = figures.plan, figures.spec
    columns = plan.learning_columns
    shape = Leaf(spec.observation, spec.dtype, "edge").array_shape(plan.steps, columns, 1)
    batch = math.prod(shape) * (1 if spec.dtype == "uint8" else 4)
    parts = int(figures.job.method.get("minibatches", 1))
    samples = (plan.steps + 1) * columns / parts
    return batch * (1 + 1 / parts) + samples * 8 * figures.activations


def _recorder_bytes(figures: Figures, width: int) -> float:
    """Rows that wait until a chunk is full: 128 of large leaves, about 1 MiB of small ones."""
    if not figures.job.output.record:
        return 0.0
    rows = (
        128 * width * fragment_bytes({"": leaf}, 1, 1, 0) for leaf in figures.schema.values() if leaf.rows != "fragment"
    )
    return float(sum(min(BUFFER_BYTES, max(MIB // 2, count)) for count in rows))


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
