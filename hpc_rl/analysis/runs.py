"""Runs as an analysis sees them: what can be read, what is torn or missing, and which moves count."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import dask

from hpc_rl import job as jobs
from hpc_rl.config import BadJob
from hpc_rl.settings import Job
from hpc_rl.storage import recorded
from hpc_rl.storage.metrics import CHIEFS
from hpc_rl.storage.run_dir import BadRun, RunDir, open_run
from hpc_rl.storage.segments import BadSegment, Limits, Segment, kept_from, segments
from hpc_rl.storage.specs import spec_of

_TOGETHER = 64  # segments that one task describes


@dataclass(frozen=True, eq=False)  # what was read of one is kept beside it, see `episodes.table`
class RecordedRun:
    """What is on disk of one run. Only closed segments are seen, so that a run may still be going on.

    ``skipped`` says in a sentence each what could not be read, ``missing`` which moves nobody recorded though moves
    before and after them are there; the rest is analysed.
    """

    path: Path
    name: str  # unique among the runs opened together
    job: Job
    state: str  # pending, running, stopped, done or failed
    segments: tuple[Segment, ...]
    limits: Limits
    skipped: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def columns(self) -> list[int]:
        """The recorded columns; with output.record < 1 not all of the job's."""
        return sorted({column for segment in self.segments for column in segment.columns.tolist()})

    @property
    def chief(self) -> Path | None:
        """The metrics of rank 0, if it has written any."""
        files = [self.path / "metrics" / f"{name}.jsonl" for name in CHIEFS]
        return next((file for file in files if file.is_file()), None)


def open_runs(paths: Iterable[str | Path]) -> tuple[RecordedRun, ...]:
    """The runs in these folders, with the headers of all their closed segments read (by Dask's current scheduler).

    Raises:
        BadRun: a folder holds no run, or its state cannot be read. BadJob: its job.toml cannot be read.
    """
    folders = [open_run(Path(path)).path for path in paths]
    if not folders:
        raise BadRun("there is no run to analyse; name the folder of one")
    files = [segments(folder) for folder in folders]
    groups = [[own[k : k + _TOGETHER] for k in range(0, len(own), _TOGETHER)] for own in files]
    results = dask.compute([[dask.delayed(recorded.described)(group) for group in own] for own in groups])[0]
    names = _names(folders)
    return tuple(
        _run(folder, name, [entry for group in own for entry in group])
        for folder, name, own in zip(folders, names, results, strict=True)
    )


def _run(folder: Path, name: str, entries: Sequence[Segment | str]) -> RecordedRun:
    whole = tuple(entry for entry in entries if isinstance(entry, Segment))
    skipped = tuple(entry for entry in entries if isinstance(entry, str))
    limits = kept_from(folder, whole)
    try:
        job = jobs.load(folder / "job.toml")
    except BadJob as error:
        raise BadJob(f"{folder / 'job.toml'}: {error}") from None
    state = RunDir(folder).read_state()["state"]
    return RecordedRun(folder, name, job, state, whole, limits, skipped, tuple(missing(whole, limits)))


def without(run: RecordedRun, path: Path, sentence: str) -> RecordedRun:
    """The run without one segment, whose ``sentence`` joins those of what was skipped."""
    whole = tuple(segment for segment in run.segments if segment.path != path)
    if len(whole) == len(run.segments):
        return run
    gaps = tuple(missing(whole, run.limits))
    return replace(run, segments=whole, skipped=(*run.skipped, sentence), missing=gaps)


def action_repeat(run: RecordedRun) -> int:
    """Frames of one env step, as the first segment says; 1 where it does not."""
    with contextlib.suppress(BadSegment):
        return spec_of(run.segments[0].path).action_repeat if run.segments else 1
    return 1


def missing(whole: Sequence[Segment], limits: Limits) -> list[str]:
    """A sentence for each stretch of env steps that no segment holds though a later move of the column is there."""
    stretches: dict[int, list[tuple[int, int, Segment]]] = {}
    for segment in whole:
        spans = (segment.columns.tolist(), segment.start.tolist(), segment.stop.tolist())
        for column, start, stop in zip(*spans, strict=True):
            kept_stop = min(stop, limits.get((segment.attempt, column), stop))
            if start < kept_stop:
                stretches.setdefault(column, []).append((start, kept_stop, segment))
    gaps: dict[tuple[int, int, str], list[int]] = {}
    for column, own in sorted(stretches.items()):
        reached = 0
        for start, stop, segment in sorted(own, key=lambda stretch: stretch[:2]):
            if start > reached:
                where = f"{segment.path.parent.name}/{segment.path.name}"
                gaps.setdefault((reached, start, where), []).append(column)
            reached = max(reached, stop)
    return [
        f"env steps {begin:,} to {end - 1:,} of {_listed(columns)}, before {where}, are in no segment"
        for (begin, end, where), columns in gaps.items()
    ]


def _listed(columns: Sequence[int]) -> str:
    few = ", ".join(map(str, columns[:8])) + (", …" if len(columns) > 8 else "")
    return f"column {few}" if len(columns) == 1 else f"{len(columns)} columns ({few})"


def _names(folders: Sequence[Path]) -> list[str]:
    """The folder's own name, or as much of its path as distinguishes it from the others."""
    resolved = [folder.resolve() for folder in folders]
    if len(set(resolved)) < len(resolved):
        double = next(folder for folder in folders if resolved.count(folder.resolve()) > 1)
        raise BadRun(f"{double} is named twice; name each run once")
    for parts in range(1, max(len(folder.parts) for folder in resolved) + 1):
        names = ["/".join(folder.parts[-parts:]) for folder in resolved]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in resolved]
