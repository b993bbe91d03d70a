"""Schema to bytes and back: one flat buffer per message, every leaf a view into it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

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
        _, begin, end, _, _ = self._places[-1]
        return begin + _padded(end - begin)

    def buffer(self) -> Array:
        """Zeroed memory for one message."""
        return np.zeros(self.nbytes, np.uint8)

    def views(self, buffer: Array, columns: int = 0) -> Tree:
        """Leaf name -> view into ``buffer``; of so many ``columns``, where fewer than the layout's."""
        places = self._of(columns or self.columns)._places
        return {name: buffer[a:b].view(dtype).reshape(shape) for name, a, b, shape, dtype in places}

    def pack(self, tree: Tree, version: int, buffer: Array, columns: int = 0) -> Array:
        """Write the header, and every leaf that does not lie in ``buffer`` already; returns the bytes written.

        Of so many ``columns``, where fewer than the layout's, the message is shorter.
        """
        layout = self._of(columns or self.columns)
        buffer[:16].view(np.int64)[:] = version, layout.columns
        for name, view in layout.views(buffer).items():
            if not np.may_share_memory(view, tree[name]):
                view[...] = tree[name]
        return buffer[: layout.nbytes]

    def unpack(self, buffer: Array) -> tuple[Tree, int]:
        """Views of every leaf, of as many columns as the header says, and its version."""
        version, columns = buffer[:16].view(np.int64).tolist()
        return self._of(columns).views(buffer), version

    def _of(self, columns: int) -> Layout:
        return self if columns == self.columns else replace(self, columns=columns)

    @cached_property  # small messages would spend most of their time on it
    def _places(self) -> list[tuple[str, int, int, tuple[int, ...], np.dtype[np.generic]]]:
        """(name, first byte, byte after the last, shape, dtype) of every leaf."""
        places, begin = [], _HEADER_BYTES
        for name, leaf in self.schema.items():
            shape, dtype = leaf.array_shape(self.steps, self.columns, self.stack), np.dtype(leaf.dtype)
            end = begin + prod(shape) * dtype.itemsize
            places.append((name, begin, end, shape, dtype))
            begin += _padded(end - begin)
        return places


def _padded(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN
