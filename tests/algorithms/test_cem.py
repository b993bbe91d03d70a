"""CEM's own numbers against a slow twin; the same generation on every layout, to the bit.

Mutations seen to fail: rewards behind the end counted; ρ N rounded down; the worst taken for the elite; equal returns
not in the order of column, then env step; the variance by N − 1, or about the old μ; Z not squared, left out, never
falling, or over the whole budget; θ summed in float32, of one rank alone, or of another's rows; μ of the first learner
not broadcast; a new candidate at every move, or never; u not kept from 0 and 1; ``exploration`` on μ as well, or not
read; tanh before the first layer or nowhere; a bias left out; layers that overlap; bytes at 0..255; the first choice
for all.
"""

from __future__ import annotations

from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest
import torch

from hpc_rl.algorithms.cem import Config, Learner, policy
from hpc_rl.fragments import trajectory
from hpc_rl.optim.alone import Alone
from hpc_rl.optim.group import Group
from hpc_rl.transport.group import AllReduce
from hpc_rl.transport.local import LocalLink, run_threads
from hpc_rl.transport.ports import Ports
from hpc_rl.transport.waiting import Waiting
from hpc_rl.types import Actions, Spec, Step, Trajectory

SPEC = Spec("linear", (3,), "float32", Actions("discrete", (2,)))
EPISODES, MOVES = 24, 6


def learner_of(config: Config, seed: int = 4, group: Group | None = None) -> Learner:
    player = policy(config, SPEC, None)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        player.net.mean.copy_(torch.randn(player.net.size, generator=generator))
        player.net.std.copy_(torch.rand(player.net.size, generator=generator) + 0.2)
    return Learner(config, SPEC, None, player, group or Alone())


def batch_of(config: Config, seed: int) -> Trajectory:
    """Episodes of one to six moves, some returns equal."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, MOVES + 1, EPISODES)
    tree = {
        "observation": rng.normal(size=(MOVES + 1, EPISODES, 3)).astype(np.float32),
        "first": np.arange(MOVES + 1)[:, None] > lengths,
        "action": rng.integers(0, 2, (MOVES, EPISODES)),
        "reward": rng.integers(0, 3, (MOVES, EPISODES)).astype(np.float32),
        "discount": np.ones((MOVES, EPISODES), np.float32),
        "version": np.zeros((MOVES, EPISODES), np.int64),
        "column": rng.permutation(EPISODES).astype(np.int32) // 3,  # three episodes each
        "start": rng.permutation(EPISODES),
        "noise": rng.random((EPISODES, policy(config, SPEC, None).net.size), np.float32),
    }
    tree["noise"][:, 0] = np.arange(EPISODES) % 2  # the ends, whose normal quantiles are infinite
    return trajectory([tree], SPEC)


def quantile(u: float) -> float:
    return NormalDist().inv_cdf(min(max(float(u), 1e-6), 1 - 1e-6))


@pytest.mark.parametrize("hidden", [(), (5,)])
@pytest.mark.parametrize(
    ("fraction", "progress", "extra"), [(0.5, 0.0, 0.4), (0.5, 0.25, 0.2), (0.5, 1.0, 0.0), (0.0, 0.0, 0.0)]
)
def test_the_next_generation_is_that_of_the_elite(
    fraction: float, progress: float, extra: float, hidden: tuple[int, ...]
) -> None:
    config = Config(elite=0.3, extra_std=0.4, extra_fraction=fraction, hidden=hidden)
    learner, batch = learner_of(config), batch_of(config, 28)
    net = learner.policy.net
    mean, std = net.mean.detach().double().numpy(), net.std.detach().double().numpy()
    players = []
    for n in range(EPISODES):
        result = sum(float(batch.reward[t, n]) for t in range(MOVES) if batch.valid[t, n])
        z = [quantile(u) for u in batch.noise[n]]
        players.append((-result, int(batch.column[n]), int(batch.start[n]), mean + std * z))
    players.sort(key=lambda player: player[:3])
    assert players[7][:2] == players[8][:2], "the last of the elite is chosen by its env step"
    elite = np.stack([player[3] for player in players[:8]])  # ⌈0.3 · 24⌉
    metrics = learner.update({"items": batch}, progress).metrics
    wanted_std = np.sqrt(((elite - elite.mean(0)) ** 2).mean(0) + extra**2)
    assert np.allclose(net.mean.detach(), elite.mean(0), atol=1e-5)
    assert np.allclose(net.std.detach(), wanted_std, atol=1e-5)
    results = [-player[0] for player in players]
    assert metrics["return"] == pytest.approx(np.mean(results)) and metrics["best_return"] == max(results)
    assert metrics["elite_return"] == pytest.approx(np.mean(results[:8])) and metrics["candidates"] == EPISODES
    assert metrics["std"] == pytest.approx(wanted_std.mean(), rel=1e-4)
    assert torch.equal(learner.weights.data[: net.size], net.mean.detach())


def generations(shares: list[list[int]]) -> list[torch.Tensor]:
    """Weights of every rank after three generations, each rank holding some of the episodes."""
    config, weights = Config(elite=0.25), [torch.zeros(0)] * len(shares)

    def rank(link: LocalLink) -> None:
        group = AllReduce(Ports(link, Waiting(20.0)), range(len(shares))) if len(shares) > 1 else Alone()
        learner, share = learner_of(config, 4 + link.rank, group), shares[link.rank]  # the first one's μ and σ count
        for seed in range(3):
            batch = batch_of(config, seed)
            rows = {name: getattr(batch, name)[:, share] for name in ("observation", "first", "action", "reward")}
            rows |= {name: getattr(batch, name)[:, share] for name in ("discount", "version", "finite")}
            ends = {name: getattr(batch, name)[share] for name in ("column", "start", "chance", "noise")}
            learner.update({"items": replace(batch, **rows, **ends)}, 0.1 * seed)
        weights[link.rank] = learner.weights.data

    run_threads(len(shares), rank, 20.0)
    return weights


def test_every_layout_has_the_same_generations_to_the_bit() -> None:
    everyone = list(range(EPISODES))
    (expected,) = generations([everyone])
    for shares in ([everyone[:12], everyone[12:]], [everyone[1::2], everyone[0::2]], [[5], everyone[:5], everyone[6:]]):
        for part in generations(shares):
            assert torch.equal(part, expected)


def test_a_candidate_plays_its_episode_to_the_end() -> None:
    """The carry keeps u from the row that opens an episode on; θ is the same network as the twin's."""
    config = Config(hidden=(4,))
    player = learner_of(config).policy
    net, draw = player.net, np.random.default_rng(0)
    carry, uniform = player.initial_carry(2), None
    mean, std = net.mean.detach().double().numpy(), net.std.detach().double().numpy()
    outputs = []
    for t in range(40):
        x = torch.tensor(draw.normal(size=(2, 3)), dtype=torch.float32)
        noise = torch.tensor(draw.random((2, net.size)), dtype=torch.float32)
        first = torch.tensor([t % 10 == 0, False])
        act = player.act(Step(x, first, torch.zeros(2)), carry, torch.ones(2), noise)
        carry, uniform = act.carry, noise[0] if t % 10 == 0 else uniform
        assert uniform is not None and torch.equal(carry["uniform"][0], uniform)
        assert (carry["uniform"][1] == 0.5).all(), "nothing was opened: μ plays"
        for k, u in enumerate((uniform.tolist(), [0.5] * net.size)):
            theta = mean + std * [quantile(v) for v in u]
            hidden = x[k].double().numpy() @ theta[:12].reshape(3, 4) + theta[12:16]
            output = np.tanh(hidden) @ theta[16:24].reshape(4, 2) + theta[24:26]
            assert int(act.action[k]) == int(output.argmax())
            outputs.append(int(output.argmax()))
    assert set(outputs) == {0, 1}


