"""AlphaGo's parts: who makes which move, the two losses against slow twins, the pool, leaves of the search, and starts.

Mutations seen to fail: see the list at the end of this docstring.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hpc_rl.algorithms.alphago import Config, Contender, Learner, policy
from hpc_rl.envs.games import connect_four, tictactoe
from hpc_rl.envs.make import describe, make, rules
from hpc_rl.experience import Unsuited
from hpc_rl.fragments import allocate, trajectory, trajectory_schema
from hpc_rl.optim.alone import Alone
from hpc_rl.optim.flat import Optimizer
from hpc_rl.replay.episodes import Episodes
from hpc_rl.samplers.base import Timings, episode_seeds, streams
from hpc_rl.samplers.lanes import Lane
from hpc_rl.samplers.vector import Vector
from hpc_rl.types import Array, Step, Trajectory, Tree

COLUMNS, POOL = 8, 3
SMALL = Config(unroll=6, pool=POOL, pool_every=2, channels=4, blocks=1)
GAMES = {"toy/tictactoe": tictactoe, "toy/connect_four": connect_four}


def contender(config: Config = SMALL, id: str = "toy/tictactoe") -> Contender:
    torch.manual_seed(0)
    game = GAMES[id](torch).rules
    return policy(config, game.spec, game)


def prefer(net: Any, move: int) -> None:
    """Let a policy's network like one move much more than all others."""
    net.last.bias.data[move] += 100.0


def played(player: Contender, id: str, moves: int) -> tuple[Tree, Episodes]:
    """One long fragment of games, and a store that has seen it."""
    environment, columns = make(id, {}, COLUMNS), range(COLUMNS)
    lane = Lane(environment, player, np.array(columns), streams(3, "act", columns, 0))
    lane.start(episode_seeds(3, "episode", columns, 0))
    schema = trajectory_schema(environment.spec, player.extras, player.carry)
    tree = allocate(schema, moves, COLUMNS, 1)
    Vector([lane], Timings()).collect(tree, lambda: 0)
    store = Episodes("items", schema, environment.spec, columns)
    store.insert(tree)
    return tree, store


def batch_of(store: Episodes, id: str) -> Trajectory:
    return trajectory(store.sample(0)["items"][0], describe(id, {}))


def test_in_each_game_one_side_is_the_learning_policy_and_the_other_one_of_the_pool() -> None:
    player = contender(id="toy/connect_four")
    prefer(player.net.policy, 0)
    for k, net in enumerate(player.net.pool):
        prefer(net, k + 1)
    tree, _ = played(player, "toy/connect_four", 240)
    first, action, mine, legal = tree["first"][:-1], tree["action"], tree["extras/mine"], tree["extras/legal"]
    begins, rivals = [], []
    for column in range(COLUMNS):
        opens = np.flatnonzero(first[:, column]).tolist()
        for begin, end in itertools.pairwise(opens):
            rows = range(begin, end - 1)  # the last row is the final position, from which nobody moves
            own = [bool(mine[t, column]) for t in rows]
            assert own == [own[0] ^ bool(k % 2) for k in range(len(rows))], "players take turns"
            others = {int(action[t, column]) for t in rows if not mine[t, column] and legal[t, column, 1:4].all()}
            assert len(others) <= 1 and others <= {1, 2, 3}, "one opponent for a game"
            assert all(action[t, column] == 0 for t in rows if mine[t, column] and legal[t, column, 0])
            begins.append(own[0])
            rivals += list(others)
    assert len(begins) > 40 and 0.3 < np.mean(begins) < 0.7 and set(rivals) == {1, 2, 3}


def test_greedy_play_is_the_policy_on_both_sides_whatever_is_drawn() -> None:
    player = contender(id="toy/connect_four")
    prefer(player.net.policy, 5)
    for net in player.net.pool:
        prefer(net, 2)
    step = Step(
        torch.zeros(6, 2, 6, 7), torch.tensor([True, False] * 3), torch.zeros(6),
        GAMES["toy/connect_four"](torch).rules.begin(torch.zeros(6, 0, dtype=torch.float64)),
    )  # fmt: skip
    for seed in range(3):
        noise = torch.rand(6, player.noise, generator=torch.Generator().manual_seed(seed))
        output = player.act(step, player.initial_carry(6), torch.zeros(6), noise)
        assert output.action.tolist() == [5] * 6 and output.extras["mine"].all()


