"""Who answers in a match (matches.py): players of any game of two made of Rules, by their names.

``random``        any legal move
``alphabeta:4``   sees so many moves ahead; only ends of games count, and all best moves are equally likely
``alphabeta:4:middle``  the same, but of equally good moves it makes the one nearest to the middle of all
``uct:1000``      so many simulations with random games (search/uct.py); the move most of them took
``perfect``       as alphabeta, to the end of the game; for games small enough to be solved
``checkpoint:RUN``  the best, else the newest policy of a run, or of a checkpoint's file (hpc_rl/opponents.py makes it)
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from hpc_rl.envs.base import BadEnvironment
from hpc_rl.search.levels import MOST, Solution, TooManyPositions, legal_moves, move_values, solved
from hpc_rl.search.roots import drawn
from hpc_rl.search.uct import uct
from hpc_rl.types import Array, Rules, RulesState

Player = Callable[[RulesState, Array], Array]
"""(state [n] of open games, uniforms u [n]) -> action [n]. A game's answer depends on its own state and u alone."""

CHECKPOINT = "checkpoint"
_NUMBERED = {"alphabeta": (1, 20), "uct": (2, 100_000)}
MIDDLE, _MIDDLED = ":middle", "alphabeta:"  # how ties are broken, and where that may be said
_NAMES = "random, alphabeta:4, uct:1000, perfect or checkpoint:RUN"

_solutions: dict[str, Solution] = {}  # an evaluation makes its environments anew


def check_name(id: str, name: str) -> tuple[str, int, bool]:
    """(kind, its number or 0, whether it ends in MIDDLE) of a player's name. Raises BadEnvironment."""
    middle = name.startswith(_MIDDLED) and name.endswith(MIDDLE)
    kind, colon, number = name.removesuffix(MIDDLE if middle else "").partition(":")
    if (kind in ("random", "perfect") and not colon) or (kind == CHECKPOINT and number):
        return kind, 0, False
    if kind in _NUMBERED and number.isdecimal():
        low, high = _NUMBERED[kind]
        if not low <= int(number) <= high:
            raise BadEnvironment(f"{id}: opponent = {name!r} is refused; the number is from {low} to {high}")
        return kind, int(number), middle
    raise BadEnvironment(f"{id}: opponent = {name!r} is no player; name {_NAMES}")


def path_of(opponent: object) -> Path | None:
    """Where the run or the file of ``checkpoint:RUN`` lies; None of other players."""
    if not isinstance(opponent, str) or not opponent.startswith(f"{CHECKPOINT}:"):
        return None
    return Path(opponent.partition(":")[2])


def run_of(path: Path) -> Path:
    """The run that a path belongs to which is its folder, or a file in its ``checkpoints/``."""
    return path.parent.parent if path.is_file() else path


def player_of(name: str, rules: Rules, key: str) -> Player:
    """The player of that name; ``key`` is the same for equal rules, and no others.

    Raises:
        BadEnvironment: no such player, or one that this game is too large for or too much left to chance.
    """
    kind, number, middle = check_name(rules.spec.id, name)
    if kind == "random":
        return lambda state, u: drawn(legal_moves(rules, state).astype(float), u)
    if kind == CHECKPOINT:
        raise BadEnvironment(
            f"{rules.spec.id}: opponent = {name!r} needs a run, whose policy `hpc-rl run` and eval read"
        )
    if kind == "uct":
        return lambda state, u: most_visited(rules, state, number, u)
    if rules.move_uniforms:
        raise BadEnvironment(f"{rules.spec.id} has moves left to chance, which opponent = {name!r} cannot see; use uct")
    if kind == "perfect":
        values = _solution(rules, key).move_values
        return lambda state, u: any_best(values(state), u)
    choose = middle_best if middle else any_best
    return lambda state, u: choose(seen(rules, state, number), u)


def any_best(values: Array, u: Array) -> Array:
    """A move [n] of the largest value [n, A], all of them equally likely."""
    return drawn((values == values.max(-1, keepdims=True)).astype(float), u)


def middle_best(values: Array, u: Array) -> Array:
    """Of the moves [n] of the largest value [n, A] the one nearest to the middle of A, the lower of two."""
    size = values.shape[1]
    order = np.argsort(np.abs(np.arange(size) - (size - 1) / 2), kind="stable")
    move: Array = order[values[:, order].argmax(-1)]
    return move


def seen(rules: Rules, state: RulesState, depth: int) -> Array:
    """`move_values`. Raises BadEnvironment: so deep cannot be seen in this game."""
    try:
        return move_values(rules, state, depth)
    except TooManyPositions as error:
        raise BadEnvironment(
            f"{rules.spec.id}: {depth} moves ahead there are {error}; name a smaller depth, or uct:1000"
        ) from None


def most_visited(rules: Rules, state: RulesState, simulations: int, u: Array) -> Array:
    """The move [n] that most simulations took."""
    return any_best(uct(rules, state, simulations, u).visits[:, 0], u)


def _solution(rules: Rules, key: str) -> Solution:
    if key not in _solutions:
        try:
            _solutions[key] = solved(rules, most=4 * MOST)
        except TooManyPositions as error:
            raise BadEnvironment(
                f"{rules.spec.id} is too large for opponent = 'perfect': {error}; name alphabeta:8 or a smaller board"
            ) from None
    return _solutions[key]
