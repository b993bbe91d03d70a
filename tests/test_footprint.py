"""What the meta device counts of a method, against the same method with numbers, and a small one by hand.

Mutations seen to fail: views, or what was there before, counted as new; freed memory counted on; an update without its
backward pass; the state of an optimiser left out; an own Flat taken for a part of the weights; half the further rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hpc_rl import job as jobs
from hpc_rl.agent import Agent, bind
from hpc_rl.algorithms import base
from hpc_rl.experience import Experience, Items
from hpc_rl.footprint import Footprint, Layer, footprint, nbytes
from hpc_rl.nets.actor_critic import ActorCritic
from hpc_rl.optim.flat import StateDict, flatten
from hpc_rl.optim.group import Group
from hpc_rl.optim.optimizers import make_optimizer
from hpc_rl.plan import Plan, RankSpec
from hpc_rl.rehearsal import LiveBytes, most_at_once
from hpc_rl.runtime.checkpoints import learner_state
from hpc_rl.types import Actions, ActOutput, Rules, Schema, Spec, Step, Trajectory, UpdateResult
from tests.contract.batches import SPECS, SUITED, WHOLE, cases, config_of, learner_of, rules_of, sampled

PLAN = Plan("solo", (RankSpec(0, "worker", 0, range(4), 1, True, peers=(0,)),), 6, 4, 4)
VECTOR = SPECS["discrete"]
ENDS_ONLY = ("hdqn", "hac")  # of items that may be long little more than both end rows is learned from

GROWS = ("pilco", "pilco_nn")  # a learner keeps all moves that it ever saw, those of the update that was rehearsed too


def agent_of(name: str, config: Any, spec: Spec) -> Agent:
    algorithm = jobs.algorithm(name)
    return bind(algorithm, config, config.experience(), spec, rules_of(spec) if algorithm.legal else None)


def counted(name: str, spec: Spec, config: Any) -> Footprint:
    return footprint(agent_of(name, config, spec), PLAN, 4)


@pytest.mark.parametrize(
    ("name", "kind", "changes"), cases({}, WHOLE, {"optimizer": "rmsprop_inside", "momentum": 0.5}, of=SUITED)
)
def test_sizes_are_those_of_the_objects_with_numbers(name: str, kind: str, changes: dict[str, Any]) -> None:
    spec, config = SPECS[kind], config_of(name, **changes)
    method = counted(name, spec, config)
    learner = learner_of(name, spec, config)
    for optimizer in learner.optimizers.values():
        optimizer.step()
    assert method.parameters == sum(p.numel() for p in learner.policy.net.parameters()) == method.layers[0].parameters
    assert method.weights == learner.weights.data.numel()
    saved = nbytes(learner_state(learner))
    assert method.checkpoint_bytes > saved if name in GROWS else method.checkpoint_bytes == saved
    assert method.uncounted == ()
    longest = max(items.length for items in config.experience().items)
    least = method.batch_bytes * 2 // (longest + 1) if name in ENDS_ONLY else method.batch_bytes
    assert method.act_bytes > 0 and (method.update_bytes > least or not learner.optimizers)


def test_memory_grows_with_the_batch() -> None:
    plans = [Plan("solo", PLAN.ranks, 6, columns, columns) for columns in (100, 200)]
    small, large = (footprint(agent_of("ppo", config_of("ppo"), VECTOR), plan, 4) for plan in plans)
    assert large.batch_bytes == 2 * small.batch_bytes
    assert large.update_bytes == pytest.approx(2 * small.update_bytes, rel=0.1)


def test_the_backward_pass_is_counted() -> None:
    spec, columns = SPECS["pixel"], 40
    method = footprint(agent_of("a2c", config_of("a2c"), spec), Plan("solo", PLAN.ranks, 6, columns, columns), 4)
    images = torch.empty(7, columns, *spec.observation, dtype=torch.uint8, device="meta")
    net = ActorCritic(spec, ()).to("meta")
    forward, _ = most_at_once(lambda: net(images))
    assert method.update_bytes > 1.15 * forward


def test_long_batches_of_recurrent_networks_are_counted_by_short_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    config, plan = config_of("ppo", lstm=6), Plan("solo", PLAN.ranks, 60, 4, 4)
    short = footprint(agent_of("ppo", config, VECTOR), plan, 4)
    monkeypatch.setattr("hpc_rl.footprint.SHORT", 60)
    exact = footprint(agent_of("ppo", config, VECTOR), plan, 4)
    assert short.update_bytes == pytest.approx(exact.update_bytes, rel=0.03)


def test_a_queue_is_as_large_as_the_learners() -> None:
    config = config_of("impala", replay=0.5, replay_columns=10)
    spec, batches = sampled("impala", "toy/catch", 4, 6, config)
    learner = learner_of("impala", spec, config)
    for batch in batches:
        learner.update({"items": batch}, 0.0)
    assert len(learner.queue) == 10
    assert counted("impala", spec, config).queue_bytes == sum(nbytes(vars(x)) for x in learner.queue)


# ---- a method with everything that is rare, by hand -----------------------------------------------------------------


@dataclass(frozen=True)
class Config:
    read: bool = False  # the update reads a number that only data can give
    gradients: bool = True

    def experience(self) -> Experience:
        return Experience(6, (Items("items", 8, 3, samples_per_insert=2.0),), capacity=100)


@dataclass
class Policy:
    """An actor of 3 × 2 weights and a critic of 3, which act; 2 uniforms."""

    net: nn.Module
    noise: int = 2
    fragment_noise: int = 0
    extras: Schema = field(default_factory=dict)
    carry: Schema = field(default_factory=dict)

    def initial_carry(self, columns: int) -> dict[str, Tensor]:
        return {}

    def act(self, step: Step, carry: dict[str, Tensor], exploration: Tensor, noise: Tensor) -> ActOutput:
        return ActOutput((self.net[0](step.observation) + noise).argmax(-1), {}, {})  # type: ignore[index]


class Learner(base.Learner):
    def __init__(self, config: Config, spec: Spec, rules: Rules | None, policy: Policy, group: Group) -> None:
        self.config, self.policy, self.group = config, policy, group
        self.weights = flatten(policy.net)
        device = self.weights.data.device
        self.temperature = nn.Linear(1, 1).to(device)
        flats = {"actor": self.weights.part(policy.net[0]), "temperature": flatten(self.temperature)}  # type: ignore[index]
        self.optimizers = {name: make_optimizer(x, "adam", 0.1, 1e-8, 0.9) for name, x in flats.items()}
        self.optimizers = self.optimizers if config.gradients else {}
        self.target = self.weights.data.clone()

    def update(self, batches: Mapping[str, Trajectory], progress: float) -> UpdateResult:
        batch = batches["items"]
        x = batch.observation[:-1]
        if self.config.read:
            while float(x.sum()) > 0:
                x = x / 2
        for optimizer in self.optimizers.values():
            loss = self.temperature(self.policy.net[0](x).square().sum()[None]).sum()  # type: ignore[index]
            self.group.apply_gradients(optimizer, loss, int(batch.valid.sum()), 1.0)
        return UpdateResult({})

    def state(self) -> StateDict:
        return {"target": self.target, "rounds": 3}

    def load(self, state: StateDict) -> None: ...


def rare(**changes: Any) -> Footprint:
    spec = Spec("rare", (3,), "float32", Actions("discrete", (2,)))
    algorithm = base.Algorithm(
        Config, lambda config, spec, rules: Policy(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))), Learner
    )
    config = Config(**changes)
    return footprint(bind(algorithm, config, config.experience(), spec), PLAN, 4)


def test_several_flats_by_hand() -> None:
    method = rare()
    assert (method.parameters, method.weights) == (8 + 3, 8 + 3)
    assert method.optimizers == {"actor": ("adam", 8), "temperature": ("adam", 2)}
    assert method.own == {"target": 11}
    moments = 4 * (2 * 8 + 1) + 4 * (2 * 2 + 1)  # both of Adam, and its count of steps
    saved = 4 * 11 + moments + 4 * 2 + 4 * 11  # weights, moments, the temperature, the target
    assert method.checkpoint_bytes == saved
    assert method.learner_bytes == saved + 4 * (11 + 2) + 4 * (8 + 2) + 4 * (2 + 2)  # three gradients
    rows, items = 4, 8
    observation, moves = 4 * 3 * rows * items, 3 * items  # [4, 8, 3] and [3, 8]
    per_move = 8 + 4 + 4 + 8 + 1  # action, reward, discount, version, finite
    assert method.batch_bytes == observation + rows * items + per_move * moves + (4 + 8 + 4) * items
    assert method.layers == (
        Layer("", "Sequential", 11),
        Layer("0", "Linear: in_features=3, out_features=2, bias=True", 8),
        Layer("1", "Linear: in_features=2, out_features=1, bias=True", 3),
    )
    assert method.uncounted == ()


def test_a_method_without_optimizers() -> None:
    method = rare(gradients=False)
    assert method.optimizers == {} and method.checkpoint_bytes == 4 * 11 + 4 * 11


def test_a_method_that_needs_numbers_is_counted_up_to_there() -> None:
    (sentence,) = rare(read=True).uncounted
    end = "(RuntimeError: more than 1000 numbers are read)"
    assert sentence == f"memory of an update is counted up to where it needs numbers {end}"
    assert rare(read=True).checkpoint_bytes == rare().checkpoint_bytes


# ---- the counter ----------------------------------------------------------------------------------------------------


def test_what_is_alive_at_once() -> None:
    x = torch.empty(1000, device="meta")

    def work() -> None:
        y = x + 1  # 4000
        z = y.view(10, 100).t()  # a view
        z.add_(1)  # in place
        w = torch.cat([y, y])  # 8000 beside 4000
        del y, z
        v = w * 2  # 8000 beside 8000
        del w
        v.sum()

    assert most_at_once(work) == (16_000, "")


def test_what_an_update_keeps_for_its_gradients_is_alive() -> None:
    net, batch = ActorCritic(SPECS["pixel"], ()), 16
    net.to("meta")
    numbers: dict[int, int] = {}
    owned = {p.untyped_storage()._cdata for p in net.parameters()}

    def keep(x: Tensor) -> Tensor:
        if (key := x.untyped_storage()._cdata) not in owned:
            numbers[key] = x.untyped_storage().nbytes()
        return x

    live = LiveBytes()
    images = torch.empty(batch, 4, 36, 36, dtype=torch.uint8, device="meta")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), live:
        _outputs = net(images)
    assert sum(numbers.values()) <= live.alive <= live.most <= 1.5 * sum(numbers.values())
    with (again := LiveBytes()):
        outputs = net(images)
    assert again.most == live.most
    del outputs
    assert again.alive == 0


def test_numbers_that_are_read_are_one_and_copies_hold_zeros() -> None:
    tensors: list[Any] = []
    x = torch.empty(3, device="meta")

    def work() -> None:
        tensors.extend([float(x.sum()), int(x.long().sum()), bool(x.isfinite().all()), x.to("cpu").tolist()])
        tensors.append(len(x[x > 0]))
        host = torch.ones(3)
        host.copy_(x)

    assert most_at_once(work)[1] == ""
    assert tensors == [1.0, 1, True, [0.0, 0.0, 0.0], 3]
