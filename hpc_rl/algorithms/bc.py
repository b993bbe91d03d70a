"""Behaviour cloning: a policy of recorded moves (Pomerleau 1989), with the next k moves as auxiliary targets.

These are DarkForest's (Tian and Zhu 2016, arXiv 1511.06410, section 3).

Of an item of k moves that begins with the observation x_t, one network with k heads side by side is taught all of them:

    Σ_{j<k} −log π_j(a_{t+j} | x_t)  +  c ‖θ‖²

π_0 acts; the heads behind it only shape the features that all share. Heads are softmaxes for one or several choices.
For a box they are Gaussians N(μ_j, σ_j²) with a learned σ, or a given one: −log π is then (a − μ)² / (2 σ²) and a
constant. Moves beyond the end of an episode do not count. In a game of two players the next move is the opponent's, as
in the paper.

No env step is made: items are drawn from the whole episodes of a run directory (replay/recorded.py), `episodes` and
`least_return` of which say which. A share `held_out` of the episodes is kept apart; the loss and the top-1 share of its
moves are what tells a policy that has learned from one that has learned by heart.

Published settings (DarkForest): k = 3, 12 convolutions of 384 filters, SGD with a rate of 0.05, batches of 256.

With `patterns` the policy is a linear softmax on local patterns of a board (nets/board_moves.py): AlphaGo's
fast rollout policy (Silver et al. 2016, Nature 529), by the same loss.

What differs from the papers: Adam; plain networks, which take images, vectors or the rows of a board.

Needs nothing in extras. Topologies: solo, allreduce.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import log, prod
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from hpc_rl.algorithms import base
from hpc_rl.config import NonNegative, NonNegativeInt, Positive, PositiveInt, Range
from hpc_rl.devices import to_device
from hpc_rl.experience import Items, Unsuited
from hpc_rl.formulas.losses import weighted
from hpc_rl.nets.actions import ActionDistribution
from hpc_rl.nets.board_moves import BoardHeads, PatternPolicy, suits
from hpc_rl.nets.q import QNetwork
from hpc_rl.optim.flat import StateDict, flatten
from hpc_rl.optim.group import Group, means
from hpc_rl.optim.optimizers import annealed, make_optimizer
from hpc_rl.sources import RecordedExperience, Source
from hpc_rl.types import Actions, ActOutput, Rules, Schema, Spec, Step, Trajectory, UpdateResult

TOPOLOGIES = ("solo", "allreduce")
EXTRAS: Schema = {}
LOG_STD = (-5.0, 2.0)  # of a learned σ: it must not shrink to 0 around moves that are all alike
MEMORY = 100  # updates that the figures of held-out moves are averaged over


@dataclass(frozen=True)
class Config:
    source: Annotated[str, "directory of the run whose recorded moves are learned from"] = ""
    episodes: Annotated[NonNegativeInt, "of them, the last so many whole ones; 0 takes all"] = 0
    least_return: Annotated[float, "raw return of an episode that is taken; left out, any is"] | None = None
    held_out: Annotated[float, Range(0, 0.9), "share of the episodes that is not learned from"] = 0.1
    memory_bytes: Annotated[PositiveInt, "of the moves that a rank holds at a time, to draw from"] = 268_435_456
    moves: Annotated[PositiveInt, "k, next moves that are predicted"] = 1
    batch_size: Annotated[PositiveInt, "items per update, over all learners"] = 256
    learning_rate: Annotated[Positive, "of Adam, at the start"] = 1e-3
    anneal: Annotated[bool, "learning rate falls linearly to 0 over the budget"] = True
    weight_decay: Annotated[NonNegative, "c of ‖θ‖²"] = 1e-5
    max_grad_norm: Annotated[Positive, "gradients are clipped to this norm"] = 10.0
    std: Annotated[NonNegative, "σ of a box's actions, in the scale of −1..1; 0 learns it"] = 0.0
    network: Annotated[Literal["nature", "shallow"], "convolutions, for images"] = "nature"
    patterns: Annotated[bool, "a linear policy on local patterns of a board, in place of a network"] = False
    channels: Annotated[PositiveInt, "of the convolutions, for boards"] = 32
    blocks: Annotated[NonNegativeInt, "residual blocks for the planes of a board; 0 has plain layers"] = 0
    hidden: Annotated[tuple[PositiveInt, ...], "units per layer for vector observations"] = (64, 64)

    def experience(self) -> RecordedExperience:
        kept = Items("items", self.batch_size, length=self.moves)
        apart = Items("held_out", max(self.batch_size // 4, 8), length=self.moves)
        source = Source(self.source, self.episodes, self.least_return, self.held_out, self.memory_bytes)
        items = (kept, apart) if self.held_out else (kept,)
        return RecordedExperience(1, items, source=source, apart="held_out")


class Imitator:
    """Acts by the first of k heads; ``exploration`` is the temperature of the draw, 0 takes the most likely action."""

    fragment_noise = 0
    extras, carry = EXTRAS, EXTRAS

    def __init__(self, net: nn.Module, spec: Spec, rules: Rules | None, std: float) -> None:
        self.net, self.head, self.std = net, ActionDistribution(spec.actions), std
        self.noise, self.legal = self.head.noise, rules.legal if rules is not None else None

    def initial_carry(self, columns: int) -> dict[str, Tensor]:
        return {}

    def heads(self, observation: Tensor) -> Tensor:
        """[n, k, P]: the parameters of every head's distribution, for observations [n, *O]."""
        output: Tensor = self.net(observation)
        output = output.reshape(len(output), -1, self.head.outputs)
        if self.head.actions.kind != "box":
            return output
        mean, log_std = output.chunk(2, -1)
        fixed = torch.full_like(log_std, log(self.std)) if self.std else log_std.clamp(*LOG_STD)
        return torch.cat([mean, fixed], -1)

    @torch.no_grad()
    def act(self, step: Step, carry: dict[str, Tensor], exploration: Tensor, noise: Tensor) -> ActOutput:
        output = self.heads(step.observation)[:, 0]
        if self.legal is not None and step.state is not None:
            output = output.masked_fill(~self.legal(step.state), -torch.inf)
        return ActOutput(self.head.sample(output, noise, exploration), {}, {})


