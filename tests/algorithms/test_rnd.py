"""RND's own arithmetic, against loops in the paper's notation over fragments with both kinds of end.

Mutations seen to fail: the bonus of the observation before the move; the filter along the columns, begun anew with each
fragment, or cut where an episode ends; its mean subtracted; bonuses divided by their own deviation; the intrinsic
stream cut at ends, or not cut by `ends_at_goal`, or cut by it at a time limit; γ_E for γ_I, also in the filter; c_E and
c_I exchanged; V_E for V_I in a target, in an advantage or in the loss; V_I left out of the loss; rewards not clipped; a
mask of the first columns for all ranks; its mean over all moves; f̂ trained, or paid for, in the warm-up; moments taken
in before the bonus, or of this rank alone; f, moments of either kind, or the filter left out of a checkpoint; the
filter's rows taken by their place.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hpc_rl.algorithms import rnd
from hpc_rl.fragments import trajectory
from hpc_rl.runtime.checkpoints import learner_state, load_learner
from hpc_rl.transport.group import AllReduce
from hpc_rl.transport.local import LocalLink, run_threads
from hpc_rl.transport.ports import Ports
from hpc_rl.transport.waiting import Waiting
from hpc_rl.types import Spec, Trajectory
from tests.contract.batches import config_of, learner_of, sampled, sampled_trees
from tests.contract.seats import newest, run_job

SMALL = {"embedding": (8,), "features": 6, "hidden": (16,), "warm_up": 1}
GAMMA_E, GAMMA_I, LAMBDA = 0.97, 0.9, 0.8
TIMES = {"discount": GAMMA_E, "intrinsic_discount": GAMMA_I, "lambda_": LAMBDA}


def rnd_learner(spec: Spec, **changes: Any) -> Any:
    return learner_of("rnd", spec, config_of("rnd", **{**SMALL, **TIMES, **changes}))


def batches(rounds: int, steps: int = 24) -> tuple[Spec, list[Trajectory]]:
    """Of the counter, whose three first episodes take 26 rows."""
    return sampled("rnd", "toy/counter", rounds, steps, config_of("rnd", **SMALL))


def through(net: torch.nn.Module, x: np.ndarray) -> np.ndarray:
    """Layers of a perceptron on x [n, D], by their weights; leaky ReLU of slope 0.2."""
    for layer in net:  # type: ignore[attr-defined]
        if isinstance(layer, torch.nn.Linear):
            weight, bias = (p.detach().double().numpy() for p in (layer.weight, layer.bias))
            x = x @ weight.T + bias
        else:
            x = np.where(x > 0, x, {"LeakyReLU": 0.2, "ReLU": 0.0}[type(layer).__name__] * x)
    return x


class Twin:
    """What the learner does before its first gradient, a move at a time."""

    def __init__(self, learner: Any) -> None:
        self.novelty, self.policy = learner.novelty, learner.policy
        self.seen: list[np.ndarray] = []  # frames of the rounds before
        self.sums: list[float] = []  # every F_t so far
        self.last = [0.0] * 4  # F of each column

    def look(self, batch: Trajectory) -> None:
        """Take the frames of a batch into the moments."""
        self.seen += list(batch.observation[1:].double().numpy().reshape(-1, 3))

    def bonus(self, batch: Trajectory) -> np.ndarray:
        """i [T, b]."""
        rows = np.stack(self.seen)
        deviation = np.maximum(rows.std(0), 1e-3)
        x = np.clip((batch.observation[1:].double().numpy() - rows.mean(0)) / deviation, -5, 5)
        away = through(self.novelty.predictor, x) - through(self.novelty.target, x)
        i = np.zeros(batch.valid.shape)
        for t, k in batch.valid.nonzero().tolist():
            i[t, k] = sum(d * d for d in away[t, k]) / away.shape[-1]
        return i

    def scaled(self, batch: Trajectory, i: np.ndarray) -> np.ndarray:
        for t in range(len(i)):
            for k in range(i.shape[1]):
                if batch.valid[t, k]:
                    self.last[k] = GAMMA_I * self.last[k] + i[t, k]
                    self.sums.append(self.last[k])
        return i / np.std(self.sums)


def advantage(
    reward: np.ndarray, value: np.ndarray, batch: Trajectory, gamma: float, episodic: bool, terminal: bool
) -> np.ndarray:
    """Â [T, b], a column at a time: of the list of its valid moves, with what stops value and trace after each."""
    out = np.zeros(reward.shape)
    valid = batch.valid.numpy()
    for k in range(valid.shape[1]):
        moves = [t for t in range(len(valid)) if valid[t, k]]
        trace = 0.0
        for t in reversed(moves):
            later = [s for s in moves if s > t]
            ends = t + 1 < len(valid) and not valid[t + 1, k]
            # the row whose value follows: the next that is moved from, or the last row of the fragment
            row = (t + 1 if episodic else later[0]) if later else (t + 1 if episodic else len(valid))
            go = 0.0 if terminal and batch.discount[t, k] == 0 else gamma
            trace = 0.0 if ends and episodic else trace
            trace = reward[t, k] + go * value[row, k] - value[t, k] + go * LAMBDA * trace
            out[t, k] = trace
    return out


@pytest.mark.parametrize(("ends_at_goal", "steps"), [(False, 24), (True, 24), (False, 26)])
def test_bonuses_advantages_and_targets_are_those_of_the_twin(ends_at_goal: bool, steps: int) -> None:
    """Fragments of 26 moves end with one that never happened."""
    spec, (warm, *rest) = batches(4, steps)
    assert bool(warm.valid[-1].any()) == (steps == 24)
    learner = rnd_learner(spec, ends_at_goal=ends_at_goal, reward_clip=9.0, extrinsic_weight=1.7, intrinsic_weight=0.4)
    twin = Twin(learner)
    learner.update({"items": warm}, 0.0)
    twin.look(warm)
    for batch in rest:
        i = twin.bonus(batch)
        r = twin.scaled(batch, i)
        with torch.no_grad():
            last = learner.policy.net(batch.observation[-1:])[1]
        acting = torch.stack([batch.extras["value"], batch.extras["intrinsic_value"]], -1)
        value = torch.cat([acting, last]).double().numpy()
        e = advantage(batch.reward.clamp(-9, 9).double().numpy(), value[..., 0], batch, GAMMA_E, True, True)
        n = advantage(r, value[..., 1], batch, GAMMA_I, False, ends_at_goal)
        kept = dict(learner.bonuses.last)
        before = learner.bonuses.sums.state()
        samples, figures = learner._samples(batch, False)
        valid = batch.valid.flatten().numpy()
        for ours, theirs in (
            (samples.advantage, 1.7 * e + 0.4 * n),
            (samples.target[:, 0], e + value[:-1, :, 0]),
            (samples.target[:, 1], n + value[:-1, :, 1]),
        ):
            assert np.allclose(ours.numpy()[valid], theirs.ravel()[valid], rtol=2e-4, atol=2e-4)
        assert figures["bonus"] == pytest.approx(i.sum() / valid.sum(), rel=1e-4)
        assert figures["intrinsic_reward"] == pytest.approx(r.sum() / valid.sum(), rel=1e-4)
        learner.bonuses.last = kept  # the update takes the same batch
        learner.bonuses.sums.load(before)
        learner.update({"items": batch}, 0.0)
        twin.look(batch)


def test_the_moments_are_those_of_all_frames_before() -> None:
    spec, rounds = batches(2)
    learner, twin = rnd_learner(spec), Twin(rnd_learner(spec))
    for batch in rounds:
        learner.update({"items": batch}, 0.0)
        twin.look(batch)
    assert np.allclose(learner.novelty.standardize.mean.detach().numpy(), np.mean(twin.seen, 0), rtol=1e-5)
    assert np.allclose(1 / learner.novelty.standardize.scale.detach().numpy(), np.std(twin.seen, 0), rtol=1e-4)


def test_the_loss_has_a_value_for_each_stream() -> None:
    """Gradients by the outputs: of both values alike, of the policy as PPO's by the mixed advantage."""
    spec, (batch,) = batches(1)
    learner = rnd_learner(spec, value_cost=0.3, entropy_cost=0.0)
    samples, _ = learner._samples(batch, False)
    output, value, _ = learner.policy.net(samples.observation)
    output, value = output.detach().requires_grad_(), value.detach().requires_grad_()
    total, sums = rnd.loss(learner.config, output, value, learner.policy.head, samples)
    total.backward()
    w, value_seen = samples.weight, value.detach()
    targets = samples.target
    assert torch.allclose(value.grad, 0.3 * w[:, None] * (value_seen - targets), atol=1e-5)
    log_p = output.detach().log_softmax(-1)
    chosen = torch.nn.functional.one_hot(samples.action, 2).float()
    slope = -(w * samples.advantage)[:, None] * (chosen - log_p.exp())  # r = 1: no clip
    assert torch.allclose(output.grad, slope, atol=1e-4)
    assert float(sums[2]) == pytest.approx(
        float(0.5 * (w * (targets[:, 1] - value_seen[:, 1]).square()).sum()), rel=1e-5
    )
    assert float(sums[1]) == pytest.approx(
        float(0.5 * (w * (targets[:, 0] - value_seen[:, 0]).square()).sum()), rel=1e-5
    )


