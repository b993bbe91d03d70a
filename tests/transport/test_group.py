"""How a gradient becomes new parameters: the mean over all samples of all members, clipped, in one step.

Mutations seen to fail: divided by another count; not clipped; a mean of means; a step without samples; gradients added
to those of the step before; left over where a loss does not depend on a parameter, or in the networks.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from hpc_rl.optim.alone import Alone
from hpc_rl.optim.flat import Optimizer, StateDict, flatten
from hpc_rl.optim.group import Group
from hpc_rl.optim.optimizers import make_optimizer
from hpc_rl.transport.group import AllReduce, learners
from hpc_rl.transport.local import LocalLink, alone, run_threads
from hpc_rl.transport.ports import Ports
from hpc_rl.transport.waiting import Waiting

DATA = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 1.0], [1.0, 1.0], [-2.0, 4.0], [0.5, 0.5]])
SHARES = {1: [slice(0, 6)], 3: [slice(0, 1), slice(1, 6), slice(6, 6)]}  # one sample, five, none
RATE, SCALE = 0.1, 2.0


def descend(x: Tensor, g: Tensor, state: StateDict, rate: float) -> None:
    x.sub_(g, alpha=rate)


def one_step(group: Group, rows: Tensor, max_norm: float, stop: bool = False) -> tuple[Tensor, float, bool]:
    """One step of SGD on the loss Σ w·x: parameters after it, the norm, whether somebody wants to stop."""
    module = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(module.weight)
    flat = flatten(module)
    optimizer = Optimizer(flat, descend, RATE)
    loss = module(rows).sum() if len(rows) else None
    group.stop = stop
    norm = group.apply_gradients(optimizer, loss, len(rows), max_norm, SCALE)
    assert torch.equal(module.weight.data[0], flat.parameter.data), "the module left the flat buffer"
    return flat.parameter.data.clone(), norm, group.stop


@pytest.mark.parametrize("max_norm", [100.0, 0.5])
@pytest.mark.parametrize("size", SHARES)
def test_a_step_is_that_of_the_mean_over_all_samples(size: int, max_norm: float) -> None:
    gradient = SCALE * DATA.mean(0)
    norm = float(gradient.norm())
    expected = -RATE * gradient * min(1.0, max_norm / norm)
    results = {}

    def rank(link: LocalLink) -> None:
        group = learners(Ports(link, Waiting(10.0)), range(size), "mpi", "cpu", "")
        results[link.rank] = one_step(group, DATA[SHARES[size][link.rank]], max_norm, stop=link.rank == 1)

    run_threads(size, rank, 20.0)
    for parameters, steps, stop in results.values():
        assert torch.allclose(parameters, expected, atol=1e-6) and abs(steps - norm) < 1e-5
        assert stop is (size == 3), "one member's wish to stop reaches all, at the same step"


def test_one_learner_needs_no_reduction() -> None:
    assert isinstance(learners(Ports(alone()), [0], "mpi", "cpu", ""), Alone)
    assert isinstance(learners(Ports(alone()), [0], "nccl", "cpu", ""), Alone)


def test_a_mean_is_a_sum_over_a_sum() -> None:
    results = {}

    def rank(link: LocalLink) -> None:
        group = AllReduce(Ports(link, Waiting(10.0)), range(3))
        total, count = torch.tensor([6.0, 1.0, 0.0][link.rank]), torch.tensor([2.0, 5.0, 0.0][link.rank])
        results[link.rank] = float(group.mean(total, count))

    run_threads(3, rank, 20.0)
    assert set(results.values()) == {1.0}
    assert float(Alone().mean(torch.tensor(0.0), torch.tensor(0.0))) == 0.0


@pytest.mark.parametrize("size", [1, 3])
def test_no_samples_anywhere_is_no_step(size: int) -> None:
    """Adam's momentum would move the parameters on a gradient of zeros. It is no drop either: nothing was wrong."""
    results = {}

    def rank(link: LocalLink) -> None:
        group = learners(Ports(link, Waiting(10.0)), range(size), "mpi", "cpu", "")
        module = nn.Linear(2, 1, bias=False)
        nn.init.ones_(module.weight)
        flat = flatten(module)
        optimizer = make_optimizer(flat, "adam", 0.1, 1e-8, 0.999, 0.9)
        group.apply_gradients(optimizer, module(DATA).sum(), len(DATA), 100.0)
        before = flat.parameter.data.clone()
        for loss in (None, 0 * module(DATA).sum()):
            assert group.apply_gradients(optimizer, loss, 0, 100.0) == 0.0
        results[link.rank] = (
            torch.equal(flat.parameter.data, before)
            and int(optimizer.state["step"]) == 1
            and (group.taken, group.dropped) == (1, 0)
        )

    run_threads(size, rank, 20.0)
    assert len(results) == size and all(results.values())


@pytest.mark.parametrize("size", [1, 3])
def test_a_step_has_the_gradient_of_its_own_loss_alone(size: int) -> None:
    """The first loss reaches both of the networks in the buffer, the second only one, and both reach another one."""
    results = {}
    torch.manual_seed(0)  # here, for the ranks are threads that share its generator
    networks = [nn.Linear(2, 3) for _ in range(3)]

    def rank(link: LocalLink) -> None:
        group = learners(Ports(link, Waiting(10.0)), range(size), "mpi", "cpu", "")
        one, two, other = map(copy.deepcopy, networks)
        flat = flatten(one, two)
        optimizer = Optimizer(flat, descend, 0.0)
        x = DATA[:2]
        group.apply_gradients(optimizer, (one(x) * two(x) * other(x)).sum(), 2, 1e9)
        group.apply_gradients(optimizer, (one(x) * other(x)).sum() + one(x[:1]).sum(), 2, 1e9, SCALE)
        loss = (one(x) * other(x)).sum() + one(x[:1]).sum()
        weight, bias = (SCALE / 2 * g for g in torch.autograd.grad(loss, [one.weight, one.bias]))
        expected = torch.cat([weight.flatten(), bias, torch.zeros(9)])
        results[link.rank] = torch.allclose(flat.reduction[:-2], expected, rtol=1e-5) and all(
            p.grad is None for net in (one, two, other) for p in net.parameters()
        )

    run_threads(size, rank, 20.0)
    assert len(results) == size and all(results.values())


def test_a_norm_that_is_not_finite_drops_the_step_and_is_counted() -> None:
    group = Alone()
    for value in (torch.nan, torch.inf, 3e38):
        parameters, _, _ = one_step(group, torch.full((2, 2), value), 1.0)
        assert (parameters == 0).all()
    assert group.dropped == 3
    assert (one_step(group, DATA, 1.0)[0] != 0).all() and group.dropped == 3
