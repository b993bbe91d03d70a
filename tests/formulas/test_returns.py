"""GAE and V-trace against slow twins that split every column into episodes by hand.

Mutations seen to fail: λ squared; ``value[1:]`` → ``value[:-1]`` in δ; the cut at ``valid`` removed or moved by one
row; c clipped by ρ̄, ρ by c̄; λ left out of c; the advantage bootstrapped from V instead of v; ρ or ``valid`` left out
of the advantage. Of ``through``: the row passed over multiplied by its decay; its δ kept; V of the LAST row taken; the
trace of a row whose move is not valid begun anew. Of the filter: backward in time; over columns; what was before left
out, or discounted twice; a move that never happened added, or its row discounted. Of discount −1: |discount| in the
trace, or in δ.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from hpc_rl.formulas.returns import cut_scan, filtered, following, gae, vtrace

GAMMA = 0.9


@dataclass
class Case:
    """Random columns under next-step autoreset; what stands at invalid moves is garbage on purpose."""

    first: np.ndarray  # [T+1, b]
    reward: np.ndarray  # [T, b]
    discount: np.ndarray  # [T, b] 0 iff terminated
    value: np.ndarray  # [T+1, b]
    log_ratio: np.ndarray  # [T, b]

    @property
    def valid(self) -> np.ndarray:
        return ~self.first[1:]

    def tensors(self) -> tuple[torch.Tensor, ...]:
        parts = (self.reward, GAMMA * self.discount, self.value, self.valid.astype(float))
        return tuple(torch.tensor(x, dtype=torch.float64) for x in parts)

    def episodes(self) -> list[tuple[int, int, int]]:
        """(column, first move, end) of every run of moves of one episode."""
        spans = []
        for j in range(self.valid.shape[1]):
            start = None
            for t, moved in enumerate([*self.valid[:, j], False]):
                if moved and start is None:
                    start = t
                elif not moved and start is not None:
                    spans.append((j, start, t))
                    start = None
        return spans

    def bootstrap(self, column: int, end: int) -> float:
        """0 after a termination, V of the last observation after a truncation or at the window's edge."""
        return 0.0 if self.discount[end - 1, column] == 0 else float(self.value[end, column])


def random_case(seed: int, steps: int = 14, columns: int = 6, end: float = 0.3) -> Case:
    rng = np.random.default_rng(seed)
    first = np.zeros((steps + 1, columns), bool)
    discount = rng.normal(size=(steps, columns))
    for j in range(columns):
        last = rng.random() < 0.2  # the fragment may begin at a LAST row
        first[0, j] = not last and rng.random() < 0.5
        for t in range(steps):
            if last:
                first[t + 1, j], last = True, False
                continue
            terminated = rng.random() < end / 2
            discount[t, j] = 0.0 if terminated else 1.0
            last = terminated or rng.random() < end / 2
    shape = (steps, columns)
    value = rng.normal(size=(steps + 1, columns))
    return Case(first, rng.normal(size=shape), discount, value, rng.normal(size=shape) * 0.7)


CASES = [random_case(seed) for seed in range(12)] + [random_case(99, steps=1), random_case(98, end=0.0)]


def gae_of_episodes(case: Case, lambda_: float) -> np.ndarray:
    """Â_t = Σ_l (γλ)^l δ_{t+l}, one episode at a time."""
    advantage = np.zeros_like(case.reward)
    for j, start, end in case.episodes():
        v = [*case.value[start:end, j], case.bootstrap(j, end)]
        r = case.reward[start:end, j]
        n = end - start
        delta = [r[k] + GAMMA * v[k + 1] - v[k] for k in range(n)]
        for k in range(n):
            advantage[start + k, j] = sum((GAMMA * lambda_) ** (i - k) * delta[i] for i in range(k, n))
    return advantage


def vtrace_of_episodes(case: Case, rho_bar: float, c_bar: float, lambda_: float) -> tuple[np.ndarray, np.ndarray]:
    """v_s and ρ_s (r_s + γ v_{s+1} − V(x_s)), one episode at a time, with the sum and the product written out."""
    target, advantage = case.value[:-1].copy(), np.zeros_like(case.reward)
    for j, start, end in case.episodes():
        x = [*case.value[start:end, j], case.bootstrap(j, end)]
        r, ratio, n = case.reward[start:end, j], np.exp(case.log_ratio[start:end, j]), end - start
        rho = [min(rho_bar, a) for a in ratio]
        c = [lambda_ * min(c_bar, a) for a in ratio]
        v = list(x)
        for s in range(n):
            for t in range(s, n):
                product = np.prod([c[i] for i in range(s, t)])
                v[s] += GAMMA ** (t - s) * product * rho[t] * (r[t] + GAMMA * x[t + 1] - x[t])
        for s in range(n):
            target[start + s, j] = v[s]
            advantage[start + s, j] = rho[s] * (r[s] + GAMMA * v[s + 1] - x[s])
    return target, advantage


