"""What a method's own policy and learner hold and need, counted on torch's meta device: shapes without numbers.

Parameters, messages, optimiser states and checkpoints are those of the objects that a run makes. What an inference and
an update need for a moment is counted by doing both on shapes alone. A method that needs numbers for that, a search or
a solver say, is counted up to there, and the page says so.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental import _config as assumptions
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hpc_rl.algorithms.base import Algorithm, Learner, Policy
from hpc_rl.bench.batches import batch_shapes, items_schema
from hpc_rl.experience import Experience
from hpc_rl.optim.group import Alone, accumulate
from hpc_rl.optim.optimizers import Optimizer
from hpc_rl.plan import Plan
from hpc_rl.runtime.checkpoints import learner_state
from hpc_rl.runtime.messages import schemas
from hpc_rl.types import Leaf, Schema, Spec, Step, Trajectory

MOST_READS = 1000  # of single numbers in one update
MOST_LAYERS = 16  # rows of a network; of a deeper one its direct children only


@dataclass(frozen=True)
class Layer:
    """One module of the policy's networks."""

    name: str  # "torso.dense"; "" for the whole
    text: str  # its class, and what it says of itself
    parameters: int


@dataclass(frozen=True)
class Footprint:
    """A method on one environment; sizes in bytes."""

    recorded: Schema  # leaves of a fragment on disk
    sent: Schema  # and of one between two ranks
    layers: tuple[Layer, ...]
    parameters: int  # of all networks that act
    weights: int  # those of them that actors copy
    optimizers: Mapping[str, tuple[str, int]]  # name -> (class, parameters)
    own: Mapping[str, int]  # tensors of the learner beside weights and optimisers -> numbers in them
    learner_bytes: int  # weights, gradients, optimiser states and its own tensors
    checkpoint_bytes: int  # what is saved of the learner; without a replay
    batch_bytes: int  # of one update of one learning rank
    act_bytes: float  # at once during an inference, for each column
    update_bytes: int  # at once during an update, beside learner and batch
    uncounted: tuple[str, ...]  # sentences on what needs numbers


def footprint(algorithm: Algorithm, config: Any, spec: Spec, plan: Plan, columns: int) -> Footprint:
    """Count one learning rank of ``plan``, and inferences for ``columns``.

    Raises:
        Unsuited: the method cannot learn in this environment.
    """
    with torch.device("meta"):
        policy = algorithm.policy(config, spec)
    group = Rehearsal()
    learner = algorithm.learner(config, spec, policy, group)  # as on a GPU: it follows its policy's device
    group.optimizers = len(learner.optimizers)
    batches = blank_batches(algorithm, config, policy, spec, plan)
    act_bytes, act_fault = most_at_once(lambda: _act(policy, spec, columns))
    update_bytes, update_fault = most_at_once(lambda: learner.update(batches, 0.0))
    for optimizer in learner.optimizers.values():
        optimizer.torch.step()  # its state exists from the first step on
    state = learner_state(learner)
    recorded, sent = schemas(policy, spec)
    flats = {id(flat): flat for flat in (learner.weights, *(x.flat for x in learner.optimizers.values()))}
    return Footprint(
        recorded=recorded,
        sent=sent,
        layers=_layers(policy.net),
        parameters=sum(p.numel() for p in policy.net.parameters()),
        weights=learner.weights.data.numel(),
        optimizers={name: (type(x.torch).__name__, x.flat.data.numel()) for name, x in learner.optimizers.items()},
        own=_tensors(learner),
        learner_bytes=nbytes(state) + sum(flat.reduction.nbytes for flat in flats.values()),
        checkpoint_bytes=nbytes(state),
        batch_bytes=sum(nbytes(vars(batch)) for batch in batches.values()),
        act_bytes=act_bytes / columns,
        update_bytes=update_bytes,
        uncounted=tuple(
            f"memory of {what} is counted up to where it needs numbers ({fault})"
            for what, fault in (("an inference", act_fault), ("an update", update_fault))
            if fault
        ),
    )


def nbytes(tree: Any) -> int:
    """Bytes of all tensors of a nested value."""
    return sum(x.nbytes for x in tree_leaves(tree) if isinstance(x, Tensor))


