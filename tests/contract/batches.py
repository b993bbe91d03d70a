"""What the contract tests share: Specs of every kind, small learners, and batches that were really collected."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from hpc_rl import job as jobs
from hpc_rl.envs.goals import goal_spec
from hpc_rl.envs.make import describe, make, rules
from hpc_rl.experience import Unsuited
from hpc_rl.fragments import allocate, trajectory, trajectory_schema
from hpc_rl.methods import allowed_topologies
from hpc_rl.optim.alone import Alone
from hpc_rl.optim.group import Group
from hpc_rl.samplers.base import Timings, episode_seeds, streams
from hpc_rl.samplers.lanes import Lane
from hpc_rl.samplers.vector import Vector
from hpc_rl.sources import source_of
from hpc_rl.types import Actions, Rules, Spec, Step, Trajectory, Tree

NAMES = jobs.algorithms()
SPECS = {
    "discrete": Spec("discrete", (7,), "float32", Actions("discrete", (4,))),
    "multidiscrete": Spec("multidiscrete", (2, 3), "float32", Actions("multidiscrete", (3, 2))),
    "box": Spec("box", (5,), "float32", Actions("box", (2,), (-1.0, -1.0), (1.0, 1.0))),
    "goal": goal_spec("goal", 3, 2, Actions("box", (2,), (-1.0, -1.0), (1.0, 1.0))),
    "pixel": Spec("pixel", (36, 36), "uint8", Actions("discrete", (6,)), stack=4),
    "game": describe("toy/tictactoe", {}),
}
ENVIRONMENTS = ("toy/catch", "toy/counter")
WHOLE: dict[str, Any] = {"lstm": 6, "filtered": True, "normalize_observation": True, "normalize_reward": True}
"""Everything that carries a state from row to row or from update to update; a method takes what it has."""
STEPS, COLUMNS = 24, 4


QUICK: tuple[dict[str, Any], ...] = (
    {"horizon": 3, "evaluations": 3, "model_evaluations": 4, "exact": 60, "inducing": 8},
    {"horizon": 3, "evaluations": 3, "model_steps": 5, "particles": 6},
    {"simulations": 6},
)
"""What makes an update short where a model is fitted and planned with from anew in each, and a search of a move."""


def quick(fields: Collection[str]) -> dict[str, Any]:
    """Of a Config with these fields: all of `QUICK` that it has as a whole."""
    return {key: x for part in QUICK if part.keys() <= set(fields) for key, x in part.items()}


def config_of(name: str, **changes: Any) -> Any:
    """The method's defaults, but for `quick`, with those of ``changes`` that it has."""
    kind = jobs.algorithm(name).config
    fields = kind.__dataclass_fields__
    return kind(**{**quick(fields), **{key: value for key, value in changes.items() if key in fields}})


def rules_of(spec: Spec) -> Rules | None:
    return rules(spec.id, {})


ACTING = [name for name in NAMES if source_of(config_of(name).experience()) is None]
"""Methods whose ranks step environments; test_recorded.py runs the others."""


def policy_of(name: str, spec: Spec, config: Any = None) -> Any:
    torch.manual_seed(0)
    return jobs.algorithm(name).policy(config or config_of(name), spec, rules_of(spec))


def learner_of(name: str, spec: Spec, config: Any = None, group: Group | None = None) -> Any:
    config = config or config_of(name)
    policy = policy_of(name, spec, config)
    return jobs.algorithm(name).learner(config, spec, rules_of(spec), policy, group or Alone())


def suits(name: str, spec: Spec) -> bool:
    """Whether the method learns in such an environment; one that does not says so in a sentence."""
    try:
        policy_of(name, spec)
    except Unsuited as error:
        assert spec.id in str(error) and ";" in str(error), "what it lacks, and the remedy"
        return False
    return True


STAND_INS = {
    "toy/catch": "Pendulum-v1",
    "Pendulum-v1": "toy/goal_pendulum",
    "toy/goal_pendulum": "toy/tictactoe",
    "toy/counter": "toy/box_counter",
    "toy/box_counter": "toy/goal_counter",
    "toy/goal_counter": "toy/game_counter",
}
"""What stands for an environment of discrete choices where a method needs a box of actions, for that one where it needs
goals, and for that one where it needs a game's legal moves."""

SHORT: dict[str, dict[str, Any]] = {"Pendulum-v1": {"max_episode_steps": 10}}
"""Arguments with which an episode is over after few moves, as one of toy/catch is."""


