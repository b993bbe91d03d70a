"""`hpc-rl eval` of a game of two players: matches against a pool from both sides, ratings, and lines that are lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hpc_rl import job as jobs
from hpc_rl.agent import Agent, agent_of
from hpc_rl.algorithms.base import Policy
from hpc_rl.devices import to_host
from hpc_rl.elo import Met, ratings
from hpc_rl.envs.make import describe_sets
from hpc_rl.envs.of_rules import game_of_two
from hpc_rl.evaluation import LEVEL, about, maker
from hpc_rl.opponents import consulted
from hpc_rl.runtime.games import Game, Games
from hpc_rl.saved_policy import saved_policy
from hpc_rl.search.levels import TooManyPositions, levels
from hpc_rl.search.replies import all_replies
from hpc_rl.settings import Job
from hpc_rl.storage.run_dir import BadRun, open_run
from hpc_rl.types import Array, Rules, RulesState

POOL = ("random", "alphabeta:2", "alphabeta:4")  # where neither the job nor the command names one
SIDES = ("first", "second")
SMALL, LARGEST = 60_000, 200_000  # moves of a game that is enumerated unasked; positions that a policy is asked about


def play_pool(
    run: Path,
    games: int,
    file: Path | None,
    opponents: Sequence[str] = (),
    lines: bool = False,
    overrides: Sequence[str] = (),
    warn: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Greedy matches of a run's best (else newest) policy, ``games`` from each side against each of the pool.

    The pool is ``opponents``, else those of evaluate.arguments, else `POOL`; ``overrides`` change the job, such as the
    settings of its search. What `hpc-rl eval --json` prints::

        checkpoint, env_steps, chosen, score, scored_by, level    as `evaluate_run`
        opponents    of each: {arguments, points, low, high, games, distinct_games, first, second}; points are 1 for a
                     win and ½ for a draw, as a share; first and second {won, drawn, lost}, by who moves first
        elo          of each, and of "this policy": [rating, half of its interval]; the pool's first (or random) is 0
        lines        {first, second}: {won, drawn, lost, positions} of all lines against every reply; null where the
                     game is large and ``lines`` was not asked for

    Raises:
        BadRun, NoUsableCheckpoint, …: no policy, no game of two, or one too large for ``lines``.
    """
    directory = open_run(run)
    job = jobs.load(directory.job_file, overrides)
    rules = game_of_two(job.environment.id, job.environment.arguments)
    if rules is None:
        raise BadRun(f"{job.environment.id} is no game of two players; leave --opponent and --lines out")
    sets = _pool(job, opponents)
    agent = agent_of(job)
    describe_sets(job.environment.id, job.environment.arguments, sets, agent.spec)
    policy, path, meta = saved_policy(directory, job, agent, file, warn)
    rows = [_matches(job, policy, changes, games) for changes in sets]
    replies = _lines(agent, policy, rules) if lines or _small(rules) else None
    return {**about(path, file, meta), "opponents": rows, "elo": _elo(rows), "lines": replies}


def _pool(job: Job, opponents: Sequence[str]) -> list[dict[str, Any]]:
    if opponents:
        return [{"opponent": name} for name in opponents]
    own = job.environment.arguments.get("opponent")
    named = [dict(x) for x in job.evaluate.arguments if "opponent" in x] or ([{"opponent": own}] if own else [])
    return named or [{"opponent": name} for name in POOL]


def _matches(job: Job, policy: Policy, changes: Mapping[str, Any], count: int) -> dict[str, Any]:
    """One opponent; both sides have the same seeds, and with them the same openings."""
    every: list[Game] = []
    row: dict[str, Any] = {"arguments": {name: value for name, value in changes.items() if name != "side"}}
    for side in SIDES:
        games = Games(maker(job, {**changes, "side": side}), policy, job.seed, count, 0.0, "report")
        games.advance()
        totals = np.array([game.total for game in games.games])
        row[side] = {"won": int((totals > 0).sum()), "drawn": int((totals == 0).sum()), "lost": int((totals < 0).sum())}
        every += games.games
    points = sum(row[side]["won"] + row[side]["drawn"] / 2 for side in SIDES)
    low, high = share_interval(points / len(every), len(every))
    distinct = len({game.digest for game in every})
    counts = {"games": len(every), "distinct_games": distinct}
    return {**row, "points": points / len(every), "low": low, "high": high, **counts}


def share_interval(share: float, n: int, level: float = LEVEL) -> tuple[float, float]:
    """(low, high) of a share of n games (Wilson 1927); too wide where some are drawn, which varies less."""
    from scipy import stats

    z = float(stats.norm.ppf((1 + level) / 2))
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * float(np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))) / (1 + z * z / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def _elo(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    names = ["this policy", *(_name(row["arguments"]) for row in rows)]
    met = [Met(0, k, row["points"] * row["games"], row["games"]) for k, row in enumerate(rows, 1)]
    zero = names.index("random") if "random" in names else 1
    found = ratings(len(names), met, zero)
    return {name: [rating.elo, rating.half] for name, rating in zip(names, found, strict=True)}


def _name(arguments: Mapping[str, Any]) -> str:
    others = [f"{name} {value}" for name, value in arguments.items() if name != "opponent"]
    return ", ".join([str(arguments["opponent"]), *others])


def _small(rules: Rules) -> bool:
    try:
        levels(rules, rules.begin(np.zeros((1, rules.begin_uniforms))), most=SMALL)
    except TooManyPositions:
        return False
    return not rules.begin_uniforms and not rules.move_uniforms


def _lines(agent: Agent, policy: Policy, rules: Rules) -> dict[str, dict[str, int]]:
    torch_rules = agent.rules
    assert torch_rules is not None

    def answers(state: RulesState) -> Array:
        n = len(next(iter(state.values())))
        return to_host(consulted(policy, torch_rules, state, np.full(n, 0.5)).action)

    try:
        return {side: vars(all_replies(rules, answers, side == "first", LARGEST)) for side in SIDES}
    except (TooManyPositions, ValueError) as error:
        raise BadRun(f"lines of {rules.spec.id} cannot be enumerated: {error}") from None


def told(result: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """(lines of data, remarks) on what `play_pool` found."""
    data = [f"matches of {result['checkpoint']} at {result['env_steps']:,} env steps, won/drawn/lost from either side"]
    remarks = []
    for row in result["opponents"]:
        name = _name(row["arguments"])
        sides = "  ".join(f"{side} {'/'.join(str(row[side][x]) for x in ('won', 'drawn', 'lost'))}" for side in SIDES)
        interval = f"[{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
        data.append(f"{name:<16} {100 * row['points']:5.1f} % {interval:<14}  {row['games']} games  {sides}")
        if row["distinct_games"] < row["games"]:
            remarks.append(
                f"only {row['distinct_games']} of the {row['games']} games against {name} differ; add opening_plies to "
                "evaluate.arguments for games that do"
            )
    data += [f"elo {name:<16} {elo:6.0f} ± {half:.0f}" for name, (elo, half) in result["elo"].items()]
    if result["lines"] is not None:
        sides = result["lines"]
        lost = sum(sides[side]["lost"] for side in SIDES)
        every = sum(sides[side][end] for side in SIDES for end in ("won", "drawn", "lost"))
        data.append(f"losing lines: {lost} of {every:,}; {sides['first']['lost']} where it moves first")
    return data, remarks
