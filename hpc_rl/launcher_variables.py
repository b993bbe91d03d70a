"""Environment variables by which MPI, SLURM and launchers describe a job, a task or a rank to what they start.

Prefixes of names, in one list for everything that starts processes and must not hand them on: a job that is sent
(launchers/environment.py), ranks on this machine (launchers/mpiexec.py), environment processes (envs/forkserver.py).
"""

from __future__ import annotations

SLURM = ("SLURM", "SRUN_")  # of a job and its steps: SLURM_, SLURMD_, SLURMSTEPD_ …
TASK = (  # what srun adds for each task of a step
    *("SLURM_STEP", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_GTIDS", "SLURM_MPI_TYPE", "SLURM_PMI", "SLURM_TASK_PID"),
    *("SLURM_SRUN_COMM", "SLURM_LAUNCH_NODE_IPADDR"),
)
RANK = ("PMI", "HYDI_", "MPI_LOCAL", "OMPI_COMM_WORLD_", "OMPI_UNIVERSE_", "PRTE_LAUNCHED", "PALS_")  # its place in MPI
LAUNCHER = (  # how an mpiexec was told to start its ranks
    *("HYDRA_LAUNCHER", "HYDRA_BOOTSTRAP", "HYDRA_RMK", "HYDRA_HOST_FILE", "HYDRA_PROXY", "MPIRUN_", "PRTE_"),
    *("OMPI_APP_CTX", "OMPI_FIRST_RANKS", "OMPI_FILE_LOCATION", "OMPI_NUM_APP", "OMPI_ARGV", "OMPI_COMMAND"),
    "PBS_NODEFILE",
)
SETTINGS = ("PMIX_MCA_", "PRTE_MCA_", "PRTE_ALLOW_")  # the user's own, which begin like a launcher's
ANY_MPI = (*RANK, "MPI", "OMPI_", "PRTE_", "HYDRA_", "I_MPI_", "MV2_")  # with all settings
