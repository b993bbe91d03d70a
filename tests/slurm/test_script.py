"""Rendered batch scripts: golden files, the plain scripts, and nasty names executed by a real bash with stubs.

Mutations seen to fail: a `| q` taken out of the template (env, module, scratch), `quote` made the identity for python,
`word` made the identity, the plain scripts edited by hand.
"""

from __future__ import annotations

import os
import string
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpc_rl import job as jobs
from hpc_rl.job import BadJob, Job
from hpc_rl.launchers import plain
from hpc_rl.launchers.options import Options
from hpc_rl.launchers.script import for_array, for_run, render
from hpc_rl.topologies.base import Plan

GOLDEN = Path(__file__).parent.parent / "golden"
NASTY = ["$(touch canary)", "`touch canary`", '"; touch canary; "', "'; touch canary; '", "-rf", "--help", "a b", "#"]
NASTY += ["%j", "\\", "é", "&& touch canary", "${HOME}", "*", "~", "!", "a;b"]
pieces = st.one_of(st.sampled_from(NASTY), st.text(string.printable, max_size=6))
texts = st.lists(pieces, min_size=1, max_size=3).map("".join)
lines = texts.filter(str.isprintable)
names = texts.filter(
    lambda text: (
        text.isprintable() and not {"/", "\\"} & set(text) and text not in ("", ".", "..") and len(text.encode()) < 200
    )
)


def job_and_plan(name: str = "impala_catch") -> tuple[Job, Plan]:
    job = jobs.load(name)
    return job, jobs.topology(job.topology).plan(job)


