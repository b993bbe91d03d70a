"""The only file that imports torch.distributed: reductions by gloo (hosts) or nccl (GPU to GPU), arranged over MPI.

There is no port to choose: the first member listens on a free one and sends its number over the link.
"""

from __future__ import annotations

import contextlib
import os
import socket
import weakref
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch import Tensor

from hpc_rl.devices import to_device
from hpc_rl.transport.ports import Ports
from hpc_rl.transport.waiting import Deadline

_LONGER_S = 60.0  # the backend's deadline beyond this package's, whose sentence names the silent rank
_NEEDS = {"gloo": "it needs TCP between the hosts", "nccl": "it needs CUDA, and for each learner a GPU of its own"}


class NoBackend(RuntimeError):
    """The job's reduction cannot be had here; the message says why and what to use instead."""


class TorchReduce:
    """Sums tensors in place; those that lie elsewhere than the backend works are copied there and back.

    torch.distributed keeps one group per process, so there is one of these at a time; it ends with the process.
    """

    def __init__(self, ports: Ports, members: Sequence[int], backend: str, device: str, token: str) -> None:
        """Meet the other members.

        Raises:
            Deadline: one of them did not come.
            NoBackend: torch was built without the backend, or the members cannot reach each other by it.
        """
        self.ports, self.members, self.backend = ports, list(members), backend
        self.home = torch.device(device if backend == "nccl" else "cpu")
        try:
            self._meet(token)
        except Deadline:
            raise
        except (RuntimeError, ValueError, OSError) as error:
            host, reason = ports.waiting.who([ports.link.rank]), _first_line(error)
            fault = f'resources.reduction = "{backend}" does not start on {host} ({reason})'
            raise NoBackend(f'{fault}; {_NEEDS[backend]}, or use "mpi"') from error
        self.close = weakref.finalize(self, dist.destroy_process_group)  # at the latest when the process exits

    def __call__(self, data: Tensor) -> None:
        """Raises Deadline, naming the silent ranks, when the time is up or the backend has lost a rank."""
        local = to_device(data, self.home)  # the tensor itself if it is there already
        work: Any = None
        try:
            work = dist.all_reduce(local, async_op=True)
            self.ports.waiting.until(work.is_completed, "a reduction")
            work.wait()  # raises what went wrong; on a GPU, orders what follows after the sum
        except Deadline:
            raise self.ports.unanswered(self.members) from None
        except RuntimeError as error:
            del work  # it holds the connections
            if self.backend == "gloo":
                self.close()  # gloo fails only at the neighbours of a lost rank; closing fails theirs, and so on
            silent, reason = self.ports.lost(self.members), _first_line(error)
            raise Deadline(f"{self.backend} lost {silent} in a reduction ({reason}); is that rank alive?") from error
        if local is not data:
            data.copy_(local)

    def _meet(self, token: str) -> None:
        patience = timedelta(seconds=self.ports.waiting.deadline_s + _LONGER_S)
        rank, size = self.members.index(self.ports.link.rank), len(self.members)
        address, server = _own_address(self.ports, self.members), None
        if self.backend == "gloo":
            _choose_interface(address)
        port = 0
        if rank == 0:
            listener = socket.create_server((address, 0))  # on this interface only: who reaches it may write to it
            port = listener.getsockname()[1]
            server = _store(address, port, patience, listener.detach())
        host, port = self.ports.broadcast([address, port], self.members)
        store = dist.PrefixStore(token, server or _store(host, port, patience))  # type: ignore[attr-defined]
        self.ports.barrier(self.members)  # names silent ranks; from now on none keeps the others waiting
        device = self.home if self.backend == "nccl" else None  # given, nccl connects now and not at the first sum
        dist.init_process_group(self.backend, None, patience, size, rank, store, device_id=device)


def _store(host: str, port: int, patience: timedelta, listener: int | None = None) -> Any:
    return dist.TCPStore(  # type: ignore[attr-defined]
        host, port, None, listener is not None, patience, wait_for_workers=False, master_listen_fd=listener
    )


def _own_address(ports: Ports, members: Sequence[int]) -> str:
    """This host's address towards members on other hosts: only names that the launcher gave are looked up."""
    hosts = ports.waiting.hosts
    peers = [hosts[m] for m in members if hosts[m] != hosts[ports.link.rank]] if hosts else []
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        if peers:
            probe.connect((peers[0], 9))  # sends nothing: the system only chooses the route
            return str(probe.getsockname()[0])
    return socket.gethostbyname(socket.gethostname()) if peers else "127.0.0.1"


def _choose_interface(address: str) -> None:
    """Gloo uses the interface of ``address``; by itself it takes what the host's own name means, often loopback."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(x.address == address for x in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
