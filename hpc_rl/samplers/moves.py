"""Moves of all columns, and the uniforms that they need: drawn for several rows at a time, or compiled into them."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from hpc_rl.envs.base import BadEnvironment
from hpc_rl.envs.toy import Toy
from hpc_rl.formulas.counter_hash import mixed, uniforms
from hpc_rl.samplers.tensor_rows import Row, advanced, opened
from hpc_rl.samplers.tensor_rules import checked
from hpc_rl.samplers.uniforms import BEGIN, MOVE, Uniforms

Moved = tuple[Row, dict[str, Tensor]]


class Moves:
    """Takes b columns with these keys from row to row.

    Raises:
        BadEnvironment: an answer of the Rules is not what they promise, or they cannot be compiled.
    """

    def __init__(self, toy: Toy, keys: Tensor, compiled: bool = False) -> None:
        self.toy, self.keys = toy, keys
        self.double = self._wide(False)
        self.fused = torch.compile(partial(_drawn_and_advanced, toy, self.double), dynamic=False) if compiled else None
        self.go_on(keys, torch.zeros_like(keys))

    def _wide(self, double: bool) -> bool:
        """Whether a state is float64 after a move: a constant in it makes it that, and then it begins so."""
        begin, move = (self._uniforms(purpose, torch.zeros_like(self.keys), double) for purpose in (BEGIN, MOVE))
        after = checked(self.toy.rules, self.toy.rules.begin(begin.row()), move.row())
        wide = any(x.dtype == torch.float64 for x in after.values())
        return double if wide == double else self._wide(wide)

    def _uniforms(self, purpose: int, rows: Tensor, double: bool) -> Uniforms:
        count = {BEGIN: self.toy.rules.begin_uniforms, MOVE: self.toy.rules.move_uniforms}[purpose]
        return Uniforms(self.keys, rows, purpose, count, double)

    def opened(self, steps: Tensor) -> Row:
        """The first row; ``steps`` int64 [b] were made before."""
        return opened(self.toy, self._uniforms(BEGIN, torch.zeros_like(self.keys), self.double).row(), steps)

    def go_on(self, keys: Tensor, rows: Tensor) -> None:
        """Draw for what comes after ``rows`` int64 [b]."""
        self.keys, self.purposes = keys, (mixed(keys, MOVE), mixed(keys, BEGIN))
        self.move, self.begin = self._uniforms(MOVE, rows, self.double), self._uniforms(BEGIN, rows + 1, self.double)

    def after(self, row: Row, action: Tensor) -> Moved:
        """The next row, and the leaves of a fragment that the move makes; see `advanced`."""
        if self.fused is None:
            return advanced(self.toy, row, action, self.move.row(), self.begin.row())
        try:
            moved: Moved = self.fused(*self.purposes, row, action)
        except Exception as error:
            told = next(iter(str(error).splitlines()), type(error).__name__)
            raise BadEnvironment(
                f"{self.toy.rules.spec.id} cannot be compiled: {told}; set resources.compile = false, or install a "
                "C++ compiler (g++)"
            ) from error
        return moved


def _drawn_and_advanced(toy: Toy, double: bool, move: Tensor, begin: Tensor, row: Row, action: Tensor) -> Moved:
    """`advanced` with uniforms of keys [b] for moves and for beginnings, as `Uniforms` draws them."""
    u = uniforms(torch, mixed(move, row.rows), toy.rules.move_uniforms, double)
    begin_u = uniforms(torch, mixed(begin, row.rows + 1), toy.rules.begin_uniforms, double)
    return advanced(toy, row, action, u, begin_u)
