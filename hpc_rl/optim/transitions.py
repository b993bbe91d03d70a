"""All moves ever made, as rows in float64 that every learner holds: what a model of the dynamics is made of."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hpc_rl.devices import to_device
from hpc_rl.optim.flat import StateDict
from hpc_rl.optim.group import Group
from hpc_rl.optim.tables import joined
from hpc_rl.types import Trajectory


@dataclass(frozen=True)
class Moves:
    """Moves of one batch, in the order of column and env step, whoever made them."""

    after: Tensor  # [n, D] observations that they led to
    shown: Tensor  # [n, D] observations before them
    mean: Tensor  # [n, D] what was predicted of ``shown``
    std: Tensor  # [n, D], 0 where nothing was

    def agreement(self) -> dict[str, float]:
        """Share of the entries that lie within two deviations of their prediction; {} where there was none."""
        known = self.std > 0
        if not bool(known.any()):
            return {}
        within = (self.shown - self.mean).abs() <= 2 * self.std
        return {"within_two_std": float(within[known].double().mean())}


class Transitions:
    """``before`` [n, D], ``action`` [n, U], ``after`` [n, D]; ``first`` [episodes, D] are where they began."""

    def __init__(self, entries: int, actions: int) -> None:
        self.widths = (entries, actions, entries)
        self.rows = torch.zeros(0, sum(self.widths), dtype=torch.float64)
        self.first = torch.zeros(0, entries, dtype=torch.float64)

    def __len__(self) -> int:
        return len(self.rows)

    def parts(self) -> tuple[Tensor, ...]:
        """``before``, ``action`` and ``after``."""
        return torch.split(self.rows, list(self.widths), 1)

    @property
    def episodes(self) -> int:
        return len(self.first)

    def add(self, group: Group, batch: Trajectory) -> Moves:
        """Take the moves of all learners' batches, in an order that does not depend on who has which. Collective."""
        valid = batch.valid
        number = batch.start + valid.cumsum(0) - valid.long()
        keys = torch.stack([batch.column.expand_as(number), number, batch.first[:-1].long()], -1)
        extras = [batch.extras[name] for name in ("predicted_mean", "predicted_std")]
        leaves = [keys, batch.observation[:-1], batch.action.clamp(-1, 1), batch.observation[1:], *extras]
        table = joined(group, to_device(torch.cat([x.double() for x in leaves], -1)[valid], "cpu"))[0]
        for key in (1, 0):
            table = table[table[:, key].argsort(stable=True)]
        size = sum(self.widths)
        moves, (mean, std) = table[:, 3 : 3 + size], table[:, 3 + size :].chunk(2, 1)
        self.rows = torch.cat([self.rows, moves])
        self.first = torch.cat([self.first, moves[table[:, 2] > 0, : self.widths[0]]])
        return Moves(moves[:, -self.widths[2] :], moves[:, : self.widths[0]], mean, std)

    def state(self) -> StateDict:
        """{} before the first move: shapes of a checkpoint are compared with those of a learner that has seen none."""
        return {"rows": self.rows.clone(), "first": self.first.clone()} if len(self) else {}

    def load(self, state: StateDict) -> None:
        if state:
            self.rows, self.first = (torch.cat([getattr(self, name)[:0], state[name]]) for name in ("rows", "first"))
