"""A sum tree and a min tree over the same leaves, as arrays: n draws or n changes at once without a Python loop over n.

Schaul et al. 2016, arXiv 1511.05952, appendix B.2.1, with `FAN` children a node in place of two: few, wide levels are
what vector instructions are fast at. Nodes are computed from their children and never by differences, so that a tree
rebuilt from its leaves has the same bits, and rounding does not add up. They are computed when they are next read: of
many changes between two draws all at once.
"""

from __future__ import annotations

import numpy as np

from hpc_rl.types import Array

FAN = 8
TOP = 32768  # nodes of the highest level at most; a draw adds all of these up


class SumTree:
    """``size`` leaves >= 0, of which 0 is never drawn and is not the smallest."""

    def __init__(self, size: int) -> None:
        self.size = size
        widths = _widths(size)
        self.sums = [np.zeros(width) for width in widths]  # [0] are the leaves, [k + 1] sums of FAN nodes of [k]
        self.least = [np.full(width, np.inf) for width in widths[1:]]  # [k]: least leaf > 0 below each of sums[k + 1]
        self.changes = 0
        self.stale: list[Array] = []  # leaves that changed since the nodes above them were computed

    @property
    def leaves(self) -> Array:
        """[size] float64; to be changed by ``set`` and ``load`` alone."""
        leaves: Array = self.sums[0][: self.size]
        return leaves

    @property
    def total(self) -> float:
        """The sum of all leaves, within rounding."""
        self.renew()
        return float(self.sums[-1].sum())

    @property
    def smallest(self) -> float:
        """The smallest leaf > 0, infinity where there is none."""
        self.renew()
        return float(self.least[-1].min())

    def set(self, at: Array, values: Array) -> None:
        """Make leaves ``at`` [n] int64 ``values`` [n] >= 0; of one that is named more than once, the last value."""
        self.sums[0][at] = values
        self.stale.append(at)
        self.changes += len(at)
        if self.changes > self.size:
            self.renew()

    def load(self, leaves: Array) -> None:
        """Make all leaves [size] these."""
        self.sums[0][: self.size] = leaves
        self.stale = [np.arange(0, self.size, FAN)]

    def renew(self) -> None:
        """Compute the nodes above leaves that changed."""
        if not self.stale:
            return
        if self.changes > self.size // FAN:
            self.stale = [np.arange(0, self.size, FAN)]
        at, self.stale, self.changes = np.concatenate(self.stale), [], 0
        at = at.repeat(2) if len(at) == 1 else at  # NumPy adds a single column in another order than several
        for level, least in enumerate(self.least):
            at = at // FAN
            children = _families(self.sums[level], at)
            self.sums[level + 1][at] = children.sum(0)
            if level:
                children = _families(self.least[level - 1], at)
            else:
                children[children == 0] = np.inf
            least[at] = children.min(0)

    def draw(self, uniform: Array) -> Array:
        """Leaves [n] int64, each with probability leaf / total, by inversion of ``uniform`` [n] in [0, 1).

        Uniforms (k + u_k) / n stratify the draws: one of each n-th of the total (appendix B.2.1).

        Raises:
            ValueError: all leaves are 0.
        """
        self.renew()
        above = self.sums[-1].cumsum()
        if not above[-1] > 0:
            raise ValueError("no leaf of the sum tree is above 0, so none can be drawn")
        target = np.minimum(uniform * above[-1], np.nextafter(above[-1], 0))
        node: Array = above.searchsorted(target, "right")
        target = target - np.where(node, above[node - 1], 0)
        every = np.arange(len(node))
        for nodes in self.sums[-2::-1]:
            above = _families(nodes, node)
            for k in range(1, FAN):
                above[k] += above[k - 1]  # three times as fast as cumsum along the other axis
            target = np.minimum(target, np.nextafter(above[-1], 0))  # node and children add up to within rounding
            child = (above <= target).sum(0)  # a leaf of 0 adds nothing, so it is never the first one above
            target -= np.where(child, above[child - 1, every], 0)
            node = node * FAN + child
        return node


def _families(nodes: Array, at: Array) -> Array:
    """[FAN, n] children of nodes ``at`` of the level above; this way round sums over them are vector instructions."""
    return np.ascontiguousarray(nodes.reshape(-1, FAN).take(at, 0).T)


def _widths(size: int) -> list[int]:
    """Nodes of each level from the leaves on, all but the last padded to full families."""
    widths = [-(-size // FAN) * FAN]
    while len(widths) == 1 or widths[-1] > TOP:
        widths.append(widths[-1] // FAN if widths[-1] // FAN <= TOP else -(-(widths[-1] // FAN) // FAN) * FAN)
    return widths


def tree_bytes(size: int) -> int:
    """Memory of a `SumTree`."""
    widths = _widths(size)
    return 8 * (sum(widths) + sum(widths[1:]))
