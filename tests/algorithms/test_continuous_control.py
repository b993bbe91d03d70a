"""DDPG, TD3 and SAC against one slow twin: linear networks, gradients of the actors by differences.

Mutations seen to fail: a truncation taken for a termination, and the reverse; the value at the item's last row instead
of the row behind its last valid move; items without a valid move counted; the larger of two critics, or their mean, in
the target of TD3 or SAC; the mean of them in SAC's actor; α left out of its loss, or of the target; the target's noise
not clipped; the target's action, or its value, by the networks that learn; the slope not clipped, of another critic or
of the target critic; a critic left out of the loss; the temperature's sign; the entropy's target not times the entries;
target networks stepped with 1 − τ, never, or every update where ``policy_delay`` or ``target_every`` says less; one z
for the target and for the actor; ``rounds`` left out of the state; ``seed`` not loaded; importance
left out of DDPG's critic, or in its figures; priorities with a sign.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from hpc_rl.algorithms import ddpg, sac, td3
from hpc_rl.experience import Unsuited
from hpc_rl.fragments import trajectory
from hpc_rl.optim.alone import Alone
from hpc_rl.types import Actions, Array, Spec, Trajectory

SPEC = Spec("linear", (3,), "float32", Actions("box", (2,), (-1.0, -1.0), (1.0, 1.0)))
ITEMS, N, GAMMA, A, TAU, RATE, EPSILON = 40, 3, 0.9, 2, 0.25, 1e-2, 0.05
METHODS = {"ddpg": ddpg, "td3": td3, "sac": sac}


def learner_of(name: str, moved: bool = True, **changes: Any) -> Any:
    torch.manual_seed(3)
    method: Any = METHODS[name]
    fixed = {"n_step": N, "hidden": (), "discount": GAMMA, "tau": TAU, "adam_epsilon": EPSILON}
    fixed |= {"actor_learning_rate": RATE, "critic_learning_rate": RATE, "temperature_learning_rate": RATE}
    fixed |= {"policy_delay": 1, "target_noise": 0.5, "target_noise_clip": 0.3, "temperature": 0.3, **changes}
    config = method.Config(**{key: x for key, x in fixed.items() if key in method.Config.__dataclass_fields__})
    learner = method.Learner(config, SPEC, None, method.policy(config, SPEC, None), Alone())
    with torch.no_grad():  # else the targets are the networks that learn, and the actor's output is near 0
        for flat in [optimizer.flat for key, optimizer in learner.optimizers.items() if moved and key != "temperature"]:
            flat.data.add_(0.5 * torch.randn_like(flat.data))
    return learner


def batch_of(seed: int) -> Trajectory:
    """Items of three moves: whole, terminated, cut by a time limit, and some that begin with no move at all."""
    rng = np.random.default_rng(seed)
    first, discount = np.zeros((N + 1, ITEMS), bool), np.ones((N, ITEMS), np.float32)
    for k in range(ITEMS):
        end = int(rng.integers(0, N + 2))  # the row of LAST, beyond the item for some
        first[end + 1 :, k] = True
        if end and rng.random() < 0.5:
            discount[end - 1 : end, k] = 0
        discount[end:, k] = rng.normal()
    tree = {
        "observation": rng.normal(size=(N + 1, ITEMS, 3)).astype(np.float32),
        "first": first,
        "action": rng.uniform(-1, 1, (N, ITEMS, A)).astype(np.float32),
        "reward": rng.normal(size=(N, ITEMS)).astype(np.float32),
        "discount": discount,
        "version": np.zeros((N, ITEMS), np.int64),
        "column": np.zeros(ITEMS, np.int32),
        "start": np.zeros(ITEMS, np.int64),
    }
    return trajectory([tree], SPEC)


def actor_of(learner: Any) -> Any:
    """The Flat of what acts."""
    return learner.optimizers["actor" if "actor" in learner.optimizers else "weights"].flat


def targets_of(learner: Any) -> dict[str, Array]:
    """Copies of the parameters of target networks."""
    if hasattr(learner, "targets"):
        return {name: numbers(flat) for name, flat in learner.targets.items()}
    whole, size = numbers(learner.target), len(actor_of(learner).data)
    return {"critics": whole} if "weights" in learner.optimizers else {"actor": whole[:size], "critic": whole[size:]}


def numbers(flat: Any) -> Array:
    return np.asarray(flat.data.detach().double().numpy()).copy()


def critic(theta: Array, x: Array, a: Array) -> Array:
    """[k] values of one observation and action; theta = weights [k, 5] and then biases [k]."""
    count = len(theta) // 6
    return theta[: 5 * count].reshape(count, 5) @ np.concatenate([x, a]) + theta[5 * count :]


def linear(theta: Array, x: Array) -> Array:
    """An actor's output; theta = weights [o, 3] and then biases [o]."""
    outputs = len(theta) // 4
    return theta[: 3 * outputs].reshape(outputs, 3) @ x + theta[3 * outputs :]


