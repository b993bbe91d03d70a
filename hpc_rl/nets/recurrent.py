"""Recurrence with an explicit carry: state goes in, state comes out, nothing is kept in the module."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hpc_rl.nets.torsos import orthogonal


class Lstm(nn.Module):
    """Long short-term memory (Hochreiter and Schmidhuber 1997; gates as in Gers et al. 2000) over time-major features.

    ``first`` opens an episode: the state before such a row is zero.
    """

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.input = orthogonal(nn.Linear(inputs, 4 * units), 1.0)
        self.hidden = orthogonal(nn.Linear(units, 4 * units, bias=False), 1.0)

    def forward(self, x: Tensor, first: Tensor, carry: Tensor) -> tuple[Tensor, Tensor]:
        """x [T, b, F], first [T, b] bool, carry [b, 2, H] before row 0 -> [T, b, H], carry after the last row."""
        gates = self.input(x)  # for all rows at once: only the hidden half has to wait for its predecessor
        keep = (~first).unsqueeze(-1).float()
        h, c = carry.unbind(1)
        rows = []
        for t in range(len(x)):
            into, forget, cell, out = (gates[t] + self.hidden(keep[t] * h)).chunk(4, -1)
            c = forget.sigmoid() * keep[t] * c + into.sigmoid() * cell.tanh()
            h = out.sigmoid() * c.tanh()
            rows.append(h)
        return torch.stack(rows), torch.stack([h, c], 1)