def test_the_cases_hold_terminations_truncations_and_edges() -> None:
    ends = [(c.discount[end - 1, j] == 0, end == len(c.reward)) for c in CASES for j, _, end in c.episodes()]
    assert {(True, False), (False, False), (True, True), (False, True)} <= set(ends)
    assert any(not case.valid[0].all() for case in CASES)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("lambda_", [0.0, 0.7, 1.0])
def test_gae_is_that_of_each_episode(case: Case, lambda_: float) -> None:
    actual = gae(*case.tensors(), lambda_).numpy()
    assert np.allclose(actual, gae_of_episodes(case, lambda_), atol=1e-12)
    assert (actual[~case.valid] == 0).all()


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("rho_bar", "c_bar", "lambda_"), [(1, 1, 1), (2.0, 0.6, 1.0), (0.7, 1.5, 0.8), (1, 1, 0)])
def test_vtrace_is_that_of_each_episode(case: Case, rho_bar: float, c_bar: float, lambda_: float) -> None:
    ratio = torch.tensor(case.log_ratio)
    target, rho, advantage = vtrace(ratio, *case.tensors(), rho_bar=rho_bar, c_bar=c_bar, lambda_=lambda_)
    wanted_target, wanted_advantage = vtrace_of_episodes(case, rho_bar, c_bar, lambda_)
    assert np.allclose(target.numpy(), wanted_target, atol=1e-12)
    assert np.allclose((rho * advantage).numpy(), wanted_advantage, atol=1e-12)
    assert np.array_equal(target.numpy()[~case.valid], case.value[:-1][~case.valid])
    assert (advantage.numpy()[~case.valid] == 0).all()


@pytest.mark.parametrize("case", CASES)
def test_on_policy_vtrace_is_the_n_step_bellman_target(case: Case) -> None:
    target, rho, advantage = vtrace(torch.zeros(case.reward.shape), *case.tensors())
    for j, start, end in case.episodes():
        for s in range(start, end):
            rewards = sum(GAMMA ** (t - s) * case.reward[t, j] for t in range(s, end))
            expected = rewards + GAMMA ** (end - s) * case.bootstrap(j, end)
            assert np.isclose(float(target[s, j]), expected)
            assert np.isclose(float(advantage[s, j]), expected - case.value[s, j])
            assert float(rho[s, j]) == 1.0


def test_on_policy_vtrace_with_lambda_is_gae_plus_value() -> None:
    case = CASES[0]
    target, _, _ = vtrace(torch.zeros(case.reward.shape), *case.tensors(), lambda_=0.8)
    assert np.allclose(target.numpy(), gae_of_episodes(case, 0.8) + case.value[:-1])


def test_cut_scan_passes_nothing_over_a_cut() -> None:
    delta, decay = torch.ones(4, 1), torch.full((4, 1), 10.0)
    valid = torch.tensor([[1.0], [0.0], [1.0], [1.0]])
    assert cut_scan(delta, decay, valid)[:, 0].tolist() == [1.0, 0.0, 11.0, 1.0]


# ---- episodes that follow each other as one (RND) -------------------------------------------------------------------


def gae_of_one_stream(case: Case, lambda_: float) -> np.ndarray:
    """Â_t = Σ_l (γλ)^l δ_{t+l} over the moves of a column that happened, as if there were no others."""
    advantage = np.zeros_like(case.reward)
    for j in range(case.reward.shape[1]):
        moves = [t for t in range(len(case.reward)) if case.valid[t, j]]
        if not moves:
            continue
        v = [case.value[t, j] for t in moves] + [case.value[-1, j]]
        delta = [case.reward[t, j] + GAMMA * v[k + 1] - v[k] for k, t in enumerate(moves)]
        for k, t in enumerate(moves):
            advantage[t, j] = sum((GAMMA * lambda_) ** (i - k) * delta[i] for i in range(k, len(moves)))
    return advantage


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("lambda_", [0.0, 0.7, 1.0])
def test_gae_through_ends_is_that_of_one_stream(case: Case, lambda_: float) -> None:
    reward, _, value, valid = case.tensors()
    actual = gae(reward, torch.full_like(reward, GAMMA), value, valid, lambda_, through=True).numpy()
    expected = gae_of_one_stream(case, lambda_)
    assert np.allclose(actual[case.valid], expected[case.valid], atol=1e-12)


