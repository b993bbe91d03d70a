"""The programs of `analysis/`: how one runs by itself, and how a report runs them all."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from hpc_rl.analysis import figures
from hpc_rl.analysis.clusters import Where, computing, recorded_bytes
from hpc_rl.analysis.runs import RecordedRun, open_runs, without
from hpc_rl.analysis.sections import Analyze, NotRecorded, Section
from hpc_rl.storage.run_dir import write_text
from hpc_rl.storage.segments import BadSegment

ORDER = (
    "learning_curve",
    "comparison",
    "cost",
    "lag",
    "vtrace",
    "replay",
    "throughput",
    "actions",
    "returns",
    "coverage",
    "bonuses",
    "goals",
    "options",
    "forecasts",
    "matches",
    "episode_films",
)  # fmt: skip
"""Programs whose ``analyze`` a report runs, in this order."""
ROWS = 40  # of a table on a terminal; its CSV has all
MOST_DAMAGED = 8  # segments in one analysis, after which the disk is to be doubted


def load(name: str) -> Analyze:
    """``analyze`` of a program of `analysis/`, in whose file everything else of it is."""
    module = importlib.import_module(f"hpc_rl.analysis.pages.{name}")
    analyze: Analyze = module.analyze
    return analyze


def main(
    analyze: Callable[..., Section],
    text: str,
    numbers: Mapping[str, str] | None = None,
    arguments: Sequence[str] | None = None,
) -> None:
    """A program's command line: RUN… [--out DIR]; its files are NAME.json, and a PNG or CSV for each picture or table.

    ``numbers`` are further keywords of ``analyze``, with their help; left out, they keep their defaults. Errors of this
    package become one sentence and exit code 1.
    """
    name = Path(sys.argv[0]).stem
    parser = argparse.ArgumentParser(description=text.splitlines()[0], epilog="\n".join(text.splitlines()[1:]))
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run directory")
    parser.add_argument("--out", type=Path, default=Path("."), help="folder for PNG, CSV and JSON [.]")
    parser.add_argument("--scheduler", default="", help="address or file of a Dask scheduler [this machine]")
    for key, help in (numbers or {}).items():
        parser.add_argument(f"--{key}", type=float, default=argparse.SUPPRESS, help=help)
    options = parser.parse_args(arguments)
    more = {key: getattr(options, key) for key in numbers or {} if hasattr(options, key)}
    try:
        with computing(Where(options.scheduler), recorded_bytes(options.runs)):
            runs = open_runs(options.runs)
            section, runs = analyzed(partial(analyze, **more), runs)
        write(section, name, options.out)
    except Exception as error:
        if not type(error).__module__.startswith("hpc_rl."):  # this package's are sentences for the user
            raise
        sys.exit(f"error: {error}")
    remarks(runs)
    with contextlib.suppress(BrokenPipeError):  # of `| head`
        print("\n".join([section.title, *section.findings]))
        for table in section.tables.values():
            print(table.to_string(index=False, max_rows=ROWS), flush=True)


def analyzed(analyze: Analyze, runs: Sequence[RecordedRun]) -> tuple[Section, tuple[RecordedRun, ...]]:
    """The section, and the runs without segments that turned out to be damaged while they were read.

    Raises:
        NotRecorded, BadRun: the program does not apply to these runs.
        BadSegment: more than `MOST_DAMAGED` segments are damaged.
    """
    runs = tuple(runs)
    for _ in range(MOST_DAMAGED):
        try:
            return analyze(runs), runs
        except BadSegment as error:
            if error.path is None:
                raise
            runs = tuple(without(run, error.path, str(error)) for run in runs)
        except NotRecorded as error:  # perhaps because its segments could not be read
            skipped = [sentence for run in runs for sentence in run.skipped][:MOST_DAMAGED]
            raise NotRecorded("; ".join([str(error), *skipped])) from None
    return analyze(runs), runs


def remarks(runs: Sequence[RecordedRun]) -> None:
    """Say on stderr what of the runs could not be read and what is not there."""
    for run in runs:
        for sentence in sentences(run):
            print(f"warning: {sentence}", file=sys.stderr)


def sentences(run: RecordedRun) -> list[str]:
    """What of a run could not be read, and what is not there."""
    return [*run.skipped, *(f"{run.path}: {gap}" for gap in run.missing)]


def write(section: Section, name: str, folder: Path) -> list[Path]:
    """Write NAME.json, and a PNG and a CSV for each picture and table; their paths. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{name}.json"]
    write_text(files[0], json.dumps(as_json(section), indent=1))
    for stem, draw in section.pictures.items():
        files.append(folder / f"{stem}.png")
        figures.save(draw, files[-1])
    for stem, film in section.films.items():
        files.append(folder / f"{stem}.gif")
        files[-1].write_bytes(film)
    for stem, table in section.tables.items():
        files.append(folder / f"{stem}.csv")
        write_text(files[-1], table.to_csv(index=False))
    return files


def as_json(section: Section) -> dict[str, Any]:
    """Title, findings, how, and each table as a list of rows; what is not finite is null."""
    tables = {stem: json.loads(table.to_json(orient="records")) for stem, table in section.tables.items()}
    return {"title": section.title, "findings": list(section.findings), "how": section.how, "tables": tables}
