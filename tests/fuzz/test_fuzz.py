"""Every file that the program reads, damaged in a seeded way: no traceback, no hang, no memory, nothing outside.

A failure names its case, which program.py repeats: its last argument.
Mutations seen to fail: state.json read by json.loads; `opened` that opens pipes; links of HDF5 followed; /dev/shm's
guard left out; a checkpoint's size not compared; temporary files opened through links.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from hpc_rl.launchers import attempt as batch
from hpc_rl.launchers.options import Options
from hpc_rl.storage import checkpoint, provenance
from hpc_rl.storage.run_dir import write_json
from tests.contract.seats import run_job

SEED, CASES, DEADLINE_S = 12, 80, 300.0
TABLE = {
    "algorithm": "dqn",
    "topology": "solo",
    "environment": {"id": "toy/catch", "columns": 2},
    "dqn": {"unroll": 8, "hidden": [8], "capacity": 160, "min_size": 50, "batch_size": 8, "priority_exponent": 0.6},
    "budget": {"env_steps": 400},
    "checkpoint": {"interval_s": 0.02},
    "resources": {"threads": 1, "precision": "fp32", "device": "cpu"},
}


def test_no_damaged_file_gets_further_than_a_sentence(tmp_path: Path) -> None:
    base = run_job(TABLE, tmp_path / "base")
    run = base.run
    numbered = sorted(run.checkpoints.glob("[0-9]*.h5"))
    checkpoint.mark_best(run, numbered[-1], 1.0)
    provenance.write(run, 0, {"resumed_from": {"file": None, "steps": {"0": 0, "1": 0}}})
    run.write_state(state="pending")
    batch.begin(run.path, "7", "7-0-1", 1, None, [])
    run.write_state(state="stopped", reason="stopped: asked to stop")
    names = ["/dev/shm/mpich_shm_none", "/dev/shm/hpc_rl-x-0"]
    record = {"role": "worker-0", "host": "h", "pid": 4190000, "token": "abc", "shared": names}
    error = {"ended": "error", "time": 1.0, "error": "it failed", "bug": True, "trace": "…"}
    write_json(run.logs / "rank-000.json", {**record, **error})
    write_json(run.logs / "rank-001.json", record)
    (run.logs / "ranks.log").write_text("rank role\nwarning: x\n")
    (run.logs / "slurm-7.out").write_text("said\n")
    (run.path / "submit" / "jobs").write_text("7\n8_1\n")
    (run.path / "submit" / "tasks.jsonl").write_text('{"task": 0, "run": "run", "changes": ["seed=1"]}\n')
    write_json(run.path / "submit" / "options.json", asdict(Options(time="10")))
    (tmp_path / "work").mkdir()
    process = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.program", run.path, tmp_path / "work", str(SEED), str(CASES)],
        capture_output=True, text=True, check=False, timeout=DEADLINE_S, cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "XDG_CONFIG_HOME": str(tmp_path),
             "PYTHONPATH": str(Path(__file__).parents[2]),
             "PATH": str(Path(sys.executable).parent)},
    )  # fmt: skip
    assert process.returncode == 0, process.stderr[-3000:]
    *failures, end = map(json.loads, process.stdout.splitlines())
    assert not failures, "\n\n".join(
        f"{f['case']} {f['file']} {f['damage']}\n{f['error']}{f['wrong']}" for f in failures
    )
    assert end["cases"] == CASES
