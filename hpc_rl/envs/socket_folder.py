"""Loaded by the fork server alone: its last act is to remove the folder of its socket. A killed rank cannot."""

from __future__ import annotations

import atexit
import os
import shutil

from hpc_rl.envs.forkserver import SOCKET_VARIABLE


def _remove(folder: str, server: int) -> None:
    if os.getpid() == server:  # a child of the server has inherited this handler
        shutil.rmtree(folder, ignore_errors=True)


if folder := os.environ.pop(SOCKET_VARIABLE, ""):  # preloading a module is the only thing a fork server can be asked
    atexit.register(_remove, folder, os.getpid())
