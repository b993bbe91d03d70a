"""What a job that is sent, ranks on this machine and environment processes get of a launcher's variables.

Mutations seen to fail: SETTINGS or SLURMD_ not kept by mpiexec; TASK, "OMPI_" or "MV2_" left out for processes;
"HYDRA_LAUNCHER" among RANK.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hpc_rl.envs.forkserver import _launcher_hidden
from hpc_rl.launchers import environment, mpiexec

# name -> whom it reaches: a job that is sent (j), ranks here (r), environment processes (p)
REACHES = {
    "PATH": "jrp",
    "CUDA_VISIBLE_DEVICES": "jrp",
    "PMI_RANK": "",
    "PMIX_RANK": "",
    "PMIX_MCA_gds": "r",
    "HYDI_CONTROL_FD": "",
    "PALS_RANKID": "",
    "OMPI_COMM_WORLD_RANK": "",
    "OMPI_COMMAND": "j",
    "OMPI_MCA_btl": "jr",
    "PRTE_LAUNCHED": "",
    "PRTE_MCA_ras": "jr",
    "HYDRA_RMK": "j",
    "HYDRA_DEBUG": "jr",
    "MPICH_ASYNC_PROGRESS": "jr",
    "I_MPI_PIN": "jr",
    "MV2_COMM_WORLD_RANK": "jr",
    "MPIRUN_ID": "j",
    "PBS_NODEFILE": "jp",
    "PBS_JOBID": "jrp",
    "SLURM_JOB_ID": "rp",
    "SLURM_NTASKS": "p",
    "SLURM_STEP_ID": "",
    "SLURM_PROCID": "",
    "SLURMD_NODENAME": "rp",
    "SLURM_CONF": "jrp",
    "SRUN_DEBUG": "p",
    "SACCT_FORMAT": "rp",
}


@pytest.mark.parametrize("name", REACHES)
def test_each_start_drops_what_would_mislead_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1")
    outer = {name: "1"}
    with _launcher_hidden():
        process = os.environ.get(name) == "1"
    reached = {"j": name in environment.scrubbed(outer), "r": mpiexec.environment(outer).get(name) == "1", "p": process}
    assert "".join(key for key, present in reached.items() if present) == REACHES[name]
    assert os.environ[name] == "1"


def test_the_lists_are_in_one_file() -> None:
    folder = Path(environment.__file__).parents[1]
    files = {path.name for path in folder.rglob("*.py") if "OMPI_COMM" in path.read_text()}
    assert files == {"launcher_variables.py"}