def drawn(theta: Array, x: Array, z: Array) -> tuple[Array, float]:
    """SAC's action and its log-probability, as in a book."""
    mean, log_std = np.split(linear(theta, x), 2)
    a = np.tanh(mean + np.exp(log_std) * z)
    normal = -0.5 * z**2 - log_std - 0.5 * np.log(2 * np.pi)
    return a, float((normal - np.log(1 - a**2)).sum())


def difference(f: Callable[[Array], float], theta: Array) -> Array:
    step = 1e-5 * np.eye(len(theta))
    return np.array([(f(theta + e) - f(theta - e)) / 2e-5 for e in step])


def stepped(theta: Array, gradient: Array) -> Array:
    """Adam's first step."""
    return theta - RATE * gradient / (np.abs(gradient) + EPSILON)


def returns(batch: Trajectory, k: int) -> tuple[float, float, int, bool]:
    """Of an item: discounted rewards, the factor of the value behind them, its row, whether it terminated."""
    total, power, m, terminal = 0.0, 1.0, 0, False
    while m < N and bool(batch.valid[m, k]) and not terminal:
        total += power * float(batch.reward[m, k])
        terminal, power, m = float(batch.discount[m, k]) == 0, power * GAMMA, m + 1
    return total, 0.0 if terminal else power, m, terminal


class Twin:
    """One update of a method, in float64 and item by item."""

    def __init__(self, name: str, learner: Any, batch: Trajectory, slope_clip: float = 0.0) -> None:
        self.x, self.a = batch.observation.double().numpy(), batch.action[0].double().numpy()
        self.name, self.used = name, [k for k in range(ITEMS) if batch.valid[0, k]]
        rng = np.random.default_rng([getattr(learner, "seed", 0), 0])
        self.z = rng.standard_normal((ITEMS, 2, A) if name == "sac" else (ITEMS, A), np.float32).astype(float)
        self.alpha, self.clip = 0.3, slope_clip
        self.importance = batch.chance.double().numpy()[self.used] ** -0.7
        self.actor, self.old = numbers(actor_of(learner)), targets_of(learner)
        key = "critic" if name == "ddpg" else "critics"
        self.before, rows = numbers(learner.optimizers[key].flat), []
        y, ends = [], set()
        for k in self.used:
            total, factor, m, terminal = returns(batch, k)
            y.append(total + factor * self.value(self.x[m, k], k, self.old[key]))
            ends.add((m, terminal))
            rows.append(critic(self.before, self.x[0, k], self.a[k]))
        assert {(1, True), (1, False), (3, False)} <= ends and len(y) < ITEMS
        q, self.y = np.array(rows), np.array(y)
        self.errors = np.abs(self.y - q[:, 0])
        self.figures = {"loss": self.critics_loss(self.before), "q_mean": q.mean()}
        self.figures["target_mean"] = self.y.mean()
        self.critics = stepped(self.before, difference(self.critics_loss, self.before))
        self.gradient = difference(self.actor_loss, self.actor)

    def value(self, x: Array, k: int, critics: Array) -> float:
        """Behind item k, whose last observation is x."""
        if self.name == "sac":
            a, log_prob = drawn(self.actor, x, self.z[k, 0])
            return float(critic(critics, x, a).min() - self.alpha * log_prob)
        a = np.tanh(linear(self.old["actor"], x))
        if self.name == "td3":
            a = np.clip(a + np.clip(0.5 * self.z[k], -0.3, 0.3), -1, 1)
        return float(critic(critics, x, a).min())

    def critics_loss(self, theta: Array) -> float:
        q = np.array([critic(theta, self.x[0, k], self.a[k]) for k in self.used])
        return float(0.5 * (self.importance * ((q - self.y[:, None]) ** 2).sum(1)).mean())

    def actor_loss(self, theta: Array) -> float:
        """Against the new critics."""
        terms, critics = [], self.critics.copy()
        if self.clip:
            critics[3:5] = np.clip(critics[3:5], -self.clip, self.clip)
        for k in self.used:
            x = self.x[0, k]
            if self.name == "sac":
                a, log_prob = drawn(theta, x, self.z[k, 1])
                terms.append(self.alpha * log_prob - critic(critics, x, a).min())
            else:
                terms.append(-critic(critics, x, np.tanh(linear(theta, x)))[0])
        return float(np.mean(terms))

    def entropy(self) -> float:
        return -float(np.mean([drawn(self.actor, self.x[0, k], self.z[k, 1])[1] for k in self.used]))


