"""Run folders are never mixed up, and their small files are whole or absent."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hpc_rl.storage import provenance, run_dir
from hpc_rl.storage.run_dir import BadRun, RunDir, create, open_run, write_json


def test_create_and_open(tmp_path: Path) -> None:
    run = create(tmp_path / "runs" / "x", "seed = 1\n")
    assert run.job_file.read_text() == "seed = 1\n"
    assert all(x.is_dir() for x in (run.logs, run.metrics, run.trajectories, run.checkpoints, run.provenance))
    assert open_run(run.path) == run
    assert run.read_state()["state"] == "pending"


def test_an_empty_folder_may_become_a_run(tmp_path: Path) -> None:
    assert create(tmp_path, "").job_file.exists()


@pytest.mark.parametrize("file", ["job.toml", "state.json"])
def test_another_run_is_not_overwritten(tmp_path: Path, file: str) -> None:
    (tmp_path / file).write_text("{}")
    begun = r"holds a run already; go on with it .*--resume.*or choose another --out"
    with pytest.raises(BadRun, match=begun + "; it has no checkpoint: remove the folder if it is not running$"):
        create(tmp_path, "")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "000000001.h5").touch()
    with pytest.raises(BadRun, match=begun + "$"):
        create(tmp_path, "")


def test_somebody_elses_folder_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(BadRun, match="not empty and not a run"):
        create(tmp_path, "")
    with pytest.raises(BadRun, match=r"thesis\.tex is a file"):
        create(tmp_path / "thesis.tex", "")
    assert os.listdir(tmp_path) == ["thesis.tex"]


def test_a_full_disk_leaves_no_half_run(small_disk: Path) -> None:
    (small_disk / "big").write_bytes(bytes((2 << 20) - 8192))
    for _ in range(2):  # a second try hears the same, not "not empty"
        with pytest.raises(BadRun, match=r"cannot be written .*No space left"):
            create(small_disk / "run", "x" * 20_000)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadRun, match="cannot be written"):
        create(tmp_path / "file" / "run", "")


def test_open_run_wants_a_run(tmp_path: Path) -> None:
    with pytest.raises(BadRun, match="holds no run"):
        open_run(tmp_path)


def test_state_is_merged(tmp_path: Path) -> None:
    run = create(tmp_path / "x", "")
    run.write_state(state="running", env_steps=5)
    run.write_state(env_steps=9, reason="time limit")
    state = run.read_state()
    assert (state["state"], state["env_steps"], state["updates"], state["reason"]) == ("running", 9, 0, "time limit")
    assert state["updated"] > 1e9
    with pytest.raises(ValueError, match="state 'asleep' is unknown"):
        run.write_state(state="asleep")
    run.state_file.write_text("{")
    with pytest.raises(BadRun, match="cannot be read"):
        run.read_state()


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.json"
    write_json(path, {"a": 1})

    def full(temporary: Path, final: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_dir, "publish", full)
    with pytest.raises(OSError, match="No space"):
        write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1} and os.listdir(tmp_path) == ["state.json"]


def test_json_is_plain(tmp_path: Path) -> None:
    value = {
        "nan": math.nan,
        "array": np.array([1.0, math.inf]),
        "n": np.int64(3),
        "path": Path("x"),
        "t": (True, None),
    }
    write_json(tmp_path / "x.json", value)
    found = json.loads((tmp_path / "x.json").read_text())
    assert found == {"nan": None, "array": [1.0, None], "n": 3, "path": "x", "t": [True, None]}


def test_stop_file(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert not run.stop_requested()
    run.request_stop()
    assert run.stop_requested()
    run.clear_stop()
    run.clear_stop()
    assert not run.stop_requested()


def test_attempts_are_counted_by_provenance(tmp_path: Path) -> None:
    run = create(tmp_path / "x", "")
    assert run.next_attempt() == 0
    value = provenance.collect(["hpc-rl", "run"], 0, {"seed": 1}, {"resumed_from": {"file": None, "steps": {}}})
    path = provenance.write(run, 0, value)
    assert path.name == "0000.json" and run.next_attempt() == 1
    provenance_of = json.loads(path.read_text())
    assert (
        provenance_of["resumed_from"] == {"file": None, "steps": {}}
        and provenance_of["versions"]["numpy"] == np.__version__
    )
    assert provenance_of["host"] and provenance_of["cpu"] and provenance_of["seeds"] == {"seed": 1}


def test_no_secret_is_written() -> None:
    environment = {"SLURM_JOB_ID": "7", "SLURM_JWT": "s", "OMPI_MCA_AUTH_x": "s", "FI_SECRET": "s", "HOME": "h"}
    environment |= {"CUDA_API_KEY": "s", "NCCL_token": "s", "UCX_PASSWORD": "s", "OMP_NUM_THREADS": "2"}
    assert provenance.filtered(environment) == {"OMP_NUM_THREADS": "2", "SLURM_JOB_ID": "7"}


def test_git_tells_commit_and_diff(tmp_path: Path) -> None:
    assert provenance.git(tmp_path) is None
    (tmp_path / "__init__.py").write_text("a = 1\n")
    identity = ["-c", "user.name=t", "-c", "user.email=t@t"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "x"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    clean = provenance.git(tmp_path)
    assert clean is not None and len(clean["commit"]) == 40 and not clean["dirty"] and clean["diff"] == ""
    (tmp_path / "__init__.py").write_text("b = 2\n" * 50_000)
    dirty = provenance.git(tmp_path)
    assert dirty is not None and dirty["dirty"] and "+b = 2" in dirty["diff"]
    assert dirty["diff_truncated"] and len(dirty["diff"]) <= 200_000
    (tmp_path / "venv").mkdir()  # a package installed inside somebody's checkout is not that checkout's code
    (tmp_path / "venv" / "__init__.py").touch()
    assert provenance.git(tmp_path / "venv") is None


def test_state_is_read_without_heavy_imports() -> None:
    code = (
        "import sys, hpc_rl.storage.run_dir, hpc_rl.storage.metrics; print({'h5py','torch','numpy'} & set(sys.modules))"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "set()"