GOLDEN_CASES = {
    "one": (Options(python="/env/bin/python", launcher="srun", mpi="pmi2", time="4:00:00", nodes=3), False),
    "array": (Options(python="/env/bin/python", launcher="srun", mpi="pmi2", parallel=2, resume_mode="chain"), True),
    "het": (
        Options(python="/env/bin/python", launcher="srun", mpi="pmi2", layout="het", partition="cpu",
                learners=("partition=gpu", "gpus-per-node=1")), False,
    ),
    "openmpi-site": (
        Options(python="/env/bin/python", launcher='/env/bin/mpiexec -n "$ranks"', modules=("gcc/13", "openmpi"),
                setup=("ulimit -c 0",), teardown=("echo bye",), env=("UCX_TLS=tcp,self",), scratch="auto",
                container="/images/rl.sif", sbatch=("switches=1@10",), after=("ok:12",), exclusive=True), False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GOLDEN_CASES)
def test_golden(name: str) -> None:
    """To accept a change of the template: HPC_RL_ACCEPT=1 pytest tests/slurm/test_script.py, and read the diff."""
    options, array = GOLDEN_CASES[name]
    job, plan = job_and_plan()
    script = for_array(job, Path("/runs/catch"), 6, options.parallel) if array else for_run(job, Path("/runs/catch"))
    text, file = render(script, job, plan, options), GOLDEN / f"{name}.sbatch"
    if os.environ.get("HPC_RL_ACCEPT"):
        file.write_text(text)
    assert text == file.read_text()


def test_every_golden_script_and_plain_script_is_bash() -> None:
    for file in [*GOLDEN.glob("*.sbatch"), *(jobs.share("slurm")).glob("*.sbatch")]:
        done = subprocess.run(["bash", "-n", file], capture_output=True, text=True, check=False)
        assert done.returncode == 0 and not done.stderr, (file, done.stderr)


def test_the_plain_scripts_are_the_rendered_template() -> None:
    for name, text in plain.plain().items():
        assert (jobs.share("slurm") / name).read_text() == text, f"python -m hpc_rl.launchers.plain slurm  # {name}"


def stub(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(0o755)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(folder=names, program=names, value=texts, module=lines, name=texts, comment=lines)
def test_nothing_in_a_name_runs_or_breaks(
    tmp_path: Path, folder: str, program: str, value: str, module: str, name: str, comment: str
) -> None:
    """The script hands every value on unchanged, as one word, and runs nothing that a value says."""
    box = Path(tempfile.mkdtemp(dir=tmp_path))
    (box / "bin").mkdir()
    run, python = box / "runs" / folder, box / "env" / program
    for path in (run / "logs", python.parent):
        path.mkdir(parents=True)
    say = f"printf '%s\\0' \"${{0##*/}}\" \"$@\" >> {box}/said; printf '\\n' >> {box}/said"
    stub(python, f'{say}\nprintf %s "$VALUE" > {box}/value\n[ "$3" = end ] && echo done\nexit 0')
    for command in ("srun", "squeue", "scontrol", "scancel", "sbatch", "date"):
        stub(box / "bin" / command, say)
    job, plan = job_and_plan()
    options = Options(
        python=str(python),
        env=(f"VALUE={value}",),
        modules=(module,),
        comment=comment,
        partition=comment,
        scratch=str(box / folder),
        launcher="srun",
        mpi="pmi2",
    )
    (box / "job.sbatch").write_text(render(for_run(replace(job, name=name), run), job, plan, options))
    environment = {
        "PATH": f"{box}/bin:/usr/bin:/bin",
        "HOME": "/nowhere",
        "SLURM_JOB_ID": "7",
        "SLURM_NTASKS": "3",
        "SLURM_NNODES": "1",
        "BASH_FUNC_module%%": "() { " + say.replace("${0##*/}", "module") + "; }",
    }
    done = subprocess.run(
        ["bash", box / "job.sbatch"], cwd=box, env=environment, capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.rglob("canary"))
    said = _calls(box / "said")
    assert ["module", "load", module] in said
    started = next(words for words in said if words[0] == "srun" and "hpc_rl.run" in words)
    assert started[-5:] == [str(python), "-m", "hpc_rl.run", str(run), "3"]
    begin = next(words for words in said if words[:4] == [program, "-m", "hpc_rl.launchers.batch", "begin"])
    assert begin[4:6] == [str(run), "--job"]
    assert (box / "value").read_bytes().decode() == value


def _calls(file: Path) -> list[list[str]]:
    """Calls as the stubs wrote them: words that end with NUL, a call that ends with NUL and a line break."""
    return [call.split("\0") for call in file.read_bytes().decode().removesuffix("\0\n").split("\0\n")]


def test_gpus_follow_the_plan_where_the_job_insists_on_them(tmp_path: Path) -> None:
    job = jobs.load("impala_catch", ["resources.device=cuda", "resources.ranks=5"])
    plan = jobs.topology(job.topology).plan(job)
    assert "#SBATCH --gpus-per-node=1\n" in render(for_run(job, tmp_path), job, plan, Options(nodes=2))
    assert "--gpus-per-node=a100:2" in render(for_run(job, tmp_path), job, plan, Options(gpus_per_node="a100:2"))
    text = render(for_run(job, tmp_path), job, plan, Options(layout="het", launcher="srun"))
    learners, others = text.split("#SBATCH hetjob")
    assert "--gpus-per-node=1" in learners and "--gpus" not in others
    job = jobs.load("ppo_cartpole", ["topology=allreduce", "resources.device=cuda", "resources.ranks=4"])
    plan = jobs.topology(job.topology).plan(job)
    assert "--gpus-per-node=2" in render(for_run(job, tmp_path), job, plan, Options(nodes=2))


def test_scratch_is_for_the_ranks_on_every_node_and_removed(tmp_path: Path) -> None:
    job, plan = job_and_plan()
    text = render(for_run(job, tmp_path), job, plan, Options(launcher="srun", scratch="/local", layout="het"))
    assert text.count(' mkdir -p -- "$scratch"') == text.count(' rm -rf -- "$scratch"') == 2
    assert "export TMPDIR" not in text and "TMPDIR=$scratch srun --het-group=0" in text


def test_an_apptainer_image_is_one_word(tmp_path: Path) -> None:
    job, plan = job_and_plan()
    text = render(
        for_run(job, tmp_path), job, plan, Options(container="my image.sif", python="python3", launcher="srun")
    )
    assert "python=(apptainer exec 'my image.sif' python3)" in text


@pytest.mark.parametrize("folder", ["a\nb", "a\x1bb"])
def test_a_path_that_a_directive_cannot_carry_is_refused(folder: str) -> None:
    job, plan = job_and_plan()
    with pytest.raises(BadJob, match="line break or control character"):
        render(for_run(job, Path("/runs") / folder), job, plan, Options(launcher="srun"))


def test_a_percent_sign_in_a_path_is_no_symbol_and_a_backslash_is_refused() -> None:
    job, plan = job_and_plan()
    with pytest.raises(BadJob, match="backslash"):
        for_run(job, Path("/runs/a\\b"))
    assert "--output=/runs/50%%j/logs/slurm-%j.out" in render(for_run(job, Path("/runs/50%j")), job, plan, Options())


def test_more_nodes_than_ranks_are_refused() -> None:
    job, plan = job_and_plan()
    with pytest.raises(BadJob, match=r"nodes = 9 for 3 rank\(s\)"):
        render(for_run(job, Path("/r")), job, plan, Options(nodes=9))


def test_a_het_job_is_no_array_and_needs_learners_apart() -> None:
    job, plan = job_and_plan()
    with pytest.raises(BadJob, match="cannot be an array"):
        render(for_array(job, Path("/r"), 2, None), job, plan, Options(layout="het"))
    job, plan = job_and_plan("ppo_pong")
    with pytest.raises(BadJob, match="no learners apart"):
        render(for_run(job, Path("/r")), job, plan, Options(layout="het"))


def test_a_template_of_ones_own_and_its_mistakes(tmp_path: Path) -> None:
    job, plan = job_and_plan()
    mine = tmp_path / "mine.j2"
    mine.write_text("#!/bin/bash\nrun {{ ranks }} {{ start }}\n")
    assert render(for_run(job, tmp_path), job, plan, Options(template=str(mine), launcher="srun")).startswith(
        "#!/bin/bash\nrun"
    )
    mine.write_text("{{ rankz }}")
    with pytest.raises(BadJob, match="rankz"):
        render(for_run(job, tmp_path), job, plan, Options(template=str(mine)))
    with pytest.raises(BadJob, match="cannot be read"):
        render(for_run(job, tmp_path), job, plan, Options(template=str(tmp_path / "none.j2")))
