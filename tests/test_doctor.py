"""Checks that pass here, the sentences of those that fail, and the 2-rank exchange."""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hpc_rl import doctor
from hpc_rl.job import BadJob
from hpc_rl.storage.h5 import LOCKING_VARIABLE
from hpc_rl.storage.locking import check_locking
from tests.run.starting import run_to_end

LIGHT = (doctor._versions, doctor._cores, doctor._hdf5, doctor._zstd, doctor._locking)


@pytest.mark.parametrize("check", LIGHT, ids=lambda check: check.__name__)
def test_light_checks_pass_here(check: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    result = check()  # type: ignore[operator]
    assert result.ok is not False and result.text


def test_two_ranks_exchange() -> None:
    result = doctor._exchange()
    assert result.ok and "1 KiB in" in result.text and "GB/s" in result.text


STEP = {
    "SLURM_JOB_ID": "7", "SLURM_JOBID": "7", "SLURM_STEP_ID": "0", "SLURM_NNODES": "1", "SLURM_JOB_NUM_NODES": "1",
    "SLURM_NTASKS": "1", "SLURM_TASKS_PER_NODE": "1", "SLURM_CPUS_ON_NODE": "1", "SLURM_JOB_CPUS_PER_NODE": "1",
    "SLURM_NODEID": "0", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_CPUS_PER_TASK": "1", "PMI_RANK": "0",
    "PMI_SIZE": "1", "PMI_FD": "99", "PMI_JOBID": "7.0", "HYDRA_BOOTSTRAP": "slurm",
}  # fmt: skip
PYTHONS = [sys.executable, *filter(None, [os.environ.get("HPC_RL_OPENMPI_PYTHON")])]


@pytest.mark.parametrize("python", PYTHONS, ids=lambda path: Path(path).parents[1].name)
def test_two_ranks_exchange_inside_a_step_of_slurm(python: str, tmp_path: Path) -> None:
    """An srun that never comes back, as the real one there: it waits for CPUs that this very step holds."""
    srun, nodes = tmp_path / "srun", {name: os.uname().nodename for name in ("SLURM_NODELIST", "SLURM_JOB_NODELIST")}
    srun.write_text(f"#!/bin/sh\ntouch {tmp_path}/called\nsleep 60\n")
    srun.chmod(0o755)
    environment = {**os.environ, **STEP, **nodes, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    code = "from hpc_rl import doctor; doctor.DEADLINE_S = 15; print(doctor._exchange())"
    process = run_to_end([python, "-c", code], 90, environment)
    assert "ok=True" in process.stdout, process.stdout + process.stderr
    assert not (tmp_path / "called").exists()


def test_a_rank_without_its_mpiexec_is_a_singleton_and_says_so() -> None:
    command = [sys.executable, "-m", "hpc_rl.doctor", "--pair"]
    process = run_to_end(command, 60)
    assert process.returncode == 1
    assert process.stdout.startswith("failed: MPI sees 1 rank(s) where 2 were started")


def test_singletons_fail_the_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    output = "failed: MPI sees 1 rank(s) where 2 were started\nfailed: MPI sees 1 rank(s) where 2 were started\n"
    monkeypatch.setattr(doctor, "_child", lambda command: (False, output))
    result = doctor._exchange()
    assert result.ok is False and result.text.startswith("MPI sees 1 rank(s)") and "pip install" in result.text


def test_no_mpiexec(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> tuple[str, str]:
        raise BadJob("mpiexec is not on PATH; load a module")

    monkeypatch.setattr("hpc_rl.launchers.mpiexec.find_mpiexec", none)
    assert doctor._mpiexec() == doctor.Check("mpiexec", False, "mpiexec is not on PATH; load a module")
    assert doctor._exchange().ok is False


def test_a_child_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "DEADLINE_S", 0.1)
    success, output = doctor._child([sys.executable, "-c", "import time; time.sleep(60)"])
    assert not success and "did not end within" in output


def test_little_space_names_the_remedy(tmp_path: Path) -> None:
    assert doctor._space("disk", tmp_path, 1, "tidy up").ok
    result = doctor._space("disk", tmp_path, 1 << 80, "tidy up")
    assert result.ok is False and result.text.endswith("; tidy up")
    assert doctor._space("disk", tmp_path / "absent", 1, "tidy up").ok is False


def test_locking_that_is_ignored_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_locking(tmp_path) == ("works", "")
    assert not list(tmp_path.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", lambda descriptor, operation: None)
        assert check_locking(tmp_path) == ("ignored", "")

    def refuse(*args: object, **options: object) -> None:
        raise OSError(errno.ENOLCK, "unable to lock file")

    monkeypatch.setattr("h5py.File", refuse)
    assert check_locking(tmp_path) == ("absent", "ENOLCK, No locks available")
    with pytest.raises(OSError):
        check_locking(tmp_path / "absent")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS], ids=errno.errorcode.get)
@pytest.mark.parametrize("forced", ["", "FALSE", "TRUE", "BEST_EFFORT"])
def test_a_file_system_without_locks(
    number: int, forced: str, without_locks: Callable[[int], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_locks(number)
    monkeypatch.delenv(LOCKING_VARIABLE, raising=False)
    if forced:
        monkeypatch.setenv(LOCKING_VARIABLE, forced)
    result = doctor.locking(tmp_path)
    assert f"{tmp_path} has no file locks ({errno.errorcode[number]}" in result.text
    if forced in ("TRUE", "BEST_EFFORT"):
        assert result.ok is False and result.text.endswith(f"and {LOCKING_VARIABLE}={forced}; unset it")
    else:
        assert result.ok is None and "runs work without locks" in result.text


def test_a_dead_lock_service_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "DEADLINE_S", 0.005)  # no child can start in that time
    result = doctor.locking(tmp_path)
    assert result.ok is False and "did not end within" in result.text and "lock service" in result.text
