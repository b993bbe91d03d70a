"""Ways to damage a file of a run directory, drawn from a seeded generator: bytes, text, JSON, HDF5, kind of file."""

from __future__ import annotations

import json
import os
import random
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

HOSTILE: tuple[Any, ...] = (
    None, True, -1, 0, 1, 1.5, -(2**63), 2**63, 10**400, "", "x", "../../precious", "/etc/passwd", "\x1b[2J", "\ud800",
    "²", "--user=me", "*", [], [1], [[]], {}, {"x": {}}, float("nan"), float("inf"), "1" * 5000, "os:system",
)  # fmt: skip
DEEP = (
    "[" * 5000,
    '{"a":' * 5000,
    "[" * 5000 + "]" * 5000,
    "a = " + "[" * 3000 + "]" * 3000,
    ".".join("a" * 50_000) + " = 1",
)


def damage(path: Path, draw: random.Random, outside: Path) -> str:
    """Damage one file; what was done, in words."""
    kinds: list[Callable[[Path, random.Random, Path], str]] = [_bytes, _bytes, _kind]
    if path.suffix == ".h5":
        kinds += [_node] * 6 + [_text_within] * 3
    elif path.suffix in (".json", ".jsonl"):
        kinds += [_value] * 6 + [_deep]
    else:
        kinds += [_words] * 6 + [_deep]
    return draw.choice(kinds)(path, draw, outside)


def _bytes(path: Path, draw: random.Random, outside: Path) -> str:
    data = bytearray(path.read_bytes())
    kind = draw.choice(("flip", "cut", "grow", "zero", "noise", "empty"))
    at = draw.randrange(len(data)) if data else 0
    if kind == "flip":
        for _ in range(draw.choice((1, 10, 300)) if data else 0):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif kind == "cut":
        del data[at:]
    elif kind == "grow":
        data[at:at] = draw.randbytes(draw.choice((1, 100, 10_000)))
    elif kind == "zero":
        data[at : at + 500] = bytes(len(data[at : at + 500]))
    else:
        data = bytearray(draw.randbytes(3000) if kind == "noise" else b"")
    path.write_bytes(data)
    return f"bytes: {kind} at {at}"


def _kind(path: Path, draw: random.Random, outside: Path) -> str:
    """Something else has the file's name."""
    kind = draw.choice(("pipe", "folder", "zeros", "link", "loop", "sparse", "nowhere"))
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "sparse":
        with path.open("wb") as file:
            file.truncate(40 << 30)
    else:
        target = {"zeros": "/dev/zero", "link": outside / "precious", "loop": path, "nowhere": outside / "nowhere"}[
            kind
        ]
        path.symlink_to(target)
    return f"kind: {kind}"


def _deep(path: Path, draw: random.Random, outside: Path) -> str:
    path.write_text(draw.choice(DEEP) + "\n")
    return "deep"


def _value(path: Path, draw: random.Random, outside: Path) -> str:
    """One value of a JSON object, in any depth, or the whole of it, becomes another or goes."""
    lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
    at = draw.randrange(len(lines)) if lines else 0
    tree, sentence = changed(json.loads(lines[at]) if lines else {}, draw)
    lines[at : at + 1] = [json.dumps(tree)]
    path.write_text("\n".join(lines) + "\n")
    return f"value: {sentence}"


def changed(tree: Any, draw: random.Random) -> tuple[Any, str]:
    """The tree with one change, and where."""
    places: list[tuple[Any, Any, str]] = []

    def walk(value: Any, name: str) -> None:
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, item in items:
            places.append((value, key, f"{name}/{key}"))
            walk(item, f"{name}/{key}")

    walk(tree, "")
    new = draw.choice(HOSTILE)
    if not places or draw.random() < 0.1:
        return new, f"all {str(new)[:30]!r}"
    owner, key, name = draw.choice(places)
    if draw.random() < 0.2 and isinstance(owner, dict):
        del owner[key]
        return tree, f"{name} gone"
    owner[key] = new
    return tree, f"{name} {str(new)[:30]!r}"


