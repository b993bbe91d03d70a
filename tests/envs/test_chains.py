"""The six-state process against an exact computation of its Markov chain over (state, last state visited).

Mutations seen to fail: right always succeeds; the last state may be kept; the start in the third state; a visit that
is forgotten; 0 paid without a visit; an end at the last state.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from hpc_rl.envs.chains import six_states
from hpc_rl.envs.make import make

Choice = Callable[[int, bool], float]
"""(s in 1..6, s6 was visited) -> probability of the action "right"."""


def best(state: int, visited: bool) -> float:
    return 0.0 if visited else 1.0


def exploring(choice: Choice, epsilon: float) -> Choice:
    return lambda state, visited: (1 - epsilon) * choice(state, visited) + epsilon / 2


def exact(choice: Choice) -> float:
    """Mean return from s2: solves v = r + P v over the ten pairs (s in 2..6, visited)."""
    pairs = [(s, visited) for visited in (False, True) for s in range(2, 7)]
    at = {pair: k for k, pair in enumerate(pairs)}
    P, r = np.zeros((10, 10)), np.zeros(10)
    for (s, visited), k in at.items():
        p = 0.5 * choice(s, visited) if s < 6 else 0.0
        for following, chance in ((s + 1, p), (s - 1, 1 - p)):
            if following == 1:
                r[k] += chance * (1.0 if visited else 0.01)
            elif chance:
                P[k, at[following, visited or following == 6]] += chance
    return float(np.linalg.solve(np.eye(10) - P, r)[at[2, False]])


POLICIES: dict[str, tuple[Choice, float]] = {
    "right until 6": (best, 0.208),
    "one action in ten is random": (exploring(best, 0.1), 0.1705),
    "random": (exploring(best, 1.0), 0.0182),
    "left": (lambda s, visited: 0.0, 0.01),
    "always right": (lambda s, visited: 1.0, 0.208),
}


@pytest.mark.parametrize("name", POLICIES)
def test_returns_are_the_exact_ones(name: str) -> None:
    choice, published = POLICIES[name]
    assert exact(choice) == pytest.approx(published, abs=5e-5)
    rules, games, rng = six_states(np).rules, 40_000, np.random.default_rng(3)
    state, total, playing = rules.begin(np.zeros((games, 0))), np.zeros(games), np.ones(games, bool)
    chances = np.array([[choice(s, visited) for visited in (False, True)] for s in range(1, 7)])
    while playing.any():
        right = chances[state["place"], state["visited"]]
        action = (rng.random(games) < right).astype(int)
        state, reward, discount, truncated = rules.move(state, action, rng.random((games, 1)))
        total += playing * reward
        playing &= discount == 1
        assert not truncated.any()
    deviation = np.sqrt(exact(choice) * 0.99 / games) + 1e-9  # at most: a return is 0.01 or 1
    assert abs(total.mean() - exact(choice)) < 4 * deviation


def test_each_move_is_the_published_one() -> None:
    rules = six_states(np).rules
    cases = [  # place from 0, action, uniform -> place
        *((place, 0, 0.1, place - 1) for place in range(1, 6)),
        *((place, 1, 0.49, place + 1) for place in range(1, 5)),
        *((place, 1, 0.51, place - 1) for place in range(1, 6)),
        (5, 1, 0.1, 4),
    ]
    place, action, u, following = (np.array(x) for x in zip(*cases, strict=True))
    state = {"place": place, "visited": np.zeros_like(place)}
    moved, reward, discount, _ = rules.move(state, action, u[:, None])
    assert moved["place"].tolist() == following.tolist()
    assert moved["visited"].tolist() == (following == 5).tolist()
    assert reward.tolist() == np.where(following == 0, 0.01, 0.0).tolist()
    assert discount.tolist() == (following != 0).tolist()
    again, reward, *_ = rules.move({"place": np.array([1]), "visited": np.array([1])}, np.zeros(1, int), u[:1, None])
    assert reward.tolist() == [1.0] and again["visited"].tolist() == [1]


def test_the_visit_is_not_shown_and_is_the_success() -> None:
    rules = six_states(np).rules
    states = {"place": np.array([3, 3]), "visited": np.array([0, 1])}
    shown = rules.show(states)
    assert shown.shape == (2, 6) and np.array_equal(shown[0], shown[1]) and shown[0].argmax() == 3
    assert rules.success is not None and rules.success(states).tolist() == [False, True]


def test_it_is_made_by_its_id() -> None:
    env = make("toy/six_states", {}, 2)
    assert env.reset(np.arange(2)).argmax(1).tolist() == [1, 1] and env.spec.actions.sizes == (2,)
    env.send(np.zeros(2, int))
    moves = env.recv()
    assert np.allclose(moves.reward, 0.01) and (moves.discount == 0).all() and (moves.success == 0).all()
