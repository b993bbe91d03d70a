"""Files that a stranger may have written, or that rotted: looked at before they are read, refused in a sentence.

A run directory comes from anywhere, so every small file of it is read here. It must be an ordinary file (a pipe would
wait for ever, a device never end), at most so many bytes, and JSON or TOML of the stated shape: then the code behind
the door need not doubt it. What is written lands in the directory, too: a link at the end of a path is not followed.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
import tomllib
import types
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, get_args, get_origin

MOST_BYTES = 4 << 20  # of a file that is read as a whole; parsed, it takes at most some 25 times as much memory
MOST_TOML_BYTES = 1 << 20
MOST_LINE_BYTES = 1 << 20
MOST_LEVELS = 32  # of tables in tables; whatever copies or writes them goes down by recursion
# tomllib's time grows with the square of a dotted key's parts. Possessive and bounded, so that this search is short for
# every text; parts of more than 200 letters are few in a file of bounded size.
_PART = r"""(?:[\w-]{1,200}+|"(?:\\.|[^"\\\n]){0,200}+"|'[^'\n]{0,200}+')"""
_LONG_KEY = re.compile(rf"(?<![\w-])(?:{_PART}[ \t]{{0,200}}+\.[ \t]{{0,200}}+){{64}}")
_KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFDIR: "a folder", stat.S_IFSOCK: "a socket"}


class Unreadable(ValueError):
    """A file is not what its name promises; the message names it and what is wrong."""


def opened(path: Path) -> BinaryIO:
    """An ordinary file for reading.

    Raises:
        FileNotFoundError: there is none. Unreadable: it is something else, or this user may not read it.
    """
    try:
        _ordinary(path, os.stat(path))
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        return os.fdopen(descriptor, "rb")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Unreadable(f"{path} cannot be read ({error.strerror})") from None


