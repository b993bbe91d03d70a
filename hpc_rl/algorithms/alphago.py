"""AlphaGo's parts (Silver et al. 2016, Nature 529): a policy improved by its past, a value, rollouts, search.

A policy p_ρ that begins as one taught by games, p_σ (``supervised``), plays whole games against opponents drawn from a
pool of earlier p_ρ. Of each game's moves, with its outcome z = ±1 or 0 for who moves, z_t = r_t + d_t z_{t+1}:

    Δρ ∝ Σ_t ∂ log p_ρ(a_t | s_t)/∂ρ (z_t − v_θ(s_t)),  of p_ρ's own moves                      equation 2, and Methods
    Δθ ∝ Σ_t ∂v_θ(s_t)/∂θ (z_t − v_θ(s_t)),             of both players' positions              equation 4

In training moves are drawn; each column's opponent, and who of the two begins, are drawn anew for every game. At
exploration 0 p_ρ plays both sides, its most likely move; with ``simulations`` a tree search from the position does:

    a = argmax Q + c p_σ √ΣN / (1 + N),      V(s_L) = (1 − λ) v_θ(s_L) + λ z_L                   equations 5, 6

where z_L is the result of one game played on from the leaf s_L by the moves of a fast policy p_π (``rollouts``). The
most visited move is made; ``prior`` may put p_ρ for p_σ. p_σ and p_π are the networks of runs of behaviour cloning
(bc.py, p_π with its `patterns`), and never trained here; without them p_σ is the policy that training began with, p_π
draws any legal move.

Published settings, in the fields of Config: pool_every 500, simulations as many as 5 s allow on 48 cores, c_puct 5,
mix 0.5, 192 channels in 12 layers; 128 games an update.

What differs from the paper: residual blocks (AlphaGo Zero's) in place of plain convolutions; v_θ is learned in the same
run, from the games against the pool, not afterwards from 30 million games of p_ρ against itself, one position of each;
Adam; a pool of the last ``pool`` policies, not of all; a leaf becomes a node when it is first met, not at 40 visits,
and one simulation of each game at a time stands in for asynchronous threads and virtual loss; no symmetries.

Needs a game's Rules, on planes with a place for each move, in which players take turns strictly. In extras mine and
legal. Topologies: solo, allreduce.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor, nn

from hpc_rl.algorithms import base
from hpc_rl.config import Fraction, NonNegativeInt, Positive, PositiveInt
from hpc_rl.devices import to_device, to_host
from hpc_rl.experience import Experience, Items, Unsuited
from hpc_rl.formulas.counter_hash import mixed
from hpc_rl.formulas.returns import cut_scan
from hpc_rl.nets.actions import ActionDistribution
from hpc_rl.nets.board_moves import BoardHeads, PatternPolicy, suits
from hpc_rl.nets.boards import BoardValue
from hpc_rl.optim.flat import StateDict, flatten
from hpc_rl.optim.group import Group, means
from hpc_rl.optim.optimizers import make_optimizer
from hpc_rl.search.mcts import Position, move_of, planted, search
from hpc_rl.search.playouts import played_out
from hpc_rl.types import ActOutput, Array, Leaf, Rules, RulesState, Schema, Spec, Step, Trajectory, UpdateResult

FIGURES = ("policy_loss", "entropy", "score")
TOPOLOGIES = ("solo", "allreduce")
STEP = 128  # rows that those of an update are padded to a multiple of
SEED = "seed"  # the leaf beside those of the game, from which the rollout from a position is drawn


@dataclass(frozen=True)
class Config:
    unroll: Annotated[PositiveInt, "moves per column between two looks for complete games"] = 4
    supervised: Annotated[str, "directory of the bc run whose policy training begins with; none: any legal move"] = ""
    rollouts: Annotated[str, "directory of the bc run whose patterns are the fast policy; none: any legal move"] = ""
    pool: Annotated[PositiveInt, "earlier policies that opponents are drawn from"] = 8
    pool_every: Annotated[PositiveInt, "updates until the policy joins them, in place of the oldest"] = 20
    learning_rate: Annotated[Positive, "of Adam, for the policy"] = 3e-4
    value_learning_rate: Annotated[Positive, "of Adam, for the value"] = 1e-3
    max_grad_norm: Annotated[Positive, "gradients are clipped to this norm"] = 10.0
    simulations: Annotated[NonNegativeInt, "visits of the root of each search of greedy play; 0: the policy alone"] = 0
    c_puct: Annotated[Positive, "c, weight of the priors in the search"] = 5.0
    mix: Annotated[Fraction, "λ, weight of the rollout beside the value"] = 0.5
    prior: Annotated[Literal["supervised", "reinforced"], "whose move probabilities the search begins with"] = (
        "supervised"
    )
    channels: Annotated[PositiveInt, "of the convolutions"] = 32
    blocks: Annotated[PositiveInt, "residual blocks of each network"] = 3

    def experience(self) -> Experience:
        return Experience(self.unroll, (Items("items", 0, complete="episode"),), self_play=True)

    def starts(self) -> dict[str, str]:
        return {"policy": "supervised", "rollout": "rollouts"}


class Networks(nn.Module):
    """p_ρ, v_θ, and those that are never stepped: p_σ, p_π and the pool."""

    def __init__(self, config: Config, spec: Spec) -> None:
        super().__init__()
        size = (config.channels, config.blocks)
        self.policy, self.value = BoardHeads(spec, 1, *size), BoardValue(spec, *size)
        self.prior, self.rollout = BoardHeads(spec, 1, *size), PatternPolicy(spec, 1)
        self.pool = nn.ModuleList(BoardHeads(spec, 1, *size) for _ in range(config.pool))


class Contender:
    """Plays p_ρ against the pool, by drawn moves; at exploration 0 both sides, the most likely move or a search's."""

    noise, fragment_noise = 3, 0  # of the move, of the opponent, of who begins

    def __init__(self, config: Config, spec: Spec, rules: Rules) -> None:
        assert rules.legal is not None
        self.config, self.rules, self.legal, self.net = config, rules, rules.legal, Networks(config, spec)
        self.head = ActionDistribution(spec.actions)
        self.carry: Schema = {
            "turn": Leaf((), "bool", "step", "", "the learning policy made the last move of this game", local=True),
            "rival": Leaf((), "int64", "step", "", "place in the pool of the opponent of this game", local=True),
        }
        self.extras: Schema = {
            "mine": Leaf((), "bool", "step", "", "the learning policy made the move"),
            "legal": Leaf(spec.actions.sizes, "bool", "step", "", "moves that the rules allow"),
        }

    def initial_carry(self, columns: int) -> dict[str, Tensor]:
        device = next(self.net.parameters()).device
        rival = torch.zeros(columns, dtype=torch.int64, device=device)
        return {"turn": rival.bool(), "rival": rival}

    @torch.no_grad()
    def act(self, step: Step, carry: dict[str, Tensor], exploration: Tensor, noise: Tensor) -> ActOutput:
        """Raises Unsuited where the sampler does not give it the state of the Rules."""
        if step.state is None:
            raise Unsuited(
                "which moves are legal follows from the state of the game, which is only at hand where the ranks that "
                'act step it themselves; use sampler = "vector" and environment.processes = 0'
            )
        legal, drawn = self.legal(step.state), (noise[:, 1] * self.config.pool).long()
        rival = torch.where(step.first, drawn.clamp(max=self.config.pool - 1), carry["rival"])
        turn = torch.where(step.first, noise[:, 2] < 0.5, ~carry["turn"])
        mine = turn | (exploration == 0)
        logits = torch.empty(legal.shape, device=legal.device)
        for k, net in enumerate([self.net.policy, *self.net.pool]):
            rows = (mine if k == 0 else ~mine & (rival == k - 1)).nonzero()[:, 0]
            if len(rows):
                logits[rows] = net(step.observation[rows])
        action = self.head.sample(_masked(logits, legal), noise[:, :1], exploration)
        if self.config.simulations and len(rows := ((exploration == 0) & legal.any(-1)).nonzero()[:, 0]):
            state = {name: to_host(x[rows]) for name, x in step.state.items()}
            action[rows] = to_device(self._searched(state), action.device)
        extras = {"mine": mine, "legal": legal}
        return ActOutput(action, {"turn": turn, "rival": rival}, extras)

    def _searched(self, state: RulesState) -> Array:
        """The most visited moves [n] of searches from n positions, from which all that is drawn follows."""
        n = len(next(iter(state.values())))
        root = self._position({**state, SEED: np.zeros(n, np.int64)}, np.zeros(n), np.ones(n))
        trees = planted(root, self.config.simulations + 1)
        search(trees, self._after, np.full(n, self.config.simulations), self.config.c_puct)
        best: Array = trees.visits[:, 0].argmax(-1)
        return best

    def _after(self, state: RulesState, action: Array) -> Position:
        """Where moves [n] lead, and what v_θ and a rollout expect there."""
        own = {name: x for name, x in state.items() if name != SEED}
        move = move_of(self.rules, next(self.net.parameters()).device)
        after, reward, discount, truncated = move(own, action, np.zeros((len(action), 0)))
        return self._position({**after, SEED: mixed(state[SEED], action)}, reward, np.where(truncated, 0, discount))

    def _position(self, state: RulesState, reward: Array, discount: Array) -> Position:
        device, on, mix = next(self.net.parameters()).device, np.flatnonzero(discount), self.config.mix
        there = {name: to_device(x, device) for name, x in state.items() if name != SEED}
        legal, frames = self.legal(there), self.rules.show(there)
        net = self.net.prior if self.config.prior == "supervised" else self.net.policy
        prior = to_host(legal * _masked(net(frames), legal).softmax(-1))
        value = (1 - mix) * to_host(self.net.value(frames)) if mix < 1 else np.zeros(len(reward))
        if mix and len(on):
            own = {name: x[on] for name, x in state.items() if name != SEED}
            value[on] += mix * played_out(own, state[SEED][on], self._fast, move_of(self.rules, device))
        return Position(state, prior, value, reward, discount)

    def _fast(self, state: RulesState, u: Array) -> Array:
        """Moves [n] drawn from p_π, by uniforms u [n]."""
        device = next(self.net.parameters()).device
        there = {name: to_device(x, device) for name, x in state.items()}
        logits, one = _masked(self.net.rollout(self.rules.show(there)), self.legal(there)), torch.ones(len(u))
        noise = to_device(u[:, None].astype(np.float32), device)
        return to_host(self.head.sample(logits, noise, to_device(one, device)))


