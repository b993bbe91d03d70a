"""AlphaZero's own numbers: outcomes and the loss against slow twins, self-play, symmetries, the trees that it keeps.

Mutations seen to fail: z with the wrong sign; the loss over moves that are not legal; the board mapped by a symmetry
and π not, or π by the inverse; noise or drawn moves at exploration 0; moves drawn one ply too long, or counted on over
games; a tree that is thrown away; a decided game searched in full, or an evaluation not; a game that is over searched;
c ‖θ‖² not times the count.
"""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hpc_rl.algorithms.alphazero import Config, Learner, annotate, loss, policy
from hpc_rl.envs.games import connect_four, tictactoe
from hpc_rl.envs.make import make
from hpc_rl.experience import Unsuited
from hpc_rl.fragments import allocate, trajectory, trajectory_schema
from hpc_rl.nets.boards import BoardNetwork
from hpc_rl.optim.alone import Alone
from hpc_rl.replay.ring import Ring
from hpc_rl.samplers.base import Timings, episode_seeds, streams
from hpc_rl.samplers.lanes import Lane
from hpc_rl.samplers.vector import Vector
from hpc_rl.search.kept import trees_of
from hpc_rl.types import Actions, Rules, Spec, Step, Trajectory, Tree

COLUMNS = 6
SMALL = Config(simulations=12, unroll=4, hidden=(16,), blocks=1, channels=4, capacity=4_000, batch_size=64)
GAMES = {"toy/tictactoe": tictactoe, "toy/connect_four": connect_four}


def searcher(config: Config = SMALL, id: str = "toy/tictactoe") -> Any:
    torch.manual_seed(0)
    rules = GAMES[id](torch).rules
    return policy(config, rules.spec, rules)


def played(config: Config = SMALL, fragments: int = 12, id: str = "toy/tictactoe") -> tuple[Any, list[Tree], Lane]:
    """Self-play of the first policy."""
    player, environment = searcher(config, id), make(id, {}, COLUMNS)
    columns = range(COLUMNS)
    lane = Lane(environment, player, np.array(columns), streams(3, "act", columns, 0))
    lane.start(episode_seeds(3, "episode", columns, 0))
    schema = trajectory_schema(environment.spec, player.extras, player.carry)
    trees = []
    for version in range(fragments):
        tree = allocate(schema, config.unroll, COLUMNS, 1)
        Vector([lane], Timings()).collect(tree, lambda: version)  # noqa: B023  # called before the next round
        trees.append(tree)
    return player, trees, lane


def whole(trees: list[Tree]) -> Tree:
    """Fragments one behind the other."""
    moves = ("reward", "discount", "action", "extras/visits", "extras/legal")
    rows = {name: np.concatenate([tree[name] for tree in trees]) for name in moves}
    for name in ("first", "observation"):
        rows[name] = np.concatenate([*(tree[name][:-1] for tree in trees), trees[-1][name][-1:]])
    return rows


def outcomes(rows: Tree, k: int) -> dict[int, float]:
    """Row -> z of every position of column k whose game has ended, as a person would count: who won?"""
    found, game = {}, list[int]()
    for t in range(len(rows["reward"])):
        if rows["first"][t + 1, k]:
            game = []
            continue  # the move from the last position, which nobody made
        game.append(t)
        if rows["discount"][t, k] == 0:
            won = rows["reward"][t, k] == 1
            for ply, row in enumerate(game):
                same = (len(game) - 1 - ply) % 2 == 0  # the player who made the last move
                found[row] = (1.0 if same else -1.0) if won else 0.0
    return found


def ring_of(trees: list[Tree], player: Any, config: Config = SMALL) -> Ring:
    spec = tictactoe(np).rules.spec
    schema = trajectory_schema(spec, player.extras, player.carry)
    ring = Ring(schema, spec, range(COLUMNS), config.experience(), 1, 5, lambda rows: annotate(config, rows))
    for tree in trees:
        ring.insert(tree)
    return ring


def test_positions_are_drawn_with_the_outcome_for_who_moves() -> None:
    player, trees, _ = played()
    rows, ring = whole(trees), ring_of(trees, player)
    expected = {(t, k): z for k in range(COLUMNS) for t, z in outcomes(rows, k).items()}
    assert set(expected.values()) == {-1.0, 0.0, 1.0}
    assert ring.kinds[0].count == len(expected)
    seen = set()
    for update in range(30):
        (tree,), keys = ring.sample(update)["items"]
        assert keys is not None
        for j, (t, k) in enumerate(zip(*np.divmod(keys, COLUMNS), strict=True)):
            assert tree["extras/outcome"][0, j] == expected[int(t), int(k)]
            assert np.array_equal(tree["extras/visits"][0, j], rows["extras/visits"][t, k])
            seen.add((int(t), int(k)))
    assert seen == set(expected)


