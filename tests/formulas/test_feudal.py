"""FuN's windows, intrinsic reward and transitions against loops over whole trajectories, fragments cut anywhere.

Mutations seen to fail: windows that reach over a border; one row too few; s_t − s_{t−i+1}, g_{t−i+1}; a sum for the
mean; a target behind a border, or a row early; none at the end of an episode; all known; the gradient of s.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hpc_rl.formulas.feudal import direction, intrinsic_reward, transition, windows

ROWS, B, D = 23, 3, 4
FIRST = np.zeros((ROWS, B), bool)
FIRST[0, :2] = FIRST[[7, 8, 15], 0] = FIRST[20, 2] = True  # column 2 is in the middle of an episode


def unit(x: np.ndarray) -> np.ndarray:
    size = np.linalg.norm(x)
    return x / size if size > 0 else x


def cosine(x: np.ndarray, y: np.ndarray) -> float:
    return float(unit(x) @ unit(y))


def begun(first: np.ndarray, t: int) -> int:
    """Row in which the episode of row t of a column began, or 0."""
    return max([k for k in range(t + 1) if first[k]], default=0)


def drawn() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(4)
    states, goals = rng.normal(size=(ROWS, B, D)), rng.normal(size=(ROWS, B, D))
    states[12, 0] = states[11, 0]  # nothing moved
    return states.astype(np.float32), (goals / np.linalg.norm(goals, axis=-1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("cut", [1, 2, 5, ROWS])
@pytest.mark.parametrize("count", [1, 3, 10])
def test_windows_over_fragments_are_those_of_the_whole(cut: int, count: int) -> None:
    states, _ = drawn()
    past, pieces = torch.zeros(count, B, D), []
    for low in range(0, ROWS, cut):
        rows, opens = torch.from_numpy(states[low : low + cut]), torch.from_numpy(FIRST[low : low + cut])
        pieces.append(windows(past, rows, opens))
        past = pieces[-1][1:, -1]
    seen = torch.cat(pieces, 1).numpy()
    assert seen.shape == (count + 1, ROWS, B, D)
    for t in range(ROWS):
        for k in range(B):
            for back in range(count + 1):
                there = t - back >= begun(FIRST[:, k], t)
                expected = states[t - back, k] if there else np.zeros(D)
                assert np.array_equal(seen[count - back, t, k], expected), (t, k, back)


@pytest.mark.parametrize("c", [1, 4])
def test_the_intrinsic_reward_is_the_mean_cosine_of_the_last_c_rows(c: int) -> None:
    states, goals = drawn()
    nothing, opens = torch.zeros(c, B, D), torch.from_numpy(FIRST)
    actual = intrinsic_reward(*(windows(nothing, torch.from_numpy(x), opens) for x in (states, goals)))
    for t in range(ROWS):
        for k in range(B):
            back = [i for i in range(1, c + 1) if t - i >= begun(FIRST[:, k], t)]
            expected = sum(cosine(states[t, k] - states[t - i, k], goals[t - i, k]) for i in back) / c
            assert float(actual[t, k]) == pytest.approx(expected, abs=1e-6), (t, k)


@pytest.mark.parametrize("c", [1, 4, 30])
def test_a_transition_ends_c_rows_on_or_with_its_episode(c: int) -> None:
    states, _ = drawn()
    ahead, known = transition(torch.from_numpy(states), torch.from_numpy(FIRST), c)
    assert ahead.shape == (ROWS - 1, B, D) and known.dtype == torch.bool
    for t in range(ROWS - 1):
        for k in range(B):
            ends = [row - 1 for row in range(t + 1, ROWS) if FIRST[row, k]]
            last = ends[0] if ends else None
            target = t + c if last is None else min(t + c, last)
            assert bool(known[t, k]) == (target < ROWS), (t, k)
            if target < ROWS:
                assert np.allclose(ahead[t, k], states[target, k] - states[t, k]), (t, k)


def test_the_mask_of_targets_depends_on_borders_alone() -> None:
    opens = torch.from_numpy(FIRST)
    masks = [transition(torch.randn(ROWS, B, D) * scale, opens, 4)[1] for scale in (0.0, 1.0, 1e6)]
    assert torch.equal(masks[0], masks[1]) and torch.equal(masks[0], masks[2])


def test_the_gradient_of_a_direction_goes_to_the_goal_alone() -> None:
    states = torch.randn(6, 2, D, requires_grad=True)
    goal = torch.nn.functional.normalize(torch.randn(5, 2, D), dim=-1).requires_grad_()
    ahead, _ = transition(states, torch.zeros(6, 2, dtype=torch.bool), 2)
    actual = direction(ahead, goal)
    expected = torch.nn.functional.cosine_similarity(ahead, goal, dim=-1)
    assert torch.allclose(actual, expected, atol=1e-6)
    actual.sum().backward()
    assert states.grad is None and goal.grad is not None
