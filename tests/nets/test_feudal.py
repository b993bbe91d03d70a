"""FuN's networks: the dilated LSTM is r LSTMs that take turns, goals are unit vectors, the worker sees goals alone.

Mutations seen to fail: a row that follows the one before it; a counter that all columns share; nothing cleared at
``first``; outputs of one row, or of c + 1; ĝ for g; a bias in φ; goals that pass gradients on.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hpc_rl.formulas.feudal import windows
from hpc_rl.nets.feudal import DilatedLstm, Feudal
from hpc_rl.types import Actions, Spec

T, B, F, H = 23, 3, 4, 5


def made(groups: int) -> tuple[DilatedLstm, Tensor, Tensor]:
    """An LSTM, inputs and borders: column 1 is reset at other times than column 0, column 2 never after row 0."""
    torch.manual_seed(1)
    first = torch.zeros(T, B, dtype=torch.bool)
    first[0] = first[[9, 11], 0] = first[6, 1] = True
    return DilatedLstm(F, H, groups), torch.randn(T, B, F), first


def taking_turns(lstm: DilatedLstm, x: Tensor, first: Tensor) -> Tensor:
    """[T, b, 2, H] by r states for each column and a counter for each, one row and column after the other."""
    states = torch.zeros(len(x), x.shape[1], 2, H)
    for k in range(x.shape[1]):
        cores, counter = [torch.zeros(1, 2, H) for _ in range(lstm.groups)], 0
        for t in range(len(x)):
            if first[t, k]:
                cores, counter = [torch.zeros(1, 2, H) for _ in range(lstm.groups)], 0
            turn = counter % lstm.groups
            _, cores[turn] = lstm.cell(x[t : t + 1, k : k + 1], torch.zeros(1, 1, dtype=torch.bool), cores[turn])
            states[t, k] = cores[turn][0]
            counter += 1
    return states


@pytest.mark.parametrize("groups", [1, 3, 10, 40])
def test_it_is_r_lstms_that_take_turns(groups: int) -> None:
    lstm, x, first = made(groups)
    actual = lstm(x, first, torch.randn(groups, B, 2, H))
    assert torch.allclose(actual, taking_turns(lstm, x, first), atol=1e-6)


@pytest.mark.parametrize("cut", [1, 2, 7])
def test_fragments_are_the_whole(cut: int) -> None:
    lstm, x, first = made(3)
    past, pieces = torch.zeros(3, B, 2, H), []
    for low in range(0, T, cut):
        pieces.append(lstm(x[low : low + cut], first[low : low + cut], past))
        past = windows(past, pieces[-1], first[low : low + cut])[1:, -1]
    assert torch.allclose(torch.cat(pieces), taking_turns(lstm, x, first), atol=1e-6)


def made_net(**changes: int) -> Feudal:
    torch.manual_seed(2)
    spec = Spec("seen", (3,), "float32", Actions("multidiscrete", (3, 2)))
    sizes = {"lstm": 6, "goal": 8, "embedding": 4, "dilation": 5, **changes}
    return Feudal(spec, (16,), "nature", **sizes)


def test_goals_are_unit_vectors_of_outputs_of_the_last_c_rows() -> None:
    net, x, (_, _, first) = made_net(), torch.randn(T, B, 3), made(1)
    managed = net.manage(net.percept(x), first, torch.zeros(5, B, 2, 8), 4)
    assert torch.allclose(managed.goal.norm(dim=-1), torch.ones(T, B))
    for t in range(T):
        for k in range(B):
            begun = int(first[: t + 1, k].nonzero()[-1])
            outputs = managed.cells[max(begun, t - 3) : t + 1, k, 0].sum(0)
            assert torch.allclose(managed.goal[t, k], outputs / outputs.norm(), atol=1e-5)
            assert managed.value[t, k].item() == pytest.approx(net.manager_value(outputs).item(), abs=1e-5)


def test_without_goals_all_actions_are_alike() -> None:
    net, first = made_net(), torch.zeros(2, B, dtype=torch.bool)
    logits, _, _ = net.work(torch.randn(2, B, 16), first, torch.randn(B, 2, 6), torch.zeros(2, B, 8))
    assert logits.shape == (2, B, 5) and not logits.any()


def test_the_worker_passes_no_gradient_to_the_manager() -> None:
    net, first = made_net(), torch.zeros(T, B, dtype=torch.bool)
    z = net.percept(torch.randn(T, B, 3))
    managed = net.manage(z, first, torch.zeros(5, B, 2, 8), 4)
    logits, value, _ = net.work(z, first, torch.zeros(B, 2, 6), managed.goal)
    (logits.square().sum() + value.sum()).backward()
    touched = {name.split(".")[0] for name, x in net.named_parameters() if x.grad is not None}
    assert touched == {"torso", "worker", "actions", "embed", "worker_value"}
