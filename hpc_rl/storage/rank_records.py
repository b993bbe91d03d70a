"""logs/rank-NNN.json: what every rank writes of itself, and a launcher reads when one has failed."""

from __future__ import annotations

import contextlib
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc_rl.storage.untrusted import Unreadable, created, read_json

if TYPE_CHECKING:
    from hpc_rl.storage.run_dir import RunDir

_FIELDS = {
    "role": str, "host": str, "pid": int, "token": str, "shared": list[str],
    "ended": str, "time": float, "error": str, "bug": bool, "trace": str,
}  # fmt: skip
_SEATED, _FAILED = ("pid", "role", "host", "token"), ("ended", "time", "error", "bug")  # come together


def write_record(folder: Path, rank: int, fields: dict[str, Any]) -> None:
    """Merge fields into logs/rank-NNN.json, which the launcher reads when a rank dies. Never raises for a file."""
    path = folder / "logs" / f"rank-{rank:03d}.json"
    record: dict[str, Any] = {}
    if "pid" not in fields:
        with contextlib.suppress(FileNotFoundError, Unreadable):
            record = read_json(path, {})
    with contextlib.suppress(OSError):
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_suffix(".tmp")
        with os.fdopen(created(temporary), "w") as file:
            file.write(json.dumps({**record, **fields}))
        temporary.replace(path)


def rank_records(run: RunDir) -> list[dict[str, Any]]:
    """logs/rank-NNN.json of every rank that began, by rank."""
    return [record for record in all_records(run) if "pid" in record]


def all_records(run: RunDir) -> list[dict[str, Any]]:
    """logs/rank-NNN.json of every rank that wrote one, by rank; a file that is torn or something else is left out."""
    records = []
    for path in sorted(run.logs.glob("rank-*.json")):
        number = re.fullmatch(r"rank-([0-9]{3,9})", path.stem)
        with contextlib.suppress(FileNotFoundError, Unreadable):
            record = read_json(path, _FIELDS)
            if number and _whole(record):
                records.append({**record, "rank": int(number[1])})
    return records


def _whole(record: dict[str, Any]) -> bool:
    """Of fields that come together there are all; a process number is one that a signal may be sent to."""
    seated, failed = "pid" in record, record.get("ended") == "error"
    complete = all(key in record for key in (*_SEATED * seated, *_FAILED * failed))
    return complete and (not seated or record["pid"] > 1)
