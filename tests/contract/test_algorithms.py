"""Every file of algorithms/ keeps its contract, whatever it is: parametrised over the folder.

Mutations seen to fail: ``act`` drawing with torch.rand; an extra missing or of another dtype; a sum turned into a mean of
means; a minibatch defined on this rank's columns; ``round`` or the optimiser left out of ``state``; a Config field added
that nothing reads; the step taken in spite of a non-finite norm.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hpc_rl import job as jobs
from hpc_rl.algorithms.base import Alone, Diverged, Group, State
from hpc_rl.envs.make import make
from hpc_rl.samplers.base import episode_seeds, streams
from hpc_rl.samplers.vector import Split, Vector
from hpc_rl.transport.base import Ports, Waiting
from hpc_rl.transport.group import AllReduce
from hpc_rl.transport.local import LocalLink, run_threads
from hpc_rl.types import Actions, Spec, Step, Trajectory, allocate, trajectory, trajectory_schema

NAMES = jobs.algorithms()
SPECS = {
    "discrete": Spec("discrete", (7,), "float32", Actions("discrete", (4,))),
    "multidiscrete": Spec("multidiscrete", (2, 3), "float32", Actions("multidiscrete", (3, 2))),
    "box": Spec("box", (5,), "float32", Actions("box", (2,), (-1.0, -1.0), (1.0, 1.0))),
    "pixel": Spec("pixel", (36, 36), "uint8", Actions("discrete", (6,)), stack=4),
}
ENVIRONMENTS = ("toy/catch", "toy/counter")
STEPS, COLUMNS = 24, 4


def config_of(name: str, **changes: Any) -> Any:
    """The method's defaults, with those of ``changes`` that it has."""
    kind = jobs.algorithm(name).config
    return kind(**{key: value for key, value in changes.items() if key in kind.__dataclass_fields__})


def policy_of(name: str, spec: Spec, config: Any = None) -> Any:
    torch.manual_seed(0)
    return jobs.algorithm(name).policy(config or config_of(name), spec)


def learner_of(name: str, spec: Spec, config: Any = None, group: Group | None = None) -> Any:
    config = config or config_of(name)
    return jobs.algorithm(name).learner(config, spec, policy_of(name, spec, config), group or Alone())


def step_of(spec: Spec, columns: int, seed: int = 0) -> Step:
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (columns, *spec.observation)) if spec.dtype == "uint8" else rng.normal(size=(columns, 6))
    x = np.resize(x, (columns, *spec.observation)).astype(spec.dtype)
    first = torch.tensor(rng.random(columns) < 0.5)
    return Step(torch.from_numpy(x), first, torch.tensor(rng.normal(size=columns), dtype=torch.float32))


def sampled(name: str, id: str, rounds: int, steps: int = STEPS) -> tuple[Spec, list[Trajectory]]:
    """Batches that the method's own first policy really collected; they hold terminations, the counter's truncations."""
    environment = make(id, {}, COLUMNS)
    policy, spec = policy_of(name, environment.spec), environment.spec
    columns = range(COLUMNS)
    vector = Vector(environment, policy, columns, streams(3, "act", columns, 0), Split())
    vector.start(episode_seeds(3, "episode", columns, 0))
    batches = []
    for version in range(rounds):
        tree = allocate(trajectory_schema(spec, policy.extras, policy.carry), steps, COLUMNS, spec.stack)
        vector.collect(tree, version)
        batches.append(trajectory([tree], spec))
    return spec, batches


def test_the_batches_hold_both_kinds_of_end() -> None:
    _, (batch,) = sampled(NAMES[0], "toy/counter", 1)
    into_last = batch.valid[:-1] & ~batch.valid[1:]
    assert set(batch.discount[:-1][into_last].tolist()) == {0.0, 1.0}


