"""Batches of worlds of one MuJoCo model that move together on a device, by mujoco_warp.

A world's past is its positions, velocities and the solver's last accelerations, so a state that holds these goes on as
it would have, in whatever place of whatever batch (to the bit on a CPU; on a GPU mujoco_warp is asked for it).
mujoco_warp writes into arrays of its own; they are filled from the state before a move and copied from behind it, and
what was handed out stays as it was.

No GPU has run this. There each iteration of the solver would wait for the host, until a move is captured as a graph.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from hpc_rl.envs.base import BadEnvironment

if TYPE_CHECKING:
    import mujoco
    import torch
    from torch import Tensor

CARRIED = ("qpos", "qvel", "qacc_warmstart")
"""Arrays of mujoco_warp's Data that a world goes on from."""
FORCES = ("qfrc_actuator", "cfrc_ext")
"""Those that a world has from its moves alone: 0 before the first one."""
SIZES = 8  # batches held, of the sizes used last
CONTACTS, ROWS = 48, 96  # of a world; random play had 9 contacts and 34 rows of constraints at most

Reads = dict[str, "Tensor"]
"""Name of an array of mujoco_warp's Data -> its numbers [n, …]."""


def model_of(id: str) -> mujoco.MjModel:
    """Gymnasium's model of ``warp/<name>``, with MuJoCo's default solver where mujoco_warp does not have its own.

    Raises:
        BadEnvironment: mujoco_warp, MuJoCo or Gymnasium's model is not installed.
    """
    absent = [name for name in ("mujoco_warp", "warp", "mujoco") if find_spec(name) is None]
    if absent:
        raise BadEnvironment(f"{id} needs {', '.join(absent)}; pip install 'hpc-rl[warp]'")
    import gymnasium
    import mujoco

    folder = os.path.join(os.path.dirname(gymnasium.__file__), "envs", "mujoco", "assets")
    file = os.path.join(folder, f"{id.removeprefix('warp/')}.xml")
    if not os.path.exists(file):
        raise BadEnvironment(f"{id} needs Gymnasium's model {file}, which is not there; pip install 'hpc-rl[warp]'")
    model = mujoco.MjModel.from_xml_path(file)
    if model.opt.solver == mujoco.mjtSolver.mjSOL_PGS:
        model.opt.solver, model.opt.iterations = mujoco.mjtSolver.mjSOL_NEWTON, 100
    return model


class Worlds:
    """Of ``model``; a move is ``skip`` steps of its clock. ``reads`` are what `after` and `standing` give of Data.

    Nothing is made before the first batch: a job is checked by ranks that will have no world.
    """

    def __init__(self, model: mujoco.MjModel, skip: int, reads: tuple[str, ...]) -> None:
        self.model, self.skip, self.reads = model, skip, reads
        self.models: dict[torch.device, Any] = {}
        self.batches: dict[tuple[torch.device, int], Any] = {}

    def after(self, carried: Reads, control: Tensor) -> Reads:
        """CARRIED and ``reads`` one move behind ``carried``, with control [n, nu] held.

        As in Gymnasium, what follows from positions is of the last evaluation before the last integration.
        """
        mujoco_warp = _mujoco_warp()
        with _on(control.device):
            model, batch = self._filled(carried)
            _view(batch.ctrl).copy_(control)
            for _ in range(self.skip):
                mujoco_warp.step(model, batch)
            if "cfrc_ext" in self.reads:
                mujoco_warp.rne_postconstraint(model, batch)
            return {name: _view(getattr(batch, name)).clone() for name in (*CARRIED, *self.reads)}

    def standing(self, carried: Reads) -> Reads:
        """``reads`` of ``carried`` before any move."""
        mujoco_warp = _mujoco_warp()
        with _on(carried["qpos"].device):
            model, batch = self._filled(carried)
            for stage in (mujoco_warp.kinematics, mujoco_warp.com_pos, mujoco_warp.com_vel):
                stage(model, batch)
            reads = {name: _view(getattr(batch, name)).clone() for name in self.reads}
        return reads | {name: reads[name].zero_() for name in FORCES if name in reads}

    def _filled(self, carried: Reads) -> tuple[Any, Any]:
        """The model and a batch on the device of ``carried``, that stand where it does."""
        place = carried["qpos"].device
        batch = self._batch(place, len(carried["qpos"]))
        for name in CARRIED:
            _view(getattr(batch, name)).copy_(carried[name])
        _view(batch.efc.J).zero_()  # the solver multiplies rows beyond those in use, too: 0 · NaN of a world that broke
        return self.models[place], batch

    def _batch(self, place: torch.device, count: int) -> Any:
        mujoco_warp = _mujoco_warp()
        batch = self.batches.pop((place, count), None)  # and in again, as the one used last
        if batch is None:
            if place not in self.models:
                self.models[place] = mujoco_warp.put_model(self.model)
                self.models[place].opt.deterministic = True
                self.models[place].opt.warn_overflow = False  # of a world that broke; its episode ends
            batch = mujoco_warp.make_data(self.model, nworld=count, nconmax=CONTACTS, njmax=ROWS)
            while len(self.batches) >= SIZES:
                del self.batches[next(iter(self.batches))]
        self.batches[place, count] = batch
        return batch


def _view(array: Any) -> Tensor:
    import warp

    view: Tensor = warp.to_torch(array)
    return view


@contextmanager
def _on(place: torch.device) -> Iterator[None]:
    """Warp makes and launches on this device, on a GPU in the stream that torch computes in."""
    import torch
    import warp

    with warp.ScopedDevice(warp.device_from_torch(place)):
        if place.type != "cuda":
            yield
            return
        with warp.ScopedStream(warp.stream_from_torch(torch.cuda.current_stream(place)), sync_enter=False):
            yield


@cache
def _mujoco_warp() -> Any:
    """The module. One line on stderr stands for warp's own about each kernel, where none was compiled yet."""
    import warp

    warp.config.log_level = warp.LOG_WARNING
    import mujoco_warp

    warp.init()
    folder = warp.config.kernel_cache_dir
    if not os.path.isdir(folder) or not os.listdir(folder):
        print(
            f"warp compiles the kernels of mujoco_warp into {folder}: about a minute, once", file=sys.stderr, flush=True
        )
    return mujoco_warp
