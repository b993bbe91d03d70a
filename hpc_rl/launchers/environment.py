"""Which environment variables describe another job, step or launcher, and so must not reach a new one.

sbatch hands its own environment on. A job that is sent from inside another one would find that one's id, array, restart
count and memory there, and take them for its own. SLURM's own settings, and a user's defaults for sbatch, stay.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from hpc_rl.launcher_variables import RANK, SLURM
from hpc_rl.launchers.base import END_VARIABLE, TOKEN_VARIABLE

OF_ANSWERS = ("SQUEUE_", "SACCT_", "SCANCEL_", "SCONTROL_")  # defaults that would filter what is asked for, or prompt
KEPT = ("SLURM_CONF", "SLURM_JWT", "SLURM_CLUSTERS")  # how the controller is reached
DEFAULTS = ("SLURM_MPI_TYPE", "SLURM_CPU_BIND", "SLURM_MEM_BIND", "SLURM_GPU_BIND", "SLURM_HINT", "SLURM_NETWORK")
STEP = (
    "SLURM_STEP",
    "SLURM_CPU_BIND",
    "SLURM_MEM_",
    "SLURM_DISTRIBUTION",
    "SLURM_MPI_TYPE",
)  # of one that srun started
GPUS = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ZE_AFFINITY_MASK")
OURS = (TOKEN_VARIABLE, END_VARIABLE)
_UNUSUAL = {"array": "ARRAY_INX", "time": "TIMELIMIT", "mem": "MEM_PER_NODE", "switches": "REQ_SWITCH"}
_ALWAYS = ("array", "error", "input", "wait", "requeue", "no-requeue")  # would change what the script is made for


def scrubbed(environment: Mapping[str, str]) -> dict[str, str]:
    """Without what describes the job, the step and the MPI rank from inside of which this process runs.

    A user's defaults for srun stay, unless srun itself has set them for the step in which this process runs.
    """
    settings = KEPT if "SLURM_STEP_ID" in environment else KEPT + DEFAULTS
    prefixes = (*SLURM, *RANK, *OF_ANSWERS, *OURS)
    gpus_granted = "SLURM_JOB_GPUS" in environment or "SLURM_STEP_GPUS" in environment
    return {
        name: value
        for name, value in environment.items()
        if name in settings or not (name.startswith(prefixes) or (gpus_granted and name in GPUS))
    }


def overruled(directives: Iterable[str]) -> list[str]:
    """SBATCH_* variables that would take precedence over these options of a script (``time``, ``mem`` …), sorted."""
    keys = {*directives, *_ALWAYS}
    if keys & {"mem", "mem-per-cpu", "mem-per-gpu"}:
        keys |= {"mem", "mem-per-cpu", "mem-per-gpu"}
    return sorted("SBATCH_" + _UNUSUAL.get(key, key.upper().replace("-", "_")) for key in keys)


def options(script: str) -> list[str]:
    """Names of the sbatch options in a script's directives."""
    return re.findall(r"(?m)^#SBATCH --([a-z-]+)", script)