def policy(config: Config, spec: Spec, rules: Rules | None) -> Imitator:
    """Raises Unsuited where ``patterns`` or ``blocks`` ask for a board, and there is none."""
    return Imitator(_network(config, spec), spec, rules, config.std)


def _network(config: Config, spec: Spec) -> nn.Module:
    """Observations [n, *O] -> the parameters of k distributions side by side, [n, k · P]."""
    blocks, channels = config.blocks, config.channels
    if (config.patterns or blocks) and not suits(spec):
        asked = "bc.patterns" if config.patterns else f"bc.blocks = {blocks}"
        raise Unsuited(
            f"{asked} needs planes of a board with a place for each move, and {spec.id} shows "
            f"{list(spec.observation)} for {list(spec.actions.sizes)} moves; leave it out"
        )
    if config.patterns:
        return PatternPolicy(spec, config.moves)
    if blocks:
        return BoardHeads(spec, config.moves, channels, blocks)
    outputs = config.moves * ActionDistribution(spec.actions).outputs
    several = replace(spec, actions=Actions("discrete", (outputs,)))
    return QNetwork(several, tuple(config.hidden), config.network)


def likelihoods(head: ActionDistribution, output: Tensor, batch: Trajectory) -> tuple[Tensor, Tensor]:
    """−log π_j(a_{t+j} | x_t) of every head, and which of these moves happened, both [k, n]; ``output`` [n, k, P]."""
    moves = output.shape[1]
    log_prob, _ = head.log_prob_entropy(output.movedim(1, 0), batch.action[:moves])
    return -log_prob, batch.valid[:moves].long().cumprod(0).bool()