def test_the_warm_up_pays_and_trains_nothing_new() -> None:
    spec, rounds = batches(3)
    learner = rnd_learner(spec, warm_up=2)
    flats = {name: optimizer.flat.data.clone() for name, optimizer in learner.optimizers.items()}
    for batch in rounds[:2]:
        metrics = learner.update({"items": batch}, 0.0).metrics
        assert metrics["intrinsic_reward"] == metrics["predictor_loss"] == metrics["predictor_grad_norm"] == 0
        assert learner.columns() == {} and learner.bonuses.sums.count == 0
    assert torch.equal(learner.optimizers["predictor"].flat.data, flats["predictor"])
    assert not torch.equal(learner.weights.data, flats["weights"])
    metrics = learner.update({"items": rounds[2]}, 0.0).metrics
    assert metrics["intrinsic_reward"] > 0 and metrics["predictor_loss"] > 0
    assert not torch.equal(learner.optimizers["predictor"].flat.data, flats["predictor"])
    assert learner.bonuses.sums.count == int(rounds[2].valid.sum())


def predictor_gradient(learner: Any, samples: Any, mask: np.ndarray) -> Tensor:
    """Of Σ m i / Σ m over valid moves, by autograd."""
    m = torch.tensor(mask) * samples.weight
    error = learner.novelty.error(samples.frame, samples.features)
    parts = torch.autograd.grad((m * error).sum() / m.sum(), list(learner.novelty.predictor.parameters()))
    return torch.cat([g.flatten() for g in parts])


