"""The plain scripts of slurm/: the same template, for people who call sbatch themselves.

``python -m hpc_rl.launchers.standalone slurm`` writes them again after a change of the template; a test compares them.
"""

from __future__ import annotations

import sys
from pathlib import Path

from hpc_rl import job as jobs
from hpc_rl.launchers.options import Options
from hpc_rl.launchers.script import Script, render, render_analysis
from hpc_rl.storage.run_dir import write_text

PYTHON = '"${HPC_RL_PYTHON:-python3}"'  # of the active environment
_JOB = 'job=${{1:?"usage: sbatch {name}.sbatch JOB [KEY=VALUE …]"}} set=("${{@:2}}")'
# A job that goes on for another one gets as arguments what the environment may not bring.
_GOES_ON = '[ "$1" != --go-on ] || { HPC_RL_RUN=$2 HPC_RL_PYTHON=$3 && shift 3; }'
_AGAIN = ' --go-on "$HPC_RL_RUN" "$(command -v -- "${python[0]}")"'
_SAME = "".join(  # options that a user may give to sbatch instead of editing the directives
    f" \\\n        {line}" for line in (
        '--ntasks="$SLURM_NTASKS" --nodes="$SLURM_NNODES" --time="$(value TimeLimit)"',
        '--partition="$SLURM_JOB_PARTITION" ${SLURM_JOB_ACCOUNT:+--account="$SLURM_JOB_ACCOUNT"}',
        '${SLURM_JOB_QOS:+--qos="$SLURM_JOB_QOS"} ${SLURM_MEM_PER_NODE:+--mem="$SLURM_MEM_PER_NODE"}',
        '${SLURM_MEM_PER_CPU:+--mem-per-cpu="$SLURM_MEM_PER_CPU"}',
    )
)  # fmt: skip
_RUN = 'HPC_RL_RUN=${{HPC_RL_RUN:-$PWD/runs/$(basename -- "$job" .toml)-${job}}}'
_PREPARE = ' --source="$job" "${set[@]/#/--set=}"'


def plain() -> dict[str, str]:
    """File name -> text."""
    job = jobs.load("impala_pong")
    plan = jobs.plan(job)
    usual = Options(time="1:00:00", launcher="srun", mpi="pmi2")
    texts = {
        "cpu": render(_script("cpu"), job, plan, usual),
        "seeds-array": render(
            _script("seeds-array", array="0-4", extra=' --set=seed="$SLURM_ARRAY_TASK_ID"'), job, plan, usual
        ),
        "cpu-actors-gpu-learner": render(
            _script("cpu-actors-gpu-learner", het=True), job, plan,
            Options(time="1:00:00", launcher="srun", mpi="pmi2", layout="het", learners=("gpus-per-node=1",)),
        ),
        "analysis": render_analysis(
            ["--time=30", "--output=slurm-%j.out"], PYTHON, '"${@:?usage: sbatch analysis.sbatch RUN}"',
            '"${HPC_RL_OUT:-report}"', Options(),
        ),
    }  # fmt: skip
    return {f"{name}.sbatch": text for name, text in texts.items()}


def _script(name: str, array: str = "", extra: str = "", het: bool = False) -> Script:
    home = _RUN.format(job="SLURM_ARRAY_JOB_ID" if array else "SLURM_JOB_ID")
    run = "run=$HPC_RL_RUN/$SLURM_ARRAY_TASK_ID" if array else "run=$HPC_RL_RUN"
    usage = _JOB.format(name=name)
    title = f"hpc_rl: sbatch {name}.sbatch JOB [KEY=VALUE …] (JOB: a file, or a name from hpc-rl list)"
    return Script(title, "hpc_rl", (_GOES_ON, usage, home, run),
                  "slurm-%j.out" if not array else "slurm-%A_%a.out", _PREPARE + extra, array, PYTHON,
                  "" if het else _SAME, _AGAIN)  # fmt: skip


if __name__ == "__main__":
    for file, content in plain().items():
        write_text(Path(sys.argv[1]) / file, content)
