"""Work on torch's meta device, where tensors have shapes and no numbers: the memory that it would take.

Counted is what operations make, as long as it is alive. Numbers that are read are 1, masks keep every row.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental import _config as assumptions
from torch.utils._python_dispatch import TorchDispatchMode

from hpc_rl.optim.alone import Alone, accumulate
from hpc_rl.optim.flat import Optimizer

MOST_READS = 1000  # of single numbers in one update


class Rehearsed(Exception):
    """The learner's optimisers have had their gradients: further minibatches need no more memory."""


class Rehearsal(Alone):
    """The group of one that takes gradients and makes no step. Raises `Rehearsed` when it has had those it waits for.

    These are one of each of so many ``optimizers``, or two of one: not every update steps all.
    """

    def __init__(self, optimizers: int) -> None:
        super().__init__()
        self.optimizers = optimizers
        self.seen: list[Optimizer] = []

    def apply_gradients(
        self, optimizer: Optimizer, loss_sum: Tensor | None, count: int, max_norm: float, scale: float = 1.0
    ) -> float:
        if any(optimizer is other for other in self.seen):
            raise Rehearsed
        self.seen.append(optimizer)
        accumulate(optimizer.flat, loss_sum, 1, False)
        if len(self.seen) == self.optimizers:
            raise Rehearsed
        return 1.0


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of all tensors that operations on the meta device made: alive now, and the most at once.

    Numbers that are read there are 1 (true), masks keep every row, and tensors that are brought to the host hold zeros.
    Raises RuntimeError where ever more numbers are read, as a loop would that waits for one to become small.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.alive = self.most = self.reads = 0
        self.given: list[torch.UntypedStorage] = []  # held: their addresses must not be used again
        self.known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        inputs = list(_shapes((args, *kwargs.values())))
        if inputs and func is torch.ops.aten._local_scalar_dense.default:
            return self._number(inputs[0].dtype)
        if inputs and func is torch.ops.aten._to_copy.default and _is_host(kwargs.get("device")):
            return torch.zeros(inputs[0].shape, dtype=kwargs.get("dtype") or inputs[0].dtype)
        if inputs and func is torch.ops.aten.copy_.default and not args[0].is_meta:
            return args[0]
        for x in inputs:
            self._take(x.untyped_storage())
        out = func(*args, **kwargs)
        for x in _shapes((out,)):
            self._add(x.untyped_storage())
        return out

    def _number(self, dtype: torch.dtype) -> bool | int | float:
        self.reads += 1
        if self.reads > MOST_READS:
            raise RuntimeError(f"more than {MOST_READS} numbers are read")
        return True if dtype == torch.bool else 1.0 if dtype.is_floating_point else 1

    def _take(self, storage: torch.UntypedStorage) -> None:
        """What was there before is not counted."""
        if storage._cdata not in self.known:
            self.known.add(storage._cdata)
            self.given.append(storage)

    def _add(self, storage: torch.UntypedStorage) -> None:
        if (key := storage._cdata) not in self.known:
            size = storage.nbytes()
            self.known.add(key)
            self.alive += size
            self.most = max(self.most, self.alive)
            weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.alive -= size


def _shapes(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors on the meta device among what an operation takes or gives."""
    for x in values:
        if isinstance(x, Tensor):
            if x.is_meta:
                yield x
        elif isinstance(x, list | tuple):
            yield from _shapes(x)


def _is_host(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cpu"


def most_at_once(work: Callable[[], object]) -> tuple[int, str]:
    """The most bytes that ``work`` had at once beside what was there before, and the error that ended it early."""
    live = LiveBytes()
    try:
        with live, assumptions.patch(meta_nonzero_assume_all_nonzero=True):  # type: ignore[attr-defined]
            work()
    except Rehearsed:
        pass
    except Exception as error:  # a method's code may do anything with numbers that are not there
        return live.most, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return live.most, ""