def test_the_predictor_learns_from_a_share_and_divides_by_it() -> None:
    spec, (warm, batch) = batches(2)
    changes = {"epochs": 1, "minibatches": 1, "max_grad_norm": 1e9, "predictor_share": 0.3}
    learner = rnd_learner(spec, **changes)
    learner.update({"items": warm}, 0.0)
    samples, _ = learner._samples(batch, False)
    mask = np.random.default_rng([learner.seed, learner.round]).random(batch.action.shape).ravel() < 0.3
    assert 0.15 < mask.mean() < 0.45
    expected = predictor_gradient(learner, samples, mask)
    fixed = learner.novelty.target[0].weight.clone()
    metrics = learner.update({"items": batch}, 0.0).metrics
    assert metrics["predictor_grad_norm"] == pytest.approx(float(expected.norm()), rel=1e-4)
    assert torch.equal(learner.novelty.target[0].weight, fixed), "f never learns"
    with torch.no_grad():
        after = learner.novelty.error(samples.frame, samples.features)
    error = (torch.tensor(mask) * samples.weight * after).sum()
    assert float(error) < metrics["predictor_loss"] * float((torch.tensor(mask) * samples.weight).sum())


def test_the_layout_changes_nothing() -> None:
    """One, two and four ranks share mask, moments and filter: policy and predictor are the same after three rounds."""
    config = config_of("rnd", **SMALL, predictor_share=0.3, minibatches=2, learning_rate=1e-3)
    spec, rounds = sampled("rnd", "toy/catch", 3, config=config)  # whose columns differ
    state = learner_state(learner_of("rnd", spec, config))

    def learned(shards: int) -> list[Tensor]:
        learners = [learner_of("rnd", spec, config) for _ in range(shards)]

        def rank(link: LocalLink) -> None:
            learner, width = learners[link.rank], 4 // shards
            load_learner(learner, state)
            if shards > 1:
                learner.group = AllReduce(Ports(link, Waiting(30.0)), range(shards))
            for batch in rounds:
                part = batch.columns(slice(link.rank * width, (link.rank + 1) * width))
                learner.update({"items": part}, 0.0)

        run_threads(shards, rank, 60.0)
        flats = [learner.optimizers["predictor"].flat.data for learner in learners]
        return [*(learner.weights.data for learner in learners), *flats]

    alone = learned(1)
    for shards in (2, 4):
        parts = learned(shards)
        for part, expected in zip(parts, (alone[0],) * shards + (alone[1],) * shards, strict=True):
            assert (part - expected).abs().max() <= 1e-5, f"{shards} shards"


