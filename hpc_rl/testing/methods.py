"""What a run would find wrong with a method's file, said before the run.

These are the first of the checks that tests/contract/ makes of every file of algorithms/; those also start ranks.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hpc_rl import methods
from hpc_rl.agent import Agent, bind
from hpc_rl.algorithms.base import Learner, Policy
from hpc_rl.devices import to_device
from hpc_rl.envs.make import goal_reward, make, rules
from hpc_rl.experience import Experience, Unsuited
from hpc_rl.fragments import allocate, trajectory, trajectory_schema
from hpc_rl.optim.alone import Alone
from hpc_rl.replay.base import Store
from hpc_rl.replay.stores import own_store
from hpc_rl.runtime.checkpoints import learner_state, load_columns, load_learner
from hpc_rl.samplers.base import Timings, episode_seeds, streams
from hpc_rl.samplers.lanes import Lane
from hpc_rl.samplers.vector import Vector
from hpc_rl.sources import source_of
from hpc_rl.types import Leaf, Schema, Spec, Step, Trajectory, Tree

COLUMNS, MOST_FRAGMENTS = 4, 200
BEFORE, AFTER = 2, 2  # updates before and after a state is taken: a counter may show at the second one only
ENVIRONMENTS = ("toy/catch", "toy/counter", "Pendulum-v1", "toy/goal_pendulum", "toy/tictactoe")


@dataclass(frozen=True)
class Round:
    """What one update gets, and the leaves that arrive before it: of no fragment, of one, or of several."""

    arrivals: tuple[dict[str, Tensor], ...]
    batches: dict[str, Trajectory]

    def learn(self, learner: Learner, progress: float) -> dict[str, float]:
        for rows in self.arrivals:
            learner.arrived(rows)
        return dict(learner.update(self.batches, progress).metrics)


@dataclass
class Trial:
    """One method in one environment: what `check_method` looks at."""

    agent: Agent

    @property
    def spec(self) -> Spec:
        return self.agent.spec

    def policy(self, seed: int = 0) -> Policy:
        torch.manual_seed(seed)
        return self.agent.make_policy()

    def learner(self, seed: int = 0) -> Learner:
        return self.agent.make_learner(self.policy(seed), Alone())


def check_method(
    name: str, environments: Sequence[str] = ENVIRONMENTS, config: Mapping[str, Any] | None = None
) -> list[str]:
    """What is wrong with the method of algorithms/<name>.py: a sentence each, none where nothing is.

    Its file is read as a login node reads it, then the method acts in each environment and makes a few updates. Found
    are a Config that needs torch, actions, extras and carries that are not those of the schema, a policy that draws
    numbers of its own or does not act greedily at exploration 0, metrics that are not finite, weights that stay, a
    state that does not repeat the next update bit for bit, and updates that depend on moves that are not valid.
    ``config`` changes fields of its Config.
    """
    try:
        values = dict(config or {})
        methods.config_class(name)
        methods.allowed_topologies(name)
        algorithm = methods.algorithm(name)
        experience = methods.experience(name, values)
    except methods.BadMethod as error:
        return [str(error)]
    sentences, suited = [], 0
    with torch.random.fork_rng(devices=[]):
        for id in environments:
            judge = partial(goal_reward, id, {})
            trial = Trial(bind(algorithm, algorithm.config(**values), experience, _spec(id), rules(id, {}), judge))
            try:
                trial.policy()
            except Unsuited:
                continue
            suited += 1
            sentences += [f"{name} in {id}: {sentence}" for sentence in dict.fromkeys(_faults(trial, id))]
    if not suited:
        return [f"{name} suits none of {', '.join(environments)}; name an environment that it learns in"]
    return sentences


def _spec(id: str) -> Spec:
    """The Spec of an environment without arguments."""
    environment = make(id, {}, 1)
    environment.close()
    return environment.spec


def _faults(trial: Trial, id: str) -> list[str]:
    """Each check by itself: a method may fail several."""
    sentences = []
    for check in (_check_act, _check_updates):
        try:
            sentences += list(check(trial, id))
        except Exception as error:  # what stands in the method may raise anything
            text = " ".join(str(error).split())
            what = check.__name__.removeprefix("_check_")
            sentences.append(f"{what} raises {type(error).__name__}{_place(error)}: {text}")
    return sentences


def _place(error: Exception) -> str:
    """The last line of algorithms/ that the error came through."""
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).parent == methods.FOLDER
    ]
    return f" (algorithms/{Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""


def _check_act(trial: Trial, id: str) -> Iterator[str]:
    policy, spec = trial.policy(), trial.spec
    shape, generator = (COLUMNS, *spec.observation), torch.Generator().manual_seed(1)
    shown = torch.rand(shape, generator=generator)
    if spec.dtype == "uint8":
        shown = (255 * shown).byte()
    state, known = None, trial.agent.rules
    if known is not None:
        u = torch.rand(COLUMNS, known.begin_uniforms, dtype=torch.float64, generator=generator)
        state = known.begin(u)
    step = Step(shown, torch.ones(COLUMNS, dtype=torch.bool), torch.zeros(COLUMNS), state)
    width = policy.fragment_noise + policy.noise

    def act(exploration: float) -> Any:
        noise = torch.rand((COLUMNS, width), generator=generator)
        return policy.act(step, policy.initial_carry(COLUMNS), torch.full((COLUMNS,), exploration), noise)

    before, shared = torch.get_rng_state(), repr(np.random.get_state())
    output = act(1.0)
    if not torch.equal(before, torch.get_rng_state()) or shared != repr(np.random.get_state()):
        yield "act draws from torch's or NumPy's generator; use the uniforms that it is given as noise"
    action = {"action": Leaf(spec.actions.shape, spec.actions.dtype)}
    for what, leaves, schema in (
        ("act's", {"action": output.action}, action),
        ("act's extras", output.extras, policy.extras),
        ("act's carry", output.carry, policy.carry),
        ("initial_carry", policy.initial_carry(COLUMNS), policy.carry),
    ):
        yield from _unlike(what, leaves, schema)
    greedy = act(0.0).action
    if not all(torch.equal(greedy, act(0.0).action) for _ in range(8)):
        yield "act with exploration 0 depends on the noise; 0 evaluates, so it must take the greedy action"


def _unlike(what: str, leaves: Mapping[str, Tensor], schema: Schema) -> Iterator[str]:
    """A sentence for each leaf [b, …] that is not as its schema says."""
    if leaves.keys() != schema.keys():
        yield f"{what} has the leaves {sorted(leaves)}; the schema says {sorted(schema)}"
    for name in leaves.keys() & schema.keys():
        shape, dtype = (COLUMNS, *schema[name].shape), schema[name].dtype
        given = f"{str(leaves[name].dtype).removeprefix('torch.')} {list(leaves[name].shape)}"
        if given != f"{dtype} {list(shape)}":
            yield f"{what} {name} is {given}; the schema says {dtype} {list(shape)}"


def _check_updates(trial: Trial, id: str) -> Iterator[str]:
    rounds = _collected(trial, id)
    learner = trial.learner()
    begin = learner.weights.data.clone()
    for update in rounds[:BEFORE]:
        yield from _not_finite(update.learn(learner, 0.25))
    state, rows = learner_state(learner), learner.columns()
    metrics = [update.learn(learner, 0.5) for update in rounds[BEFORE:]]
    for figures in metrics:
        yield from _not_finite(figures)
    if not torch.isfinite(learner.weights.data).all():
        yield "an update leaves weights that are not finite"
    if torch.equal(learner.weights.data, begin):
        yield f"the weights stay the same in {BEFORE + AFTER} updates; `weights` must be what the optimisers step"
    other = trial.learner(seed=1)  # begins with other numbers: what load leaves alone shows
    load_learner(other, state)
    load_columns(other, rows, range(COLUMNS))
    again = [update.learn(other, 0.5) for update in rounds[BEFORE:]]
    if again != metrics or not torch.equal(other.weights.data, learner.weights.data):
        yield "the update after load(state()) is another one; state() must hold and load() take all that it depends on"
    learned, misled = trial.learner(), trial.learner()
    for update in rounds:
        update.learn(learned, 0.5)
        changed = {name: _with_another_reward(items) for name, items in update.batches.items()}
        replace(update, batches=changed).learn(misled, 0.5)
    if not torch.equal(learned.weights.data, misled.weights.data):
        yield "an update learns from the move into the next episode, which never happened; weight its loss by valid"


def _with_another_reward(batch: Trajectory) -> Trajectory:
    """The batch with rewards changed where a move is not valid."""
    return replace(batch, reward=torch.where(batch.valid, batch.reward, batch.reward + 100.0))


def _not_finite(metrics: Mapping[str, float]) -> Iterator[str]:
    if not metrics:
        yield "update returns no metrics"
    for name, value in metrics.items():
        if not np.isfinite(value):
            yield f"the metric {name} is {value}"


def _collected(trial: Trial, id: str) -> list[Round]:
    """Arrivals and batches of each kind of items for all updates, as a run on `solo` would take them from its store."""
    policy, environment = trial.policy(), make(id, {}, COLUMNS)
    try:
        schema = trajectory_schema(trial.spec, policy.extras, policy.carry, policy.fragment_noise)
        store = _store(trial, schema)
        lane = Lane(environment, policy, np.arange(COLUMNS), streams(1, "act", range(COLUMNS), 0))
        lane.start(episode_seeds(1, "episode", range(COLUMNS), 0))
        vector, rounds, arrived = Vector([lane], Timings()), list[Round](), list[dict[str, Tensor]]()
        for _ in range(MOST_FRAGMENTS):
            tree = allocate(schema, trial.agent.experience.unroll, COLUMNS, trial.spec.stack)
            vector.collect(tree, lambda: 0)
            store.insert(tree)
            arrived.append(_arrivals(trial, tree))
            for _ in range(store.due()):
                samples = store.sample(len(rounds))
                batches = {name: trajectory(trees, trial.spec) for name, (trees, _) in samples.items()}
                rounds.append(Round(tuple(arrived), batches))
                arrived.clear()
            store.release()
            if len(rounds) >= BEFORE + AFTER:
                return rounds[: BEFORE + AFTER]
    finally:
        environment.close()
    raise RuntimeError(
        f"{MOST_FRAGMENTS} fragments of {COLUMNS} columns allow no {BEFORE + AFTER} updates; see experience()"
    )


def _arrivals(trial: Trial, tree: Tree) -> dict[str, Tensor]:
    """Copies of the leaves of a fragment that the method asks for. Raises ValueError: a fragment has no such leaf."""
    names = trial.agent.experience.arrivals
    for name in names:
        if name not in tree:
            leaves = ", ".join(sorted(tree))
            raise ValueError(f"Experience.arrivals names '{name}'; a fragment has the leaves {leaves}")
    return {name: to_device(tree[name].copy(), "cpu") for name in names}


def _store(trial: Trial, schema: Schema) -> Store:
    """As on `solo`, but for the env steps before the first update, which a check need not wait for."""
    own = trial.agent.experience
    experience = replace(own, min_size=min(own.min_size, 64))
    if source_of(own):  # items of a ring are of the same form
        experience = Experience(own.unroll, own.items, capacity=4096)
    agent = trial.agent
    return own_store(
        experience, schema, agent.spec, range(COLUMNS), 1, 1, agent.annotate, goal_reward=agent.make_goal_reward()
    )