# ---- act ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize("name", NAMES)
def test_act_gives_what_the_schema_says(name: str, kind: str) -> None:
    spec, policy = SPECS[kind], policy_of(name, SPECS[kind])
    act = policy.act(step_of(spec, 3), policy.initial_carry(3), torch.ones(3), torch.rand(3, policy.noise))
    assert act.action.shape == (3, *spec.actions.shape) and act.action.dtype == getattr(torch, spec.actions.dtype)
    for given, schema in (
        (act.extras, policy.extras),
        (act.carry, policy.carry),
        (policy.initial_carry(3), policy.carry),
    ):
        assert given.keys() == schema.keys()
        for leaf_name, leaf in schema.items():
            assert given[leaf_name].shape == (3, *leaf.shape), leaf_name
            assert given[leaf_name].dtype == getattr(torch, leaf.dtype), leaf_name
            assert torch.isfinite(given[leaf_name].float()).all() and not given[leaf_name].requires_grad


@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize("name", NAMES)
def test_act_draws_nothing(name: str, kind: str) -> None:
    spec, policy = SPECS[kind], policy_of(name, SPECS[kind])
    noise = torch.rand(8, policy.noise)
    before, ours = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    acts = [policy.act(step_of(spec, 8), policy.initial_carry(8), torch.ones(8), noise).action for _ in range(2)]
    assert torch.equal(*acts)
    assert torch.equal(torch.get_rng_state(), before) and np.array_equal(np.random.get_state()[1], ours)  # type: ignore[index]


@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize("name", NAMES)
def test_exploration_zero_is_greedy_and_one_is_not(name: str, kind: str) -> None:
    spec, policy = SPECS[kind], policy_of(name, SPECS[kind])
    step = step_of(spec, 64)

    def actions(exploration: float, seed: int) -> Tensor:
        noise = torch.rand(64, policy.noise, generator=torch.Generator().manual_seed(seed))
        carry = policy.initial_carry(64)
        found: Tensor = policy.act(step, carry, torch.full((64,), exploration), noise).action
        return found

    assert torch.equal(actions(0.0, 1), actions(0.0, 2))
    assert not torch.equal(actions(1.0, 1), actions(1.0, 2))


# ---- update ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("id", ENVIRONMENTS)
@pytest.mark.parametrize("name", NAMES)
def test_metrics_are_finite_and_parameters_move(name: str, id: str) -> None:
    spec, batches = sampled(name, id, 2)
    learner = learner_of(name, spec)
    before = learner.flat.parameter.data.clone()
    for batch in batches:
        metrics = learner.update(batch, 0.25).metrics
        assert metrics and all(np.isfinite(value) for value in metrics.values()), metrics
    assert torch.isfinite(learner.flat.parameter).all() and not torch.equal(learner.flat.parameter, before)


@pytest.mark.parametrize("name", NAMES)
def test_a_loaded_state_repeats_the_next_update_bitwise(name: str) -> None:
    spec, batches = sampled(name, "toy/counter", 3)
    learner = learner_of(name, spec)
    learner.update(batches[0], 0.0)
    learner.update(batches[1], 0.1)
    state = learner.state()
    wanted = learner.update(batches[2], 0.2).metrics
    torch.manual_seed(99)
    fresh = jobs.algorithm(name).learner(
        config_of(name), spec, jobs.algorithm(name).policy(config_of(name), spec), Alone()
    )
    fresh.load(state)
    assert fresh.update(batches[2], 0.2).metrics == wanted
    assert torch.equal(fresh.flat.parameter, learner.flat.parameter)


def updated(name: str, spec: Spec, config: Any, batches: list[Trajectory], shards: int, state: State) -> list[Tensor]:
    """Parameters of every rank after one update per batch, each rank holding its share of the columns."""
    found: list[Tensor] = [torch.zeros(0)] * shards
    learners = [learner_of(name, spec, config) for _ in range(shards)]

    def rank(link: LocalLink) -> None:
        learner = learners[link.rank]
        learner.load(state)
        if shards > 1:
            learner.group = AllReduce(Ports(link, Waiting(30.0)), range(shards))
        width = COLUMNS // shards
        for k, batch in enumerate(batches):
            learner.update(batch.columns(slice(link.rank * width, (link.rank + 1) * width)), 0.1 * k)
        if shards > 1:
            learner.group.check_identical(learner.flat.parameter.data)
        found[link.rank] = learner.flat.parameter.data.clone()

    run_threads(shards, rank, 60.0)
    return found


