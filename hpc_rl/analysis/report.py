"""One HTML page about runs: of each program of `analysis/` what it found, its pictures and tables, and how."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

import hpc_rl
from hpc_rl.analysis import figures, programs
from hpc_rl.analysis.runs import RecordedRun
from hpc_rl.analysis.sections import Draw, NotRecorded, Section
from hpc_rl.storage.run_dir import BadRun, RunDir, write_text
from hpc_rl.storage.segments import BadSegment

MOST_ROWS = 24  # of a table on the page; its CSV has all
_TEMPLATE = Path(__file__).with_name("report.html.j2")


@dataclass(frozen=True)
class Report:
    """``sections`` by the name of their program, and a sentence for each program that had nothing to work on."""

    runs: tuple[RecordedRun, ...]
    sections: Mapping[str, Section]
    absent: Mapping[str, str] = field(default_factory=dict)


def make(runs: Sequence[RecordedRun], begin: Callable[[str, int, int], None] = lambda name, k, n: None) -> Report:
    """Run every program that applies; ``begin`` is told each one's name, its place and how many there are.

    Raises:
        NotRecorded: no program found anything; the message says what is missing.
    """
    runs, sections, absent = tuple(runs), {}, {}
    for k, name in enumerate(programs.ORDER):
        begin(name, k, len(programs.ORDER))
        try:
            sections[name], runs = programs.analyzed(programs.load(name), runs)
        except (NotRecorded, BadRun, BadSegment) as error:
            absent[name] = str(error)
    if not sections:
        raise NotRecorded(next(iter(absent.values())))
    return Report(runs, sections, absent)


def write(report: Report, folder: Path) -> Path:
    """Write index.html, and every section's JSON, PNG and CSV files beside it; the path of the page. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, section in report.sections.items():
        programs.write(section, name, folder)
    page = folder / "index.html"
    write_text(page, html(report))
    return page


def html(report: Report) -> str:
    """The page: self-contained, without scripts, light or dark as the reader's system is."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "caption": caption,
        "rows": _rows,
        "picture": _picture,
        "embedded": _embedded,
        "cell": _cell,
    }
    return environment.from_string(_TEMPLATE.read_text()).render(
        title=", ".join(run.name for run in report.runs[:4]) + (" …" if len(report.runs) > 4 else ""),
        made=time.strftime("%Y-%m-%d %H:%M"),
        version=hpc_rl.__version__,
        runs=[_facts(run) for run in report.runs],
        remarks=[line for run in report.runs for line in programs.sentences(run)],
        sections=report.sections,
        absent=report.absent,
        most_rows=MOST_ROWS,
    )


def caption(stem: str) -> str:
    """Of a picture or table, from the stem of its file."""
    return stem.replace("_", " ").capitalize()


def _facts(run: RecordedRun) -> dict[str, Any]:
    state = RunDir(run.path).read_state()
    moves = sum(segment.moves * len(segment.columns) for segment in run.segments)
    job = run.job
    return {
        "run": run.name,
        "method": f"{job.algorithm} on {job.topology}",
        "environment": job.environment.id,
        "seed": job.seed,
        "state": run.state,
        "env_steps": state["env_steps"],
        "attempts": state["attempt"] + 1,
        "recorded": moves,
        "segments": len(run.segments),
        "reason": state["reason"],
    }


def _rows(table: pd.DataFrame) -> list[list[str]]:
    return [[_cell(value) for value in row] for row in table.head(MOST_ROWS).itertuples(index=False)]


def _cell(value: Any) -> str:
    """A table's cell: whole numbers with separators, others with four figures, nothing for what is not known."""
    if isinstance(value, str | bool):
        return str(value)
    if pd.isna(value):
        return "–"
    number = float(value)
    return f"{number:,.0f}" if number.is_integer() or abs(number) >= 10_000 else f"{number:.4g}"


def _picture(draw: Draw) -> dict[str, str]:
    """Theme -> the picture as text for the page."""
    return {theme: _embedded(figures.png(draw, theme)) for theme in ("light", "dark")}


def _embedded(data: bytes) -> str:
    return base64.b64encode(data).decode()


@contextmanager
def bar(total: int) -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on stderr for `make`; nothing where that is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description:<16}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    shown = Progress(*columns, TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal)
    with shown as on:
        task = on.add_task("", total=total)

        def begin(name: str, k: int, n: int) -> None:
            on.update(task, description=name, completed=k)

        yield begin
