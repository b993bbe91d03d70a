"""Environments made of Rules: those of this package, users' own, and matches of games of two players."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from hpc_rl.envs import mixture
from hpc_rl.envs.base import BadEnvironment
from hpc_rl.envs.built_in import BUILT_IN, built_in
from hpc_rl.envs.entries import check, nearest, users
from hpc_rl.envs.matches import Terms, match, terms_of, two_players
from hpc_rl.envs.opponents import player_of
from hpc_rl.envs.rules import RulesEnvironment
from hpc_rl.envs.targets import makes_rules
from hpc_rl.envs.toy import Toy
from hpc_rl.types import Rules


def toy_of(id: str, arguments: dict[str, Any], xp: ModuleType) -> tuple[Toy, Terms | None] | None:
    """What a `RulesEnvironment` is made of, and the terms of the match; None where the id is not that of Rules.

    Raises:
        BadEnvironment: no such environment, argument or player, or an opponent in a game of one.
    """
    maker = _maker(id)
    if maker is None:
        return None
    own, terms = terms_of(id, arguments)
    check(id, own, maker, given=1)
    toy = maker(xp, **own)
    if terms is not None and not two_players(toy.rules if xp is np else maker(np, **own).rules):
        raise BadEnvironment(f"{id} is no game of two players, and takes no opponent; leave it out")
    return toy, terms


def game_of_two(id: str, arguments: dict[str, Any]) -> Rules | None:
    """The game on NumPy, without the terms of a match; None where the id is not that of a game of two made of Rules."""
    made = None if id == mixture.ID else toy_of(id, terms_of(id, arguments)[0], np)
    return made[0].rules if made is not None and two_players(made[0].rules) else None


def environment_of(id: str, arguments: dict[str, Any], columns: int) -> RulesEnvironment | None:
    """b columns; None where the id is not that of Rules. Raises BadEnvironment as `toy_of`."""
    made = toy_of(id, arguments, np)
    if made is None:
        return None
    toy, terms = made
    rules = toy.rules
    if terms is not None:
        key = json.dumps([id, terms_of(id, arguments)[0]], sort_keys=True, default=repr)
        player = player_of(terms.opponent, rules, key) if isinstance(terms.opponent, str) else terms.opponent
        rules = match(rules, player, terms)
    return RulesEnvironment(rules, columns, toy.follow, toy.effect)


def on_device(id: str, arguments: dict[str, Any], xp: ModuleType) -> Toy:
    """What the device sampler steps, with torch; NumPy will do to see whether it can.

    Raises:
        BadEnvironment: as `toy_of`, and where the environment is not made of Rules, or something of it needs the host.
    """
    made = None if id == mixture.ID else toy_of(id, arguments, xp)
    if made is None:
        reason = f"{id} is not made of Rules"
    elif made[1] is not None:
        reason = f"the opponent of {id} moves on the host"
    elif made[0].effect is not None:
        reason = f"{id} does more than move, and does it on the host"
    else:
        return made[0]
    raise BadEnvironment(
        f'sampler = "device" steps an environment as tensors, and {reason}; use sampler = "vector", or an environment '
        "made of Rules (docs/write-an-environment.md), as toy/cartpole is"
    )


def _maker(id: str) -> Callable[..., Toy] | None:
    """(array module, own arguments) -> Toy."""
    if built_in(id):
        if id not in BUILT_IN:
            raise BadEnvironment(f"{id} is not a built-in environment; {nearest(id, BUILT_IN)}")
        return BUILT_IN[id]
    function = users(id)[0] if ":" in id else None
    if function is None or not makes_rules(function):
        return None
    own = function

    def users_toy(xp: ModuleType, /, **arguments: Any) -> Toy:
        rules = own(xp, **arguments)
        if not isinstance(rules, Rules):
            raise BadEnvironment(
                f"{id} is declared to return Rules and returned a {type(rules).__name__}; return Rules"
            )
        return Toy(rules)

    users_toy.__wrapped__ = own  # type: ignore[attr-defined]  # whose arguments are looked at
    return users_toy
