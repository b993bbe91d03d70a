"""`hpc-rl record GAME PLAYERS… --out RUN`: games of players against each other as a run directory to learn from.

A game is an episode, and the moves of both players are its moves, in turn. All games lie one after the other in one
column of worker 0, as if that had played them. No policy of this package need have acted, so the job names a method
that only stands in.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from hpc_rl import job as jobs
from hpc_rl.envs.matches import Terms, opening
from hpc_rl.envs.of_rules import game_of_two
from hpc_rl.envs.opponents import CHECKPOINT, Player, check_name, player_of
from hpc_rl.export.base import NotExported, new
from hpc_rl.export.fragments_of import ending, laid
from hpc_rl.export.from_minari import Imported, finish, stand_in
from hpc_rl.formulas.counter_hash import mixed, seed_of, uniforms
from hpc_rl.fragments import trajectory_schema
from hpc_rl.search.levels import at, legal_moves
from hpc_rl.storage import provenance
from hpc_rl.storage.run_dir import create
from hpc_rl.storage.trajectories import Recorder
from hpc_rl.types import Array, Rules, Tree

TOGETHER = 32  # games that are played at a time

OfRun = Callable[[Path, str, dict[str, Any]], Player]
"""(a run or its checkpoint's file, id and arguments of the game) -> its policy as a player; hpc_rl/opponents.py."""


@dataclass(frozen=True)
class Fixture:
    """Who plays what, and how often."""

    id: str
    arguments: dict[str, Any]
    players: Sequence[str]
    games: int
    opening: int = 0  # random moves before a game
    seed: int = 1

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Who moves first and who second, in the order in which games are played."""
        if len(self.players) == 1:
            return [(self.players[0], self.players[0])]
        return [(a, b) for a, b in product(self.players, repeat=2) if a != b]


@dataclass
class Game:
    """One that is played: the frames that its moves were made from, and the one behind the last."""

    frames: list[Array] = field(default_factory=list)
    action: list[int] = field(default_factory=list)
    reward: list[float] = field(default_factory=list)
    discount: list[float] = field(default_factory=list)

    def leaves(self) -> Tree:
        """Leaves [T] of its moves; its return is the first mover's."""
        moves = len(self.action)
        reward, discount = np.array(self.reward, np.float32), np.array(self.discount, np.float32)
        signs = np.cumprod([1.0, *discount[:-1]])
        return {
            "action": np.array(self.action, np.int64),
            "reward": reward,
            "discount": discount,
            "version": np.zeros(moves, np.int64),
            **ending(moves, float((signs * reward).sum()), np.nan),
        }


def record_games(fixture: Fixture, out: Path, of_run: OfRun) -> Imported:
    """Write the run ``out``; ``of_run`` makes players of checkpoints.

    Raises:
        NotExported: it is no game of two players, or ``out`` exists.
        BadEnvironment: no such game, argument or player, or a player that the game is too large for.
        BadRun: a checkpoint's run cannot be played with.
    """
    rules = game_of_two(fixture.id, fixture.arguments)
    if rules is None:
        raise NotExported(f"{fixture.id} is no game of two players made of Rules; name one, such as toy/connect_four")
    players = {name: _player(fixture, rules, name, of_run) for name in fixture.players}
    schema, columns = trajectory_schema(rules.spec, {}, {}), np.zeros(1, np.int32)
    result, tail = Imported(), None
    environment = {"id": fixture.id, "arguments": fixture.arguments}
    job = stand_in(environment, None, 1, out.name)
    with new(out, "choose another --out") as folder:
        run = create(folder, jobs.dumps(job))
        started = {"resumed_from": {"file": None, "steps": {}}, "players": list(fixture.players)}
        provenance.write(run, 0, provenance.collect(sys.argv, 0, fixture.seed, started))
        attributes = {"job": job.name, "environment": fixture.id}
        folder_of_rank = run.trajectories / "a0-worker-0"
        recorder = Recorder(folder_of_rank, schema, rules.spec, columns, np.ones(1, bool), 0, attributes=attributes)
        for game in _games(fixture, rules, players):
            leaves = game.leaves()
            tree, tail = laid(rules.spec, leaves, np.stack(game.frames), result.env_steps, tail)
            recorder.write(tree)
            result.episodes, result.env_steps = result.episodes + 1, result.env_steps + len(game.action)
            result.returns = (*result.returns, float(leaves["episode_return"][-1]))[-100:]
        recorder.close()
        finish(run, job, result, f"done: {result.episodes} games of {', '.join(fixture.players)}")
    return result


def _player(fixture: Fixture, rules: Rules, name: str, of_run: OfRun) -> Player:
    if check_name(fixture.id, name)[0] == CHECKPOINT:
        return of_run(Path(name.partition(":")[2]), fixture.id, fixture.arguments)
    return player_of(name, rules, json.dumps([fixture.id, fixture.arguments], sort_keys=True))


def _games(fixture: Fixture, rules: Rules, players: dict[str, Player]) -> Iterator[Game]:
    """Game k is played by pair k modulo their number, with a stream of its own."""
    numbers, pairs = np.arange(fixture.games), fixture.pairs
    for k, (first, second) in enumerate(pairs):
        own = numbers[k :: len(pairs)]
        for low in range(0, len(own), TOGETHER):
            keys = [np.random.SeedSequence(fixture.seed, spawn_key=(int(n),)) for n in own[low : low + TOGETHER]]
            u = np.array([np.random.default_rng(key).random(rules.begin_uniforms + 1) for key in keys])
            yield from played(rules, (players[first], players[second]), u, fixture.opening)


def played(rules: Rules, players: tuple[Player, Player], u: Array, plies: int) -> list[Game]:
    """n games, side by side; ``u`` [n, begin_uniforms + 1]: those of their beginnings, and what all else is drawn from.

    Raises:
        BadEnvironment: a player sees too far ahead for this game.
    """
    seed = seed_of(u[:, -1])
    state = opening(rules, rules.begin(u[:, :-1]), seed, Terms("random", plies=(plies, plies)))
    games, going, turn = [Game() for _ in u], np.arange(len(u)), 0
    while len(going):
        draws = uniforms(np, mixed(mixed(seed[going], 1), turn), 1 + rules.move_uniforms)
        action = np.asarray(players[turn % 2](state, draws[:, 0]))
        if not np.take_along_axis(legal_moves(rules, state), action[:, None], 1).all():
            raise NotExported(f"a player makes an illegal move of {rules.spec.id}; mend it, or name another")
        shown = np.asarray(rules.show(state))
        state, reward, discount, truncated = rules.move(state, action, draws[:, 1:])
        after = np.asarray(rules.show(state))
        over = (np.asarray(discount) == 0) | np.asarray(truncated)
        for place, number in enumerate(going.tolist()):
            game = games[number]
            game.frames += [shown[place]] if not over[place] else [shown[place], after[place]]
            game.action.append(int(action[place]))
            game.reward.append(float(reward[place]))
            game.discount.append(float(discount[place]))
        rows = np.flatnonzero(~over)
        state, going, turn = at(state, rows), going[rows], turn + 1
    return games