@pytest.mark.parametrize("changes", [{}, {"minibatches": 2}, {"minibatches": 16, "normalize_advantage": False}])
@pytest.mark.parametrize("id", ENVIRONMENTS)
@pytest.mark.parametrize("name", NAMES)
def test_updates_on_shards_equal_the_update_on_the_union(name: str, id: str, changes: dict[str, Any]) -> None:
    spec, batches = sampled(name, id, 3)
    config = config_of(name, **changes)
    state = learner_of(name, spec, config).state()
    (whole,) = updated(name, spec, config, batches, 1, state)
    assert (whole - state["parameters"]).abs().max() > 1e-4
    for shards in (2, 4):
        for part in updated(name, spec, config, batches, shards, state):
            assert (part - whole).abs().max() <= 1e-5, f"{shards} shards"


@pytest.mark.parametrize("name", NAMES)
def test_a_non_finite_loss_skips_the_step_and_ten_end_the_run(name: str) -> None:
    spec, (batch,) = sampled(name, "toy/catch", 1)
    learner = learner_of(name, spec, config_of(name, epochs=1, minibatches=1))
    learner.update(batch, 0.0)
    kept = learner.state()
    broken = replace(batch, reward=torch.full_like(batch.reward, torch.nan))
    for k in range(9):
        learner.update(broken, 0.0)
        assert learner.group.skipped == k + 1
    assert torch.equal(learner.flat.parameter, kept["parameters"])
    learner.update(batch, 0.0)
    assert learner.group.skipped == 0
    with pytest.raises(Diverged):
        for _ in range(10):
            learner.update(broken, 0.0)


# ---- Config ---------------------------------------------------------------------------------------------------------


class Recording:
    """A Config, or a job's method table, that remembers which fields were read."""

    def __init__(self, values: dict[str, Any], read: set[str]) -> None:
        self.__dict__.update(_values=values, _read=read)

    def __getattr__(self, name: str) -> Any:
        self._read.add(name)
        try:
            return self._values[name]
        except KeyError:
            raise AttributeError(name) from None

    __getitem__ = __getattr__

    def get(self, name: str, default: Any = None) -> Any:
        return getattr(self, name, default)


def variants(name: str) -> list[dict[str, Any]]:
    """The defaults, and one variant for each other choice of a field whose comment lists choices."""
    plain = {item.name: getattr(config_of(name), item.name) for item in fields(config_of(name))}
    texts = {key: text.split(",")[0] for key, text in jobs.ranges(name).items() if " | " in text}
    words = [(key, word) for key, text in texts.items() for word in text.split(" over ")[0].split(" | ")]
    return [plain, *({**plain, key: word.strip()} for key, word in words if word.strip() != plain[key])]


@pytest.mark.parametrize("name", NAMES)
def test_every_config_field_is_read(name: str) -> None:
    read: set[str] = set()
    spec, batches = sampled(name, "toy/catch", 2)
    for values in variants(name):
        config, algorithm = Recording(values, read), jobs.algorithm(name)
        learner = algorithm.learner(config, spec, algorithm.policy(config, spec), Alone())
        for batch in batches:
            learner.update(batch, 0.5)
    for topology in jobs.literal(name, "TOPOLOGIES"):
        table = {"algorithm": name, "topology": topology, "environment": {"id": "toy/catch"}}
        job = replace(jobs.parse(table), resources=jobs.Resources(ranks=1 if topology == "solo" else 3))
        job = replace(job, environment=replace(job.environment, columns=12), method=Recording(variants(name)[0], read))
        jobs.topology(topology).plan(job)
    assert read == {item.name for item in fields(config_of(name))}


@pytest.mark.parametrize("name", NAMES)
def test_the_config_read_without_torch_is_the_modules_own(name: str) -> None:
    alone, own = jobs.config_class(name), jobs.algorithm(name).config
    assert [item.name for item in fields(alone)] == [item.name for item in fields(own)]
    assert {item.name: getattr(alone(), item.name) for item in fields(alone)} == vars(own())
    code = f"import sys; from hpc_rl import job; job.config_class({name!r})(); assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
