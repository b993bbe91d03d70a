"""Schema to bytes and back: one flat buffer per message, every leaf a view into it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hpc_rl.types import Array, Schema, Tree

_HEADER_BYTES = 64
_ALIGN = 64


@dataclass(frozen=True)
class Layout:
    """Where each leaf of a schema lies in a message of T = ``steps`` moves of b = ``columns`` columns."""

    schema: Schema
    steps: int
    columns: int
    stack: int = 1

    @property
    def nbytes(self) -> int:
        """Bytes of one message, header and padding included."""
        return sum((_padded(shape, dtype) for _, shape, dtype in self._leaves()), _HEADER_BYTES)

    def buffer(self) -> Array:
        """Zeroed memory for one message."""
        return np.zeros(self.nbytes, np.uint8)

    def views(self, buffer: Array) -> Tree:
        """Leaf name -> view into ``buffer``."""
        tree, offset = {}, _HEADER_BYTES
        for name, shape, dtype in self._leaves():
            size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            tree[name] = buffer[offset : offset + size].view(dtype).reshape(shape)
            offset += _padded(shape, dtype)
        return tree

    def pack(self, tree: Tree, version: int, buffer: Array) -> None:
        """Write the header, and every leaf that does not lie in ``buffer`` already."""
        buffer[:8].view(np.int64)[0] = version
        for name, view in self.views(buffer).items():
            if not np.may_share_memory(view, tree[name]):
                view[...] = tree[name]

    def unpack(self, buffer: Array) -> tuple[Tree, int]:
        """Views of every leaf, and the version of the header."""
        return self.views(buffer), int(buffer[:8].view(np.int64)[0])

    def _leaves(self) -> list[tuple[str, tuple[int, ...], np.dtype[np.generic]]]:
        arrays = (
            (n, leaf.array_shape(self.steps, self.columns, self.stack), leaf.dtype) for n, leaf in self.schema.items()
        )
        return [(name, shape, np.dtype(dtype)) for name, shape, dtype in arrays]


def _padded(shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> int:
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    return -(-size // _ALIGN) * _ALIGN
