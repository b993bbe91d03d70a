"""From one row to the next of all columns of an environment made of Rules, as a pure function of tensors.

It is the same arithmetic for every column: where an episode has ended, the new one is put in its place by ``where``.
So nothing waits for the host, and torch can compile it to one pass over its numbers.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from hpc_rl.envs.toy import Toy
from hpc_rl.types import RulesState, Spec


class Row(NamedTuple):
    """What b columns show, and what they carry on."""

    memory: RulesState  # of the Rules
    shown: Tensor  # [b, *O]
    first: Tensor  # [b] bool, the observation opens an episode
    ended: Tensor  # [b] bool, the next row opens another
    reward: Tensor  # [b] that led here; 0 where it was not finite
    running_return: Tensor  # [b] float64, of the open episode
    running_length: Tensor  # [b] int32
    steps: Tensor  # [b] int64, env steps so far, over all attempts
    rows: Tensor  # [b] int64, rows so far, those that only begin an episode included


def opened(toy: Toy, u: Tensor, steps: Tensor) -> Row:
    """The first row, from uniforms u [b, begin_uniforms]; ``steps`` int64 [b] were made before."""
    spec, memory, columns, device = toy.rules.spec, toy.rules.begin(u), len(u), u.device
    zeros, rows = torch.zeros(columns, device=device), torch.zeros(columns, dtype=torch.int64, device=device)
    first = torch.ones(columns, dtype=torch.bool, device=device)
    empty = torch.zeros(columns, *spec.observation, dtype=getattr(torch, spec.dtype), device=device)
    shown = stack_after(spec, empty, toy.rules.show(memory), first)
    memory = {name: x.contiguous() for name, x in memory.items()}  # as after a move, or it is compiled for both
    return Row(memory, shown, first, ~first, zeros, zeros.double(), zeros.int(), steps, rows)


def advanced(toy: Toy, row: Row, action: Tensor, u: Tensor, begin_u: Tensor) -> tuple[Row, dict[str, Tensor]]:
    """Move the columns that play and begin anew those whose last move ended.

    ``u`` [b, move_uniforms] are for the moves, ``begin_u`` [b, begin_uniforms] for new episodes. Returns the next row,
    and the leaves of a fragment that the move makes, each [b].
    """
    rules, first, playing = toy.rules, row.ended, ~row.ended
    moved, reward, discount, truncated = rules.move(row.memory, action, u)
    fresh = rules.begin(begin_u)
    if toy.follow is not None:
        fresh = toy.follow(row.memory, fresh)
    memory = {name: torch.where(beside(first, x), fresh[name], x) for name, x in moved.items()}
    shown = stack_after(rules.spec, row.shown, rules.show(memory), first)
    reward = reward.masked_fill(first, 0.0).float()
    ended = playing & ((discount == 0) | truncated)
    led = torch.nan_to_num(reward, 0.0, 0.0, 0.0)
    returned, length = row.running_return + led, row.running_length + playing
    success = torch.full_like(led, torch.nan)
    if rules.success is not None:
        success = torch.where(ended, rules.success(memory), success)
    leaves = {
        "reward": reward,
        "discount": discount.masked_fill(first, 1.0),
        "episode_return": returned.masked_fill(~ended, torch.nan),
        "episode_length": length * ended,
        "episode_success": success,
    }
    running = returned.masked_fill(ended, 0.0), length.masked_fill(ended, 0)
    return Row(memory, shown, first, ended, led, *running, row.steps + playing, row.rows + 1), leaves


def stack_after(spec: Spec, shown: Tensor, frame: Tensor, first: Tensor) -> Tensor:
    """[b, *O] with the newest frame [b, *frame], behind what fills a stack where ``first`` opens an episode."""
    frame = frame.type(shown.dtype)
    if spec.stack == 1:
        return frame
    older = frame if spec.padding == "repeat" else torch.zeros_like(frame)
    kept = torch.where(beside(first, shown), older[:, None], shown)
    return torch.cat([kept[:, 1:], frame[:, None]], 1)


def beside(mask: Tensor, x: Tensor) -> Tensor:
    """A mask [b] as it stands beside x [b, …]."""
    return mask.reshape(-1, *[1] * (x.ndim - 1))