def test_exploration_scales_the_spread() -> None:
    player = learner_of(Config()).policy
    net, noise = player.net, torch.rand(6, learner_of(Config()).policy.net.size)
    zero, half, one = (net.candidate(noise, torch.full((6,), x)) for x in (0.0, 0.5, 1.0))
    assert torch.equal(zero, net.mean.detach().expand(6, -1))
    assert torch.allclose(half - zero, (one - zero) / 2, atol=1e-6)


def test_images_are_flattened_and_bytes_are_taken_as_0_to_1() -> None:
    spec = Spec("pixels", (3, 2), "uint8", Actions("discrete", (2,)), stack=2)
    net = policy(Config(hidden=(4,)), spec, None).net
    x, candidate = torch.randint(0, 256, (5, 2, 3, 2), dtype=torch.uint8), torch.randn(5, net.size)
    assert net.layers == [(12, 4), (4, 2)]
    assert torch.equal(net(x, candidate), net((x.float() / 255).flatten(1), candidate))


@pytest.mark.parametrize("actions", [Actions("box", (2,), (-1.0, -1.0), (1.0, 1.0)), Actions("multidiscrete", (3, 2))])
def test_other_actions_come_from_the_same_outputs(actions: Actions) -> None:
    player = policy(Config(), Spec("other", (3,), "float32", actions), None)
    step = Step(torch.randn(4, 3), torch.ones(4, dtype=torch.bool), torch.zeros(4))
    noise = torch.rand(4, player.fragment_noise)
    act = player.act(step, player.initial_carry(4), torch.ones(4), noise)
    output = player.net(step.observation, player.net.candidate(noise, torch.ones(4)))
    if actions.kind == "box":
        assert torch.equal(act.action, output)
    else:
        assert torch.equal(act.action, torch.stack([output[:, :3].argmax(-1), output[:, 3:].argmax(-1)], -1))
