"""The built wheel, installed into an empty environment, finds its jobs and templates from any directory."""

from __future__ import annotations

import os
import site
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_wheel_in_an_empty_environment(tmp_path: Path) -> None:
    built = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(built, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    venv.create(tmp_path / "empty", with_pip=True)
    python = tmp_path / "empty" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", wheel], check=True, timeout=120)
    # What the package needs comes from this environment's site-packages; they hold no importable hpc_rl, because an
    # editable install is a .pth file, which PYTHONPATH does not follow.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(site.getsitepackages())}
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def said(*command: str) -> str:
        out = subprocess.run(
            command, cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert out.returncode == 0, out.stderr
        return out.stdout

    folder = said(str(python), "-c", "import hpc_rl; print(hpc_rl.__path__[0])").strip()
    assert folder.startswith(str(tmp_path))
    tool = str(tmp_path / "empty" / "bin" / "hpc-rl")
    listed = said(tool, "list")
    for job in (ROOT / "jobs").glob("*.toml"):
        assert job.stem in listed
    assert "actor" in said(tool, "show", "impala_catch")
    assert (Path(folder) / "share" / "slurm").is_dir()
    assert (Path(folder) / "share" / "analysis" / "learning_curve.py").is_file()
    top = {path.name for path in Path(folder).parent.iterdir() if path.name.startswith(("jobs", "slurm", "analysis"))}
    assert not top, f"the wheel installs {top} beside hpc_rl"