class Summed(Alone):
    """A group that keeps the losses it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[tuple[float, int]] = []

    def apply_gradients(
        self, optimizer: Optimizer, loss_sum: Tensor | None, count: int, max_norm: float, scale: float = 1.0
    ) -> float:
        assert loss_sum is not None
        self.losses.append((float(loss_sum.detach()), count))
        return super().apply_gradients(optimizer, loss_sum, count, max_norm, scale)


def test_the_losses_are_those_of_a_loop_over_games() -> None:
    player, group = contender(), Summed()
    learner = Learner(SMALL, player.rules.spec, player.rules, player, group)
    with torch.no_grad():
        for parameter in player.net.parameters():
            generator = torch.Generator().manual_seed(parameter.numel())
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    _, store = played(player, "toy/tictactoe", 60)
    batch = batch_of(store, "toy/tictactoe")
    policy_loss = value_loss = score = 0.0
    own = count = 0
    for k in range(batch.reward.shape[1]):
        moves = int(batch.valid[:, k].sum())
        won = float(batch.reward[moves - 1, k])  # 1 where the last move won, for who made it
        for t in range(moves):
            z = won * (1 if (moves - 1 - t) % 2 == 0 else -1)
            frame, legal = batch.observation[t, k][None], batch.extras["legal"][t, k]
            v = float(player.net.value(frame).detach())
            value_loss, count = value_loss + (z - v) ** 2, count + 1
            if batch.extras["mine"][t, k]:
                p = np.exp(player.net.policy(frame)[0].double().detach().numpy())
                policy_loss -= (z - v) * float(np.log(p[int(batch.action[t, k])] / p[legal.numpy()].sum()))
                score, own = score + z, own + 1
    figures = learner.update({"items": batch}, 0.0).metrics
    assert group.losses == [(pytest.approx(policy_loss, rel=1e-4), own), (pytest.approx(value_loss, rel=1e-4), count)]
    assert figures["score"] == pytest.approx(score / own) and figures["value_loss"] == pytest.approx(value_loss / count)
    assert 0.3 < own / count < 0.7 and figures["entropy"] > 0


def test_a_step_makes_moves_that_won_likelier_and_changes_no_frozen_network() -> None:
    config = replace(SMALL, learning_rate=1e-2, value_learning_rate=1e-2)
    player = contender(config)
    learner = Learner(config, player.rules.spec, player.rules, player, Alone())
    net = player.net
    before = {name: x.clone() for name, x in net.state_dict().items()}
    _, store = played(player, "toy/tictactoe", 60)
    learner.update({"items": batch_of(store, "toy/tictactoe")}, 0.0)
    changed = {name.split(".")[0] for name, x in net.state_dict().items() if not torch.equal(x, before[name])}
    assert changed == {"policy", "value"}
    frame, state = torch.zeros(1, 2, 3, 3), player.rules.begin(torch.zeros(1, 0, dtype=torch.float64))
    assert player.legal(state).all()
    batch = batch_of(played(player, "toy/tictactoe", 60)[1], "toy/tictactoe")
    assert net.policy(frame).std() > 0 and batch.reward.abs().sum() > 0


def test_the_pool_is_the_last_policies() -> None:
    player = contender()
    learner = Learner(SMALL, player.rules.spec, player.rules, player, Alone())
    start = player.net.policy.last.bias.clone()
    kept: list[Tensor] = []
    for update in range(1, 2 * (POOL + 1) + 1):
        batch = batch_of(played(player, "toy/tictactoe", 40)[1], "toy/tictactoe")
        learner.update({"items": batch}, 0.0)
        if update % SMALL.pool_every == 0:
            kept.append(player.net.policy.last.bias.clone())
        expected = [*kept[-POOL:]] + [start] * max(0, POOL - len(kept))
        pool = [net.last.bias for net in player.net.pool]
        assert all(any(torch.equal(x, y) for y in pool) for x in expected), update
    assert torch.equal(player.net.prior.last.bias, start), "the prior stays what training began with"


def test_convolutions_learn_from_few_numbers_of_rows() -> None:
    """oneDNN keeps code for each: 700 MB after 123 updates of about 2 000 rows each."""
    player = contender()
    learner = Learner(SMALL, player.rules.spec, player.rules, player, Alone())
    seen: list[int] = []
    for net in (player.net.policy, player.net.value):
        net.register_forward_pre_hook(lambda net, given: seen.append(len(given[0])))
    batch = batch_of(played(player, "toy/tictactoe", 60)[1], "toy/tictactoe")
    seen.clear()
    learner.update({"items": batch}, 0.0)
    assert len(seen) == 2 and all(n % 128 == 0 for n in seen)


def at_end(player: Contender) -> tuple[dict[str, Array], int]:
    """A tic-tac-toe position with two empty places, 2 and 4, and the better of them for who moves: 2 draws, 4 loses."""
    moves = [0, 3, 1, 7, 5, 8, 6]  # X has 0 1 5 6, O 3 7 8 and the move
    state = player.rules.begin(torch.zeros(1, 0, dtype=torch.float64))
    for move in moves:
        state, reward, _, _ = player.rules.move(state, torch.tensor([move]), torch.zeros(1, 0, dtype=torch.float64))
        assert not reward.any()
    return {name: x.numpy() for name, x in state.items()}, 2


@pytest.mark.parametrize("mix", [0.0, 0.25, 1.0])
def test_a_leaf_is_worth_its_value_and_a_played_out_game(mix: float) -> None:
    """O to move with 2 and 4 left: O at 4 leaves 2 to X, who wins; O at 2 leaves 4, a draw."""
    player = contender(replace(SMALL, mix=mix))
    last = [x for x in player.net.value.value if isinstance(x, torch.nn.Linear)][-1]
    last.bias.data.fill_(0.5)
    state, _ = at_end(player)
    with torch.no_grad():
        player.net.rollout.place.data[4] += 100.0  # the fast policy takes 4 wherever it may
        takes_4 = player._position({**state, "seed": np.zeros(1, np.int64)}, np.zeros(1), np.ones(1)).value
        player.net.rollout.place.data[4] -= 200.0
        takes_2 = player._position({**state, "seed": np.zeros(1, np.int64)}, np.zeros(1), np.ones(1)).value
    assert takes_4 == pytest.approx((1 - mix) * np.tanh(0.5) + mix * -1.0)
    assert takes_2 == pytest.approx((1 - mix) * np.tanh(0.5) + mix * 0.0)


def test_the_priors_are_the_supervised_policys_or_the_improved_ones() -> None:
    for prior, best in (("supervised", 4), ("reinforced", 2)):
        player = contender(replace(SMALL, prior=prior))  # type: ignore[arg-type]
        prefer(player.net.prior, 4)
        prefer(player.net.policy, 2)
        state, _ = at_end(player)
        with torch.no_grad():
            position = player._position({**state, "seed": np.zeros(1, np.int64)}, np.zeros(1), np.ones(1))
        assert position.prior[0].argmax() == best and position.prior[0].sum() == pytest.approx(1)
        assert (position.prior[0] > 0).sum() <= 2


@pytest.mark.parametrize("mix", [0.0, 1.0])
def test_a_search_finds_what_the_policy_does_not(mix: float) -> None:
    """The policy and the priors like the losing move; what comes of it tells the search."""
    player = contender(replace(SMALL, simulations=40, mix=mix))
    for net in (player.net.policy, player.net.prior):
        net.last.bias.data[4] += 1.0
    state, good = at_end(player)
    tensors = {name: torch.from_numpy(x) for name, x in state.items()}
    step = Step(player.rules.show(tensors), torch.ones(1, dtype=torch.bool), torch.zeros(1), tensors)
    act = lambda p: p.act(step, p.initial_carry(1), torch.zeros(1), torch.zeros(1, p.noise)).action.tolist()  # noqa: E731
    assert act(player) == [good]
    player.config = replace(player.config, simulations=0)
    assert act(player) == [4]


def test_a_search_follows_from_the_position_alone_and_its_rollouts_differ() -> None:
    player = contender(replace(SMALL, simulations=30, mix=1.0), "toy/connect_four")
    state = {name: x.numpy() for name, x in player.rules.begin(torch.zeros(3, 0, dtype=torch.float64)).items()}
    seeds: list[int] = []
    fast = player._fast

    def noted(state: Any, u: Array) -> Array:
        seeds.extend(u.tolist())
        return fast(state, u)

    player._fast = noted  # type: ignore[method-assign]
    with torch.no_grad():
        first, second = player._searched(state), player._searched({name: x[:1] for name, x in state.items()})
    assert len(set(first.tolist())) == 1 and second[0] == first[0]
    assert len(set(seeds)) > 100, "every leaf's game is another one"


def test_what_it_cannot_play_is_refused() -> None:
    cart_pole = describe("CartPole-v1", {})
    with pytest.raises(Unsuited, match="CartPole-v1 is not made of Rules with `legal` moves; use toy/connect_four"):
        policy(SMALL, cart_pole, rules("CartPole-v1", {}))
    game = tictactoe(torch).rules
    with pytest.raises(Unsuited, match="games without chance, and moves of toy/tictactoe draw"):
        policy(SMALL, game.spec, replace(game, move_uniforms=1))
    with pytest.raises(Unsuited, match='sampler = "vector"'):
        step = Step(torch.zeros(1, 2, 3, 3), torch.ones(1, dtype=torch.bool), torch.zeros(1))
        contender().act(step, contender().initial_carry(1), torch.ones(1), torch.zeros(1, 3))


def test_rounds_are_saved(tmp_path: Path) -> None:
    player = contender()
    learner = Learner(SMALL, player.rules.spec, player.rules, player, Alone())
    learner.rounds = 7
    other = Learner(SMALL, player.rules.spec, player.rules, contender(), Alone())
    other.load(learner.state())
    assert other.rounds == 7