def appended(path: Path) -> int:
    """A descriptor that appends to an ordinary file of this folder, made where there is none.

    Raises:
        Unreadable: a link, a pipe or something else is in its place. OSError.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    if path.is_symlink():
        raise Unreadable(f"{path} is a link, and what it names may lie anywhere; remove it")
    if path.exists():
        _ordinary(path, os.stat(path))
    return os.open(path, flags, 0o666)


def created(path: Path) -> int:
    """A descriptor that writes and reads a new file, in place of whatever an interrupted write left. Raises OSError."""
    path.unlink(missing_ok=True)
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """The whole of an ordinary file of at most ``most`` bytes. Raises FileNotFoundError, Unreadable."""
    with opened(path) as file:
        try:
            data = file.read(most + 1)
        except OSError as error:
            raise Unreadable(f"{path} cannot be read ({error.strerror})") from None
    if len(data) > most:
        raise Unreadable(f"{path} has more than {most} bytes, too many for such a file")
    return data


def read_text(path: Path, most: int = MOST_BYTES) -> str:
    """An ordinary file of UTF-8 text. Raises FileNotFoundError, Unreadable."""
    try:
        return read_bytes(path, most).decode()
    except UnicodeDecodeError:
        raise Unreadable(f"{path} is not text in UTF-8") from None


def read_end(path: Path, most: int = MOST_BYTES, begin: int = 0) -> str:
    """The last ``most`` bytes of a log, of what lies behind byte ``begin``. Raises FileNotFoundError, Unreadable."""
    with opened(path) as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, begin, size - most))
        return file.read(most).decode(errors="replace")


def read_json(path: Path, fields: Mapping[str, Any], required: Collection[str] = (), most: int = MOST_BYTES) -> Any:
    """The JSON object of a file whose ``fields`` have the stated kinds, as far as they are there; others are kept.

    A kind is int, float, str, bool, dict, list[kind], dict[str, kind] or a union of these, also with None.

    Raises:
        FileNotFoundError: there is no file.
        Unreadable: it is not such an object, or lacks a field that is ``required``.
    """
    return checked(parse_json(read_bytes(path, most), str(path)), fields, required, str(path))


def read_lines(path: Path, fields: Mapping[str, Any], required: Collection[str] = ()) -> Iterator[Any]:
    """The JSON objects of a file of lines; others, and torn lines, are passed over. Raises as `opened` does."""
    with opened(path) as file:
        for line in iter(lambda: file.readline(MOST_LINE_BYTES), b""):
            row = parse_line(line, fields, required)
            if row is not None:
                yield row


def parse_line(line: bytes, fields: Mapping[str, Any], required: Collection[str] = ()) -> Any:
    """One line as an object of these fields; None where it is something else, or still being written."""
    if not line.endswith(b"\n"):  # "12" may be the beginning of "123"
        return None
    try:
        return checked(parse_json(line, "a line"), fields, required, "a line")
    except Unreadable:
        return None


def read_toml(path: Path, most: int = MOST_TOML_BYTES) -> dict[str, Any]:
    """The table of a TOML file. Raises FileNotFoundError, Unreadable."""
    text = read_text(path, most)
    try:
        return parse_toml(text)
    except Unreadable as error:
        raise Unreadable(f"{path} is not a TOML file: {error}{_line_of(text, str(error))}") from None


def _line_of(text: str, sentence: str) -> str:
    """The line that a sentence of tomllib ends by naming, "(at line 2, column 12)", and what it most often lacks."""
    named = re.search(r"\(at line (\d+), column \d+\)$", sentence)
    if not named:
        return ""
    hint = "; text stands in quotes" if sentence.startswith("Invalid value") else ""
    line = text.split("\n")[int(named[1]) - 1].strip()
    return f": {line[:80]!r}{hint}"


def parse_toml(text: str) -> dict[str, Any]:
    """The table of a TOML text. Raises Unreadable."""
    if _LONG_KEY.search(text):
        raise Unreadable("a key has more than 64 parts")
    try:
        table = tomllib.loads(text)
    except RecursionError:
        raise Unreadable(f"tables or lists lie more than {MOST_LEVELS} deep") from None
    except ValueError as error:  # a number of a million digits is one, too
        raise Unreadable(str(error)) from None
    if not _shallow(table):
        raise Unreadable(f"tables or lists lie more than {MOST_LEVELS} deep")
    return table


def parse_json(data: bytes, name: str) -> Any:
    """Strict JSON: finite numbers, text that can be printed, few levels. Raises Unreadable."""
    try:
        value = json.loads(data.decode(), parse_constant=_refused, parse_float=_finite)
    except RecursionError:
        raise Unreadable(f"{name} is not JSON of a few levels") from None
    except ValueError as error:
        raise Unreadable(f"{name} is not JSON ({error})") from None
    if not _shallow(value):
        raise Unreadable(f"{name} is not JSON of a few levels")
    return value


def checked(value: Any, fields: Mapping[str, Any], required: Collection[str], name: str) -> Any:
    """``value`` where it is an object of these fields. Raises Unreadable."""
    if not isinstance(value, dict):
        raise Unreadable(f"{name} holds {_shown(value)} and not a table of names and values")
    if absent := [key for key in required if key not in value]:
        raise Unreadable(f"{name} has no {absent[0]!r}")
    for key, kind in fields.items():
        if key in value and not _is(value[key], kind):
            raise Unreadable(f"{name}: {key} is {_shown(value[key])}, which has another type")
    return value


def printable(text: str) -> str:
    """Text without what would steer a terminal."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)


def _ordinary(path: Path, about: os.stat_result) -> None:
    if not stat.S_ISREG(about.st_mode):
        raise Unreadable(f"{path} is {_KINDS.get(stat.S_IFMT(about.st_mode), 'a device')}, not an ordinary file")


def _is(value: Any, kind: Any) -> bool:
    if isinstance(kind, types.UnionType):
        return any(_is(value, part) for part in get_args(kind))
    origin = get_origin(kind) or kind
    if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else origin):
        return isinstance(value, bool) and kind is bool
    if isinstance(value, int):
        return abs(value) < 1 << 63
    if isinstance(value, str):
        return not re.search("[\ud800-\udfff]", value)  # half a letter cannot be printed
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return all(_is(item, get_args(kind)[-1]) for item in inside) if get_args(kind) else True


def _shallow(value: Any) -> bool:
    level = [value]
    for _ in range(MOST_LEVELS):
        tables = [item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list)]
        level = [item for table in tables for item in table]
        if not level:
            return True
    return False


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return "a table" if isinstance(value, dict) else "a list"
    return printable(str(value)[:40]) if isinstance(value, str) else json.dumps(value)[:40]


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is not finite")
    return number


def _refused(text: str) -> NoReturn:
    raise ValueError(f"{text} is not finite")
