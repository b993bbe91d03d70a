"""Parameter servers: one worker learns as it would alone, slices as a whole, and a quorum leaves the late ones out.

Mutations seen to fail: a slice's optimiser without its state; counts not added; the late gradient applied; everybody
answered at each gradient; the learning rate of the server's own optimiser; the clip per server; a step without samples.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hpc_rl import job as jobs
from hpc_rl.optim.alone import Alone
from hpc_rl.optim.flat import Optimizer, StateDict
from hpc_rl.optim.group import Diverged
from hpc_rl.runtime.checkpoints import learner_state, load_learner, optimizer_state
from hpc_rl.runtime.shards import ParameterShard, ShardServer, concatenate_shards
from hpc_rl.transport.local import LocalLink, run_threads
from hpc_rl.transport.parameters import ParameterClient, shard_slices
from hpc_rl.transport.ports import Ports
from hpc_rl.transport.waiting import Waiting
from hpc_rl.types import Tree
from tests.contract.batches import config_of, learner_of, policy_of, sampled
from tests.contract.seats import run_job
from tests.contract.test_witness import check_column, column_of, table_of


def gradient(share: ParameterShard, value: float, count: float = 1.0, rate: float = 0.1) -> Tree:
    size = share.flat.parameter.numel()
    return {
        "gradient": np.full((1, size), value, np.float32),
        "head": np.array([[count, 1.0, np.inf, rate]]),
    }


def descend(x: torch.Tensor, g: torch.Tensor, state: StateDict, rate: float) -> None:
    x.sub_(g, alpha=rate)


def plain(quorum: int) -> ParameterShard:
    """A share over plain gradient descent, whose steps can be computed by hand."""
    spec, _ = sampled("a2c", "toy/catch", 0)
    learn = learner_of("a2c", spec)
    learn.optimizers = {"weights": Optimizer(learn.weights, descend, 1.0)}
    return ParameterShard(learn, slice(0, learn.weights.data.numel()), quorum, 0)


def test_every_gradient_is_a_step_and_its_age_is_noted() -> None:
    share = plain(0)
    before = share.flat.parameter.data.clone()
    for k, (version, value) in enumerate([(0, 1.0), (0, 2.0), (1, 4.0)]):
        assert share.take(gradient(share, value), version, 7 + k) == [7 + k]
    assert torch.allclose(share.flat.parameter.data, before - 0.1 * 7, atol=1e-6)
    assert list(share.staleness) == [0, 1, 1] and share.version == 3 and share.late == 0


def test_a_quorum_is_one_step_by_its_mean_and_the_late_one_is_dropped() -> None:
    share = plain(2)
    before = share.flat.parameter.data.clone()
    assert share.take(gradient(share, 1.0, count=3), 0, 7) == []
    assert share.take(gradient(share, 7.0, count=1), 0, 8) == [7, 8]
    assert torch.allclose(share.flat.parameter.data, before - 0.1 * 2, atol=1e-6)
    assert share.take(gradient(share, 1e9), 0, 9) == [9]
    assert share.late == 1 and share.version == 1
    assert torch.allclose(share.flat.parameter.data, before - 0.1 * 2, atol=1e-6)


@pytest.mark.parametrize("quorum", [0, 2])
def test_no_samples_are_no_step_but_an_answer(quorum: int) -> None:
    """Whose minibatch holds nothing pushes all the same, for others may wait for it; momentum must not move on that."""
    spec, batches = sampled("a2c", "toy/catch", 1)
    learn = learner_of("a2c", spec, config_of("a2c", optimizer="adam"))
    learn.update({"items": batches[0]}, 0.0)
    share = ParameterShard(learn, slice(0, learn.weights.data.numel()), quorum, 0)
    before, moments = share.flat.parameter.data.clone(), share.state()["optimizer"]
    for worker in range(max(1, quorum)):
        answered = share.take(gradient(share, 0.0, count=0), 0, worker)
    assert answered == list(range(max(1, quorum))) and share.dropped == 0
    assert torch.equal(share.flat.parameter.data, before)
    for key, x in share.state()["optimizer"].items():
        assert torch.equal(torch.as_tensor(x), torch.as_tensor(moments[key])), key
    for worker in range(max(1, quorum)):
        share.take(gradient(share, 1.0), 1, worker)
    assert not torch.equal(share.flat.parameter.data, before)


@pytest.mark.parametrize("quorum", [0, 1])
def test_a_worker_without_samples_says_so(quorum: int) -> None:
    spec, (batch,) = sampled("ppo", "toy/catch", 1)
    policy, counts = policy_of("ppo", spec), []

    def rank(link: LocalLink) -> None:
        ports = Ports(link, Waiting(20.0))
        if link.rank == 0:
            learn = learner_of("ppo", spec)
            share = ParameterShard(learn, slice(0, learn.weights.data.numel()), quorum, 0)
            desk = ShardServer(link, ports.waiting, [1], share)
            desk.open(0)
            for _ in range(16):
                message = desk.gradients.get()
                counts.append(float(message.tree["head"][0, 0]))
                desk.serve(message)
            return
        length = sum(p.numel() for p in policy.net.parameters())
        client = ParameterClient(ports, [0], length, quorum, lambda: False)
        learn = jobs.algorithm("ppo").learner(config_of("ppo"), spec, None, policy, client)
        client.pull(learn.weights.data)
        before = learn.weights.data.clone()
        learn.update({"items": replace(batch, first=torch.ones_like(batch.first))}, 0.0)  # not one valid move
        assert torch.equal(learn.weights.data, before) and (client.taken, client.dropped) == (0, 0)
        client.flush()

    run_threads(2, rank, 30.0)
    assert counts == [0.0] * 16


def test_ten_sums_in_a_row_that_overflow_end_the_run() -> None:
    share = plain(2)
    before = share.flat.parameter.data.clone()

    def overflow() -> None:
        for worker in (7, 8):
            share.take(gradient(share, 3e38), share.version, worker)

    for _ in range(9):
        overflow()
    assert share.figures()["dropped_steps"] == 9 and torch.equal(share.flat.parameter.data, before)
    for worker in (7, 8):
        share.take(gradient(share, 1.0), share.version, worker)
    for _ in range(9):
        overflow()
    with pytest.raises(Diverged, match=r"server, update 19: 10 updates in a row .* lower the learning rate"):
        overflow()


@pytest.mark.parametrize("servers", [1, 3])
@pytest.mark.parametrize("name", ["a2c", "ppo"])
def test_one_worker_learns_as_it_would_alone(name: str, servers: int) -> None:
    spec, batches = sampled(name, "toy/catch", 4)
    alone = learner_of(name, spec)
    start = learner_state(alone)
    norms = [alone.update({"items": batch}, 0.1 * k).metrics["grad_norm"] for k, batch in enumerate(batches)]
    steps = 4 * 16 if name == "ppo" else 4
    weights: dict[str, Any] = {}
    learners = [learner_of(name, spec) for _ in range(servers)]
    policy = policy_of(name, spec)

    def rank(link: LocalLink) -> None:
        ports = Ports(link, Waiting(20.0))
        if link.rank < servers:
            learn = learners[link.rank]
            load_learner(learn, start)
            share = ParameterShard(learn, shard_slices(learn.weights.data.numel(), servers)[link.rank], 0, 0)
            desk = ShardServer(link, ports.waiting, [servers], share)
            desk.open(0)
            while share.version < steps:
                desk.serve(desk.gradients.get())
            weights[f"{link.rank}"] = share.state()
            return
        length = sum(p.numel() for p in policy.net.parameters())
        client = ParameterClient(ports, range(servers), length, 0, lambda: False)
        learn = type(alone)(alone.config, spec, None, policy, client)
        learn.load(start["learner"]["own"])
        learn.weights.data.zero_()
        client.pull(learn.weights.data)
        weights["norms"] = [
            learn.update({"items": batch}, 0.1 * k).metrics["grad_norm"] for k, batch in enumerate(batches)
        ]
        weights["parameters"] = learn.weights.data.clone()

    run_threads(servers + 1, rank, 30.0)
    state = concatenate_shards(alone, [weights[str(k)] for k in range(servers)])
    assert torch.allclose(state["weights"], alone.weights.data, atol=1e-6)
    assert torch.allclose(weights["parameters"], alone.weights.data, atol=1e-6)
    assert weights["norms"] == pytest.approx(norms, rel=1e-4)
    for key, x in optimizer_state(alone.optimizer).items():
        assert torch.allclose(
            torch.as_tensor(state["learner"]["optimizers"]["weights"][key]), torch.as_tensor(x), atol=1e-6
        ), key


def test_a_share_takes_up_its_part_of_a_saved_optimiser() -> None:
    spec, batches = sampled("ppo", "toy/catch", 2)
    learn = learner_of("ppo", spec, None, Alone())
    learn.update({"items": batches[0]}, 0.0)
    parts = [ParameterShard(learn, part, 0, 0).state() for part in shard_slices(learn.weights.data.numel(), 3)]
    state, expected = concatenate_shards(learn, parts), learner_state(learn)
    assert torch.equal(state["weights"], expected["weights"])
    for key, x in expected["learner"]["optimizers"]["weights"].items():
        assert torch.equal(torch.as_tensor(state["learner"]["optimizers"]["weights"][key]), torch.as_tensor(x)), key


@pytest.mark.parametrize("stepped", [0, 1, 2])
@pytest.mark.parametrize("name", ["a2c", "ppo"])
def test_a_server_that_has_not_stepped_yet_joins_the_others(name: str, stepped: int) -> None:
    spec, _ = sampled(name, "toy/catch", 0)
    learn = learner_of(name, spec)
    servers = [ParameterShard(learn, part, 0, 0) for part in shard_slices(learn.weights.data.numel(), 3)]
    assert concatenate_shards(learn, [share.state() for share in servers])["learner"]["optimizers"] == {"weights": {}}
    servers[stepped].take(gradient(servers[stepped], 1.0), 0, 7)
    state = concatenate_shards(learn, [share.state() for share in servers])
    tensors = [x for x in state["learner"]["optimizers"]["weights"].values() if torch.is_tensor(x) and x.dim()]
    part = shard_slices(learn.weights.data.numel(), 3)[stepped]
    assert tensors and all(x.shape == state["weights"].shape for x in tensors)
    assert all((x[part] > 0).all() and x.sum() == pytest.approx(float(x[part].sum())) for x in tensors)
    load_learner(learner_of(name, spec), state)


@pytest.mark.parametrize(("servers", "quorum", "ranks"), [(3, 0, 5), (1, 1, 3), (1, 2, 3)])
def test_whole_jobs_keep_every_step(servers: int, quorum: int, ranks: int, tmp_path: Path) -> None:
    table = table_of("a2c", "parameter_server", ranks)
    table["resources"] |= {"servers": servers, "quorum": quorum}
    table["checkpoint"] = {"interval_s": 0.05}
    job_run = run_job(table, tmp_path / "run")
    moves = [check_column(column_of(job_run.run.path, column)) for column in range(4)]
    summary = json.loads(job_run.run.summary_file.read_text())
    assert summary["reason"].startswith("done") and 600 <= summary["env_steps"] <= sum(moves)
    assert len(sorted(job_run.run.checkpoints.glob("0*.h5"))) > 1
    lines = (job_run.run.metrics / "parameter_server-0.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    # Without a quorum a worker that is not scheduled for a while is overtaken as often as the others can push.
    assert last["staleness_max"] == 0 if quorum else 0 <= last["staleness_max"] <= summary["updates"]
    assert last["late_gradients"] == 0 if quorum != 1 else last["late_gradients"] > 0