def test_a_replay_restored_on_its_rows_keeps_the_outcomes() -> None:
    player, trees, _ = played()
    kind = ring_of(trees, player).kinds[0]
    other = ring_of(trees[:1], player).kinds[0]
    other.load(kind.state())
    assert np.array_equal(other.notes["outcome"], kind.notes["outcome"]) and other.count == kind.count


def test_a_game_that_is_cut_off_is_drawn() -> None:
    rows = {"reward": np.zeros((3, 1), np.float32), "discount": np.full((3, 1), -1, np.float32)}
    rows["first"] = np.array([[1], [0], [0], [0]], bool)
    notes = annotate(SMALL, rows)
    assert notes is not None and notes["outcome"].tolist() == [0.0]


def test_the_loss_is_that_of_the_paper() -> None:
    rng = np.random.default_rng(0)
    n, actions = 7, 5
    logits, value, z = rng.normal(size=(n, actions)), rng.uniform(-1, 1, n), rng.choice([-1.0, 0.0, 1.0], n)
    legal = rng.random((n, actions)) < 0.7
    legal[:, 0] = True
    pi = rng.random((n, actions)) * legal
    pi /= pi.sum(1, keepdims=True)
    weight = (np.arange(n) != 3).astype(float)
    net = BoardNetwork(Spec("", (3,), "float32", Actions("discrete", (actions,))), 1, 0, ())
    net.torso, net.policy, net.value = nn.Identity(), nn.Identity(), nn.Identity()
    log_p, _ = net(torch.tensor(logits), torch.tensor(legal))
    sums = loss(log_p, *(torch.tensor(x) for x in (value, pi, z, weight)))
    cross = squared = 0.0
    for i in range(n):
        if i == 3:
            continue
        log_total = np.log(sum(np.exp(logits[i, a]) for a in range(actions) if legal[i, a]))
        cross -= sum(pi[i, a] * (logits[i, a] - log_total) for a in range(actions) if legal[i, a])
        squared += (z[i] - value[i]) ** 2
    assert sums[0].item() == pytest.approx(cross) and sums[1].item() == pytest.approx(squared)
    best = np.where(legal, logits, -np.inf).argmax(1)
    assert sums[3].item() == (weight * (best == pi.argmax(1))).sum()


def test_weights_decay_by_their_square() -> None:
    """c ‖θ‖² once, beside means over positions: with it the first moments of Adam differ by (1 − β₁) 2 c θ."""
    config = replace(SMALL, weight_decay=0.5, symmetries=False, max_grad_norm=1e9)
    player, trees, _ = played(config, 8)
    batch = trajectory(ring_of(trees, player, config).sample(0)["items"][0], player.rules.spec)
    moments = []
    for c in (config, replace(config, weight_decay=0.0)):
        learner = Learner(c, player.rules.spec, player.rules, searcher(c), Alone())
        theta = learner.weights.data.clone()
        learner.update({"items": batch}, 0.0)
        moments.append(learner.optimizer.state["exp_avg"])
    assert torch.allclose(moments[0] - moments[1], 0.1 * 2 * 0.5 * theta, atol=1e-5)


def shown(batch: Trajectory, rounds: int, player: Any, rules: Rules) -> tuple[torch.Tensor, ...]:
    learner = Learner(SMALL, rules.spec, rules, player, Alone())
    learner.rounds = rounds
    return learner._shown(batch)


def quarter_turns(k: int) -> Any:
    """The board turned by k quarters, and where that puts each move: not its own inverse for k = 1 and 3."""
    seats = torch.rot90(torch.arange(9).reshape(3, 3), k, (0, 1)).flatten()
    return lambda frames: torch.rot90(frames, k, (-2, -1)), lambda action: seats.argsort()[action]


