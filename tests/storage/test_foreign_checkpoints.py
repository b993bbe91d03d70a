"""Checkpoints of strangers: what leads elsewhere is never opened, what declares too much takes no memory.

A pipe stands for the other file: whoever opens it to read hangs, and the alarm ends the test. Mutations seen to fail:
links followed; external storage read; a virtual dataset's extent asked for first; no comparison with the stored size;
no bound on chunks; a zstd frame's own size not looked at; an array taken twice; NaN behind a right checksum accepted.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from hpc_rl.storage import checkpoint, datasets
from hpc_rl.storage.checkpoint import CorruptCheckpoint, NoUsableCheckpoint
from hpc_rl.storage.datasets import MOST_BYTES, RATIO, reading
from hpc_rl.storage.h5 import hdf5plugin
from hpc_rl.storage.run_dir import RunDir, create
from hpc_rl.storage.untrusted import Unreadable

KEY = "arrays/state/w"
WEIGHTS = np.arange(1000, dtype=np.float32)


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    signal.alarm(20)  # its default action: HDF5 in a hang would not let a handler run
    yield
    signal.alarm(0)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return create(tmp_path / "run", "")


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "other.h5")
    return tmp_path / "other.h5"


def crc(array: Any) -> int:
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data) if array.size else 0


def text(file: Any, tree: Any) -> None:
    """Replace the JSON text, with its checksum."""
    data = np.frombuffer(tree if isinstance(tree, bytes) else json.dumps(tree).encode(), np.uint8)
    del file["json"]
    file.create_dataset("json", data=data).attrs["crc32"] = crc(data)


def refused(run: RunDir, change: Callable[[Any], None], match: str) -> None:
    """A checkpoint after ``change`` is corrupt, by itself and as the newest, and the older one is taken."""
    older = checkpoint.save(run, 1, {"w": torch.from_numpy(WEIGHTS)}, {"n": 1})
    newer = checkpoint.save(run, 2, {"w": torch.from_numpy(WEIGHTS)}, {"n": 2})
    with h5py.File(newer, "r+") as file:
        change(file)
    with pytest.raises(CorruptCheckpoint, match=match):
        checkpoint.load(newer)
    warnings: list[str] = []
    newest = checkpoint.newest(run, warnings.append)
    assert newest is not None and newest[0] == older and len(warnings) == 1 and str(newer) in warnings[0]


# --- what leads elsewhere ---


def test_external_storage(run: RunDir, pipe: Path) -> None:
    def change(file: Any) -> None:
        del file[KEY]
        data = file.create_dataset(KEY, (1000,), np.float32, external=[(str(pipe), 0, 4000)])
        data.attrs["crc32"] = crc(WEIGHTS)

    refused(run, change, "state/w lies in other files")


def test_a_secret_in_external_storage_is_not_read(run: RunDir, tmp_path: Path) -> None:
    """With the right checksum of the other file's bytes: what was seen to be trained on, and copied."""
    (tmp_path / "secret").write_bytes(WEIGHTS.tobytes())

    def change(file: Any) -> None:
        del file[KEY]
        data = file.create_dataset(KEY, (1000,), np.float32, external=[(str(tmp_path / "secret"), 0, 4000)])
        data.attrs["crc32"] = crc(WEIGHTS)

    refused(run, change, "other files")


@pytest.mark.parametrize("name", [KEY, "arrays/state", "arrays", "json"])
@pytest.mark.parametrize("kind", ["external", "soft"])
def test_links(run: RunDir, pipe: Path, name: str, kind: str) -> None:
    def change(file: Any) -> None:
        file.move(name, "moved")
        file[name] = h5py.ExternalLink(str(pipe), "/moved") if kind == "external" else h5py.SoftLink("/moved")

    refused(run, change, "is a link")


