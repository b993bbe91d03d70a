"""`hpc-rl play`: a person against a run's policy, in the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpc_rl import job as jobs
from hpc_rl.agent import Agent, agent_of
from hpc_rl.algorithms.base import Policy
from hpc_rl.board_text import STONES, board_text, move_names, opinion
from hpc_rl.devices import to_host
from hpc_rl.envs.of_rules import game_of_two
from hpc_rl.opponents import consulted
from hpc_rl.saved_policy import saved_policy
from hpc_rl.search.levels import legal_moves
from hpc_rl.storage.run_dir import BadRun, open_run
from hpc_rl.types import ActOutput, Rules, RulesState

Ask = Callable[[str], str | None]
"""A prompt -> what the person answers; None at the end of the input."""

Tell = Callable[[str], None]


@dataclass
class Table:
    """A game under way: ``mover`` is 0 where it is the turn of who moved first, else 1."""

    rules: Rules
    agent: Agent
    policy: Policy
    names: list[str]
    state: RulesState
    draw: np.random.Generator
    mover: int = 0

    def text(self) -> str:
        return board_text(self.rules.spec, np.asarray(self.rules.show(self.state))[0], self.mover)

    def consult(self) -> ActOutput:
        """What the policy would do here; with another number each time, for those that draw."""
        assert self.agent.rules is not None
        return consulted(self.policy, self.agent.rules, self.state, self.draw.random(1))

    def move(self, action: int) -> int | None:
        """Move, and return who won: 0, 1, −1 for nobody, None where the game goes on."""
        u = self.draw.random((1, self.rules.move_uniforms))
        mover = self.mover
        self.state, reward, discount, truncated = self.rules.move(self.state, np.array([action]), u)
        self.mover = 1 - mover if discount[0] < 0 else mover
        if discount[0] and not truncated[0]:
            return None
        self.mover = 1 - mover  # the board is shown as the other player sees it
        return -1 if not reward[0] else mover if reward[0] > 0 else 1 - mover


def play(
    run: Path,
    file: Path | None,
    overrides: Sequence[str],
    first: bool,
    seed: int,
    ask: Ask,
    tell: Tell,
    warn: Tell,
) -> None:
    """One game. ``overrides`` change the job; ``first``: the person moves first; who answers nothing leaves.

    Raises:
        BadRun, NoUsableCheckpoint, …: no policy of a game of two is there, or it made an illegal move.
    """
    directory = open_run(run)
    job = jobs.load(directory.job_file, overrides)
    rules = game_of_two(job.environment.id, job.environment.arguments)
    if rules is None:
        raise BadRun(f"{job.environment.id} is no game of two players made of Rules; hpc-rl eval judges it")
    agent = agent_of(job)
    policy, path, meta = saved_policy(directory, job, agent, file, warn)
    draw = np.random.default_rng(seed)
    begin = rules.begin(draw.random((1, rules.begin_uniforms)))
    table = Table(rules, agent, policy, move_names(rules.spec), begin, draw)
    person = 0 if first else 1
    tell(f"{path} at {meta['env_steps']:,} env steps plays {STONES[1 - person]}, you play {STONES[person]}")
    tell(f"your move is one of {_shown(table.names)}; ? shows what the policy thinks, q leaves")
    winner: int | None = None
    while winner is None:
        if table.mover == person:
            tell(table.text())
            action = _persons(table, ask, tell)
            if action is None:
                return
        else:
            action = _policys(table)
            tell(f"{STONES[table.mover]} plays {table.names[action]}")
        winner = table.move(action)
    tell(table.text())
    tell("drawn" if winner < 0 else "you win" if winner == person else f"{STONES[winner]} wins")


def _persons(table: Table, ask: Ask, tell: Tell) -> int | None:
    """A legal move; None where the person leaves."""
    legal = legal_moves(table.rules, table.state)[0]
    while (answer := ask(f"{STONES[table.mover]}> ")) is not None:
        word = answer.strip().lower()
        if word in ("q", "quit"):
            return None
        if word == "?":
            output = table.consult()
            tell(opinion({name: to_host(x)[0] for name, x in output.extras.items()}, legal, table.names))
            tell(f"it would play {table.names[int(output.action[0])]}")
        elif word in table.names and legal[action := table.names.index(word)]:
            return action
        else:
            wrong = f"{word} is not legal here" if word in table.names else f"{word!r} is no move"
            tell(f"{wrong}; name one of {_shown([table.names[k] for k in np.flatnonzero(legal)])}")
    return None


def _policys(table: Table) -> int:
    action = int(table.consult().action[0])
    if not legal_moves(table.rules, table.state)[0, action]:
        raise BadRun(
            f"the policy plays {table.names[action]}, which is not legal; its method does not look at `Rules.legal`"
        )
    return action


def _shown(names: list[str]) -> str:
    """A few of many names."""
    return ", ".join(names) if len(names) <= 12 else f"{', '.join(names[:6])} … {', '.join(names[-3:])}"