def test_symmetries_turn_boards_and_visits_alike() -> None:
    """In a symmetry the board, the share of each move and what is legal stand where a mirror would show them."""
    player, trees, _ = played()
    rules = player.rules = replace(player.rules, symmetries=tuple(quarter_turns(k) for k in (1, 2, 3)))
    batch = trajectory(ring_of(trees, player).sample(0)["items"][0], rules.spec)
    before = (batch.observation[0], batch.extras["visits"][0], batch.extras["legal"][0])
    count, places = len(rules.symmetries), torch.arange(9).reshape(3, 3)
    turned = set()
    for rounds in range(count + 1):
        board, target, legal = shown(batch, rounds, player, rules)
        for j in range(len(target)):
            k = int(batch.start[j] + batch.column[j] + rounds) % (count + 1)
            turned.add((j, k))
            if k == 0:
                assert all(torch.equal(x[j], y[j]) for x, y in zip((board, target, legal), before, strict=True))
                continue
            seats = rules.symmetries[k - 1][0](places)  # which place of the old board is seen at each place
            assert torch.equal(board[j].flatten(1), before[0][j].flatten(1)[:, seats.flatten()])
            assert torch.equal(target[j], before[1][j][seats.flatten()])
            assert torch.equal(legal[j], before[2][j][seats.flatten()])
            assert torch.equal(legal[j], board[j].sum(0).flatten() == 0)
    assert len(turned) == len(before[1]) * (count + 1), "each position is shown in each of its symmetries, in turn"


def step_of(rules: Rules, moves: list[int], columns: int = 3) -> Step:
    state = rules.begin(torch.zeros(columns, 0, dtype=torch.float64))
    nothing = torch.zeros(columns, 0, dtype=torch.float64)
    for move in moves:
        state = rules.move(state, torch.full((columns,), move), nothing)[0]
    first = torch.full((columns,), not moves)
    return Step(rules.show(state), first, torch.zeros(columns), state)


def test_early_moves_are_drawn_and_later_ones_are_the_most_visited() -> None:
    config = replace(SMALL, temperature_moves=2, simulations=30)
    player = searcher(config)
    rng, carry = torch.Generator().manual_seed(1), player.initial_carry(200)
    actions = []
    for moves in ([], [0], [0, 4]):
        noise = torch.rand(200, player.noise, generator=rng)
        output = player.act(step_of(player.rules, moves, 200), carry, torch.ones(200), noise)
        carry, visits = output.carry, output.extras["visits"]
        actions.append((output.action == visits.argmax(-1)).float().mean().item())
        assert (output.extras["legal"].sum(-1) == 9 - len(moves)).all()
    assert actions[0] < 0.7 and actions[1] < 0.7 and actions[2] == 1.0


def test_evaluation_draws_nothing_and_adds_no_noise() -> None:
    player = searcher()
    outputs = []
    for seed in (1, 2):
        noise = torch.rand(3, player.noise, generator=torch.Generator().manual_seed(seed))
        outputs.append(player.act(step_of(player.rules, [4]), player.initial_carry(3), torch.zeros(3), noise))
    assert torch.equal(outputs[0].extras["visits"], outputs[1].extras["visits"])
    assert torch.equal(outputs[0].action, outputs[0].extras["visits"].argmax(-1))


def test_what_was_found_out_about_the_next_position_counts() -> None:
    """The second search asks only for what the first one left open; one of another game begins anew."""
    player = searcher(replace(SMALL, simulations=40))
    asked: list[int] = []
    position = player._position
    player._position = lambda state, *rest: (asked.append(len(rest[0])), position(state, *rest))[1]
    noise = torch.rand(3, player.noise)
    first = player.act(step_of(player.rules, []), player.initial_carry(3), torch.zeros(3), noise)
    assert sum(asked) == 3 * 41
    best = int(first.action[0])
    known = int(trees_of(first.carry).visits[0, 0, best])
    asked.clear()
    player.act(step_of(player.rules, [best]), first.carry, torch.zeros(3), noise)
    assert known > 3 and sum(asked) <= 3 * (40 - known + 1)
    asked.clear()
    elsewhere = player.act(step_of(player.rules, [0, 1, 2, 5, 3]), first.carry, torch.zeros(3), noise)
    assert (trees_of(elsewhere.carry).root_visits == 40).all()
    assert 3 * 20 < sum(asked) <= 3 * 41


def test_a_game_that_is_over_is_not_searched() -> None:
    player = searcher(replace(SMALL, simulations=200, temperature_moves=0))
    carry, noise = player.initial_carry(3), torch.rand(3, player.noise)
    moves = [0, 3, 1, 4]
    output = player.act(step_of(player.rules, moves), carry, torch.zeros(3), noise)
    assert output.action.tolist() == [2, 2, 2], "the winning move"
    assert (output.extras["root_value"] > 0.5).all()
    asked: list[int] = []
    position = player._position
    player._position = lambda state, *rest: (asked.append(len(rest[0])), position(state, *rest))[1]
    player.act(step_of(player.rules, [*moves, 2]), output.carry, torch.zeros(3), noise)
    assert not asked