def test_what_a_checkpoint_holds_of_the_novelty() -> None:
    spec, rounds = batches(3)
    learner = rnd_learner(spec)
    for batch in rounds:
        learner.update({"items": batch}, 0.0)
    learner.bonuses.last["sum"] += torch.arange(4.0)  # the counter's columns are alike
    own, rows = learner.state(), learner.columns()
    assert rows["column"].tolist() == [0, 1, 2, 3] and rows["sum"].shape == (4,)
    torch.manual_seed(7)
    other = rnd_learner(spec)
    other.optimizers["predictor"].flat.data.copy_(learner.optimizers["predictor"].flat.data)
    other.load(own)
    order = torch.tensor([2, 0, 3, 1])  # ranks may hand over rows in any order
    other.load_columns({name: x[order] for name, x in rows.items()})
    weight = rounds[0].valid.float()
    reward = weight * torch.arange(1.0, 5.0)
    pay = [x.bonuses.scaled(reward, weight, rounds[0].column, lambda x: x) for x in (learner, other)]
    assert torch.equal(*pay)
    frame = rounds[0].observation
    errors = [x.novelty.error(frame, x.novelty.features(frame)) for x in (learner, other)]
    assert torch.equal(*errors)
    for one in (learner, other):
        one.update({"items": rounds[1]}, 0.0)
    assert torch.equal(learner.fixed.data, other.fixed.data), "with the moments that it goes on with"


def test_a_move_without_numbers_has_no_bonus_and_leaves_the_filter() -> None:
    config = config_of("rnd", **SMALL)
    spec, trees = sampled_trees("rnd", "toy/counter", 2, config=config)
    learner = learner_of("rnd", spec, config)
    learner.update({"items": trajectory([trees[0]], spec)}, 0.0)
    trees[1]["observation"][5, 2] = np.nan
    batch = trajectory([trees[1]], spec)
    assert not batch.finite[4, 2] and not batch.finite[5, 2]
    metrics = learner.update({"items": batch}, 0.0).metrics
    assert all(np.isfinite(x) for x in metrics.values())
    assert learner.bonuses.sums.count == int(batch.valid.sum())


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not(ranks: int, tmp_path: Path) -> None:
    """To the bit on one rank; two ranks share its columns, with the sums of their filters, out anew."""

    def table(env_steps: int, ranks: int) -> dict[str, Any]:
        return {
            "algorithm": "rnd",
            "topology": "allreduce",
            "environment": {"id": "toy/deep_sea", "columns": 4, "arguments": {"size": 5}},
            "budget": {"env_steps": env_steps},
            "resources": {"ranks": ranks, "threads": 1},
            "rnd": {"unroll": 12, "embedding": [8], "features": 6, "hidden": [16]},
        }

    whole = newest(run_job(table(320, 1), tmp_path / "whole"))[0]
    half = run_job(table(160, 1), tmp_path / "half")
    again = newest(run_job(table(320, ranks), tmp_path / "again", resume=half))[0]
    assert again["columns"]["column"].tolist() == whole["columns"]["column"].tolist() == [0, 1, 2, 3]
    parts = [(again["weights"], whole["weights"]), (again["columns"]["sum"], whole["columns"]["sum"])]
    for part, expected in parts:
        assert torch.equal(part, expected) if ranks == 1 else (part - expected).abs().max() <= 1e-5
