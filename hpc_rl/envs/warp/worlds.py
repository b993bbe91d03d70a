"""Batches of worlds of one MuJoCo model that move together on a device, by mujoco_warp.

A world's past is its positions, velocities and the solver's last accelerations, so a state that holds these goes on as
it would have, in whatever place of whatever batch. mujoco_warp writes into arrays of its own; they are filled from the
state before a move and copied from behind it, and what was handed out stays as it was.
"""

from __future__ import annotations

import os
from contextlib import nullcontext
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
SIZES = 8  # batches kept, of the sizes used last

Reads = dict[str, "Tensor"]
"""Name of an array of mujoco_warp's Data -> its numbers [n, …]."""


def model_of(id: str, file: str) -> mujoco.MjModel:
    """Gymnasium's model ``file``, with MuJoCo's default solver where mujoco_warp does not have the one it names.

    Raises:
        BadEnvironment: mujoco_warp, MuJoCo or Gymnasium's models are not installed.
    """
    missing = [name for name in ("mujoco_warp", "warp", "mujoco") if find_spec(name) is None]
    if missing:
        raise BadEnvironment(f"{id} needs {', '.join(missing)}; pip install 'hpc-rl[warp]'")
    import gymnasium
    import mujoco

    folder = os.path.join(os.path.dirname(gymnasium.__file__), "envs", "mujoco", "assets")
    model = mujoco.MjModel.from_xml_path(os.path.join(folder, file))
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
        model, batch = self._filled(carried)
        with _stream(control.device):
            _view(batch.ctrl).copy_(control)
            for _ in range(self.skip):
                mujoco_warp.step(model, batch)
            mujoco_warp.rne_postconstraint(model, batch)
            return {name: _view(getattr(batch, name)).clone() for name in (*CARRIED, *self.reads)}

    def standing(self, carried: Reads) -> Reads:
        """``reads`` of ``carried`` before any move."""
        mujoco_warp = _mujoco_warp()
        model, batch = self._filled(carried)
        with _stream(carried["qpos"].device):
            for stage in (mujoco_warp.kinematics, mujoco_warp.com_pos, mujoco_warp.com_vel):
                stage(model, batch)
            reads = {name: _view(getattr(batch, name)).clone() for name in self.reads}
        return reads | {name: reads[name].zero_() for name in FORCES if name in reads}

    def _filled(self, carried: Reads) -> tuple[Any, Any]:
        """The model and a batch on the device of ``carried``, that stand where it does."""
        place = carried["qpos"].device
        batch = self._batch(place, len(carried["qpos"]))
        with _stream(place):
            for name in CARRIED:
                _view(getattr(batch, name)).copy_(carried[name])
        return self.models[place], batch

    def _batch(self, place: torch.device, count: int) -> Any:
        import warp

        mujoco_warp = _mujoco_warp()
        kept = self.batches.pop((place, count), None)  # and in again, as the one used last
        if kept is None:
            with warp.ScopedDevice(warp.device_from_torch(place)):
                if place not in self.models:
                    self.models[place] = mujoco_warp.put_model(self.model)
                kept = mujoco_warp.make_data(self.model, nworld=count)
            while len(self.batches) >= SIZES:
                del self.batches[next(iter(self.batches))]
        self.batches[place, count] = kept
        return kept


def _view(array: Any) -> Tensor:
    import warp

    view: Tensor = warp.to_torch(array)
    return view


def _stream(place: torch.device) -> Any:
    """Warp launches in the stream that torch computes in, so that neither waits for the host."""
    if place.type != "cuda":
        return nullcontext()
    import torch
    import warp

    return warp.ScopedStream(warp.stream_from_torch(torch.cuda.current_stream(place)), sync_enter=False)


@cache
def _mujoco_warp() -> Any:
    """The module. Warp says a line for each of its kernels; one for all of them does, where there are none yet."""
    import warp

    warp.config.log_level = warp.LOG_WARNING
    import mujoco_warp

    warp.init()
    folder = warp.config.kernel_cache_dir
    if not os.path.isdir(folder) or not os.listdir(folder):
        print(f"warp compiles the kernels of mujoco_warp into {folder}: about a minute, once", flush=True)
    return mujoco_warp
