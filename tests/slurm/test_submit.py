"""Submissions with SLURM's commands faked: what is made, what is kept, what is undone.

Mutations seen to fail: `_unmake` removing the whole folder; `resume` without its look at the queue.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from hpc_rl import follow
from hpc_rl import job as jobs
from hpc_rl import status as states
from hpc_rl.cancel import cancel_runs
from hpc_rl.cli import main
from hpc_rl.job import BadJob
from hpc_rl.launchers.attempt import job_ids, note_job
from hpc_rl.launchers.causes import user
from hpc_rl.launchers.options import Options
from hpc_rl.launchers.slurm import SlurmError
from hpc_rl.run_folders import runs_of
from hpc_rl.storage.run_dir import BadRun, RunDir, create
from hpc_rl.submit import resume, submit
from hpc_rl.sweep import tasks
from hpc_rl.then_analyze import analyze_after
from tests.slurm.fake import answer, calls

OPTIONS = Options(launcher="srun", mpi="pmi2", time="10")


def unwarned(text: str) -> None:
    raise AssertionError(text)


def test_seeds_and_sweeps_multiply(slurm: Path) -> None:
    task_list = tasks("ppo_cartpole", (), "0-2", ["ppo.learning_rate=1e-4,3e-4", "ppo.hidden=[64, 64],[32]"])
    assert len(task_list) == 12 and task_list[0].changes == ("ppo.learning_rate=1e-4", "ppo.hidden=[64, 64]", "seed=0")
    assert [task.job.seed for task in task_list[:4]] == [0, 1, 2, 0] and task_list[-1].job.method["hidden"] == (32,)


@pytest.mark.parametrize(
    ("seeds", "sweeps", "sentence"),
    [
        ("a-b", [], "write 0-4 or 1,3,5"),
        ("4-2", [], "names no seed"),
        ("1,1", [], "a seed twice"),
        (None, ["ppo.learning_rate"], "cannot be read; write KEY=VALUE"),
        (None, ["ppo.learning_rte=1"], "did you mean"),
        (None, ["seed=-1"], "seed = -1"),
        ("0-200000", [], "more than"),
    ],
)
def test_bad_ranges(seeds: str | None, sweeps: list[str], sentence: str) -> None:
    with pytest.raises(BadJob, match=sentence):
        tasks("ppo_cartpole", (), seeds, sweeps)


def test_a_submission_keeps_script_options_and_id(slurm: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert submit(tasks("impala_catch", (), None, ()), run, OPTIONS, False) == ["12"]
    assert job_ids(RunDir(run)) == ["12"] and RunDir(run).read_state()["state"] == "pending"
    assert "--time=10" in (run / "submit" / "job.sbatch").read_text()
    with pytest.raises(BadRun, match="holds a run already"):
        submit(tasks("impala_catch", (), None, ()), run, OPTIONS, False)


def test_what_sbatch_refuses_leaves_nothing_and_touches_nothing_else(slurm: Path, tmp_path: Path) -> None:
    answer(slurm, "sbatch", "", 1)
    shelf = tmp_path / "runs"
    other = create(shelf / "other", jobs.dumps(jobs.load("impala_catch")))
    for out, array, seeds in ((shelf, True, "0-1"), (shelf / "new", True, "0-1"), (shelf / "one", False, None)):
        with pytest.raises(SlurmError):
            submit(tasks("impala_catch", (), seeds, ()), out, OPTIONS, array)
    assert [path.name for path in shelf.iterdir()] == ["other"] and other.job_file.exists()


def test_an_array_that_is_too_large_for_the_site_and_one_that_is_refused_for_another_reason(
    slurm: Path, tmp_path: Path
) -> None:
    (slurm / "sbatch").write_text("#!/bin/sh\necho 'Invalid partition name specified' >&2\nexit 1\n")
    with pytest.raises(SlurmError, match="Invalid partition") as error:
        submit(tasks("impala_catch", (), "0-2", ()), tmp_path / "runs", OPTIONS, True)
    assert "MaxArraySize" not in str(error.value)
    (slurm / "sbatch").write_text(
        "#!/bin/sh\necho 'Batch job submission failed: Invalid job array specification' >&2\nexit 1\n"
    )
    with pytest.raises(SlurmError, match=r"3 tasks may be more than this site's MaxArraySize"):
        submit(tasks("impala_catch", (), "0-2", ()), tmp_path / "runs", OPTIONS, True)


def test_a_folder_of_several_runs_names_one(slurm: Path, tmp_path: Path) -> None:
    submit(tasks("impala_catch", (), "3-4", ()), tmp_path / "runs", OPTIONS, True)
    for command in (
        lambda: list(follow.tail(tmp_path / "runs", False)),
        lambda: resume(tmp_path / "runs", [], None, {}),
    ):
        with pytest.raises(BadRun, match=r"holds 2 run\(s\); name one, like .*runs/0000"):
            command()
    answer(slurm, "squeue", "12_0|RUNNING|None|N/A|n1\n12_1|RUNNING|None|N/A|n1")
    run = RunDir(tmp_path / "runs" / "0001")
    run.write_state(state="running", env_steps=10)
    (run.metrics / "learner-0.jsonl").write_text('{"env_steps": 70, "mean_return_100": 0.5, "time": 1}\n')
    first, second = states.status([tmp_path / "runs"], unwarned)
    assert (first.changes, second.changes) == ("seed=3", "seed=4")
    assert (second.env_steps, second.mean_return, first.mean_return) == (70, 0.5, None)
    assert "\n    seed=4" in states.render([first, second])


def test_no_array_inside_a_run(slurm: Path, tmp_path: Path) -> None:
    run = create(tmp_path / "run", jobs.dumps(jobs.load("impala_catch")))
    with pytest.raises(BadRun, match="holds a single run"):
        submit(tasks("impala_catch", (), "0-1", ()), run.path, OPTIONS, True)


def test_status_of_a_hundred_runs_asks_once(slurm: Path, tmp_path: Path) -> None:
    task_list = tasks("impala_catch", (), "0-99", ())
    submit(task_list, tmp_path / "runs", OPTIONS, True)
    answer(slurm, "squeue", "\n".join(f"12_{k}|PENDING|Priority|2026-11-21T05:00:00|" for k in range(100)))
    lines = states.status([tmp_path / "runs"], unwarned)
    assert len(lines) == 100 and {line.slurm for line in lines} == {"PENDING"} and lines[7].job == "12_7"
    assert sum(line.startswith(("squeue", "sacct")) for line in calls(slurm)) == 1
    assert "starts about 2026-11-21T05:00:00" in states.render(lines) and len(json.loads(states.as_json(lines))) == 100


@pytest.mark.parametrize(
    ("queue", "account", "sentence"),
    [("", "12|NODE_FAIL|x|n1", "SLURM ended job 12: NODE_FAIL"), ("", "", "SLURM no longer knows job 12")],
)
def test_a_run_that_slurm_lost_is_lost(slurm: Path, tmp_path: Path, queue: str, account: str, sentence: str) -> None:
    submit(tasks("impala_catch", (), None, ()), tmp_path / "run", OPTIONS, False)
    answer(slurm, "squeue", queue)
    answer(slurm, "sacct", account)
    (line,) = states.status([tmp_path / "run"], unwarned)
    assert line.state == "lost" and sentence in line.reason and "its last output" not in line.reason
    (RunDir(tmp_path / "run").logs / "slurm-12.out").write_text("line 77: nopython: not found\n\n")
    (line,) = states.status([tmp_path / "run"], unwarned)
    assert "its last output: line 77: nopython: not found; go on" in line.reason


def test_a_run_whose_job_was_cancelled_by_hand_is_stopped_and_one_that_cannot_be_asked_is_itself(
    slurm: Path, tmp_path: Path
) -> None:
    submit(tasks("impala_catch", (), None, ()), tmp_path / "run", OPTIONS, False)
    answer(slurm, "sacct", "12|CANCELLED by 0|x|n1")
    (line,) = states.status([tmp_path], unwarned)
    assert line.state == "stopped" and "CANCELLED by root; go on with hpc-rl resume" in line.reason
    assert (line.cause, line.next) == ("cancelled", f"hpc-rl resume {tmp_path}/run")
    RunDir(tmp_path / "run").write_state(state="stopped", reason="stopped: asked to stop")  # its ranks were in time
    (line,) = states.status([tmp_path], unwarned)
    assert line.state == "stopped" and "asked to stop: SLURM ended job 12: CANCELLED by root; go on" in line.reason
    answer(slurm, "squeue", "12|CANCELLED|None|N/A|n1")  # which does not know by whom
    assert states.status([tmp_path], unwarned) == [line]
    RunDir(tmp_path / "run").write_state(state="pending", reason="")
    answer(slurm, "squeue", "", 1)
    warned: list[str] = []
    (line,) = states.status([tmp_path], warned.append)
    assert line.state == "pending" and "squeue says" in warned[0]


def test_a_new_state_word_does_not_lose_a_run(slurm: Path, tmp_path: Path) -> None:
    submit(tasks("impala_catch", (), None, ()), tmp_path / "run", OPTIONS, False)
    answer(slurm, "squeue", "12|HIBERNATING|None|N/A|n1")
    (line,) = states.status([tmp_path / "run"], unwarned)
    assert (line.state, line.slurm) == ("pending", "HIBERNATING")
    with pytest.raises(BadRun, match="still hibernating as job 12"):
        resume(tmp_path / "run", [], None, {})


def test_a_log_that_is_followed_ends_with_a_job_that_slurm_lost(slurm: Path, tmp_path: Path) -> None:
    submit(tasks("impala_catch", (), None, ()), tmp_path / "run", OPTIONS, False)
    logs = RunDir(tmp_path / "run").logs
    (logs / "slurm-9.out").write_text("of an earlier job\n")
    (logs / "slurm-12.out").write_text("begin\n")
    (logs / "ranks.log").write_text("".join(f"line {k}\n" for k in range(2000)))
    answer(slurm, "squeue", "12|RUNNING|None|N/A|n1")
    os.utime(logs / "slurm-9.out", (1, 1))
    naps = []

    def pause(seconds: float) -> None:
        naps.append(seconds)
        with (logs / "ranks.log").open("a") as file:
            file.write("later\n")
        answer(slurm, "squeue", "")

    lines = list(follow.tail(tmp_path / "run", True, pause))
    assert lines[0] == "begin" and lines[1].startswith("line 1") and lines[-1] == "later" and len(naps) == 20
    assert "of an earlier job" not in lines and len(lines) < 700


def test_resume_sends_the_same_again_with_changes(slurm: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    submit(
        tasks("impala_catch", (), None, ()), folder, Options(launcher="srun", partition="big", after=("ok:3",)), False
    )
    RunDir(folder).request_stop()
    answer(slurm, "sbatch", "13")
    option_values = {"time": "1-0", "modules": (), "partition": None}
    assert resume(folder, ["budget.env_steps=999999"], None, option_values) == "13"
    text = (folder / "submit" / "job.sbatch").read_text()
    assert "--partition=big" in text and "--time=1-0" in text and "afterok" not in text
    assert job_ids(RunDir(folder)) == ["12", "13"] and not RunDir(folder).stop_requested()
    assert jobs.load(folder / "job.toml").budget.env_steps == 999999


def test_resume_refuses_what_is_queued_done_or_changed(slurm: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    submit(tasks("impala_catch", (), None, ()), folder, OPTIONS, False)
    answer(slurm, "squeue", "12|PENDING|Resources|N/A|")
    with pytest.raises(BadRun, match="still pending as job 12"):
        resume(folder, [], None, {})
    answer(slurm, "squeue", "")
    RunDir(folder).write_state(state="done", reason="done: budget")
    with pytest.raises(BadRun, match=r"done: budget.*raise that limit"):
        resume(folder, [], None, {})
    with pytest.raises(BadJob, match=r"impala.unroll cannot change"):
        resume(folder, ["impala.unroll=5"], None, {})


def test_resume_takes_a_profile_checks_what_results_and_undoes_itself_when_refused(
    slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    submit(tasks("impala_catch", (), None, ()), folder, Options(launcher="srun", mem="4G", modules=("old",)), False)
    RunDir(folder).write_state(state="failed", reason="rank 1 failed: boom")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "hpc_rl").mkdir()
    (tmp_path / "hpc_rl" / "big.toml").write_text('partition = "big"\nmem_per_cpu = "2G"\nmodules = ["new"]\n')
    with pytest.raises(BadJob, match="lead_s = 1 is out of range"):
        resume(folder, [], "big", {"lead_s": 1})
    answer(slurm, "sbatch", "", 1)
    with pytest.raises(SlurmError, match="requested: --ntasks=3 --cpus-per-task=1 --mem-per-cpu=2G --partition=big"):
        resume(folder, [], "big", {})
    assert RunDir(folder).read_state()["reason"] == "rank 1 failed: boom"
    answer(slurm, "sbatch", "14")
    assert "big" not in (folder / "submit" / "options.json").read_text()  # what was refused is forgotten
    resume(folder, [], "big", {"time": "5"})
    text = (folder / "submit" / "job.sbatch").read_text()
    assert "--partition=big" in text and "--mem-per-cpu=2G" in text and "--mem=4G" not in text and "--time=5" in text
    assert "module load new" in text and "module load old" not in text


def test_an_sbatch_that_did_not_answer_keeps_the_run(slurm: Path, tmp_path: Path) -> None:
    answer(slurm, "sbatch", "what is this", 0)
    with pytest.raises(SlurmError, match="without a job id"):
        submit(tasks("impala_catch", (), None, ()), tmp_path / "run", OPTIONS, False)
    assert (tmp_path / "run" / "job.toml").exists()


def test_cancel_ends_waiting_jobs_at_once(slurm: Path, tmp_path: Path) -> None:
    run = create(tmp_path / "run", jobs.dumps(jobs.load("impala_catch")))
    note_job(run, "12")
    answer(slurm, "squeue", "12|PENDING|Resources|N/A|")
    assert " with hpc-rl cancel while it waited; go on with hpc-rl resume" in cancel_runs([run])[0]
    assert "scancel 12" in calls(slurm) and run.read_state()["state"] == "stopped"
    assert run.stop_requested()  # should the job have begun in between, it ends itself
    answer(slurm, "squeue", "")
    assert "no job is queued" in cancel_runs([run])[0]


def test_cancel_of_many_asks_and_waits_for_all_at_once(
    slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(tasks("impala_catch", (), "0-2", ()), tmp_path / "runs", OPTIONS, True)
    runs = runs_of([tmp_path / "runs"])
    answer(slurm, "squeue", "12_0|RUNNING|None|N/A|n1\n12_1|RUNNING|None|N/A|n1\n12_2|PENDING|Resources|N/A|")

    def save(seconds: float) -> None:
        assert all(run.stop_requested() for run in runs) and "scancel 12_2" in calls(slurm)
        runs[0].write_state(state="stopped", reason="stopped: asked to stop")
        answer(slurm, "squeue", "12_1|RUNNING|None|N/A|n1")

    # In place of the module: `subprocess` sleeps by time.sleep as well, while it waits for a child.
    monkeypatch.setattr("hpc_rl.cancel.time", SimpleNamespace(sleep=save, monotonic=time.monotonic))
    monkeypatch.setattr("hpc_rl.cancel.STOP_S", 0.5)
    sentences = cancel_runs(runs)
    author = f"cancelled by {user(os.getuid())} with hpc-rl cancel"
    assert [run.stop_text() for run in runs] == [author] * 3
    assert [line.partition(": ")[2] for line in sentences] == [
        "stopped: asked to stop",
        f"{author}, and did not stop within 0 s; the last checkpoint stands; go on with hpc-rl resume {runs[1].path}",
        f"{author} while it waited; go on with hpc-rl resume {runs[2].path}",
    ]
    assert calls(slurm)[-1] == "scancel 12_1"


def test_the_analysis_waits_for_the_runs(slurm: Path, tmp_path: Path) -> None:
    (tmp_path / "submit").mkdir()
    assert analyze_after(["11"], [tmp_path / "a b"], OPTIONS, tmp_path) == "12"
    text = (tmp_path / "submit" / "analysis.sbatch").read_text()
    assert "#SBATCH --dependency=afterany:11" in text and f"runs=('{tmp_path}/a b')" in text


@pytest.mark.parametrize(
    ("queue", "account", "state", "cause", "reason"),
    [
        ("", "12|PREEMPTED|x|n1", "lost", "preempted", "SLURM ended job 12: PREEMPTED"),
        ("", "12|TIMEOUT|x|n1", "lost", "time limit", "SLURM ended job 12: TIMEOUT"),
        ("", "12|OUT_OF_MEMORY|x|n1", "lost", "out of memory", "SLURM ended job 12: OUT_OF_MEMORY"),
        ("", "12|FAILED|x|n1", "lost", "script failed", "SLURM ended job 12: FAILED"),
        ("12|PENDING|BeginTime|N/A|", "", "pending", "node lost", "SLURM requeued job 12: its node was lost, or its"),
    ],
)
def test_what_no_script_could_write_down_is_told_by_status(
    slurm: Path, tmp_path: Path, queue: str, account: str, state: str, cause: str, reason: str
) -> None:
    submit(tasks("impala_catch", (), None, ()), tmp_path / "a run", OPTIONS, False)
    RunDir(tmp_path / "a run").write_state(state="running", reason="")
    answer(slurm, "squeue", queue)
    answer(slurm, "sacct", account)
    (line,) = states.status([tmp_path / "a run"], unwarned)
    assert (line.state, line.cause) == (state, cause) and line.reason.startswith(reason)
    command = f"hpc-rl resume '{tmp_path}/a run'"
    command += {"time limit": " --lead-s 240", "out of memory": ""}.get(cause, "")
    assert line.next == (command if state == "lost" else "") and line.next in line.reason


def test_a_command_in_a_stranger_s_run_is_not_shown_to_be_pasted(slurm: Path, tmp_path: Path) -> None:
    run = create(tmp_path / "run", jobs.dumps(jobs.load("impala_catch")))
    for command, pasted in (
        ("rm -rf ~", ""),
        ("hpc-rl resume run; rm -rf ~", ""),
        ("hpc-rl resume run --setup 'rm -rf ~'", ""),
        ("hpc-rl resume $(x)", "hpc-rl resume '$(x)'"),
        ("hpc-rl resume '", ""),
        ("hpc-rl run 'a b/job.toml' --out 'a b' --resume", "hpc-rl run 'a b/job.toml' --out 'a b' --resume"),
        ("hpc-rl run job.toml --out x --resume; y", ""),
        ("hpc-rl resume 'a b' --mem 3G", "hpc-rl resume 'a b' --mem 3G"),
    ):
        run.write_state(state="stopped", reason="stopped: job 7 was cancelled", cause="cancelled", next=command)
        (line,) = states.status([run.path], unwarned)
        assert line.next == pasted and line.reason.endswith(f"; go on with {pasted}" if pasted else "was cancelled")


def test_cancel_without_a_controller_writes_what_needs_none(
    slurm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        submit(tasks("impala_catch", (), None, ()), tmp_path / name, OPTIONS, False)
    RunDir(tmp_path / "a").write_state(state="running")
    RunDir(tmp_path / "b").write_state(state="failed", reason="rank 1 failed")
    answer(slurm, "squeue", "slurm_load_jobs error: Unable to contact slurm controller (connect failure)", 1)
    monkeypatch.setattr("sys.argv", ["hpc-rl", "cancel", str(tmp_path / "a"), str(tmp_path / "b")])
    with pytest.raises(SystemExit) as end:
        main()
    stderr = capsys.readouterr().err
    assert end.value.code == 1 and "error: squeue says: " in stderr
    assert f"{tmp_path}/a: STOP is written there" in stderr and f"{tmp_path}/b: failed already" in stderr
    assert RunDir(tmp_path / "a").stop_text().endswith("with hpc-rl cancel")
    assert not RunDir(tmp_path / "b").stop_requested()


def test_cancel_of_a_run_that_hpc_rl_run_started_needs_no_slurm(slurm: Path, tmp_path: Path) -> None:
    run = create(tmp_path / "run", jobs.dumps(jobs.load("impala_catch")))
    run.write_state(state="running")
    assert "STOP is written" in cancel_runs([run])[0] and run.stop_requested()


def test_what_describes_another_job_reaches_no_new_one(
    slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is where somebody types `hpc-rl submit` in a shell that srun started, inside an array task."""
    foreign = {
        "SLURM_ARRAY_JOB_ID": "6", "SLURM_ARRAY_TASK_ID": "4", "SLURM_RESTART_COUNT": "3", "SLURM_MEM_PER_CPU": "700",
        "SLURM_STEP_ID": "0", "SLURM_CPU_BIND": "mask_cpu:0x1", "SLURM_MPI_TYPE": "none", "SLURMD_NODENAME": "n1",
        "SRUN_CPUS_PER_TASK": "4", "PMI_RANK": "0", "HPC_RL_TOKEN": "6_4-0-1", "HPC_RL_END_S": "7",
        "SBATCH_TIMELIMIT": "1", "SBATCH_SIGNAL": "KILL", "SBATCH_ARRAY_INX": "0-9", "SBATCH_MEM_PER_GPU": "1",
        "SLURM_JOB_GPUS": "2", "CUDA_VISIBLE_DEVICES": "2", "SBATCH_WAIT": "1", "SQUEUE_USERS": "nobody",
        "SCANCEL_INTERACTIVE": "1",
    }  # fmt: skip
    settings = {
        "SLURM_CONF": "/c",
        "SBATCH_PARTITION": "mine",
        "SBATCH_EXPORT": "NONE",
        "OMPI_MCA_btl": "self",
        "ROOT": "/",
    }
    for name, value in {**foreign, **settings}.items():
        monkeypatch.setenv(name, value)
    (slurm / "sbatch").write_text(f"#!/bin/sh\nenv > {slurm}/environment\necho 12\n")
    (slurm / "squeue").write_text(f"#!/bin/sh\nenv > {slurm}/asked\n")
    submit(tasks("impala_catch", (), None, ()), tmp_path / "run", Options(launcher="srun", time="9", mem="1G"), False)
    variables = dict(line.split("=", 1) for line in (slurm / "environment").read_text().splitlines())
    assert not variables.keys() & foreign.keys() and variables.items() >= settings.items()
    states.status([tmp_path / "run"], unwarned)
    assert not {"SQUEUE_USERS", "SLURM_STEP_ID"} & {x.split("=")[0] for x in (slurm / "asked").read_text().splitlines()}
    monkeypatch.delenv("SLURM_STEP_ID")  # in a shell of one's own this is one's own wish
    (slurm / "sbatch").write_text(f"#!/bin/sh\nenv > {slurm}/environment\necho 13\n")
    submit(tasks("impala_catch", (), None, ()), tmp_path / "other", Options(launcher="srun"), False)
    variables = dict(line.split("=", 1) for line in (slurm / "environment").read_text().splitlines())
    assert variables["SLURM_CPU_BIND"] == "mask_cpu:0x1" and variables["SBATCH_TIMELIMIT"] == "1"


def test_a_run_of_this_machine_names_its_command_where_slurm_refuses(slurm: Path, tmp_path: Path) -> None:
    run = create(tmp_path / "run", jobs.dumps(jobs.load("impala_catch")))
    answer(slurm, "sbatch", "", 1)
    with pytest.raises(
        SlurmError, match=rf"on this machine it goes on by hpc-rl run {run.job_file} --out .* --resume$"
    ):
        resume(run.path, [], None, {})
