"""Limits of a site and of the machine: array sizes, submit limits, long arguments, long names, short partitions.

Mutations seen to fail: `batches` with one batch, `together` left out, `_link` left out, `--hold` left out, `_unmake`
only after sbatch, the bound of `_seeds` after its list.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from hpc_rl import job as jobs
from hpc_rl import methods
from hpc_rl import status as states
from hpc_rl.cancel import cancel_runs
from hpc_rl.job import BadJob
from hpc_rl.launchers.attempt import job_ids
from hpc_rl.launchers.options import Options
from hpc_rl.launchers.slurm import LINE_BYTES, Refused, SlurmError, query, together
from hpc_rl.launchers.slurm import cancel as end
from hpc_rl.run_folders import runs_of
from hpc_rl.storage.run_dir import BadRun, RunDir, create
from hpc_rl.submit import parts, submit
from hpc_rl.sweep import tasks
from tests.run.program import in_process
from tests.slurm.fake import answer, calls, program

OPTIONS = Options(launcher="srun", mpi="pmi2", time="10")
MANY = 12_000  # ids of tasks of one array, which no single argument holds
CONFIG = (
    "Configuration data\nMaxArraySize            = 4\nMaxJobCount = 9\nSchedulerParameters     = bf_interval=1{more}\n"
)
COUNTED = "n=$(cat {0}/n 2>/dev/null || echo 10); n=$((n+1)); echo $n > {0}/n; echo $n"


def unwarned(text: str) -> None:
    raise AssertionError(text)


def sent(folder: Path) -> list[str]:
    return [call for call in calls(folder) if call.startswith("sbatch")]


# ---- more ids than one argument holds --------------------------------------------------------------------------------


def test_every_task_of_a_large_array_is_known_and_the_queue_is_asked_once(slurm: Path) -> None:
    program(slurm, "squeue", f'seq -f "12_%g|RUNNING|None|N/A|n1" 0 {MANY - 1}')
    statuses = query([f"12_{k}" for k in range(MANY)])
    assert len(statuses) == MANY and statuses[f"12_{MANY - 1}"].active
    assert [call.split("--jobs=")[1] for call in calls(slurm)] == ["12"]


def test_tasks_that_nobody_asked_for_are_left_out(slurm: Path) -> None:
    program(slurm, "squeue", f'seq -f "12_%g|RUNNING|None|N/A|n1" 0 {MANY + 9}')
    assert len(query([f"12_{k}" for k in range(MANY)])) == MANY


def test_many_jobs_that_are_no_array_are_asked_for_in_parts(slurm: Path) -> None:
    """Successors of a chain are arrays of one task each."""
    program(slurm, "squeue", 'for j in $(echo "${5#--jobs=}" | tr , " "); do echo "${j}_0|RUNNING|None|N/A|n1"; done')
    statuses = query([f"{10_000_000 + k}_0" for k in range(MANY)])
    assert len(statuses) == MANY and 1 < len(calls(slurm)) < 5
    assert all(len(call) < 2 * LINE_BYTES for call in calls(slurm))


def test_a_large_array_is_cancelled_in_few_words(slurm: Path) -> None:
    end([f"12_{k}" for k in range(MANY)] + ["7", "8_3"])
    words = [word for call in calls(slurm) for word in call.split()[1:]]
    assert words[-2:] == ["7", "8_3"] and len(words) < 5 and max(map(len, words)) < 128_000
    jobs = [f"12_{task}" for word in words[:-2] for task in word.removeprefix("12_[").removesuffix("]").split(",")]
    assert jobs == [f"12_{k}" for k in range(MANY)]


def test_single_tasks_and_jobs_stay_as_they_are() -> None:
    assert together(["12_2"]) == ["12_2"] and together(["3", "4_1", "4_7"]) == ["3", "4_[1,7]"] and not together([])


def test_status_and_cancel_of_a_large_array(slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpc_rl.launchers.slurm.LINE_BYTES", 600)
    for k in range(300):
        folder = tmp_path / "runs" / f"{k:04d}" / "submit"
        folder.mkdir(parents=True)
        (folder / "jobs").write_text(f"12_{k}\n")
        (folder.parent / "job.toml").touch()
    program(slurm, "squeue", f'[ -e {tmp_path}/over ] || seq -f "12_%g|PENDING|Priority|N/A|" 0 299')
    program(slurm, "scancel", f"touch {tmp_path}/over")
    lines = states.status([tmp_path / "runs"], unwarned)
    assert len(lines) == 300 and {line.slurm for line in lines} == {"PENDING"}
    sentences = cancel_runs(runs_of([tmp_path / "runs"]))
    assert len(sentences) == 300 and all("while it waited" in sentence for sentence in sentences)


# ---- arrays ----------------------------------------------------------------------------------------------------------


def test_an_array_beyond_the_sites_limit_is_split_into_one_folder(slurm: Path, tmp_path: Path) -> None:
    answer(slurm, "scontrol", CONFIG.format(more=""))
    program(slurm, "sbatch", COUNTED.format(slurm))
    folder = tmp_path / "a b"
    assert submit(tasks("impala_catch", (), "0-9", ()), folder, OPTIONS, True) == ["11", "12", "13"]
    runs = [RunDir(folder / f"{k:04d}") for k in range(10)]
    assert [jobs.load(run.job_file).seed for run in runs] == list(range(10))
    assert [job_ids(run) for run in runs] == [[f"{11 + k // 4}_{k % 4}"] for k in range(10)]
    assert all(" --hold " in call for call in sent(slurm)) and len(sent(slurm)) == 3
    assert calls(slurm)[-3:] == [f"scontrol release {job}" for job in (11, 12, 13)]
    for part, first, count in ((1, 4, 4), (2, 8, 2)):
        text = (folder / "submit" / f"job-{part}.sbatch").read_text()
        assert f"#SBATCH --array=0-{count - 1}\n" in text
        locate = next(line for line in text.splitlines() if line.startswith("run="))
        (output,) = [line for line in text.splitlines() if line.startswith("#SBATCH --output=")]
        for place in range(count):
            process = subprocess.run(["bash", "-c", f'{locate}; echo "$run"'], capture_output=True, text=True,
                                     check=True, env={"SLURM_ARRAY_TASK_ID": str(place)})  # fmt: skip
            assert Path(process.stdout.strip()) == folder / f"{first + place:04d}"
            log = output.removeprefix("#SBATCH --output=").strip("'").replace("%4a", f"{place:04d}")
            assert Path(log).parent.resolve() == (folder / f"{first + place:04d}" / "logs").resolve()
    assert len(states.status([folder], unwarned)) == 10


@pytest.mark.parametrize(("more", "count"), [("", 3), (",max_array_tasks=3", 4), (",max_array_tasks=0", 3)])
def test_the_smaller_of_two_limits_counts(slurm: Path, tmp_path: Path, more: str, count: int) -> None:
    answer(slurm, "scontrol", CONFIG.format(more=more))
    assert len(parts(tasks("impala_catch", (), "0-9", ()), tmp_path, OPTIONS, True)) == count


def test_without_a_known_limit_there_is_one_array(slurm: Path, tmp_path: Path) -> None:
    answer(slurm, "scontrol", "", 1)
    assert len(parts(tasks("impala_catch", (), "0-9", ()), tmp_path, OPTIONS, True)) == 1


def test_parallel_holds_over_all_parts(slurm: Path, tmp_path: Path) -> None:
    answer(slurm, "scontrol", CONFIG.format(more=""))
    program(slurm, "sbatch", COUNTED.format(slurm))
    options = Options(launcher="srun", mpi="pmi2", parallel=2, after=("ok:3",))
    submit(tasks("impala_catch", (), "0-9", ()), tmp_path / "runs", options, True)
    dependencies = [[word for word in call.split() if word.startswith("--dep")] for call in sent(slurm)]
    assert dependencies == [[], ["--dependency=afterok:3,afterany:11"], ["--dependency=afterok:3,afterany:12"]]


def test_of_several_arrays_all_are_queued_or_none(slurm: Path, tmp_path: Path) -> None:
    answer(slurm, "scontrol", CONFIG.format(more=""))
    program(slurm, "sbatch", f"[ -e {slurm}/n ] && {{ echo QOSMaxSubmitJobPerUserLimit >&2; exit 1; }}\n"
            + COUNTED.format(slurm))  # fmt: skip
    with pytest.raises(Refused, match=r"QOSMaxSubmitJobPerUserLimit.*array 2 of 3, so none is queued"):
        submit(tasks("impala_catch", (), "0-9", ()), tmp_path / "runs", OPTIONS, True)
    assert "scancel 11" in calls(slurm) and not (tmp_path / "runs").exists()


def test_arrays_that_stay_held_are_named(slurm: Path, tmp_path: Path) -> None:
    program(slurm, "scontrol", f"[ $1 = show ] || exit 1\ncat <<'E'\n{CONFIG.format(more='')}\nE")
    program(slurm, "sbatch", COUNTED.format(slurm))
    with pytest.raises(SlurmError, match=r"jobs 11,12,13 are held \(scontrol release 11,12,13\)"):
        submit(tasks("impala_catch", (), "0-9", ()), tmp_path / "runs", OPTIONS, True)
    assert job_ids(RunDir(tmp_path / "runs" / "0009")) == ["13_1"]


def test_a_folder_that_is_taken_leaves_no_others_behind(slurm: Path, tmp_path: Path) -> None:
    shelf = tmp_path / "runs"
    create(shelf / "0002", jobs.dumps(jobs.load("impala_catch")))
    with pytest.raises(BadRun, match=r"0002 holds a run already"):
        submit(tasks("impala_catch", (), "0-3", ()), shelf, OPTIONS, True)
    assert [path.name for path in shelf.iterdir()] == ["0002"] and not sent(slurm)


def test_a_folder_in_which_nothing_more_can_be_written_is_removed_again(
    slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hpc_rl.submit.write_json", full)
    for array, seeds in ((True, "0-1"), (False, None)):
        with pytest.raises(OSError, match="No space"):
            submit(tasks("impala_catch", (), seeds, ()), tmp_path / "runs", OPTIONS, array)
        assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("seeds", "sweeps", "sentence"),
    [
        ("0-99999999999", [], "more than 100000 seeds"),
        ("0-60000,100000-160000", [], "more than 100000 seeds"),
        ("0-99999", ["impala.unroll=" + ",".join(map(str, range(1, 999)))], "tasks, more than 100000"),
        ("9" * 5000, [], "cannot be read"),
        ("²", [], "cannot be read"),
    ],
    ids=["one range", "two ranges", "product", "digits", "superscript"],
)
def test_too_many_seeds_are_refused_before_a_list_of_them_is_made(
    seeds: str, sweeps: Sequence[str], sentence: str
) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20), hard))
    try:
        with pytest.raises(BadJob, match=sentence):
            tasks("impala_catch", (), seeds, sweeps)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_the_file_of_a_method_is_read_once_for_all_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks("impala_catch", (), "0", ())
    monkeypatch.setattr(methods.ast, "parse", None)
    assert len(tasks("impala_catch", (), "0-9", ())) == 10


# ---- nodes -----------------------------------------------------------------------------------------------------------


def test_show_refuses_what_submit_refuses(slurm: Path, tmp_path: Path) -> None:
    """Both lay ranks on nodes by one function."""
    commands = (("show", ()), ("submit", ("--out", tmp_path / "run")), ("submit", ("--dry-run",)))
    results = [in_process(command, "impala_catch", "--nodes", 4, *more) for command, more in commands]
    assert {result.err for result in results} == {
        "error: nodes = 4 for 3 rank(s); use fewer nodes, or -n for more ranks\n"
    }
    assert [result.code for result in results] == [2, 2, 2]
    assert in_process("show", "impala_catch", "--nodes", 3).code == 0


@pytest.mark.parametrize(("nodes", "fits"), [("two", False), ("0", False), ("", False), ("1-2", True), ("2", True)])
def test_nodes_of_the_learners_component(tmp_path: Path, nodes: str, fits: bool) -> None:
    options = Options(launcher="srun", layout="het", learners=(f"nodes={nodes}",))
    task_list = tasks("impala_catch", ("resources.device=cuda",), None, ())
    if fits:
        assert f"#SBATCH --nodes={nodes}\n" in parts(task_list, tmp_path, options, False)[0].script
    else:
        with pytest.raises(BadJob, match=f"nodes={nodes}' cannot be read"):
            parts(task_list, tmp_path, options, False)


# ---- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["submit", "ppo_cartpole", "--out", "{}"], ["submit", "{}"], ["status", "{}"], ["logs", "{}"], ["cancel", "{}"],
        ["resume", "{}"], ["run", "ppo_cartpole", "--out", "{}"], ["show", "{}"],
        ["submit", "ppo_cartpole", "--container", "{}"],
    ],
    ids=" ".join,
)  # fmt: skip
@pytest.mark.parametrize("name", ["a" * 300, "/".join(["b" * 200] * 25)], ids=["name", "path"])
def test_a_name_that_the_file_system_cannot_carry_is_a_sentence(
    slurm: Path, arguments: list[str], name: str, tmp_path: Path
) -> None:
    result = in_process(*(word.format(tmp_path / name) for word in arguments))
    assert result.code == 2 and result.err.startswith("error: ") and "File name too long" in result.err
    assert [path.name for path in tmp_path.iterdir()] == ["bin"]
