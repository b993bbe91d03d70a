"""`hpc-rl export RUN --to parquet`: metrics and episodes of a run as tables that pandas, Polars, DuckDB and R read.

metrics.parquet has a row for each metric line that counts, of every rank; episodes.parquet one for each whole episode
that counts, as `hpc_rl.analysis.episodes` has them. Each field has its unit and meaning as metadata ("unit", "doc").
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpc_rl.export.base import NotExported, new, optional
from hpc_rl.storage import metrics
from hpc_rl.storage.run_dir import RunDir, open_run
from hpc_rl.storage.untrusted import Unreadable

_WHOLE = ("step", "attempt", "attempt_from")  # metrics that are whole numbers in every line
_EPISODES = {
    "run": ("", "name of the run"),
    "column": ("", "global number of the environment column"),
    "attempt": ("", "how often the job had been started before"),
    "start": ("env step", "the column's env steps before its first move"),
    "end": ("env step", "the column's env steps after its last move"),
    "return": ("reward", "raw return"),
    "length": ("env step", "moves"),
    "success": ("", "0..1, NaN where unknown"),
    "env_steps": ("env step", "of the whole job at its end"),
    "version": ("update", "learner update of the acting weights at its end"),
    "lag": ("update", "what the learner had made beyond that by then, NaN without metrics of rank 0"),
}
_UNITS = {"step": "env step", "env_steps": "env step", "time": "unix s", "env_steps_per_s": "1/s", "updates": "update"}


@dataclass
class Exported:
    """What was written: the files with their rows, and sentences about what could not be read."""

    files: dict[Path, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


def export(folder: Path, out: Path) -> Exported:
    """Write both tables into ``out``, each where there is a row for it.

    Raises:
        NotExported: a package is missing, a target exists, or the run has neither metrics nor episodes.
        BadRun, BadJob: there is no run that can be read.
    """
    optional("pyarrow.parquet", "pyarrow")
    run, result = open_run(folder), Exported()
    targets = [out / "metrics.parquet", out / "episodes.parquet"]
    if there := next((target for target in targets if target.exists()), None):
        raise NotExported(f"{there} exists; choose another --out, or remove it")
    for target, write in zip(targets, (_metrics, _episodes), strict=True):
        with new(target, "choose another --out") as temporary:
            if rows := write(run, temporary, result.faults):
                result.files[target] = rows
    if not result.files:
        raise NotExported(f"{folder} has neither metrics nor episodes yet; export it once it has run")
    return result


def _metrics(run: RunDir, file: Path, faults: list[str]) -> int:
    """Rows written, a row group for each rank: memory holds the lines of one."""
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    paths = sorted(run.metrics.glob("*.jsonl"))
    names = _names(paths, faults)
    if not names:
        return 0
    fields = [pyarrow.field("rank", pyarrow.string(), metadata={"unit": "", "doc": "role and number"})]
    for name in names:
        kind = pyarrow.int64() if name in _WHOLE else pyarrow.float64()
        fields.append(pyarrow.field(name, kind, metadata={"unit": _unit(name), "doc": "docs/run-directory.md"}))
    count = 0
    with ParquetWriter(file, schema := pyarrow.schema(fields)) as writer:
        for path in paths:
            rows = _lines(path, [])
            columns = {name: [_number(row.get(name), name) for row in rows] for name in names}
            writer.write_table(pyarrow.table({"rank": [path.stem] * len(rows), **columns}, schema))
            count += len(rows)
    return count


def _names(paths: Iterable[Path], faults: list[str]) -> list[str]:
    """Every metric that a line has, those of all lines first."""
    found = dict.fromkeys(name for path in paths for row in _lines(path, faults) for name in row)
    head = [name for name in ("step", "time", "attempt", "attempt_from") if name in found]
    return [*head, *sorted(set(found) - set(head))]


def _lines(path: Path, faults: list[str]) -> list[dict[str, Any]]:
    try:
        return metrics.series(path)
    except (FileNotFoundError, Unreadable) as error:
        faults.append(str(error))
        return []


def _number(value: Any, name: str) -> Any:
    return None if value is None else int(value) if name in _WHOLE else float(value)


def _unit(name: str) -> str:
    if name in _UNITS:
        return _UNITS[name]
    return "byte" if name.endswith("_bytes") else "s" if name.endswith("_s") else ""


def _episodes(run: RunDir, file: Path, faults: list[str]) -> int:
    import pyarrow
    from pyarrow.parquet import write_table

    from hpc_rl.analysis import episodes, open_runs
    from hpc_rl.analysis.clusters import Where, computing, recorded_bytes

    with computing(Where(), recorded_bytes([run.path])):
        runs = open_runs([run.path])
        faults.extend([*runs[0].skipped, *runs[0].missing])
        rows = episodes(runs).compute()
    if not len(rows):
        return 0
    table = pyarrow.Table.from_pandas(rows, preserve_index=False)
    texts = {
        name: dict(zip(("unit", "doc"), _EPISODES.get(name, ("", "")), strict=True)) for name in table.column_names
    }
    fields = [item.with_metadata(texts[item.name]) for item in table.schema]
    write_table(table.cast(pyarrow.schema(fields)), file)
    return len(rows)