def _masked(logits: Tensor, legal: Tensor) -> Tensor:
    """Logits that leave nothing for moves that are not legal, where any is; finite for the entropy's 0 log 0."""
    return logits.masked_fill(~legal & legal.any(-1, keepdim=True), -1e9)


def _in_steps(net: nn.Module, rows: Tensor) -> Tensor:
    """net(rows) [n, …], of rows padded to a multiple of STEP: a convolution on the CPU keeps memory for every n."""
    output: Tensor = net(nn.functional.pad(rows, (*[0] * (2 * rows.ndim - 1), -len(rows) % STEP)))
    return output[: len(rows)]


def policy(config: Config, spec: Spec, rules: Rules | None) -> Contender:
    """Raises Unsuited where there is no game of two on a board."""
    if rules is None or rules.legal is None or not suits(spec):
        lacks = "is not made of Rules with `legal` moves" if rules is None or rules.legal is None else "has none"
        raise Unsuited(f"AlphaGo plays games of two on planes of a board, and {spec.id} {lacks}; use toy/connect_four")
    if rules.move_uniforms:
        raise Unsuited(f"AlphaGo searches games without chance, and moves of {spec.id} draw; use another method")
    return Contender(config, spec, rules)


class Learner(base.Learner):
    """One update = one optimiser step of p_ρ and one of v_θ on all games since the last one."""

    def __init__(self, config: Config, spec: Spec, rules: Rules | None, policy: Contender, group: Group) -> None:
        self.config, self.policy, self.group, net = config, policy, group, policy.net
        for other in (net.prior, *net.pool):
            other.load_state_dict(net.policy.state_dict())
        self.weights = flatten(net)
        group.broadcast_(self.weights.data)
        rates = {"policy": config.learning_rate, "value": config.value_learning_rate}
        parts = {name: self.weights.part(net.get_submodule(name)) for name in rates}
        self.optimizers = {name: make_optimizer(parts[name], "adam", rates[name], 1e-8, 0.999, 0.9) for name in rates}
        self.rounds = 0

    def update(self, batches: Mapping[str, Trajectory], progress: float) -> UpdateResult:
        batch, net, most = batches["items"], self.policy.net, self.config.max_grad_norm
        valid = batch.valid
        outcome = cut_scan(batch.reward, batch.discount, valid.float())[valid]
        observation, legal = batch.observation[:-1][valid], batch.extras["legal"][valid]
        value = _in_steps(net.value, observation)
        mine, ahead = batch.extras["mine"][valid], outcome - value.detach()
        logits = _masked(_in_steps(net.policy, observation[mine]), legal[mine])
        log_prob, entropy = self.policy.head.log_prob_entropy(logits, batch.action[valid][mine])
        policy_loss, value_loss = -(ahead[mine] * log_prob).sum(), (outcome - value).square().sum()
        norms = {
            "grad_norm": self.group.apply_gradients(self.optimizers["policy"], policy_loss, int(mine.sum()), most),
            "value_grad_norm": self.group.apply_gradients(self.optimizers["value"], value_loss, len(mine), most),
        }
        sums = torch.stack([policy_loss.detach(), entropy.detach().sum(), outcome[mine].sum(), mine.sum()])
        figures = means(self.group, FIGURES, to_device(sums, "cpu"))
        sums = torch.stack([value_loss.detach(), valid.sum()])
        figures |= means(self.group, ("value_loss",), to_device(sums, "cpu"))
        self.rounds += 1
        if self.rounds % self.config.pool_every == 0:
            oldest = net.pool[(self.rounds // self.config.pool_every - 1) % self.config.pool]
            oldest.load_state_dict(net.policy.state_dict())
        return UpdateResult(figures | norms)

    def state(self) -> StateDict:
        return {"rounds": self.rounds}

    def load(self, state: StateDict) -> None:
        self.rounds = int(state["rounds"])


ALGORITHM = base.Algorithm(config=Config, policy=policy, learner=Learner, legal=True)
