"""TOML text of tables, and ``key=value`` changes of them. (Reading is `hpc_rl.storage.untrusted.parse_toml`.)"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from hpc_rl.config import BadJob
from hpc_rl.storage.untrusted import MOST_LEVELS, Unreadable, parse_toml

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def dumps(head: Mapping[str, object], tables: Mapping[str, Mapping[str, object]]) -> str:
    """A document: the keys of ``head``, then one section for each of ``tables``. None is left out."""
    lines = [f"{_key(name)} = {value_text(value)}" for name, value in head.items()]
    for section, table in tables.items():
        lines += ["", f"[{_key(section)}]"]
        lines += [f"{_key(name)} = {value_text(value)}" for name, value in table.items() if value is not None]
    return "\n".join(lines) + "\n"


def override(table: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """The table with each dotted ``key=value`` set; the value is TOML, or a bare string. Raises BadJob."""
    table = copy.deepcopy(table)
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals:
            raise BadJob(f"--set {item!r} has no '='; write --set key=value")
        last, *parents = reversed(key.strip().split("."))
        if len(parents) >= MOST_LEVELS:
            raise BadJob(f"--set {item[:80]!r}…: the key has more than {MOST_LEVELS} parts; write fewer")
        inner = table
        for name in reversed(parents):
            inner = inner.setdefault(name, {})
            if not isinstance(inner, dict):
                raise BadJob(f"--set {item!r}: {name} is a value, not a table")
        inner[last] = _parsed(text)
    return table


def _parsed(text: str) -> object:
    try:
        return parse_toml(f"v = {text}")["v"]
    except Unreadable:
        return text


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else value_text(name)


def value_text(value: object) -> str:
    """Of a number, text, truth value, list or table, which stands on one line. A float is written to the last bit."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(value_text, value)) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(name)} = {value_text(x)}" for name, x in value.items()) + "}"
    return repr(value)