def test_decided_games_are_searched_with_few_simulations_in_training_only() -> None:
    config = replace(SMALL, simulations=400, decided=0.4, decided_simulations=60, temperature_moves=0)
    player = searcher(config)
    noise = torch.rand(3, player.noise)
    before = player.act(step_of(player.rules, [0, 3, 1]), player.initial_carry(3), torch.zeros(3), noise)
    after = step_of(player.rules, [0, 3, 1, 4])  # not 2: the other player wins at once
    known = trees_of(before.carry).visits[:, 0, 4]
    assert (known < 60).all()
    for exploration, visits in ((1.0, 60), (0.0, 400)):
        output = player.act(after, before.carry, torch.full((3,), exploration), noise)
        assert trees_of(output.carry).root_visits.tolist() == [visits] * 3
        assert output.action.tolist() == [2, 2, 2]


def test_halving_at_the_root_finds_a_win_with_few_simulations() -> None:
    """π is the improved policy: moves without visits have a share, too; early moves differ, evaluations do not."""
    player = searcher(replace(SMALL, simulations=16, gumbel_moves=8, temperature_moves=2))
    noise = torch.rand(50, player.noise, generator=torch.Generator().manual_seed(1))
    step, carry = step_of(player.rules, [], 50), player.initial_carry(50)
    drawn, judged = (player.act(step, carry, torch.full((50,), x), noise) for x in (1.0, 0.0))
    assert len(set(drawn.action.tolist())) > 4 and len(set(judged.action.tolist())) == 1
    assert (judged.extras["visits"] > 0).all() and torch.allclose(judged.extras["visits"].sum(-1), torch.ones(50))
    won = player.act(step_of(player.rules, [0, 3, 1, 4], 50), judged.carry, torch.zeros(50), noise)
    assert (won.action == 2).all() and (won.extras["visits"].argmax(-1) == 2).all()
    assert (trees_of(won.carry).root_visits == 16).all()


def test_only_legal_moves_are_made_for_whole_games() -> None:
    """Connect Four to the end of many games: RulesEnvironment refuses any other move."""
    _, trees, _ = played(replace(SMALL, simulations=8), 24, "toy/connect_four")
    rows = whole(trees)
    legal = rows["extras/legal"]
    for t, k in itertools.product(range(len(legal)), range(COLUMNS)):
        if not rows["first"][t + 1, k]:
            assert legal[t, k, rows["action"][t, k]]
            assert (rows["extras/visits"][t, k][~legal[t, k]] == 0).all()
    assert (rows["discount"] == 0).sum() > 3


def test_lanes_go_on_with_their_trees() -> None:
    """What a lane saves holds the trees: a lane that loads it plays on as the first one would have."""
    config = replace(SMALL, simulations=20)
    _, _, lane = played(config, 3)
    state = lane.state()
    player = searcher(config)
    other = Lane(make("toy/tictactoe", {}, COLUMNS), player, np.arange(COLUMNS), streams(9, "act", range(COLUMNS), 0))
    other.start(episode_seeds(9, "episode", range(COLUMNS), 0))
    other.load(state)
    schema = trajectory_schema(player.rules.spec, player.extras, player.carry)
    results = []
    for one in (lane, other):
        tree = allocate(schema, 5, COLUMNS, 1)
        Vector([one], Timings()).collect(tree, lambda: 0)
        results.append(tree)
    assert all(np.array_equal(results[0][name], results[1][name], equal_nan=True) for name in schema)
    assert not any(name.startswith("carry/") for name in schema)


def test_games_that_cannot_be_searched_are_refused() -> None:
    plain = tictactoe(torch).rules
    for rules, text in (
        (None, "not made of Rules"),
        (replace(plain, legal=None), "no `legal` moves"),
        (replace(plain, move_uniforms=1), "without chance"),
    ):
        with pytest.raises(Unsuited, match=text):
            policy(SMALL, plain.spec, rules)
    player = searcher()
    step = replace(step_of(player.rules, []), state=None)
    with pytest.raises(Unsuited, match='sampler = "vector"'):
        player.act(step, player.initial_carry(3), torch.zeros(3), torch.rand(3, player.noise))
