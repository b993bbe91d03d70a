"""Rendered batch scripts: golden files, the plain scripts, and nasty names executed by a real bash with stubs.

Mutations seen to fail: a `| q` taken out of the template (env, module, scratch), `quote` made the identity for python,
`word` made the identity, the plain scripts edited by hand, a name taken out of the list that the script unsets.
"""

from __future__ import annotations

import os
import re
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
from hpc_rl.launchers import standalone as plain
from hpc_rl.launchers.options import Options
from hpc_rl.launchers.script import for_array, for_run, render
from hpc_rl.plan import Plan

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


def job_and_plan(name: str = "impala_catch", evaluators: int = 0) -> tuple[Job, Plan]:
    """The last rank of ``evaluators`` = 1 plays the evaluations."""
    job = jobs.load(name)
    if evaluators:
        resources = replace(job.resources, ranks=job.resources.ranks + evaluators, evaluators=evaluators)
        job = replace(job, resources=resources, evaluate=replace(job.evaluate, every_steps=100_000))
    return job, jobs.plan(job)


GOLDEN_CASES = {
    "one": (Options(python="/env/bin/python", launcher="srun", mpi="pmi2", time="4:00:00", nodes=3), False),
    "array": (Options(python="/env/bin/python", launcher="srun", mpi="pmi2", parallel=2, resume_mode="chain"), True),
    "het": (
        Options(python="/env/bin/python", launcher="srun", mpi="pmi2", layout="het", partition="cpu",
                learners=("partition=gpu", "gpus-per-node=1")), False,
    ),
    "evaluator": (  # the ranks that learn, with GPUs, and the evaluator beside them
        Options(python="/env/bin/python", launcher="srun", mpi="pmi2", layout="het", partition="cpu",
                learners=("partition=gpu", "gpus-per-node=2")), False,
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
    job, plan = job_and_plan("ppo_pong", evaluators=1) if name == "evaluator" else job_and_plan()
    script = for_array(job, Path("/runs/catch"), 6, options.parallel) if array else for_run(job, Path("/runs/catch"))
    text, file = render(script, job, plan, options), GOLDEN / f"{name}.sbatch"
    if os.environ.get("HPC_RL_ACCEPT"):
        file.write_text(text)
    assert text == file.read_text()


def test_where_lost_actors_are_tolerated_nothing_ends_the_others() -> None:
    """Neither srun (also by --wait, a minute later), nor the loss of a node; seen to fail: each flag left out."""
    job, _ = job_and_plan("impala_pong")
    job = replace(job, resources=replace(job.resources, tolerate_lost_actors=True))
    for layout, steps in (("one", 1), ("het", 2)):
        options = Options(python="/env/bin/python", launcher="srun", mpi="pmi2", layout=layout)  # type: ignore[arg-type]
        text = render(for_run(job, Path("/runs/pong")), job, jobs.plan(job), options)
        assert text.count("#SBATCH --no-kill\n") == steps
        assert text.count(" --mpi=pmi2 --kill-on-bad-exit=0 --no-kill --wait=0 ") == steps
        assert "--kill-on-bad-exit=1" not in text and "--wait=60" not in text


def test_every_golden_script_and_plain_script_is_bash() -> None:
    for file in [*GOLDEN.glob("*.sbatch"), *(jobs.data_folder("slurm")).glob("*.sbatch")]:
        process = subprocess.run(["bash", "-n", file], capture_output=True, text=True, check=False)
        assert process.returncode == 0 and not process.stderr, (file, process.stderr)


def test_the_plain_scripts_are_the_rendered_template() -> None:
    for name, text in plain.plain().items():
        assert (jobs.data_folder("slurm") / name).read_text() == text, (
            f"python -m hpc_rl.launchers.standalone slurm  # {name}"
        )


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
    process = subprocess.run(
        ["bash", box / "job.sbatch"], cwd=box, env=environment, capture_output=True, text=True, timeout=20, check=False
    )
    assert process.returncode == 0, process.stderr
    assert not list(tmp_path.rglob("canary"))
    calls = _calls(box / "said")
    assert ["module", "load", module] in calls
    started = next(words for words in calls if words[0] == "srun" and "hpc_rl.rank" in words)
    assert started[-5:] == [str(python), "-m", "hpc_rl.rank", str(run), "3"]
    begin = next(words for words in calls if words[:4] == [program, "-m", "hpc_rl.launchers.attempt", "begin"])
    assert begin[4:6] == [str(run), "--job"]
    assert (box / "value").read_bytes().decode() == value


def _calls(file: Path) -> list[list[str]]:
    """Calls as the stubs wrote them: words that end with NUL, a call that ends with NUL and a line break."""
    return [call.split("\0") for call in file.read_bytes().decode().removesuffix("\0\n").split("\0\n")]


BOX_STUB = """#!/bin/bash
printf '%s\\0' "${{0##*/}}" "$@" >> {box}/said; printf '\\n' >> {box}/said
case "${{0##*/}} $*" in
srun*hpc_rl.rank* | mpiexec*) export -p > {box}/ranks.environment ;;
srun*" mkdir "* | srun*" rm "*) while case $1 in mkdir | rm) false ;; esac; do shift; done; exec "$@" ;;
apptainer*) exec "${{@:3}}" ;;
scontrol*) echo "JobId=7 JobState=RUNNING Reason=None Requeue=1 Restarts=0 EndTime=2099-01-01T00:00:00 x" ;;
*" begin "*) echo 0 ;;
*" end "*) echo again ;;
sbatch*) echo 8 ;;
esac
"""


def scripts(box: Path) -> dict[str, tuple[str, list[str]]]:
    """Every script that we render, with its arguments; what they start is below ``box``."""
    job, plan = job_and_plan()
    texts = {}
    for name, (options, array) in GOLDEN_CASES.items():
        launcher = options.launcher.replace("/env/bin", str(box / "bin"))
        options_here = replace(options, python=str(box / "bin" / "python"), launcher=launcher)
        script = for_array(job, box / "runs", 6, options.parallel) if array else for_run(job, box / "runs" / "0004")
        texts[name] = (render(script, job, plan, options_here), [])
    for name, text in plain.plain().items():
        texts[name] = (text, ["impala_catch", "seed=3"] if "analysis" not in name else [str(box / "runs" / "4")])
    return texts


def run_in(box: Path, name: str, more: dict[str, str], module: int = 0) -> tuple[int, list[list[str]]]:
    """Exit code and calls of one script; ``more`` is exported by whoever sent it, ``module`` how loading one ends."""
    (box / "bin").mkdir(parents=True)
    for folder in ("0004", "4"):
        (box / "runs" / folder / "logs").mkdir(parents=True)
    for command in (
        "python",
        "srun",
        "mpiexec",
        "apptainer",
        "squeue",
        "scontrol",
        "scancel",
        "sbatch",
        "sacct",
        "sleep",
    ):
        stub(box / "bin" / command, BOX_STUB.format(box=box))
    text, arguments = scripts(box)[name]
    (box / "job.sbatch").write_text(text)
    environment = {
        "PATH": f"{box}/bin:/usr/bin:/bin", "HOME": "/nowhere", "SLURM_JOB_ID": "7", "SLURM_NTASKS": "3",
        "SLURM_NNODES": "1", "SLURM_JOB_NUM_NODES_HET_GROUP_0": "1", "SLURM_NTASKS_HET_GROUP_0": "1",
        "SLURM_NTASKS_HET_GROUP_1": "2", "HPC_RL_PYTHON": f"{box}/bin/python", "TMPDIR": f"{box}/bin",
        "BASH_FUNC_module%%": f"() {{ return {module}; }}",
    }  # fmt: skip
    if "array" in name:
        environment |= {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "4", "HPC_RL_RUN": str(box / "runs")}
    elif name in plain.plain():
        environment |= {"HPC_RL_RUN": str(box / "runs" / "0004")}
    process = subprocess.run(
        ["bash", box / "job.sbatch", *arguments], cwd=box, env={**more, **environment}, capture_output=True, text=True,
        timeout=20, check=False,
    )  # fmt: skip
    calls = _calls(box / "said") if (box / "said").exists() else []
    token = re.compile(r"^(7(?:_4)?-0-)\d+$")
    return process.returncode, [[token.sub(r"\1N", word.replace(str(box), "BOX")) for word in call] for call in calls]


def own_names(text: str) -> set[str]:
    """Variables that a script sets; those that are meant for others are in capitals."""
    text = re.sub(r"(?m)(^|\s)#.*$", "", text)
    return set(re.findall(r"(?m)(?:^|[\s;(])([a-z_]\w*)\+?=", text)) | set(
        re.findall(r"\b(?:for|printf -v) (\w+)", text)
    )


@pytest.mark.parametrize("name", scripts(Path("/box")))
@pytest.mark.parametrize("module", [0, 1], ids=["", "module fails"])
def test_no_variable_of_the_script_can_be_preset(tmp_path: Path, name: str, module: int) -> None:
    """A folder, a process, a command and a shell's option, exported under every name that the script uses itself."""
    names = own_names(scripts(Path("/box"))[name][0])
    some = (
        {"out", "command"} if "analysis" in name else {"scratch", "watchdog", "launcher", "asked", "next", "restarts"}
    )
    assert some | {"python"} <= names
    expected = run_in(tmp_path / "plain", name, {}, module)
    assert expected[0] == (2 if module and "openmpi" in name else 75 if name == "array" else 0)
    victim = tmp_path / "precious"
    victim.mkdir()
    living = subprocess.Popen(["sleep", "60"])
    try:
        traps = (str(victim), str(living.pid), f"$(touch {tmp_path}/canary)", "1")
        for number, trap in enumerate(traps):
            box = tmp_path / str(number)
            shell = {"SHELLOPTS": "braceexpand:errexit:hashall:nounset:pipefail"} if number == 3 else {}
            assert run_in(box, name, {**dict.fromkeys(names, trap), **shell}, module) == expected
            assert victim.is_dir() and living.poll() is None and not (tmp_path / "canary").exists()
            if expected[0] != 2 and "analysis" not in name:
                ranks = (box / "ranks.environment").read_text()
                assert not names & set(re.findall(r"(?m)^declare -x (\w+)", ranks))
    finally:
        living.kill()
        living.wait()


@pytest.mark.parametrize("name", ["cpu.sbatch", "seeds-array.sbatch", "cpu-actors-gpu-learner.sbatch"])
def test_a_plain_script_s_successor_goes_on_with_the_same_run(tmp_path: Path, name: str) -> None:
    """All that it needs are its arguments: with --export=NONE, no variable of ours reaches it."""
    box = tmp_path / "box"
    (box / "bin").mkdir(parents=True)
    answer = BOX_STUB.format(box=box).replace("Requeue=1", "Requeue=0 TimeLimit=01:00:00")
    array = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "4"} if "array" in name else {}
    usual = {
        "PATH": f"{box}/bin:/usr/bin:/bin", "SLURM_NTASKS": "9", "SLURM_NNODES": "2", "SLURM_NTASKS_HET_GROUP_0": "1",
        "SLURM_NTASKS_HET_GROUP_1": "2", "SLURM_JOB_PARTITION": "big", "SLURM_MEM_PER_CPU": "700",
    }  # fmt: skip
    for command in ("python3", "srun", "scontrol", "sbatch", "scancel", "sleep"):
        stub(box / "bin" / command, answer)
    run = box / "runs" / f"impala_catch-7{'/4' if array else ''}"
    (run / "logs").mkdir(parents=True)
    script = jobs.data_folder("slurm") / name
    first = ["bash", script, "impala_catch", "seed=3"]
    subprocess.run(first, cwd=box, env={**usual, **array, "SLURM_JOB_ID": "7"}, timeout=20, check=True)
    (sent,) = (call for call in _calls(box / "said") if call[0] == "sbatch")
    options, arguments = sent[1 : sent.index(str(script))], sent[sent.index(str(script)) + 1 :]
    if "learner" not in name:
        assert {"--ntasks=9", "--nodes=2", "--partition=big", "--mem-per-cpu=700"} <= set(options)
    (box / "said").unlink()
    later = {**usual, "PATH": usual["PATH"].replace(f"{box}/bin", f"{tmp_path}/other"), "SLURM_JOB_ID": "8"}
    (tmp_path / "other").mkdir()
    for command in ("srun", "scontrol", "sbatch", "scancel", "sleep"):
        (tmp_path / "other" / command).symlink_to(box / "bin" / command)
    again = {"SLURM_ARRAY_JOB_ID": "8", "SLURM_ARRAY_TASK_ID": "4"} if array else {}
    subprocess.run(["bash", script, *arguments], cwd=tmp_path, env={**later, **again}, timeout=20, check=False)
    begin = next(call for call in _calls(box / "said") if "begin" in call)
    assert begin[4] == str(run) and "--set=seed=3" in begin


def test_gpus_follow_the_plan_where_the_job_insists_on_them(tmp_path: Path) -> None:
    job = jobs.load("impala_catch", ["resources.device=cuda", "resources.ranks=5"])
    plan = jobs.plan(job)
    assert "#SBATCH --gpus-per-node=1\n" in render(for_run(job, tmp_path), job, plan, Options(nodes=2))
    assert "--gpus-per-node=a100:2" in render(for_run(job, tmp_path), job, plan, Options(gpus_per_node="a100:2"))
    text = render(for_run(job, tmp_path), job, plan, Options(layout="het", launcher="srun"))
    learners, others = text.split("#SBATCH hetjob")
    assert "--gpus-per-node=1" in learners and "--gpus" not in others
    job = jobs.load("ppo_cartpole", ["topology=allreduce", "resources.device=cuda", "resources.ranks=4"])
    plan = jobs.plan(job)
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
    with pytest.raises(BadJob, match="cannot be a job array"):
        render(for_array(job, Path("/r"), 2, None), job, plan, Options(layout="het"))
    job, plan = job_and_plan("ppo_pong")
    with pytest.raises(BadJob, match="no learners apart"):
        render(for_run(job, Path("/r")), job, plan, Options(layout="het"))


def test_a_template_of_ones_own_and_its_mistakes(tmp_path: Path) -> None:
    job, plan = job_and_plan()
    template = tmp_path / "mine.j2"
    template.write_text("#!/bin/bash\nrun {{ ranks }} {{ start }}\n")
    assert render(for_run(job, tmp_path), job, plan, Options(template=str(template), launcher="srun")).startswith(
        "#!/bin/bash\nrun"
    )
    template.write_text("{{ rankz }}")
    with pytest.raises(BadJob, match="rankz"):
        render(for_run(job, tmp_path), job, plan, Options(template=str(template)))
    with pytest.raises(BadJob, match="cannot be read"):
        render(for_run(job, tmp_path), job, plan, Options(template=str(tmp_path / "none.j2")))