@pytest.mark.parametrize(
    ("name", "clip", "alpha"), [("ddpg", 0.0, 0.0), ("ddpg", 0.1, 0.6), ("td3", 0.0, 0.0), ("sac", 0.0, 0.0)]
)
def test_an_update_has_the_papers_numbers(name: str, clip: float, alpha: float) -> None:
    learner, batch = learner_of(name, slope_clip=clip, priority_exponent=alpha, importance_exponent=0.7), batch_of(1)
    if alpha:
        chance = np.random.default_rng(2).uniform(1, 9, ITEMS).astype(np.float32)
        batch = replace(batch, chance=torch.from_numpy(chance))
    twin = Twin(name, learner, batch, clip)
    result = learner.update({"items": batch}, 0.4)
    metrics, priorities = result.metrics, result.priorities
    assert (priorities is not None) == bool(alpha)
    if priorities is not None:
        assert np.allclose(priorities.numpy()[twin.used], twin.errors, atol=1e-5)
    key = "critic" if name == "ddpg" else "critics"
    expected = dict(twin.figures)
    if name == "sac":
        expected |= {"policy_loss": twin.actor_loss(twin.actor), "entropy": twin.entropy(), "temperature": 0.3}
        slope = twin.entropy() - (-1.0 * A)  # of −log α (log π + H̄)
        assert float(learner.log_temperature.data) == pytest.approx(stepped(np.log(0.3), slope), rel=1e-5)
    elif not clip:
        expected["policy_q"] = -twin.actor_loss(twin.actor)
    expected["policy_grad_norm"] = float(np.linalg.norm(twin.gradient))
    for figure, number in expected.items():
        assert metrics[figure] == pytest.approx(number, rel=2e-4), figure
    assert np.allclose(numbers(learner.optimizers[key].flat), twin.critics, atol=2e-6)
    assert np.allclose(numbers(actor_of(learner)), stepped(twin.actor, twin.gradient), atol=5e-6)
    for part, target in targets_of(learner).items():
        learned = numbers(actor_of(learner)) if part == "actor" else twin.critics
        assert np.allclose(target, twin.old[part] + TAU * (learned - twin.old[part]), atol=2e-6), part


@pytest.mark.parametrize("name", METHODS)
def test_gradients_are_clipped_to_a_norm(name: str) -> None:
    learner = learner_of(name, max_grad_norm=1e-3, adam_epsilon=1.0)
    flats = [learner.optimizers["critic" if name == "ddpg" else "critics"].flat, actor_of(learner)]
    before = [flat.data.clone() for flat in flats]
    metrics = learner.update({"items": batch_of(1)}, 0.0).metrics
    assert metrics["grad_norm"] > 0.1 and metrics["policy_grad_norm"] > 0.1
    for flat, was in zip(flats, before, strict=True):
        assert float((flat.data - was).norm()) == pytest.approx(RATE * 1e-3, rel=0.02)


@pytest.mark.parametrize(("name", "every"), [("ddpg", {"target_every": 2}), ("td3", {"policy_delay": 2})])
def test_what_is_slower_waits_for_its_update(name: str, every: dict[str, int]) -> None:
    learner, moved = learner_of(name, **every), []
    for k in range(4):
        before = [*targets_of(learner).values(), numbers(actor_of(learner))]
        learner.update({"items": batch_of(k)}, 0.0)
        after = [*targets_of(learner).values(), numbers(actor_of(learner))]
        moved.append([not np.array_equal(x, y) for x, y in zip(before, after, strict=True)])
    actor = name == "ddpg"  # moves every time
    assert moved == [[False, False, actor], [True, True, True]] * 2


@pytest.mark.parametrize("name", METHODS)
def test_a_loaded_learner_goes_on_as_the_saved_one(name: str) -> None:
    learner, other = learner_of(name, policy_delay=2), learner_of(name, policy_delay=2)
    if name != "ddpg":
        other.seed = learner.seed + 1
    learner.update({"items": batch_of(0)}, 0.0)
    saved, kept, rounds = learner.state(), targets_of(learner), learner.rounds
    learner.update({"items": batch_of(1)}, 0.0)
    other.load(saved)
    assert other.rounds == rounds == 1 and getattr(other, "seed", 0) == getattr(learner, "seed", 0)
    for part, x in kept.items():
        assert np.array_equal(targets_of(other)[part], x) and not np.array_equal(targets_of(learner)[part], x)


def test_draws_depend_on_the_update() -> None:
    for name in ("td3", "sac"):
        learner = learner_of(name, actor_learning_rate=1e-12, critic_learning_rate=1e-12, tau=1e-9)
        values = [learner.update({"items": batch_of(1)}, 0.0).metrics["target_mean"] for _ in range(2)]
        assert abs(values[0] - values[1]) > 1e-4, name


@pytest.mark.parametrize("name", ["ddpg", "td3"])
def test_noise_falls_in_a_line(name: str) -> None:
    method: Any = METHODS[name]
    config, columns = method.Config(noise=0.2, noise_fraction=0.5), np.arange(3, dtype=np.int32)
    for progress, sigma in ((0.0, 1.0), (0.25, 0.6), (0.5, 0.2), (1.0, 0.2)):
        actual = method.exploration(config, columns, 8, progress)
        assert actual.shape == (3,) and actual.dtype == np.float32 and np.allclose(actual, sigma)
    assert np.allclose(method.exploration(method.Config(noise=0.2, noise_fraction=0.0), columns, 8, 0.0), 0.2)


@pytest.mark.parametrize("name", METHODS)
def test_discrete_actions_are_refused_in_a_sentence(name: str) -> None:
    method: Any = METHODS[name]
    for actions in (Actions("discrete", (2,)), Actions("multidiscrete", (2, 3))):
        with pytest.raises(Unsuited, match=f"{name.upper()} needs a box of .*, and other has {actions.kind} ones; use"):
            method.policy(method.Config(), Spec("other", (3,), "float32", actions), None)