def hits(head: ActionDistribution, output: Tensor, action: Tensor) -> Tensor:
    """[n] 1 where the most likely action is the recorded one [n, *A]; of a box the squared error, the entries' mean."""
    certain = head.sample(output, torch.full_like(output[:, : head.noise], 0.5), torch.zeros_like(output[:, 0]))
    if head.actions.kind == "box":
        return (certain - action).square().flatten(1).sum(-1) / prod(head.actions.sizes)
    return (certain == action).reshape(len(action), -1).all(-1).float()


class Learner(base.Learner):
    """One update = one optimiser step on one batch of items, and a look at a smaller one of held-out items."""

    def __init__(self, config: Config, spec: Spec, rules: Rules | None, policy: Imitator, group: Group) -> None:
        self.config, self.policy, self.group = config, policy, group
        self.weights = flatten(policy.net)
        group.broadcast_(self.weights.data)
        self.optimizer = make_optimizer(self.weights, "adam", config.learning_rate, 1e-8, 0.999, 0.9)
        self.optimizers = {"weights": self.optimizer}
        second = "error" if spec.actions.kind == "box" else "top1"
        self.figures = ("loss", second)
        self.apart = torch.zeros(2, dtype=torch.float64)  # figures of held-out items, averaged over updates
        self.looks = 0

    def update(self, batches: Mapping[str, Trajectory], progress: float) -> UpdateResult:
        config, batch = self.config, batches["items"]
        self.optimizer.learning_rate = annealed(config.learning_rate, progress, config.anneal)
        output = self.policy.heads(batch.observation[0])
        losses, happened = likelihoods(self.policy.head, output, batch)
        count = int(happened[0].sum())
        size = sum(p.square().sum() for p in self.policy.net.parameters())
        summed = weighted(happened.float(), losses) + config.weight_decay * count * size
        norm = self.group.apply_gradients(self.optimizer, summed, count, config.max_grad_norm)
        figures = means(self.group, self.figures, self._sums(output, losses, happened, batch))
        if config.moves > 1:
            later = weighted(happened[1:].float(), losses[1:]).detach()
            figures |= means(self.group, ("next_loss",), to_device(torch.stack([later, happened[1:].sum()]), "cpu"))
        if "held_out" in batches:
            figures |= self._look(batches["held_out"])
        return UpdateResult({**figures, "grad_norm": norm})

    def _sums(self, output: Tensor, losses: Tensor, happened: Tensor, batch: Trajectory) -> Tensor:
        """Of the first head: its loss, its hits, and the moves that happened."""
        hit, weight = hits(self.policy.head, output[:, 0], batch.action[0]), happened[0].float()
        sums = [weighted(weight, losses[0]), weighted(weight, hit), weight.sum()]
        return to_device(torch.stack(sums).detach(), "cpu")

    @torch.no_grad()
    def _look(self, batch: Trajectory) -> dict[str, float]:
        """The averages of loss and hits over held-out items of the last updates."""
        output = self.policy.heads(batch.observation[0])
        losses, happened = likelihoods(self.policy.head, output, batch)
        new = means(self.group, self.figures, self._sums(output, losses, happened, batch))
        self.looks += 1
        self.apart += (torch.tensor(list(new.values()), dtype=torch.float64) - self.apart) / min(self.looks, MEMORY)
        return {f"held_out_{name}": float(x) for name, x in zip(self.figures, self.apart, strict=True)}

    def state(self) -> StateDict:
        return {"apart": self.apart.clone(), "looks": self.looks}

    def load(self, state: StateDict) -> None:
        self.apart, self.looks = state["apart"].clone(), int(state["looks"])


ALGORITHM = base.Algorithm(config=Config, policy=policy, learner=Learner, legal=True)
