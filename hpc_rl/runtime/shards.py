"""What a parameter server keeps: its slice of the parameters, their optimiser, and the gradients under way."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
import torch

from hpc_rl.algorithms.base import Learner
from hpc_rl.devices import to_device, to_host
from hpc_rl.optim.alone import divide, step
from hpc_rl.optim.flat import Flat, Optimizer, StateDict
from hpc_rl.runtime.checkpoints import load_optimizer, optimizer_state
from hpc_rl.runtime.divergence import in_a_row
from hpc_rl.transport.base import Inbox, Message, Outbox
from hpc_rl.transport.parameters import GRADIENTS, PARAMETERS, gradient_layout, parameter_layout
from hpc_rl.transport.ports import Link
from hpc_rl.transport.waiting import Waiting
from hpc_rl.types import Tree

_OVERFLOW = "Workers' gradients were finite, their sum or its norm was not: lower the learning rate, or clip rewards"


class ParameterShard:
    """Parameters ``part`` and their optimiser, whose steps make versions.

    Without a quorum every gradient is a step, however old (A3C). With one, the first ``quorum`` gradients of the newest
    version are a step together; later ones are counted and dropped (DPPO, Heess et al. 2017, arXiv 1707.02286).
    """

    def __init__(self, learn: Learner, part: slice, quorum: int, version: int) -> None:
        optimizer = only_optimizer(learn)
        self.flat = Flat(learn.weights.data[part])
        self.optimizer = Optimizer(self.flat, optimizer.rule, optimizer.learning_rate, optimizer.name)
        load_optimizer(self.optimizer, {name: x[part] if _spread(x) else x for name, x in optimizer.state.items()})
        self.quorum, self.version = quorum, version
        self.held: list[int] = []  # workers whose gradients wait for the others of this version
        self.late = self.dropped = self.bad = 0  # gradients too late; steps dropped, and how many in a row just now
        self.staleness: deque[int] = deque(maxlen=1000)

    def take(self, tree: Tree, version: int, peer: int) -> list[int]:
        """Apply, hold or drop one gradient made with parameters ``version``; the workers to answer now.

        Raises:
            Diverged: ten steps in a row were dropped, although workers push what is finite only.
        """
        if self.quorum and version < self.version:
            self.late += 1
            return [peer]
        self.staleness.append(self.version - version)
        count, scale, max_norm, rate = tree["head"][0].tolist()
        if not self.held:
            self.flat.reduction.zero_()
        self.flat.reduction[:-2] += to_device(tree["gradient"][0], self.flat.reduction.device)
        self.flat.reduction[-2] += count
        self.held.append(peer)
        if len(self.held) < self.quorum:
            return []
        self.optimizer.learning_rate = rate
        divide(self.flat, scale)
        dropped = not np.isfinite(step(self.optimizer, max_norm)[0])
        self.dropped += dropped
        # Workers that have no samples end by themselves, with a sentence that names their columns.
        self.bad = in_a_row(self.bad, dropped, f"server, update {self.version}", lambda: _OVERFLOW)
        self.version += 1
        answered, self.held = self.held, []
        return answered

    def state(self) -> StateDict:
        """This server's part of a learner's state."""
        return {"weights": self.flat.data.clone(), "optimizer": optimizer_state(self.optimizer)}

    def figures(self) -> dict[str, float]:
        """Staleness in updates of this server, between a gradient's parameters and its use."""
        ages = np.array(self.staleness or [0])
        counts = {"late_gradients": float(self.late), "dropped_steps": float(self.dropped)}
        return {"staleness": float(ages.mean()), "staleness_max": float(ages.max()), **counts}


def only_optimizer(learner: Learner) -> Optimizer:
    """The one that servers step in the learner's stead. Raises ValueError where weights are not stepped as one."""
    optimizers = list(learner.optimizers.values())
    if len(optimizers) != 1 or optimizers[0].flat is not learner.weights:
        raise ValueError(f"a parameter server steps all weights by one optimizer; this method has {len(optimizers)}")
    return optimizers[0]


def concatenate_shards(learner: Learner, parts: list[StateDict]) -> StateDict:
    """The state of a learner (see `checkpoints.learner_state`) with all servers' parts for its weights and optimizer.

    The statistics of a server that has not stepped yet are zeros.
    """
    moments: StateDict = {}
    for name, x in next((part["optimizer"] for part in parts if part["optimizer"]), {}).items():
        slices = [part["optimizer"].get(name, torch.zeros_like(part["weights"])) for part in parts]
        moments[name] = torch.cat(slices) if _spread(x) else x
    (name,) = learner.optimizers
    state = {"optimizers": {name: moments}, "own": learner.state()}
    return {"weights": torch.cat([part["weights"] for part in parts]), "learner": state}


def _spread(x: object) -> bool:
    """Whether an entry of an optimiser's state has one value per parameter."""
    return isinstance(x, torch.Tensor) and x.dim() > 0


class ShardServer:
    """A server's channels to its workers, each of which first receives the parameters that training begins with."""

    def __init__(self, link: Link, waiting: Waiting, workers: Sequence[int], shard: ParameterShard) -> None:
        size = shard.flat.parameter.numel()
        self.shard, self.env_steps = shard, 0
        self.gradients = Inbox(link, workers, GRADIENTS, gradient_layout(size), waiting)
        self.answers = {w: Outbox(link, w, PARAMETERS, parameter_layout(size), waiting) for w in workers}

    def open(self, env_steps: int) -> None:
        self.env_steps = env_steps
        self._answer(list(self.answers))

    def serve(self, message: Message) -> None:
        """Take one gradient, and answer every worker that need not wait any more."""
        workers = self.shard.take(message.tree, message.version, message.peer)
        self.gradients.release(message)
        self._answer(workers)

    def _answer(self, workers: list[int]) -> None:
        tree = {"parameters": to_host(self.shard.flat.parameter)[None], "env_steps": np.array([self.env_steps])}
        for worker in workers:
            self.answers[worker].put(tree, self.shard.version)
