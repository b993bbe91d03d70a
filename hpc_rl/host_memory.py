"""Memory of a process on its host: what SLURM and containers still allow, and that freed memory is kept."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

FILES = (  # of a control group, version 2 and 1: its limit, what it uses, and which part of that are files' pages
    ("memory.max", "memory.current", "file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_cache"),
)

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def keep_freed() -> None:
    """Blocks up to 32 MiB are kept for the next use: a tensor of new pages costs more to fault in than to compute."""
    with suppress(OSError, AttributeError):  # another C library than glibc has its own ways
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        libc.mallopt(_M_TRIM_THRESHOLD, 512 << 20)


def return_freed() -> None:
    """Give blocks that were kept back to the host: memory that is measured later must not hide in them."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def available(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes: the least of what the host has left and what each of this process's control groups has; 0 if unknown.

    Pages that only mirror files count as free, for the kernel gives them up.
    """
    free = [_host(proc), *_groups(proc, cgroups)]
    return min((x for x in free if x), default=0)


def _host(proc: Path) -> int:
    with suppress(OSError, ValueError, IndexError):
        for line in (proc / "meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return 0


def _groups(proc: Path, cgroups: Path) -> Iterator[int]:
    """Of each group from this process's up to the root that has a limit."""
    with suppress(OSError):
        for line in (proc / "self" / "cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            root = cgroups / "memory" if controllers == "memory" else cgroups
            group = root / path.lstrip("/")
            if controllers in ("", "memory"):
                for folder in (group, *group.parents):
                    yield from (left for names in FILES if (left := _left(folder, *names)))
                    if folder == root:
                        break


def _left(folder: Path, limit: str, use: str, cached: str) -> int:
    with suppress(OSError, ValueError):  # no such file, or "max"
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        free = int((folder / limit).read_text()) - int((folder / use).read_text()) + int(stat.get(cached, 0))
        return max(1, free)
    return 0
