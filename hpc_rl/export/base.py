"""What ways out and in share: refusals, packages that are optional, folders that are either whole or absent."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any


class NotExported(ValueError):
    """Nothing was written; the message names the run, the folder or the package, and the remedy."""


def optional(module: str, package: str) -> Any:
    """A module that is not a dependency of this package. Raises NotExported where it is not installed."""
    try:
        return import_module(module)
    except ImportError as error:
        raise NotExported(f"{error}; install it with pip install '{package}'") from error


@contextmanager
def new(target: Path, remedy: str) -> Iterator[Path]:
    """A path beside ``target`` that becomes it once all is written, a folder or a file; nothing where nothing was.

    Raises:
        NotExported: the target exists; ``remedy`` says how to choose another.
    """
    if target.exists() or target.is_symlink():
        raise NotExported(f"{target} exists; {remedy}, or remove it")
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        if temporary.exists():
            os.replace(temporary, target)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)
