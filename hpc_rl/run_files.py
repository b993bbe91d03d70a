"""The files of a run as one attempt writes them: runtime/files.py filled with what storage/ offers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hpc_rl import efficiency, usage
from hpc_rl.energy import Meter
from hpc_rl.optim.flat import StateDict
from hpc_rl.plan import RankSpec
from hpc_rl.runtime.files import MetricsWriter, RunFiles, SegmentWriter
from hpc_rl.settings import Job
from hpc_rl.storage import checkpoint, replay_files
from hpc_rl.storage.metrics import CHIEFS, Metrics
from hpc_rl.storage.run_dir import RunDir, write_json
from hpc_rl.storage.trajectories import Recorder
from hpc_rl.types import Array, Schema, Spec


class Superseded(RuntimeError):
    """The controller gave this attempt up, for its node was out of reach, and another one has begun."""


def run_files(
    run: RunDir, job: Job, spec: Spec, rank_spec: RankSpec, attempt: int, note: str = "", meter: Meter | None = None
) -> RunFiles:
    """What this rank writes in this attempt; ``note`` is printed with its first checkpoint, and the energy that
    ``meter`` counts stands in its metric lines: that of its host, so one rank of each has it."""
    notes = [note] if note else []

    def save_checkpoint(state: StateDict, meta: Mapping[str, Any], best: bool) -> None:
        _refuse_superseded(run, attempt)
        path = checkpoint.save(run, meta["updates"], replay_files.sized(run, state), meta)
        while notes:
            print(f"warning: {notes.pop()}", flush=True)
        if best and any(state.get("stores", [])):  # replays are large, and no policy plays by them
            best_state = {name: x for name, x in state.items() if name != "stores"}
            checkpoint.save_best(run, best_state, meta, meta["score"])
        elif best:
            checkpoint.mark_best(run, path, meta["score"])
        checkpoint.prune(run, job.checkpoint.keep)
        replay_files.prune(run)
        run.write_state(state="running", env_steps=meta["env_steps"], updates=meta["updates"], attempt=attempt)

    def save_best(state: StateDict, meta: Mapping[str, Any]) -> None:
        _refuse_superseded(run, attempt)
        checkpoint.save_best(run, state, meta, meta["score"])

    def write_summary(summary: dict[str, Any]) -> None:
        usage.end(run, attempt, summary.get("cpu_s", {}), summary.get("peak_rss_bytes", {}))
        figures = efficiency.of(run)
        write_json(run.summary_file, {**summary, "efficiency": figures} if figures else summary)
        state = summary["reason"].split(":", maxsplit=1)[0]
        run.write_state(state=state, **{name: summary[name] for name in ("reason", "env_steps", "updates", "attempt")})

    def metrics(begin: int) -> MetricsWriter:
        if rank_spec.rank == 0 and rank_spec.name in CHIEFS:  # not from the thread of inference beside a learner
            usage.ready(run, attempt)
        writer = Metrics(run.metrics, rank_spec.name, rank_spec.rank == 0, attempt, begin)

        def write(step: int, values: Mapping[str, float]) -> None:
            writer.write(step, {**values, **(meter.figures() if meter else {})})

        return MetricsWriter(job.output.metrics_s, write, writer.close)

    return RunFiles(
        save_checkpoint=save_checkpoint,
        save_best=save_best,
        replay_written=lambda state: replay_files.written(run, state, job.resources.deadline_s),
        best_score=lambda: checkpoint.best_score(run),
        write_summary=write_summary,
        metrics=metrics,
        segments=lambda schema, columns, name: _segments(
            run.trajectories / f"a{attempt}-{name}", job, spec, attempt, schema, columns
        ),
    )


def recorded_columns(columns: Array, total: int, fraction: float) -> Array:
    """[b] bool: which ``columns`` belong to the recorded fraction of all; the same whatever rank holds them."""
    all_columns = np.floor((np.arange(total) + 1) * fraction) > np.floor(np.arange(total) * fraction)
    mask: Array = all_columns[columns]
    return mask


def _segments(folder: Path, job: Job, spec: Spec, attempt: int, schema: Schema, columns: Array) -> SegmentWriter:
    output = job.output
    recorder = Recorder(
        folder,
        schema,
        spec,
        columns,
        recorded_columns(columns, job.environment.columns, output.record),
        attempt,
        output.segment_bytes,
        output.segment_s,
        output.compression,
        {"job": job.name, "environment": job.environment.id, "seed": job.seed},
    )
    return SegmentWriter(
        recorder.write, recorder.roll, recorder.close, lambda: recorder.closed, lambda: recorder.bytes_written
    )


def _refuse_superseded(run: RunDir, attempt: int) -> None:
    """Raise Superseded where the run is no longer this attempt's."""
    if (newest := run.read_state()["attempt"]) > attempt:
        raise Superseded(f"attempt {newest} of {run.path} has begun; attempt {attempt} writes no more")
