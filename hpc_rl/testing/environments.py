"""What a run would find wrong with an environment, said before the run."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hpc_rl.envs import mixture
from hpc_rl.envs.base import BadEnvironment
from hpc_rl.envs.generators import seed_shared, shared_kept
from hpc_rl.envs.make import factory, make
from hpc_rl.envs.of_rules import toy_of
from hpc_rl.types import Actions, Array, Rules

COMPARED = ("observation", "reward", "discount", "ended", "success")  # of two copies
SLOW_S, SLOW_MOVES = 0.1, 20  # a reset is slow above both: seconds, and as many moves


@dataclass
class Played:
    """Moves of one column; a row each for the first observation and every move."""

    rows: list[dict[str, Array]] = field(default_factory=list)
    reset_s: list[float] = field(default_factory=list)
    move_s: list[float] = field(default_factory=list)
    drew: bool = False  # from a generator that the process shares


def check_environment(id: str, arguments: dict[str, Any] | None = None, moves: int = 300, seed: int = 1) -> list[str]:
    """What is wrong with an environment, named as in a job file: a sentence each, none where nothing is.

    Two copies play ``moves`` random moves each from one seed, and a third is asked whether its space contains what it
    returns. Found are answers of the wrong form, kind or shape, numbers that are not finite, results that differ under
    one seed, draws from generators that others share, and slow resets.

    Raises:
        whatever the environment raises by itself.
    """
    arguments = dict(arguments or {})
    try:
        with shared_kept():
            first = _play(id, arguments, moves, seed)
            second = _play(id, arguments, moves, seed)
            faults = [*_not_finite(first), *_differing(first, second, seed)]
            if not id.startswith("ALE/") and _rules(id, arguments) is None:  # the others are Python's
                faults += [*_drew(first), *_slow(first), *_not_contained(id, arguments, moves, seed)]
            return [f"{id}: {sentence}" for sentence in faults]
    except BadEnvironment as error:
        return [str(error)]


def _play(id: str, arguments: dict[str, Any], moves: int, seed: int) -> Played:
    played, generator = Played(), np.random.default_rng(seed)
    seed_shared(seed)
    before = _shared()
    environment, rules = make(id, arguments, 1), _rules(id, arguments)
    try:
        played.drew = _shared() != before
        seed_shared(seed)
        before = _shared()
        begin = time.perf_counter()
        observation = environment.reset(np.array([seed]))
        played.reset_s.append(time.perf_counter() - begin)
        played.rows.append({"observation": observation})
        for _ in range(moves):
            legal = rules.legal(environment.rules_state) if rules and rules.legal and environment.rules_state else None
            action = _random(environment.spec.actions, generator, legal)
            begin = time.perf_counter()
            environment.send(action)
            answer = environment.recv()
            (played.reset_s if answer.first[0] else played.move_s).append(time.perf_counter() - begin)
            played.rows.append({name: getattr(answer, name) for name in COMPARED})
        played.drew |= _shared() != before
    finally:
        environment.close()
    return played


def _shared() -> tuple[Any, ...]:
    """The state of the generators that a process shares."""
    _, words, place, *_ = np.random.get_state()
    return bytes(np.asarray(words)), place, random.getstate()


def _rules(id: str, arguments: dict[str, Any]) -> Rules | None:
    made = None if id == mixture.ID or id.startswith("ALE/") else toy_of(id, arguments, np)
    return made[0].rules if made else None


def _random(actions: Actions, generator: np.random.Generator, legal: Array | None = None) -> Array:
    """One action [1, *A], of those that are legal [1, A]; a box's leave −1..1 now and then, as those of a policy do."""
    if legal is not None and legal.any():
        return generator.choice(np.flatnonzero(legal[0]), 1)
    if actions.kind == "box":
        return generator.normal(size=(1, *actions.shape)).astype(np.float32)
    choices = generator.integers(0, actions.sizes)[None]
    return np.asarray(choices[:, 0] if actions.kind == "discrete" else choices)


def _not_finite(played: Played) -> list[str]:
    faults = []
    for name in ("observation", "reward"):
        moves = [k for k, row in enumerate(played.rows) if name in row and not np.isfinite(row[name]).all()]
        if moves:
            call = f"step() of move {moves[0]}" if moves[0] else "reset()"
            faults.append(
                f"{call} returned a number that is not finite in the {name}; nothing is learned from such a row"
            )
    return faults


def _differing(first: Played, second: Played, seed: int) -> list[str]:
    for k, (a, b) in enumerate(zip(first.rows, second.rows, strict=True)):
        for name, values in a.items():
            if not np.array_equal(values, b[name], equal_nan=True):
                place = f"in the {name} of move {k}" if k else "in the first observation"
                return [
                    f"two copies reset with seed {seed} differ {place}; draw from self.np_random, which "
                    "super().reset(seed=seed) starts, and from nothing else"
                ]
    return []


def _drew(played: Played) -> list[str]:
    text = (
        "it draws from numpy.random or random, which all columns of a process share, so that results change with ranks"
    )
    return [f"{text} and processes; draw from self.np_random"] if played.drew else []


def _slow(played: Played) -> list[str]:
    reset_s, move_s = (float(np.mean(seconds)) for seconds in (played.reset_s, played.move_s or [0.0]))
    if reset_s <= max(SLOW_S, SLOW_MOVES * move_s):
        return []
    times = f"a reset takes {reset_s:.2f} s and a move {1000 * move_s:.3g} ms"
    return [f"{times}; all columns of a process wait for one that resets, so set environment.processes"]


def _not_contained(id: str, arguments: dict[str, Any], moves: int, seed: int) -> list[str]:
    """The first observation that the environment's own space refuses: the network may not have been made for it."""
    environment = factory(id, arguments)()
    try:
        space, actions = environment.observation_space, environment.action_space
        actions.seed(seed)
        seed_shared(seed)
        observation, _ = environment.reset(seed=seed)
        method = "reset()"
        for _ in range(moves):
            if not space.contains(observation):
                text = f"observation_space {_short(space)} does not contain what {method} returned"
                return [f"{text}: {_is(observation)}"]
            observation, _, terminated, truncated, _ = environment.step(actions.sample())
            method = "step()"
            if terminated or truncated:
                observation, _ = environment.reset()
                method = "reset()"
    finally:
        environment.close()
    return []


def _is(x: Any) -> str:
    if isinstance(x, np.ndarray) and x.size and x.dtype != object:
        return f"an array of shape {x.shape} and dtype {x.dtype} from {x.min():g} to {x.max():g}"
    return f"a {type(x).__name__} ({_short(x)})"


def _short(x: Any) -> str:
    text = " ".join(str(x).split())
    return text if len(text) <= 160 else text[:160] + " …"
