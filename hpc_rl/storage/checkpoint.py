"""Checkpoints: nested states as HDF5, numbers and JSON text only (a stranger's checkpoint must not run code).

One dataset per array under "arrays/", one JSON text for everything else (`storage.states`). Each carries a CRC-32, and
HDF5 checks its own metadata, so a torn file is noticed and never loaded. There are no strings of variable length in the
file: HDF5 keeps them without a checksum, and a torn one makes it loop forever.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpc_rl.devices import to_device
from hpc_rl.storage.datasets import RATIO, Absent, Source, reading
from hpc_rl.storage.h5 import compressed, create_h5, discard, finish, remedy
from hpc_rl.storage.run_dir import RunDir, publish, write_json
from hpc_rl.storage.states import Arrays, decode, each_once, encode, refuse_hidden, refuse_non_finite
from hpc_rl.storage.untrusted import Unreadable, read_json
from hpc_rl.types import Array

if TYPE_CHECKING:
    from hpc_rl.optim.flat import StateDict

FORMAT = 4  # 1 had the parameters inside the learner's state, 2 replays without priorities, 3 replays inside
BEST = "best.h5"
_JSON = "json"
_BIG_BYTES = 1 << 20  # arrays above this are compressed if they hold bytes (replayed pixels); weights do not compress
_TORN = ".torn"  # suffix of a damaged file that a resumed run has passed over


class SaveFailed(RuntimeError):
    """The checkpoint could not be written; older ones are untouched."""


class CorruptCheckpoint(ValueError):
    """The file is incomplete or damaged."""


class NoUsableCheckpoint(RuntimeError):
    """There are checkpoints and none can be read."""


class IncompatibleCheckpoint(ValueError):
    """An intact checkpoint belongs to another job or another version."""


def save(run: RunDir, number: int, state: StateDict, meta: Mapping[str, Any]) -> Path:
    """Write checkpoints/<number>.h5: complete under its name, or not there at all.

    ``state`` and ``meta`` are nested dicts and lists of tensors, arrays, numbers, strings and None; tuples return as
    lists, keys must be strings. The state of samplers and what `states._MAY_BE_NAN` names may hold NaN and infinity:
    one infinite reward in flight must not cost a checkpoint of weights that are good.

    Raises:
        NonFinite: any other array holds NaN or infinity; names its key.
        TypeError: a leaf is something else; names its key.
        SaveFailed: the disk is full or cannot be written.
    """
    path = run.checkpoints / f"{number:09d}.h5"
    write(path, state, meta)
    return path


def save_best(run: RunDir, state: StateDict, meta: Mapping[str, Any], score: float) -> Path:
    """Write checkpoints/best.h5, as `save` does, and note its score in best.json. Raises as `save`."""
    path = run.checkpoints / BEST
    write(path, state, meta)
    write_json(run.checkpoints / "best.json", {"file": path.name, "score": score})
    return path


def write(path: Path, state: StateDict, meta: Mapping[str, Any]) -> None:
    """Write a file of this format, as `save` does. Raises as it."""
    arrays: Arrays = {}
    tree = {"state": encode(state, "state", arrays), "meta": encode(meta, "meta", arrays)}
    refuse_non_finite(arrays)
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(exist_ok=True)
        _write(temporary, json.dumps(tree), arrays)
        _verify(temporary, arrays)
        publish(temporary, path)
    except (OSError, RuntimeError, CorruptCheckpoint, Unreadable) as error:
        temporary.unlink(missing_ok=True)
        raise SaveFailed(f"{path} cannot be written ({error}); {remedy(error)}, then resume the run") from error


def load(path: Path) -> tuple[StateDict, dict[str, Any]]:
    """(state, meta) with every array as a torch tensor in memory.

    Raises:
        CorruptCheckpoint: a checksum does not match, or the file is incomplete.
        IncompatibleCheckpoint: it was written by a version with another format.
    """
    try:
        with reading(path) as source:
            text, version = _checked(source, _JSON), source.number("format")
            if version != FORMAT:
                raise IncompatibleCheckpoint(
                    f"{path} has format {version}, this version reads {FORMAT}; use the version that wrote it"
                )
            tree = decode(json.loads(text.tobytes()), each_once(lambda key: _as_tensor(source, key)))
            for part in ("state", "meta"):
                refuse_hidden(tree[part], part)
            return dict(tree["state"]), dict(tree["meta"])
    except (FileNotFoundError, Unreadable, Absent) as error:
        raise CorruptCheckpoint(f"{path} is torn: {error}") from error


def text(path: Path) -> bytes:
    """The JSON text of a checkpoint. Raises CorruptCheckpoint, FileNotFoundError, Unreadable, Absent."""
    with reading(path) as source:
        return _checked(source, _JSON).tobytes()


def newest(
    run: RunDir,
    warn: Callable[[str], None],
    set_aside: bool = False,
    check: Callable[[StateDict, Mapping[str, Any]], None] = lambda state, meta: None,
) -> tuple[Path, StateDict, dict[str, Any]] | None:
    """The newest checkpoint that can be read, with its state and meta; None where none was ever written.

    ``set_aside``: torn ones that are newer get the suffix .torn, for a run that goes on from an older one counts its
    updates from there, and `prune` must not take a torn file with a higher number for the newest.

    ``check`` looks at what was read, and raises CorruptCheckpoint where the run could not go on with it.

    Raises:
        NoUsableCheckpoint: there are some and all are torn.
        IncompatibleCheckpoint: the newest intact one has another format, or is of another job.
    """
    paths, torn, newest_error = numbered(run), list[Path](), ""
    for path in reversed(paths):
        try:
            state, meta = examined(path, check)
        except CorruptCheckpoint as error:
            warn(f"{error}; falling back to the checkpoint before it")
            torn.append(path)
            newest_error = newest_error or str(error)
            continue
        for damaged in torn if set_aside else ():
            damaged.replace(damaged.with_name(damaged.name + _TORN))
        return path, state, meta
    if not paths:
        return None
    raise NoUsableCheckpoint(
        f"none of the {len(paths)} checkpoints in {run.checkpoints} can be read, and a run never starts afresh"
        " by itself; copy one back from a backup (or best.h5 under a number), or start a new run with another --out; "
        f"of the newest: {newest_error}"
    )


def examined(path: Path, check: Callable[[StateDict, Mapping[str, Any]], None]) -> tuple[StateDict, dict[str, Any]]:
    """`load`, then ``check``; what that refuses is a CorruptCheckpoint that names the file.

    Raises CorruptCheckpoint, IncompatibleCheckpoint.
    """
    state, meta = load(path)
    try:
        check(state, meta)
    except CorruptCheckpoint as error:
        raise CorruptCheckpoint(f"{path} cannot be resumed from: {error}") from error
    return state, meta


def prune(run: RunDir, keep: int, best: Path | None = None) -> None:
    """Remove all numbered checkpoints but the last ``keep`` >= 1 and ``best``, and what interrupted writes left.

    A torn one that was set aside stays until ``keep`` good ones with higher numbers exist.
    """
    if keep < 1:
        raise ValueError(f"keep = {keep} would remove every checkpoint; keep at least 1")
    paths = numbered(run)
    oldest = int(paths[-keep:][0].stem) if len(paths) >= keep else 0
    aside = [path for path in run.checkpoints.glob(f"*.h5{_TORN}") if re.match(r"[0-9]+\.", path.name)]
    aside_passed = [path for path in aside if int(path.name.split(".")[0]) < oldest]
    for path in [*paths[:-keep], *aside_passed, *run.checkpoints.glob("[0-9]*.h5.tmp")]:
        if best is None or path.name != best.name:
            path.unlink(missing_ok=True)


def mark_best(run: RunDir, path: Path, score: float) -> Path:
    """Make ``path`` checkpoints/best.h5 (a hard link where possible) and note its name and score in best.json."""
    best, temporary = run.checkpoints / BEST, run.checkpoints / f"{BEST}.tmp"
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:
        shutil.copyfile(path, temporary)
    publish(temporary, best)
    write_json(run.checkpoints / "best.json", {"file": path.name, "score": score})
    return best


def best_score(run: RunDir) -> float:
    """Score of checkpoints/best.h5; -inf where there is none, or no note of its score that can be read."""
    if not (run.checkpoints / BEST).is_file():
        return -math.inf
    try:
        return float(read_json(run.checkpoints / "best.json", {"score": float}, required=("score",))["score"])
    except (FileNotFoundError, Unreadable):
        return -math.inf


def check_compatible(expected: Mapping[str, Any], meta: Mapping[str, Any], prefix: str = "") -> None:
    """Compare what the job needs (shapes, environment, …) with the checkpoint's meta.

    Raises:
        IncompatibleCheckpoint: names the first key that differs, with both values.
    """
    for key in [*expected, *(key for key in meta if key not in expected)]:
        job_value, checkpoint_value = _comparable(expected.get(key, "absent")), _comparable(meta.get(key, "absent"))
        if isinstance(job_value, dict) and isinstance(checkpoint_value, dict):
            check_compatible(job_value, checkpoint_value, f"{prefix}{key}.")
        elif job_value != checkpoint_value:
            raise IncompatibleCheckpoint(
                f"the checkpoint does not fit this job: {prefix}{key} is {checkpoint_value!r} in the checkpoint and "
                f"{job_value!r} in the job; resume with the job that wrote it, or start a new run with another --out"
            )


def numbered(run: RunDir) -> list[Path]:
    """The checkpoints of a run but the best and those set aside, the oldest first."""
    return sorted(
        (path for path in run.checkpoints.glob("*.h5") if re.fullmatch("[0-9]+", path.stem)), key=lambda x: int(x.stem)
    )


def _comparable(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _write(temporary: Path, text: str, arrays: Arrays) -> None:
    file, sink = create_h5(temporary)
    try:
        file.attrs["format"] = FORMAT
        _store(file, _JSON, np.frombuffer(text.encode(), np.uint8))
        for key, (array, _) in arrays.items():
            _store(file, f"arrays/{key}", array)
            sink.check()
        finish(file, sink)
    except BaseException:
        discard(file, sink, temporary)
        raise


def _verify(path: Path, arrays: Arrays) -> None:
    """Read every dataset back, one at a time: replay contents would not fit into memory twice."""
    with reading(path) as source:
        for name in (_JSON, *(f"arrays/{key}" for key in arrays)):
            _checked(source, name)


def _store(file: Any, name: str, array: Array) -> None:
    options: dict[str, Any] = {}
    if array.dtype == np.uint8 and array.nbytes > _BIG_BYTES:
        rows = max(1, _BIG_BYTES // max(array[0].nbytes, 1))
        options = {"chunks": (min(rows, len(array)), *array.shape[1:]), **compressed("zstd", 1)}
    data = file.create_dataset(name, data=array, **options)
    data.id.flush()  # before that chunks wait uncompressed
    if options and array.nbytes > RATIO * data.id.get_storage_size():  # a reader would not believe it
        del file[name]
        data = file.create_dataset(name, data=array, **options | compressed("gzip", 1))
    data.attrs["crc32"] = _crc(array)


def _checked(source: Source, name: str) -> Array:
    array = source.read(name)
    if _crc(array) != source.number("crc32", name):
        raise CorruptCheckpoint(f"{source.path} is torn: the checksum of {name.removeprefix('arrays/')} does not match")
    return array


def _crc(array: Array) -> int:
    return zlib.crc32(array.reshape(-1).view(np.uint8).data) if array.size else 0


def _as_tensor(source: Source, key: str) -> Any:
    return to_device(_checked(source, f"arrays/{key}"), "cpu")