def test_cut_scan_passes_through_what_is_not_valid() -> None:
    delta, decay = torch.tensor([[1.0], [5.0], [1.0], [1.0]]), torch.full((4, 1), 10.0)
    valid = torch.tensor([[1.0], [0.0], [1.0], [1.0]])
    assert cut_scan(delta, decay, valid, through=True)[:, 0].tolist() == [111.0, 11.0, 11.0, 1.0]
    value = torch.arange(5.0)[:, None]
    assert following(value, valid, through=True)[:, 0].tolist() == [2.0, 2.0, 3.0, 4.0]
    assert following(value, valid)[:, 0].tolist() == [1.0, 2.0, 3.0, 4.0]


# ---- two players: the other one moves next --------------------------------------------------------------------------


def test_two_players_by_hand() -> None:
    """Three moves: the first player's, the second's, the first's, who wins 1. γ = 0.9, V = (0.2, −0.1, 0.4).

    δ_0 = −γ V_1 − V_0 = 0.09 − 0.2 = −0.11; δ_1 = −γ V_2 − V_1 = −0.36 + 0.1 = −0.26; δ_2 = 1 − V_2 = 0.6.
    λ = 1: Â_2 = 0.6; Â_1 = δ_1 − γ Â_2 = −0.80, so that V_1 + Â_1 = −0.9 (the loser is one move from losing);
    Â_0 = δ_0 − γ Â_1 = 0.61, so that V_0 + Â_0 = 0.81 = γ².
    """
    reward = torch.tensor([[0.0], [0.0], [1.0]], dtype=torch.float64)
    discount = GAMMA * torch.tensor([[-1.0], [-1.0], [0.0]], dtype=torch.float64)
    value = torch.tensor([[0.2], [-0.1], [0.4], [7.0]], dtype=torch.float64)
    valid = torch.ones(3, 1, dtype=torch.float64)
    assert gae(reward, discount, value, valid, 0.0)[:, 0].tolist() == pytest.approx([-0.11, -0.26, 0.6])
    assert gae(reward, discount, value, valid, 1.0)[:, 0].tolist() == pytest.approx([0.61, -0.80, 0.6])
    target, _, advantage = vtrace(torch.zeros(3, 1, dtype=torch.float64), reward, discount, value, valid)
    assert target[:, 0].tolist() == pytest.approx([0.81, -0.9, 1.0])
    assert advantage[:, 0].tolist() == pytest.approx([0.61, -0.80, 0.6])


@pytest.mark.parametrize("seed", range(4))
def test_two_players_see_one_game_with_opposite_signs(seed: int) -> None:
    """The same game as one player's: rewards and values of every other row negated, all discounts positive."""
    rng = np.random.default_rng(seed)
    case = random_case(seed, end=0.2)
    turn = np.where(rng.random((len(case.reward) + 1, case.reward.shape[1])) < 0.5, -1.0, 1.0)  # anybody may move next
    reward, discount, value, valid = case.tensors()
    sign, change = torch.tensor(turn), torch.tensor(turn[:-1] * turn[1:])
    ratio = torch.tensor(case.log_ratio)
    by_player = sign[:-1] * gae(sign[:-1] * reward, change * discount, sign * value, valid, 0.8)
    assert torch.allclose(by_player, gae(reward, discount, value, valid, 0.8))
    two = vtrace(ratio, sign[:-1] * reward, change * discount, sign * value, valid, 0.9, 1.1, 0.95)
    for actual, expected, factor in zip(
        two, vtrace(ratio, reward, discount, value, valid, 0.9, 1.1, 0.95), (sign[:-1], 1.0, sign[:-1]), strict=True
    ):
        assert torch.allclose(factor * actual, expected)


@pytest.mark.parametrize("case", CASES)
def test_the_filter_runs_along_time_over_the_moves_that_happened(case: Case) -> None:
    before = np.arange(case.reward.shape[1], dtype=float)
    reward, _, _, valid = case.tensors()
    actual = filtered(reward, GAMMA, valid, torch.tensor(before)).numpy()
    for k in range(case.reward.shape[1]):
        total = before[k]
        for t in range(len(case.reward)):
            if case.valid[t, k]:
                total = GAMMA * total + case.reward[t, k]
            assert actual[t, k] == pytest.approx(total)
