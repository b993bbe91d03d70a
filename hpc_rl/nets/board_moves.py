"""Logits of the moves on a board: of k softmaxes over a residual torso, or of a linear one on local patterns.

The first are DarkForest's next k moves (Tian and Zhu 2016, arXiv 1511.06410), the second AlphaGo's fast rollout policy
(Silver et al. 2016, Nature 529).
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpc_rl.nets.boards import ResidualTorso
from hpc_rl.types import Spec

REACH = 3  # places that a line of patterns goes on to either side
OFF = 3  # the symbol of a place that is not on the board: 0 is empty, 1 the mover's, 2 the other's
_LINES = ((0, 1), (1, 0), (1, 1), (1, -1))
_RING = tuple((r, c) for r in (-1, 0, 1) for c in (-1, 0, 1) if (r, c) != (0, 0))
_GROUPS = (_RING, *(tuple((k * r, k * c) for k in range(-REACH, REACH + 1) if k) for r, c in _LINES))
PLANES = 4  # of the 1 × 1 convolution before the last layer of a torso's heads
SIZES = tuple(4 ** len(group) for group in _GROUPS)


class PatternPolicy(nn.Module):
    """observation [n, planes, rows, columns] -> logits [n, heads · A], whose first two planes are mover and other.

    A move's logit is Σ_g w_g[pattern of its place] + w[place]: of the 3 × 3 neighbours, and of three places to both
    sides on each of four lines. All weights begin at 0. The place of a move is its own number, of which a last one may
    be a pass; where there are as many moves as columns, it is the lowest empty place of the column, row 0 on top.
    """

    def __init__(self, spec: Spec, heads: int) -> None:
        super().__init__()
        (_, self.rows, self.columns), self.moves = spec.observation, spec.actions.sizes[0]
        self.places = self.rows * self.columns
        self.drops = self.moves == self.columns != self.places
        self.heads = heads
        self.pattern = nn.Parameter(torch.zeros(sum(SIZES), heads))
        self.place = nn.Parameter(torch.zeros(self.places + 1, heads))  # the last one's is that of a pass
        offsets, powers, begins = self._tables()
        self.register_buffer("offsets", offsets, persistent=False)
        self.register_buffer("powers", powers, persistent=False)
        self.register_buffer("begins", begins, persistent=False)

    def extra_repr(self) -> str:
        return f"3 × 3 neighbours and {len(_LINES)} lines of {2 * REACH} places around each move"

    def _tables(self) -> tuple[Tensor, Tensor, Tensor]:
        """[P, o] which place of the padded board each offset of a place is; [o, g] its power of 4 in each pattern;
        [g] where a pattern's weights begin."""
        width = self.columns + 2 * REACH
        steps = torch.tensor([r * width + c for group in _GROUPS for r, c in group])
        row, column = torch.arange(self.places) // self.columns, torch.arange(self.places) % self.columns
        offsets = ((row + REACH) * width + column + REACH)[:, None] + steps
        powers, low = torch.zeros(len(steps), len(_GROUPS), dtype=torch.int64), 0
        for g, group in enumerate(_GROUPS):
            powers[low : low + len(group), g] = 4 ** torch.arange(len(group))
            low += len(group)
        return offsets, powers, torch.tensor([0, *SIZES[:-1]]).cumsum(0)

    def forward(self, observation: Tensor) -> Tensor:
        n, planes = len(observation), observation[:, :2] > 0
        symbols = planes[:, 0].long() + 2 * planes[:, 1].long()
        padded = F.pad(symbols, (REACH,) * 4, value=OFF).flatten(1)
        places = (
            self._landing(symbols) if self.drops else torch.arange(self.places, device=symbols.device).expand(n, -1)
        )
        around = padded.gather(1, self.get_buffer("offsets")[places].flatten(1)).reshape(n, places.shape[1], -1)
        codes = (around[..., None] * self.get_buffer("powers")).sum(-2) + self.get_buffer("begins")
        logits = F.embedding(codes, self.pattern).sum(-2) + F.embedding(places, self.place)
        if self.moves > places.shape[1]:
            logits = torch.cat([logits, self.place[-1:].expand(n, 1, -1)], 1)
        return logits.movedim(-1, 1).reshape(n, self.heads * self.moves)

    def _landing(self, symbols: Tensor) -> Tensor:
        """[n, columns] the lowest empty place of each column; of a full one the uppermost."""
        height = (symbols != 0).sum(1)
        row = (self.rows - 1 - height).clamp(min=0)
        return row * self.columns + torch.arange(self.columns, device=symbols.device)


class BoardHeads(nn.Module):
    """observation [n, C, rows, columns] -> logits [n, heads · A]; all begin at 0."""

    def __init__(self, spec: Spec, heads: int, channels: int, blocks: int) -> None:
        super().__init__()
        shape, moves = spec.observation, spec.actions.sizes[0]
        self.torso = ResidualTorso(shape, channels, blocks)
        self.narrow = nn.Conv2d(channels, PLANES, 1)
        self.last = nn.Linear(PLANES * prod(shape[1:]), heads * moves)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, observation: Tensor) -> Tensor:
        planes = torch.relu(self.narrow(self.torso(observation.float())))
        logits: Tensor = self.last(planes.flatten(1))
        return logits


def suits(spec: Spec) -> bool:
    """Whether moves have places on the board that is shown."""
    shape, kind = spec.observation, spec.actions.kind
    if kind != "discrete" or len(shape) != 3 or shape[0] < 2 or spec.stack > 1:
        return False
    return spec.actions.sizes[0] - prod(shape[1:]) in (0, 1) or spec.actions.sizes[0] == shape[2]
