"""Gradients to the parameter servers, parameters back: the `Group` of a worker whose optimiser lives elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from hpc_rl.devices import to_device, to_host
from hpc_rl.optim.alone import Alone, accumulate, clip
from hpc_rl.optim.flat import Optimizer
from hpc_rl.transport.base import Inbox, Outbox
from hpc_rl.transport.layout import Layout
from hpc_rl.transport.ports import Ports
from hpc_rl.transport.waiting import Done
from hpc_rl.types import Leaf

GRADIENTS, PARAMETERS = 60, 70  # tags; runtime/messages.py lists the others


def shard_slices(parameters: int, servers: int) -> list[slice]:
    """Which parameters each server keeps."""
    return [slice(parameters * k // servers, parameters * (k + 1) // servers) for k in range(servers)]


def gradient_layout(size: int) -> Layout:
    """A gradient of ``size`` parameters; the header's version is that of the parameters it was made with."""
    head = Leaf((4,), "float64", "fragment", "", "count, scale, max_norm, learning rate: see Group.apply_gradients")
    return Layout({"gradient": Leaf((size,), "float32", "fragment"), "head": head}, 1, 1)


def parameter_layout(size: int) -> Layout:
    """One version of ``size`` parameters."""
    steps = Leaf((), "int64", "fragment", "env step", "made by all workers, for what is annealed")
    return Layout({"parameters": Leaf((size,), "float32", "fragment"), "env_steps": steps}, 1, 1)


class ParameterClient(Alone):
    """Pushes each gradient and waits for newer parameters. In everything else this worker is a group of its own.

    Nothing is broadcast or compared: every worker's generator was seeded alike, the servers' parameters replace the
    first ones, and workers hold the versions that they pulled last.

    Without a quorum a gradient is a whole update: clipped here, because no server sees all of it. With a quorum the
    server adds the sums of several workers, and divides and clips them itself.
    """

    def __init__(self, ports: Ports, servers: Sequence[int], length: int, quorum: int, give_up: Done) -> None:
        super().__init__(give_up)
        self.quorum, self.give_up = quorum, give_up
        self.parts = shard_slices(length, len(servers))
        self.versions, self.env_steps = [-1] * len(servers), 0
        self.gradients, self.parameters = list[Outbox](), list[Inbox]()
        for server, part in zip(servers, self.parts, strict=True):
            out, into = gradient_layout(part.stop - part.start), parameter_layout(part.stop - part.start)
            self.gradients.append(Outbox(ports.link, server, GRADIENTS, out, ports.waiting))
            self.parameters.append(Inbox(ports.link, [server], PARAMETERS, into, ports.waiting))

    @property
    def version(self) -> int:
        """Updates behind the parameters in use; those of the first server where there are several."""
        return self.versions[0]

    def pull(self, parameter: Tensor) -> None:
        """Wait for every server's newer parameters. Raises Stopped, Deadline: see `Waiting.until`."""
        for k, (inbox, part) in enumerate(zip(self.parameters, self.parts, strict=True)):
            message = inbox.get(self.give_up)
            parameter[part].copy_(to_device(message.tree["parameters"][0], parameter.device))
            self.versions[k] = message.version
            if k == 0:  # the one that counts
                self.env_steps = int(message.tree["env_steps"].item())
            inbox.release(message)

    def apply_gradients(
        self, optimizer: Optimizer, loss_sum: Tensor | None, count: int, max_norm: float, scale: float = 1.0
    ) -> float:
        """As `Group`; the step is the servers'. Also raises Stopped.

        A gradient that is not finite is not pushed; one without samples is, for others may wait for it, and is no step.
        """
        flat = optimizer.flat
        accumulate(flat, loss_sum, count, False, 1.0 if self.quorum else scale / max(count, 1))
        rate = optimizer.learning_rate
        head = np.array([count, scale, max_norm, rate])
        if self.quorum:
            norm = float(flat.reduction[:-2].norm()) * scale / max(count, 1)
        else:
            norm, head = clip(flat, max_norm), np.array([float(count > 0), 1.0, np.inf, rate])
        if not norm < np.inf:
            self.dropped += 1
        else:
            self.taken += count > 0
            gradient = to_host(flat.reduction[:-2])
            for outbox, part, version in zip(self.gradients, self.parts, self.versions, strict=True):
                outbox.put({"gradient": gradient[None, part], "head": head[None]}, version, self.give_up)
            self.pull(flat.data)
        return norm

    def flush(self) -> None:
        """Wait until everything pushed has left this rank. Raises Deadline."""
        for outbox in self.gradients:
            outbox.flush()