@pytest.mark.parametrize("unlimited", [False, True])
def test_virtual_datasets(run: RunDir, pipe: Path, unlimited: bool) -> None:
    def change(file: Any) -> None:
        del file[KEY]
        most = (None,) if unlimited else (1000,)
        layout = h5py.VirtualLayout((1000,), np.float32, maxshape=most)
        layout[: h5py.h5s.UNLIMITED if unlimited else 1000] = h5py.VirtualSource(
            str(pipe), "x", (1000,), np.float32, most
        )[: h5py.h5s.UNLIMITED if unlimited else 1000]
        file.create_virtual_dataset(KEY, layout).attrs["crc32"] = crc(WEIGHTS)

    refused(run, change, "lies in other files")


def test_what_is_no_array(run: RunDir) -> None:
    for make in (
        lambda file: file.create_group(KEY),
        lambda file: file.create_dataset(KEY, data="text"),
        lambda file: file.create_dataset(KEY, data=h5py.Empty("f4")),
        lambda file: file.create_dataset(KEY, data=np.array([("x", 1)], "S1,i4")),
        lambda file: file.create_dataset(KEY, (3,), h5py.ref_dtype),
        lambda file: file.create_dataset(KEY, (3,), h5py.vlen_dtype(np.int32)),
        lambda file: file.__setitem__(KEY, np.dtype("f4")),
    ):

        def change(file: Any, make: Any = make) -> None:
            del file[KEY]
            make(file)

        refused(run, change, "plain numbers|not a dataset")


# --- what declares more than there is ---


