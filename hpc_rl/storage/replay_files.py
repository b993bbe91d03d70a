"""checkpoints/replay/: the rows of replays, and what is known of their items, each in a file that is written once.

A numbered checkpoint names the files that it needs, with their sizes. Those that no checkpoint names any more are
removed. Format and checksums are those of checkpoints.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from hpc_rl.optim.flat import StateDict
from hpc_rl.patience import Patience
from hpc_rl.storage import checkpoint
from hpc_rl.storage.checkpoint import CorruptCheckpoint, SaveFailed
from hpc_rl.storage.datasets import Absent
from hpc_rl.storage.run_dir import RunDir
from hpc_rl.storage.untrusted import Unreadable

POLL_S = 0.05  # between two looks for files of other ranks
WITHOUT = "checkpoint.replay = false goes on without the replay"
_NAME = re.compile(r"a[0-9]+-c[0-9]+-(?:[0-9]+-[0-9]+|s[0-9]+)\.h5")


def folder(run: RunDir) -> Path:
    return run.checkpoints / "replay"


def write(run: RunDir, name: str, state: StateDict) -> None:
    """Write one file: complete under its name, or not there at all. Raises SaveFailed, NonFinite."""
    checkpoint.write(folder(run) / name, state, {})


def read(run: RunDir, name: str) -> StateDict:
    """What `write` wrote, arrays as tensors. Raises CorruptCheckpoint: the file is torn, or none of a replay."""
    try:
        return checkpoint.load(_path(run, name))[0]
    except CorruptCheckpoint as error:
        raise CorruptCheckpoint(
            f"{error}; resume from an older checkpoint by removing those that name this file, or {WITHOUT}"
        ) from error


def names(state: Mapping[str, Any]) -> list[str]:
    """The files that a checkpoint's state names. Raises CorruptCheckpoint where they are not named as they should."""
    try:
        parts = [part for part in state.get("stores", []) if "file" in part]
        files = [name for part in parts for name in (*(piece["name"] for piece in part.get("rows", ())), part["file"])]
    except (KeyError, TypeError, AttributeError) as error:
        raise CorruptCheckpoint(f"the files of its replay are not named ({error!r})") from error
    if bad := [name for name in files if not (isinstance(name, str) and _NAME.fullmatch(name))]:
        raise CorruptCheckpoint(f"{bad[0]!r} is no file of a replay")
    return files


def written(run: RunDir, state: Mapping[str, Any], limit_s: float) -> Callable[[], bool]:
    """A function that tells whether the files that a state names are there; it looks every `POLL_S`.

    Where the rank that holds a part has told nothing but the name of its file, those that this one names are, too. It
    raises SaveFailed once none has come for ``limit_s``.
    """
    left, patience, last = names(state), Patience(limit_s), 0.0
    unnamed = [part for part in state.get("stores", []) if left and "file" in part and "rows" not in part]

    def complete() -> bool:
        nonlocal left, last
        if left and (now := time.monotonic()) - last >= POLL_S:
            last = now
            while left and _path(run, left[0]).exists():
                left.pop(0)
                patience.restart()
            while not left and unnamed:
                left = names({"stores": [_with_rows(run, unnamed.pop())]})
            if left and patience.over():
                raise SaveFailed(
                    f"waited {limit_s:.0f} s for {_path(run, left[0])}; look whether the rank that holds this part of "
                    "the replay is alive and its disk at work, then resume the run"
                )
        return not left

    return complete


def sized(run: RunDir, state: StateDict) -> StateDict:
    """The state with the names of all files and their sizes. Raises SaveFailed where one is missing."""
    if not names(state):
        return state
    try:
        stores = [_sized(run, _with_rows(run, part)) if "file" in part else part for part in state["stores"]]
    except OSError as error:
        raise SaveFailed(f"{error.filename} is gone; resume the run") from error
    return {**state, "stores": stores}


def check(run: RunDir, state: Mapping[str, Any]) -> None:
    """Raise CorruptCheckpoint where a file that a checkpoint's state names is missing or has another size."""
    sizes: dict[str, Any] = {}
    for part in state.get("stores", []) if (files := names(state)) else []:
        sizes |= part["bytes"] if isinstance(part.get("bytes"), dict) else {}
    for name in files:
        path = folder(run) / name
        there = path.stat().st_size if path.is_file() else None
        if there is None or there != sizes.get(name):
            fault = "is missing" if there is None else f"has {there} bytes of {sizes.get(name)}"
            raise CorruptCheckpoint(f"{path} {fault} ({WITHOUT})")


def prune(run: RunDir) -> None:
    """Remove the files that no numbered checkpoint names, and what interrupted writes left.

    None is removed while one of the checkpoints cannot be read.
    """
    files = [path for path in folder(run).glob("a*.h5*") if _NAME.fullmatch(path.name.removesuffix(".tmp"))]
    if not files:
        return
    with suppress(FileNotFoundError, Unreadable, Absent, CorruptCheckpoint):
        kept = {name for path in checkpoint.numbered(run) for name in _named(path)}
        for path in files:
            if path.name not in kept:
                path.unlink(missing_ok=True)


def room(run: RunDir, count: int) -> str:
    """A sentence where the disk has less free space than ``count`` bytes of rows take, else ""."""
    free = shutil.disk_usage(run.checkpoints).free
    if count <= free:
        return ""
    return (
        f"the replay will take about {count / 1e9:.3g} GB in checkpoints, and {run.checkpoints} has "
        f"{free / 1e9:.3g} GB free; free space, choose another --out, or set checkpoint.replay = false"
    )


def _path(run: RunDir, name: str) -> Path:
    """Where a file lies that a checkpoint names. Raises CorruptCheckpoint where it might lie elsewhere."""
    if not _NAME.fullmatch(name):
        raise CorruptCheckpoint(f"{name!r} is no file of a replay")
    return folder(run) / name


def _named(path: Path) -> list[str]:
    """The files that a checkpoint names. Raises FileNotFoundError, Unreadable, Absent, CorruptCheckpoint."""
    return names(_text(path))


def _text(path: Path) -> StateDict:
    """The numbers and names of a state in a file, without its arrays. Raises as `_named` does."""
    try:
        tree = json.loads(checkpoint.text(path))
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpoint(f"{path} is torn: {error}") from error
    if not isinstance(tree, dict) or not isinstance(tree.get("state"), dict):
        raise CorruptCheckpoint(f"{path} has no state")
    state: StateDict = tree["state"]
    return state


def _with_rows(run: RunDir, part: StateDict) -> StateDict:
    """A part with the files of its rows, which the file that it names knows as well. Raises as `_named` does."""
    return part if "rows" in part else {**part, "rows": _text(_path(run, part["file"]))["pieces"]}


def _sized(run: RunDir, part: StateDict) -> StateDict:
    return {**part, "bytes": {name: _path(run, name).stat().st_size for name in names({"stores": [part]})}}