def blank_batches(algorithm: Algorithm, config: Any, policy: Policy, spec: Spec, plan: Plan) -> dict[str, Trajectory]:
    """The batches of one update on the meta device."""
    experience: Experience = config.experience()
    return {
        name: blank(items_schema(algorithm, config, policy, spec, steps), spec, steps, columns)
        for name, (steps, columns) in batch_shapes(experience, plan).items()
    }


def blank(schema: Schema, spec: Spec, steps: int, columns: int) -> Trajectory:
    """``fragments.trajectory`` of a fragment that has shapes and no numbers."""

    def leaf(kind: Leaf) -> Tensor:
        dtype = getattr(torch, kind.dtype)
        return torch.empty(kind.array_shape(steps, columns, spec.stack), dtype=dtype, device="meta")

    def family(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): x for name, x in leaves.items() if name.startswith(prefix)}

    leaves = {name: leaf(kind) for name, kind in schema.items()}
    if spec.stack > 1:  # innermost in memory, as `fragments.stacked` lays them
        shape = (steps + 1, columns, *spec.frame, spec.stack)
        leaves["observation"] = torch.empty(shape, dtype=leaves["observation"].dtype, device="meta").movedim(-1, 2)
    rows = {name: leaves[name] for name in ("observation", "first", "action", "reward", "discount", "version")}
    finite = torch.empty(steps, columns, dtype=torch.bool, device="meta")
    noise = leaves.get("noise", torch.empty(columns, 0, device="meta"))
    chance = torch.empty(columns, device="meta")
    ends = {"column": leaves["column"], "start": leaves["start"], "chance": chance, "noise": noise}
    return Trajectory(**rows, finite=finite, extras=family("extras/"), carry=family("carry/"), **ends)


def _act(policy: Policy, spec: Spec, columns: int) -> None:
    dtype = getattr(torch, spec.dtype)
    observation = torch.empty(columns, *spec.observation, dtype=dtype, device="meta")
    first = torch.empty(columns, dtype=torch.bool, device="meta")
    reward, exploration = torch.empty(2, columns, device="meta")
    noise = torch.empty(columns, policy.fragment_noise + policy.noise, device="meta")
    policy.act(Step(observation, first, reward), policy.initial_carry(columns), exploration, noise)


def _layers(net: nn.Module) -> tuple[Layer, ...]:
    """The modules that have parameters of their own or something to say, and the whole."""
    layers = []
    for name, module in net.named_modules():
        text = module.extra_repr()
        if not name or text or any(True for _ in module.parameters(recurse=False)):
            words = f"{type(module).__name__}: {text}" if text else type(module).__name__
            layers.append(Layer(name, words, sum(p.numel() for p in module.parameters())))
    return tuple(layers if len(layers) <= MOST_LAYERS else [x for x in layers if "." not in x.name])


def _tensors(learner: Learner) -> dict[str, int]:
    """Keys of the learner's own state that hold tensors, and how many numbers are in them."""
    counts = {
        name: sum(x.numel() for x in tree_leaves(value) if isinstance(x, Tensor))
        for name, value in learner.state().items()
    }
    return {name: count for name, count in counts.items() if count}


# ---- an update without numbers --------------------------------------------------------------------------------------


class Rehearsed(Exception):
    """The learner's optimisers have had their gradients: further minibatches need no more memory."""


class Rehearsal(Alone):
    """The group of one that takes gradients and makes no step. Raises `Rehearsed` when it has had those it waits for.

    These are one of each of ``optimizers``, or two of one: not every update steps all.
    """

    def __init__(self) -> None:
        super().__init__()
        self.optimizers = 0
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
        inputs = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.is_meta]
        if inputs and func is torch.ops.aten._local_scalar_dense.default:
            return self._number(inputs[0].dtype)
        if inputs and func is torch.ops.aten._to_copy.default and _is_host(kwargs.get("device")):
            return torch.zeros(inputs[0].shape, dtype=kwargs.get("dtype") or inputs[0].dtype)
        if inputs and func is torch.ops.aten.copy_.default and not args[0].is_meta:
            return args[0]
        for x in inputs:
            self._take(x.untyped_storage())
        out = func(*args, **kwargs)
        for x in tree_leaves(out):
            if isinstance(x, Tensor) and x.is_meta:
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
