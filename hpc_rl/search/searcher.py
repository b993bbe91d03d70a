"""A policy that searches: before every move a tree search from the position on the board, guided by a network."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from hpc_rl.devices import to_device, to_host
from hpc_rl.experience import Unsuited
from hpc_rl.search.gumbel import halving, improved_policy
from hpc_rl.search.kept import carry_of, empty, leaves, trees_of
from hpc_rl.search.mcts import NONE, Position, Trees, advance, find, move_of, replant, search
from hpc_rl.search.roots import drawn, noisy, sharpened
from hpc_rl.types import ActOutput, Array, Leaf, Rules, RulesState, Schema, Spec, Step


class Settings(Protocol):
    """Fields of a Config that say how to search; `algorithms/alphazero.py` says what they mean."""

    @property
    def simulations(self) -> int: ...

    @property
    def c_puct(self) -> float: ...

    @property
    def first_play(self) -> float: ...

    @property
    def alpha(self) -> float: ...

    @property
    def noise(self) -> float: ...

    @property
    def temperature_moves(self) -> int: ...

    @property
    def gumbel_moves(self) -> int: ...

    @property
    def decided(self) -> float: ...

    @property
    def decided_simulations(self) -> int: ...


class Searcher:
    """Chooses moves by tree search. Carries each column's tree, and the moves made in its game.

    ``net`` gives log p [n, A] and values [n] for frames [n, *O] of the Rules and legal moves [n, A].
    """

    fragment_noise = 0

    def __init__(self, config: Settings, spec: Spec, rules: Rules, net: nn.Module) -> None:
        assert rules.legal is not None
        self.config, self.rules, self.legal, self.actions = config, rules, rules.legal, spec.actions.sizes[0]
        self.net = net
        self.noise = self.actions + 1  # α's at the root, and one that draws the move
        start = rules.begin(torch.zeros(1, rules.begin_uniforms, dtype=torch.float64, device="cpu"))
        self.state: RulesState = {name: to_host(x) for name, x in start.items()}
        ply = Leaf((), "int64", "step", "", "moves made in this game", local=True)
        self.carry: Schema = {"ply": ply, **leaves(self.state, self.actions, config.simulations + 1)}
        self.extras: Schema = {
            "visits": Leaf((self.actions,), "float32", "step", "", "shares of the root's visits"),
            "legal": Leaf((self.actions,), "bool", "step", "", "moves that the rules allow"),
            "root_value": Leaf((), "float32", "step", "", "what the search expects for who moves"),
        }

    def initial_carry(self, columns: int) -> dict[str, Tensor]:
        trees = empty(self.state, self.actions, self.config.simulations + 1, columns)
        return {"ply": torch.zeros(columns, dtype=torch.int64, device="cpu"), **trees}

    @torch.no_grad()
    def act(self, step: Step, carry: dict[str, Tensor], exploration: Tensor, noise: Tensor) -> ActOutput:
        """exploration > 0 adds noise at the root and draws early moves; 0 takes the most visited one.

        Raises Unsuited where the sampler does not give it the state of the Rules.
        """
        if step.state is None:
            raise Unsuited(
                "a search begins from the state of the game, which is only at hand where the ranks that act step it "
                'themselves; use sampler = "vector" and environment.processes = 0'
            )
        explores, u = to_host(exploration) > 0, to_host(noise)
        ply = np.where(to_host(step.first), 0, to_host(carry["ply"]))
        trees = trees_of(carry)
        open_ = self._rooted(trees, step)
        draws = explores & (ply < self.config.temperature_moves)
        look = self._halved if self.config.gumbel_moves else self._searched
        shares, action = look(trees, open_, explores, draws, u)
        extras = {
            "visits": to_device(shares.astype(np.float32), "cpu"),
            "legal": to_device(trees.prior[:, 0] > 0, "cpu"),
            "root_value": to_device(trees.root_value().astype(np.float32), "cpu"),
        }
        return ActOutput(to_device(action, "cpu"), {"ply": to_device(ply + 1, "cpu"), **carry_of(trees)}, extras)

    def _rooted(self, trees: Trees, step: Step) -> Array:
        """Make the positions on the boards the roots. Returns [b] bool, False where the game is known to be over."""
        assert step.state is not None
        state = {name: to_host(x) for name, x in step.state.items()}
        root = find(trees, state)
        open_: Array = (root == NONE) | (trees.discount[np.arange(len(root)), root] != 0)
        if self.config.gumbel_moves:  # halving counts on roots without visits
            root = np.where(open_, NONE, root)
        advance(trees, root)
        unknown = np.flatnonzero(root == NONE)
        if len(unknown):
            at = {name: x[unknown] for name, x in state.items()}
            replant(trees, unknown, self._position(at, np.zeros(len(unknown)), np.ones(len(unknown))))
        return open_

    def _searched(self, trees: Trees, open_: Array, explores: Array, draws: Array, u: Array) -> tuple[Array, Array]:
        """Shares of visits [b, A], and moves [b]: drawn from them where it ``draws``, else the most visited."""
        config, prior = self.config, trees.prior[:, 0]
        noise = noisy(prior, u[:, :-1], config.alpha, config.noise) if explores.any() and config.noise else prior
        mixed, simulations = np.where(explores[:, None], noise, prior), self._simulations(trees, open_, explores)
        search(trees, self._after, simulations, config.c_puct, mixed, config.first_play)
        visits = trees.visits[:, 0].astype(float)
        visits[:, 0] += visits.sum(-1) == 0  # where the game is over some move, which nobody will make
        return visits / visits.sum(-1, keepdims=True), drawn(sharpened(visits, draws.astype(float)), u[:, -1])

    def _halved(self, trees: Trees, open_: Array, explores: Array, draws: Array, u: Array) -> tuple[Array, Array]:
        """The improved policy [b, A], and moves [b], from Gumbel draws where it ``draws``."""
        config, prior, simulations = self.config, trees.prior[:, 0].copy(), self._simulations(trees, open_, explores)
        plan = halving(prior, np.where(draws[:, None], u[:, :-1], 0.5), simulations, config.gumbel_moves)
        search(trees, self._after, simulations, config.c_puct, prior, config.first_play, root_move=plan.move)
        return improved_policy(prior, trees), plan.best(trees)

    def _simulations(self, trees: Trees, open_: Array, explores: Array) -> Array:
        """[b]: none where the game is over, few where it is decided."""
        config = self.config
        decided = explores & (np.abs(trees.root_value()) > config.decided)
        few = min(config.simulations, config.decided_simulations)
        return np.where(open_, np.where(decided, few, config.simulations), 0)

    def _after(self, state: RulesState, action: Array) -> Position:
        """Where moves [n] lead, and what the network expects there."""
        move = move_of(self.rules, next(self.net.parameters()).device)
        after, reward, discount, truncated = move(state, action, np.zeros((len(action), 0)))
        return self._position(after, reward, np.where(truncated, 0, discount))  # cut off: drawn, as in `annotate`

    def _position(self, state: RulesState, reward: Array, discount: Array) -> Position:
        device = next(self.net.parameters()).device
        there = {name: to_device(x, device) for name, x in state.items()}
        legal = self.legal(there)
        log_p, value = self.net(self.rules.show(there), legal)
        return Position(state, to_host(legal * log_p.exp()), to_host(value), reward, discount)
