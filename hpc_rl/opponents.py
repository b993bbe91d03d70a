"""Trained policies as players: ``opponent = "checkpoint:RUN"`` of a match, and what a policy says of a position."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hpc_rl.algorithms.base import Policy
from hpc_rl.devices import to_device, to_host
from hpc_rl.envs.make import describe
from hpc_rl.envs.matches import terms_of
from hpc_rl.envs.opponents import Player, path_of
from hpc_rl.formulas.counter_hash import seed_of, uniforms
from hpc_rl.saved_policy import policy_of_run
from hpc_rl.storage.run_dir import BadRun
from hpc_rl.types import ActOutput, Array, Rules, RulesState, Step


def with_opponent(id: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """An environment's arguments, in which ``checkpoint:RUN`` has become that player.

    Raises:
        BadRun, NoUsableCheckpoint, …: no run with a policy for this game is there.
    """
    if (path := path_of(arguments.get("opponent"))) is None:
        return dict(arguments)
    return {**arguments, "opponent": player_of_run(path, id, terms_of(id, arguments)[0])}


def player_of_run(path: Path, id: str, arguments: dict[str, Any]) -> Player:
    """The greedy policy of a run, or of one of its checkpoints' files, in a game that is the run's own.

    Raises:
        BadRun, NoUsableCheckpoint, …: as `saved_policy`, or it plays another game.
    """
    policy, agent = policy_of_run(path, f"opponent = 'checkpoint:{path}'", describe(id, arguments))
    if (rules := agent.rules) is None:
        raise BadRun(
            f"opponent = 'checkpoint:{path}' was trained in {agent.spec.id}, which is not made of Rules; "
            "name a run of this game"
        )

    def player(state: RulesState, u: Array) -> Array:
        return to_host(consulted(policy, rules, state, u).action)

    return player


def consulted(policy: Policy, rules: Rules, state: RulesState, u: Array) -> ActOutput:
    """What a policy answers greedily in n positions {name: [n, …]} of its game, each as if nothing came before.

    ``rules`` are on torch; all that is random is a function of u [n].
    """
    n = len(u)
    device = next(policy.net.parameters()).device
    there = {name: to_device(x, device) for name, x in state.items()}
    first, none = torch.ones(n, dtype=torch.bool, device=device), torch.zeros(n, device=device)
    draws = uniforms(np, seed_of(u), policy.fragment_noise + policy.noise).astype(np.float32)
    with torch.no_grad():
        step = Step(rules.show(there), first, none, there)
        return policy.act(step, policy.initial_carry(n), none, to_device(draws, device))