def peak_bytes(paths: list[Path]) -> int:
    """Memory that a process of its own takes to refuse these checkpoints, beside what it takes to start."""
    code = (
        "import resource, sys, torch\nfrom pathlib import Path\nfrom hpc_rl.storage import checkpoint\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\nbefore = peak()\n"
        "for path in sys.argv[1:]:\n"
        "    try: checkpoint.load(Path(path)); sys.exit(path + ' was taken')\n"
        "    except checkpoint.CorruptCheckpoint: pass\n"
        "print(peak() - before)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code, *map(str, paths)], capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    return int(process.stdout) * 1024


@pytest.mark.parametrize("count", [3 << 29, 1 << 42])
@pytest.mark.parametrize("chunks", [None, (1 << 18,), (1 << 27,)])
def test_declared_and_never_stored(run: RunDir, count: int, chunks: Any) -> None:
    def change(file: Any) -> None:
        del file[KEY]
        file.create_dataset(KEY, (count,), np.float32, chunks=chunks).attrs["crc32"] = 0

    refused(run, change, "declares")


def test_what_is_refused_takes_no_memory(run: RunDir) -> None:
    """6 GiB that were never stored, whole, in chunks and in one chunk; a frame that unpacks to 3 GiB."""
    paths = [checkpoint.save(run, number, {"w": torch.from_numpy(WEIGHTS)}, {}) for number in range(4)]
    for path, chunks in zip(paths, (None, (1 << 18,), (1 << 27,), ()), strict=True):
        with h5py.File(path, "r+") as file:
            del file[KEY]
            if chunks == ():
                _bomb(file, 3 << 30)
            else:
                file.create_dataset(KEY, (3 << 29,), np.float32, chunks=chunks).attrs["crc32"] = 0
        assert path.stat().st_size < 200_000
    assert peak_bytes(paths) < 64 << 20


def test_declared_within_the_bound_and_never_stored(run: RunDir) -> None:
    for chunks in (None, (10,)):

        def change(file: Any, chunks: Any = chunks) -> None:
            del file[KEY]
            zeros = file.create_dataset(KEY, (1000,), np.float32, chunks=chunks)
            zeros.attrs["crc32"] = crc(np.zeros(1000, np.float32))

        refused(run, change, "that the file does not hold")


def test_a_text_that_declares_too_much(run: RunDir) -> None:
    def change(file: Any) -> None:
        del file["json"]
        file.create_dataset("json", (1 << 40,), np.uint8, chunks=(1 << 20,)).attrs["crc32"] = 0

    refused(run, change, "declares")


def _bomb(file: Any, declared: int | None) -> None:
    """Blocks of four bytes that stand for 128 KiB each, in a chunk of 4000 bytes."""
    blocks = 100 if declared is None else max(1, declared >> 17)
    head = b"\x28\xb5\x2f\xfd" + (b"\x00\x70" if declared is None else b"\xe0" + declared.to_bytes(8, "little"))
    runs = [((1 << 17 << 3) | 1 << 1 | (k == blocks - 1)).to_bytes(3, "little") + b"\0" for k in range(blocks)]
    data = file.create_dataset(KEY, (1000,), np.float32, chunks=(1000,), **hdf5plugin.Zstd(clevel=1))
    data.id.write_direct_chunk((0,), head + b"".join(runs))
    data.attrs["crc32"] = 0


@pytest.mark.parametrize("declared", [3 << 30, 0, None, 4000 - 1])
def test_a_frame_that_unpacks_to_more_than_its_chunk(run: RunDir, declared: int | None) -> None:
    def change(file: Any) -> None:
        del file[KEY]
        _bomb(file, declared)

    refused(run, change, "does not unpack to 4000 bytes")


def test_one_file_gives_so_much_and_no_more(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """All arrays together: each by itself would pass."""
    monkeypatch.setattr(datasets, "MOST_BYTES", 1 << 20)
    monkeypatch.setattr(datasets, "RATIO", 1)
    frames = torch.zeros(3 << 19, dtype=torch.uint8)
    path = checkpoint.save(run, 1, {"a": frames[: 3 << 18].clone()}, {})
    assert checkpoint.load(path)[0]["a"].shape == (3 << 18,)
    with reading(path) as source:
        source.read("arrays/state/a")
        source.bytes_left = 1 << 18
        with pytest.raises(Unreadable, match=f"state/a declares {3 << 18} bytes, too many for a file of"):
            source.read("arrays/state/a")
        source.bytes_left = 1 << 18
        assert len(source.read("arrays/state/a", slice(0, 1 << 18))) == 1 << 18


def test_other_packings_are_refused(run: RunDir) -> None:
    for options in ({"compression": "lzf"}, {"compression": "gzip", "fletcher32": True}, {"scaleoffset": 3}):

        def change(file: Any, options: Any = options) -> None:
            del file[KEY]
            file.create_dataset(KEY, data=WEIGHTS, chunks=(100,), **options).attrs["crc32"] = crc(WEIGHTS)

        refused(run, change, "packed by the filters")


def test_a_chunk_that_lies_outside_the_file(run: RunDir, tmp_path: Path) -> None:
    class Chunk:
        byte_offset, size, filter_mask = 10**9, 400, 0

    path = checkpoint.save(run, 1, {"p": torch.zeros(3 << 20, dtype=torch.uint8)}, {})
    with reading(path) as source:
        assert len(source.read("arrays/state/p")) == 3 << 20
        assert source.bytes_left == MOST_BYTES + RATIO * source.size - (3 << 20)
        Chunk.size = 2000
        assert not source._unpacks(Chunk(), [1], 399)
        Chunk.size = 400
        assert source._unpacks(Chunk(), [1], 399)
        assert not source._unpacks(Chunk(), [2], 399) and source._unpacks(Chunk(), [], 400)


def test_frame_headers() -> None:
    zstd = datasets._frame_bytes
    assert zstd(b"\x28\xb5\x2f\xfd\x20\x05xx") == 5 and zstd(b"\x28\xb5\x2f\xfd\x60\x05\x00xx") == 5 + 256
    assert zstd(b"\x28\xb5\x2f\xfd\xa0\x05\x00\x01\x00x") == 65541 and zstd(b"\x28\xb5\x2f\xfd\x80\x70\x05\0\0\0") == 5
    assert zstd(b"\x28\xb5\x2f\xfd\x21\xff\x05") == 5 and zstd(b"\x28\xb5\x2f\xfd\x00\x70") is None
    assert zstd(b"\x50\x2a\x4d\x18\x20\x05xx") is None and zstd(b"") is None


def test_what_packs_too_well_is_stored_such_that_it_can_be_read(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "MOST_BYTES", 0)
    blank = torch.zeros(20 << 20, dtype=torch.uint8).reshape(-1, 64, 64)
    path = checkpoint.save(run, 1, {"frames": blank, "w": torch.ones(3)}, {})
    assert path.stat().st_size < 1 << 18
    state, _ = checkpoint.load(path)
    assert state["frames"].shape == blank.shape and not state["frames"].any()


# --- right checksums of the wrong things ---


def replaced(tree: Any) -> Callable[[Any], None]:
    return lambda file: text(file, tree)


@pytest.mark.parametrize(
    "tree",
    [b"{", b"[" * 100_000, b'{"state": ' + b'{"a": ' * 3000 + b"1" + b"}" * 3001, b"\xff\xfe", b"[]", b"3", b"null", {},
     {"state": {}}, {"state": [], "meta": 3}, {"state": {"$array": 3, "dtype": "x"}, "meta": {}},
     {"state": {"w": {"$array": "state/w"}}, "meta": {}},
     {"state": {"w": {"$array": "none", "dtype": "x"}}, "meta": {}},
     {"state": {"w": {"$array": "../json", "dtype": "uint8"}}, "meta": {}},
     {"state": {"w": {"$array": "", "dtype": "uint8"}}, "meta": {}},
     {"state": {"w": {"$array": ["state/w"], "dtype": "uint8"}}, "meta": {}},
     {"state": {k: {"$array": "state/w", "dtype": "float32"} for k in "abc"}, "meta": {}}],
    ids=repr,
)  # fmt: skip
def test_texts(run: RunDir, tree: Any) -> None:
    refused(run, replaced(tree), "000000002.h5 is torn")


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_weights_that_are_not_finite(run: RunDir, number: float) -> None:
    def change(file: Any) -> None:
        weights = WEIGHTS.copy()
        weights[7] = number
        file[KEY][:] = weights
        file[KEY].attrs["crc32"] = crc(weights)

    refused(run, change, "state/w holds NaN or infinity")


@pytest.mark.parametrize("value", ["text", np.zeros(3, int), 1.5, h5py.Empty("i4"), None])
@pytest.mark.parametrize("name", ["crc32", "format"])
def test_attributes(run: RunDir, name: str, value: Any) -> None:
    def change(file: Any) -> None:
        node = file if name == "format" else file[KEY]
        del node.attrs[name]
        if value is not None:
            node.attrs[name] = value

    refused(run, change, "whole number|there is no")


def test_names_that_are_no_numbers(run: RunDir) -> None:
    checkpoint.save(run, 1, {}, {})
    for name in ("²", "x", "-1", "1e3", "٣"):
        (run.checkpoints / f"{name}.h5").write_bytes(b"")
    os.mkfifo(run.checkpoints / "000000009.h5")
    (run.checkpoints / "000000008.h5").mkdir()
    warnings: list[str] = []
    newest = checkpoint.newest(run, warnings.append)
    assert newest is not None and newest[0].name == "000000001.h5" and len(warnings) == 2
    assert "is a pipe" in warnings[0] and "is a folder" in warnings[1]
    (run.checkpoints / "000000001.h5").unlink()
    with pytest.raises(NoUsableCheckpoint, match="none of the 2"):
        checkpoint.newest(run, warnings.append)


def test_a_reader_meets_no_raw_exception(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    for data in (b"", b"x" * 5000, b"\x89HDF\r\n\x1a\n" + b"\xff" * 5000):
        path.write_bytes(data)
        with pytest.raises(Unreadable), reading(path):
            pass
    with pytest.raises(FileNotFoundError), reading(tmp_path / "none.h5"):
        pass


def test_a_checkpoint_is_not_written_through_a_link(run: RunDir, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("precious")
    (run.checkpoints / "000000001.h5.tmp").symlink_to(outside)
    path = checkpoint.save(run, 1, {"w": torch.ones(1)}, {})
    assert outside.read_text() == "precious" and not path.is_symlink()
