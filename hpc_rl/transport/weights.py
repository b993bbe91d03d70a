"""Newest weights for every actor of a node: the relay writes a named file in /dev/shm, actors read without waiting.

Two slots, each [sequence before, version, checksum, sequence after, env steps, payload]. The writer fills the slot
that is not the newest; a reader copies, and keeps its old weights when sequence numbers or checksum disagree. The file
is a plain mmap, not an MPI window, so that ranks may die or join.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import zlib
from pathlib import Path

import numpy as np

from hpc_rl.types import Array, Clock

_HEAD = 8  # int64 words before the payload, five of them used: the payload begins on a cache line
_RETRIES = 3


def shared_path(token: str, node: int) -> Path:
    """The file of one node's weights; ``token`` is this attempt's, so that the launcher can remove leftovers."""
    return Path("/dev/shm") / f"hpc_rl-{token}-{node}"


def is_complete(path: Path, nbytes: int) -> bool:
    """Whether the creator has finished the file; a reader must wait for that."""
    return path.exists() and path.stat().st_size == 2 * _slot_bytes(nbytes)


def _slot_bytes(nbytes: int) -> int:
    return 8 * _HEAD + -(-nbytes // 64) * 64


class SharedWeights:
    """One node's slots for ``nbytes`` of parameters; the creator is the node's relay."""

    def __init__(self, path: Path, nbytes: int, create: bool) -> None:
        self.path, self.nbytes = path, nbytes
        self.slot_bytes = _slot_bytes(nbytes)
        flags = os.O_RDWR | (os.O_CREAT if create else 0)
        descriptor = os.open(path, flags, 0o600)
        try:
            if create:
                os.ftruncate(descriptor, 2 * self.slot_bytes)
            self.map = mmap.mmap(descriptor, 2 * self.slot_bytes)
        finally:
            os.close(descriptor)
        memory = np.frombuffer(self.map, np.uint8)
        self.slots = [memory[k * self.slot_bytes : (k + 1) * self.slot_bytes] for k in range(2)]
        if create:
            for k in range(2):
                self._slot(k)[0][1] = -1
        self.turn = 0  # the slot that is written next; see `take_over`
        self.torn = 0  # reads given up because a write was under way

    def write(self, data: Array, clock: Clock) -> None:
        """Publish ``data`` [nbytes] uint8 as of ``clock``; versions only grow."""
        head, payload = self._slot(self.turn)  # not the newest one, which readers are copying
        self.turn = 1 - self.turn
        head[0] += 1
        head[1], head[4] = clock.version, clock.env_steps
        payload[:] = data
        head[2] = zlib.adler32(payload.data)
        head[3] = head[0]

    def take_over(self) -> None:
        """Be the writer from now on, wherever the last one was killed; the newest whole version stays till the next."""
        slots = [self._slot(k) for k in range(2)]
        whole = [head[0] == head[3] and head[2] == zlib.adler32(payload.data) for head, payload in slots]
        self.turn = int(np.argmin([head[1] if good else -2 for (head, _), good in zip(slots, whole, strict=True)]))

    def read(self, data: Array, have: Clock, exactly: int | None = None) -> Clock:
        """Copy weights newer than ``have`` into ``data`` [nbytes] uint8; the clock of what it now holds.

        With ``exactly``, only that version: both slots hold one, so the last but one is still there.

        ``data`` is only overwritten by a complete version; after three torn reads the old weights stay.
        """
        for _ in range(_RETRIES):
            heads = [self._slot(k)[0] for k in range(2)]
            index = max(range(2), key=lambda k: (int(heads[k][1]) == exactly, int(heads[k][1])))
            head, payload = self._slot(index)
            sequence, version = int(head[3]), int(head[1])
            if version <= have.version or not sequence or exactly not in (None, version):
                return have
            copy, env_steps = payload.copy(), int(head[4])
            checksum = int(head[2])
            if sequence == int(head[0]) and version == int(head[1]) and zlib.adler32(copy.data) == checksum:
                data[:] = copy
                return Clock(version, env_steps)
            self.torn += 1
        return have

    def close(self, remove: bool) -> None:
        """Drop this process's view, and the file itself where ``remove``."""
        self.slots = []
        with contextlib.suppress(BufferError):  # a view is still alive somewhere; the mapping goes with the process
            self.map.close()
        if remove:
            self.path.unlink(missing_ok=True)

    def _slot(self, index: int) -> tuple[Array, Array]:
        memory = self.slots[index]
        return memory[: 8 * _HEAD].view(np.int64), memory[8 * _HEAD : 8 * _HEAD + self.nbytes]
