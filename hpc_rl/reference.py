"""docs/job-file.md: every key of a job, written from the types that check it.

``python -m hpc_rl.reference docs/job-file.md`` writes the page again; a test says when it is no longer true.
"""

from __future__ import annotations

import sys
from dataclasses import MISSING, Field, fields
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

from hpc_rl import methods
from hpc_rl.checking import hints_of, word
from hpc_rl.config import Range
from hpc_rl.job import HEAD, SECTIONS, VALID_ON
from hpc_rl.settings import Job
from hpc_rl.toml import value_text

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

PAGE = """# The job file

A job is one TOML file. Keys that are left out have the defaults below; an unknown key, a value of another type or out
of range is refused in one sentence that names the nearest valid one. `hpc-rl run JOB --set KEY=VALUE` overrides a key,
like `--set budget.env_steps=50_000`; `hpc-rl show JOB` tells what becomes of a job before anything starts.
[getting-started.md](getting-started.md) begins with a job of five lines, [how-ranks-work.md](how-ranks-work.md) has the
topologies and samplers, and [methods/](methods/) a page for each method.

This page is written by `python -m hpc_rl.reference docs/job-file.md` from `hpc_rl/settings.py` and each method's
`Config`; edit those.
"""


def page() -> str:
    """The whole page."""
    parts = [PAGE, _section("Top level", Job, HEAD, "")]
    for name, kind in SECTIONS.items():
        parts.append(_section(f"[{name}]", kind, tuple(item.name for item in fields(kind)), name))
    parts.append("## Methods\n\nA job's method has a table of its own, named after it.\n")
    for name in methods.algorithms():
        kind = methods.config_class(name)
        topologies = ", ".join(f"`{x}`" for x in methods.allowed_topologies(name))
        also = f"Topologies: {topologies}. Page: [{name}](methods/{name}.md)."
        parts.append(_section(f"[{name}]", kind, tuple(hints_of(kind)), name, also, "###"))
    return "\n".join(parts)


def _section(
    title: str, kind: type[DataclassInstance], names: tuple[str, ...], section: str, also: str = "", level: str = "##"
) -> str:
    """A heading and a table with a row for each key."""
    rows = ["| key | type | default | what it is |", "|---|---|---|---|"]
    hints, items = hints_of(kind), {item.name: item for item in fields(kind)}
    for name in names:
        cells = (f"`{name}`", _type(hints[name]), _default(items[name]), _doc(hints[name], section, name))
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join([f"{level} {title}\n", *([also + "\n"] if also else []), *rows, ""])


def _parts(hint: object) -> tuple[Any, tuple[object, ...]]:
    """(type, marks) of Annotated[type, marks …], through the None of what may be left out."""
    kinds = [x for x in get_args(hint) if x is not NoneType] if NoneType in get_args(hint) else [hint]
    (kind,) = kinds
    return (get_args(kind)[0], get_args(kind)[1:]) if get_origin(kind) is Annotated else (kind, ())


def _type(hint: object) -> str:
    """In words, with range or choices: "whole number ≥ 1"."""
    kind, marks = _parts(hint)
    if get_origin(kind) is Literal:
        # Sorted: Python keeps one object for types that are equal, and Literals are equal in any order.
        return " or ".join(f'`"{choice}"`' for choice in sorted(get_args(kind)))
    if get_origin(kind) is tuple and get_origin(get_args(kind)[0]) is Annotated:
        return f"list, each a {_type(get_args(kind)[0])}"
    text = word(kind).removeprefix("a ")
    return " ".join([text, *(_range(mark) for mark in marks if isinstance(mark, Range))])


def _range(mark: Range) -> str:
    """Like "in 0..1", "≥ 1", "> 0 and ≤ 1"."""
    text = str(mark).removeprefix("lie ").removeprefix("be ").replace(">=", "≥").replace("<=", "≤")
    return text.replace(f"{2**31 - 1}", "2³¹ − 1")


def _default(item: Field[Any]) -> str:
    if item.default is MISSING:
        value = item.default_factory() if item.default_factory is not MISSING else None
    else:
        value = item.default
    return f"`{value_text(value)}`" if value is not None else "–"


def _doc(hint: object, section: str, name: str) -> str:
    """What the types say, and on which topologies another value than the default is valid."""
    _, marks = _parts(hint)
    text = "; ".join(mark for mark in marks if isinstance(mark, str))
    key = f"{section}.{name}" if section else name
    if key in VALID_ON:
        text += f" ({', '.join(f'`{x}`' for x in VALID_ON[key][1])} only)"
    return text.replace("|", "\\|").replace("<", "&lt;")  # what a table and Markdown would take for their own


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