def _words(path: Path, draw: random.Random, outside: Path) -> str:
    """One value of a line ``key = value``, or a whole line, becomes something else."""
    lines = path.read_text().splitlines()
    new = draw.choice(
        (
            *map(str, HOSTILE[2:9]),
            '"x"',
            '"../precious"',
            "[1]",
            "{}",
            "1979-05-27",
            "nan",
            "inf",
            "true",
            '"\\u001b"',
            "1e400",
        )
    )
    new = re.sub("[\ud800-\udfff]", "?", new)
    at = draw.randrange(len(lines)) if lines else 0
    if lines and draw.random() < 0.8:
        lines[at] = re.sub("=.*", lambda _: f"= {new}", lines[at])
    else:
        lines[at:at] = [draw.choice((new, "[[x]]", "[environment]", "x = 1", "--all", "-1"))]
    path.write_text("\n".join(lines) + "\n")
    return f"words: line {at} {new!r}"


def _crc(array: Any) -> int:
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data) if array.size else 0


def _text_within(path: Path, draw: random.Random, outside: Path) -> str:
    """The JSON of a checkpoint, with a right checksum; of a segment an attribute."""
    with h5py.File(path, "r+") as file:
        if "json" not in file:
            name = draw.choice(("format", "first_step", "last_step"))
            new = draw.choice((0, -5, "x", 1.5, 2**62, np.zeros(3, int), np.zeros((2, 2)), h5py.Empty("i4")))
            file.attrs[name] = new
            return f"attribute {name} {new!r}"
        tree, sentence = changed(json.loads(file["json"][()].tobytes()), draw)
        data = np.frombuffer(json.dumps(tree).encode(), np.uint8)
        del file["json"]
        file.create_dataset("json", data=data).attrs["crc32"] = _crc(data)
    return f"text: {sentence}"


def _node(path: Path, draw: random.Random, outside: Path) -> str:
    """One dataset or group goes, leads elsewhere, declares too much or holds something else with a right checksum."""
    with h5py.File(path, "r+") as file:
        names: list[str] = []
        file.visit(names.append)
        name = draw.choice(names)
        old = file[name][()] if isinstance(file[name], h5py.Dataset) else np.zeros(1)
        kind = draw.choice(
            ("gone", "soft", "external", "stored", "virtual", "huge", "chunks", "shape", "noise", "type", "nan", "sum")
        )
        if kind == "sum":
            file[name].attrs["crc32"] = draw.choice((0, -1, "x", 1.5))
            return f"{name}: {kind}"
        del file[name]
        pipe = str(outside / "pipe")
        if kind == "soft":
            file[name] = h5py.SoftLink("/json")
        elif kind == "external":
            file[name] = h5py.ExternalLink(pipe, "/x")
        elif kind == "virtual":
            layout = h5py.VirtualLayout((3,), "f4")
            layout[:] = h5py.VirtualSource(pipe, "x", (3,), "f4")
            file.create_virtual_dataset(name, layout)
        elif kind != "gone":
            _made(file, name, kind, old, draw, pipe)
    return f"{name}: {kind}"


def _made(file: Any, name: str, kind: str, old: Any, draw: random.Random, pipe: str) -> None:
    if kind == "stored":
        data, new = file.create_dataset(name, old.shape or (1,), "f4", external=[(pipe, 0, 1 << 20)]), old
    elif kind == "huge":
        data, new = file.create_dataset(name, (draw.choice((3 << 29, 1 << 45)),), "f4"), old
    elif kind == "chunks":
        data, new = file.create_dataset(name, (1 << 40, 2), "f4", chunks=(draw.choice((1, 1 << 20, 1 << 27)), 2)), old
    else:
        new = {
            "shape": lambda: np.asarray(old)[None],
            "noise": lambda: np.frombuffer(draw.randbytes(old.nbytes), np.uint8),
            "type": lambda: np.zeros(old.shape, draw.choice(("f8", "i2", "u8", "c8", ">f4", "?"))),
            "nan": lambda: np.full(old.shape, np.nan, "f4"),
        }[kind]()
        data = file.create_dataset(name, data=new)
    data.attrs["crc32"] = _crc(new)