def environment_of(name: str, id: str) -> str:
    """This environment, or the first one of those that stand in for it that the method suits."""
    while id in STAND_INS and not suits(name, describe(id, {})):
        id = STAND_INS[id]
    return id


def step_of(spec: Spec, columns: int, seed: int = 0) -> Step:
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (columns, *spec.observation)) if spec.dtype == "uint8" else rng.normal(size=(columns, 6))
    x = np.resize(x, (columns, *spec.observation)).astype(spec.dtype)
    first = torch.tensor(rng.random(columns) < 0.5)
    state = None
    if (known := rules_of(spec)) is not None:
        state = known.begin(torch.rand(columns, known.begin_uniforms, dtype=torch.float64))
    return Step(torch.from_numpy(x), first, torch.tensor(rng.normal(size=columns), dtype=torch.float32), state)


def fed(learner: Any, batch: Trajectory) -> dict[str, Trajectory]:
    """One batch under the name of each kind of item that the learner's method takes."""
    return {items.name: batch for items in learner.config.experience().items}


def sampled(name: str, id: str, rounds: int, steps: int = STEPS, config: Any = None) -> tuple[Spec, list[Trajectory]]:
    """Batches that the method's own first policy collected; the counter's hold both kinds of end."""
    spec, trees = sampled_trees(name, id, rounds, steps, config)
    return spec, [trajectory([tree], spec) for tree in trees]


def sampled_trees(name: str, id: str, rounds: int, steps: int = STEPS, config: Any = None) -> tuple[Spec, list[Tree]]:
    """The same as they are sent and recorded."""
    environment = make(environment_of(name, id), {}, COLUMNS)
    policy, spec = policy_of(name, environment.spec, config), environment.spec
    columns = range(COLUMNS)
    lane = Lane(environment, policy, np.array(columns), streams(3, "act", columns, 0))
    lane.start(episode_seeds(3, "episode", columns, 0))
    vector = Vector([lane], Timings())
    trees = []
    for version in range(rounds):
        tree = allocate(
            trajectory_schema(spec, policy.extras, policy.carry, policy.fragment_noise), steps, COLUMNS, spec.stack
        )
        vector.collect(tree, lambda: version)  # noqa: B023  # called before the next round
        trees.append({**tree, **noted(name, config or config_of(name), tree)})
    return spec, trees


def noted(name: str, config: Any, tree: Tree) -> Tree:
    """What the method's ``annotate`` adds in a store, as if each column of a fragment were an item."""
    algorithm = jobs.algorithm(name)
    annotate = algorithm.annotate
    if all(items.annotated == "item" for items in algorithm.config.experience(config).items):
        return {}
    rows = {leaf: x for leaf, x in tree.items() if leaf != "observation"}
    notes = (annotate(config, rows) if annotate else None) or {}
    return {f"extras/{leaf}": np.tile(x, (len(tree["reward"]), 1)) for leaf, x in notes.items() if leaf != "priority"}


SUITED = [(name, kind) for name in NAMES for kind in SPECS if suits(name, SPECS[kind])]
"""(method, kind of SPECS) that go together."""


def cases(*changes: dict[str, Any], of: Sequence[tuple[str, ...]] = tuple((name,) for name in NAMES)) -> list[Any]:
    """Each of ``of`` (method, …) with each of ``changes`` that makes another Config than those before it."""
    configs = {name: [config_of(name, **change) for change in changes] for name in NAMES}
    return [
        pytest.param(*row, change, id="-".join([*row, *map(str, change)]))
        for row in of
        for k, change in enumerate(changes)
        if configs[row[0]].index(configs[row[0]][k]) == k
    ]


def ways() -> list[tuple[str, str]]:
    """(method, topology) that go together: each method on its first one, and ``ONE_OF_A_KIND`` on all of theirs.

    What ranks send each other does not depend on the loss; test_devices runs every method on every topology.
    """
    topologies = {name: allowed_topologies(name) for name in ACTING}
    pairs = [(name, topology) for name in ACTING for topology in topologies[name]]
    chosen = [(name, x) for name, x in pairs if name in ONE_OF_A_KIND or x == topologies[name][0]]
    assert {topology for _, topology in chosen} == {topology for _, topology in pairs}
    return chosen


ONE_OF_A_KIND = ("a2c", "impala", "cem", "dqn")  # of what is learned from: fragments, in order or late; episodes; items
