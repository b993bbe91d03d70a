"""FuN's networks: a dilated LSTM, and the manager and worker around it (arXiv 1703.01161, sections 3 and 4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpc_rl.formulas.feudal import windows
from hpc_rl.nets.torsos import ConvTorso, Lstm, MlpTorso, image, orthogonal
from hpc_rl.types import Spec


class DilatedLstm(nn.Module):
    """r LSTMs of the same weights, of which row k of an episode goes on with number k mod r (section 4.1).

    So a row follows the one r rows before it, and r rows are computed at once. That an episode begins with number 0
    needs no counter: its first r rows follow nothing, in any column, whenever it is reset.
    """

    def __init__(self, inputs: int, units: int, groups: int) -> None:
        super().__init__()
        self.cell, self.groups = Lstm(inputs, units), groups

    def forward(self, x: Tensor, first: Tensor, past: Tensor) -> Tensor:
        """x [T, b, F], first [T, b] bool, past [r, b, 2, H]: hidden and cell states after the r rows before row 0,
        oldest first -> states [T, b, 2, H] after each row."""
        r, episode = self.groups, first.long().cumsum(0)
        before = torch.cat([torch.zeros_like(episode[:1]).expand(r, -1), episode])[: len(x)]
        anew, chunks = before != episode, [past]
        for start in range(0, len(x), r):
            rows = x[start : start + r]
            previous, count = chunks[-1][: len(rows)], len(rows)
            flags = anew[start : start + r].flatten()[None]
            _, after = self.cell(rows.flatten(0, 1)[None], flags, previous.flatten(0, 1))
            chunks.append(after.unflatten(0, (count, -1)))
        return torch.cat(chunks[1:])


@dataclass(frozen=True)
class Managed:
    """What the manager gives of T rows."""

    state: Tensor  # s [T, b, d], where directions are taken
    goal: Tensor  # ĝ/‖ĝ‖ [T, b, d]
    value: Tensor  # V^M [T, b]
    cells: Tensor  # [T, b, 2, d] of the dilated LSTM after each row


class Feudal(nn.Module):
    """Percept z, manager and worker; actions are choices (discrete or several discrete).

    z = f(x);  s = relu(W_s z);  ĝ_t = Σ_{i<c} h_{t−i} of the dilated LSTM over s, g = ĝ/‖ĝ‖;
    U = W_u LSTM(z) [P, k];  w = φ(Σ_{i=t−c..t} g_i), φ linear without a bias;  logits = U w  (eqs. 1 to 6).
    """

    def __init__(
        self, spec: Spec, hidden: tuple[int, ...], network: str, lstm: int, goal: int, embedding: int, dilation: int
    ) -> None:
        super().__init__()
        self.shape, self.outputs, self.embedding = spec.observation, sum(spec.actions.sizes), embedding
        self.planes = image(spec.observation, spec.dtype)
        self.torso = ConvTorso(self.planes, network) if self.planes else MlpTorso(self.shape, hidden)
        features = self.torso.features
        self.space = orthogonal(nn.Linear(features, goal), 2**0.5)
        self.manager = DilatedLstm(goal, goal, dilation)
        # Else a state of zeros would give a goal of zeros, which has no direction and a gradient without bounds.
        nn.init.uniform_(
            self.manager.cell.get_parameter("input.bias")[2 * goal : 3 * goal], -0.01, 0.01
        )  # cells' inputs
        self.manager_value = orthogonal(nn.Linear(goal, 1), 1.0)
        self.worker = Lstm(features, lstm)
        self.actions = orthogonal(nn.Linear(lstm, self.outputs * embedding), 0.1)
        self.embed = orthogonal(nn.Linear(goal, embedding, bias=False), 1.0)
        self.worker_value = orthogonal(nn.Linear(lstm + embedding, 1), 1.0)

    def percept(self, observation: Tensor) -> Tensor:
        """z [T, b, F] of observations [T, b, *O]."""
        features: Tensor = self.torso(observation)
        return features.reshape(*observation.shape[:2], -1)

    def manage(self, z: Tensor, first: Tensor, past: Tensor, horizon: int) -> Managed:
        """``past`` [r, b, 2, d] as `DilatedLstm` takes it; outputs are summed over the last c ≤ r rows."""
        state = torch.relu(self.space(z))
        cells = self.manager(state, first, past)
        outputs = windows(past[len(past) - horizon + 1 :, :, 0], cells[:, :, 0], first).sum(0)
        value = self.manager_value(outputs).squeeze(-1)
        return Managed(state, F.normalize(outputs, dim=-1), value, cells)

    def work(self, z: Tensor, first: Tensor, carry: Tensor, goals: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """goals [T, b, d], Σ_{i=t−c..t} g_i without gradient -> logits [T, b, P], V^D [T, b], carry [b, 2, H] after."""
        rows, carry = self.worker(z, first, carry)
        w = self.embed(goals.detach())
        actions = self.actions(rows).unflatten(-1, (self.outputs, self.embedding))
        value = self.worker_value(torch.cat([rows, w], -1)).squeeze(-1)
        return (actions @ w.unsqueeze(-1)).squeeze(-1), value, carry
