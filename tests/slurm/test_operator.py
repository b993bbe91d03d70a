"""What an operator asks: how far, how long, why it waits, which run is this job, tell me when it is over.

Mutations seen to fail: `over` without SLURM's word, `lost` believed at once, the rate over two attempts, `_of_job` by
prefix alone, `analyze_after` with its fixed time, the analysis cancelled with one run of many.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from hpc_rl import follow, then_analyze
from hpc_rl import job as jobs
from hpc_rl import status as states
from hpc_rl.cancel import cancel_runs
from hpc_rl.job import BadJob
from hpc_rl.launchers.attempt import job_ids, note_job
from hpc_rl.launchers.limits import check_time
from hpc_rl.launchers.options import Options, seconds
from hpc_rl.launchers.reasons import explain
from hpc_rl.launchers.slurm import Refused, queued
from hpc_rl.run_folders import runs_of, single
from hpc_rl.storage.metrics import rate
from hpc_rl.storage.run_dir import BadRun, RunDir, create
from hpc_rl.submit import resume, submit
from hpc_rl.sweep import tasks
from tests.slurm.fake import answer, calls, program

OPTIONS = Options(launcher="srun", mpi="pmi2", time="10")
RUNNING = "12|RUNNING|None|2026-11-25T09:00:00|n[1-3]|1-02:03:04|59:58"
PARTITION = "PartitionName={} Default={} DefaultTime={} MaxTime={} State=UP"


def unwarned(text: str) -> None:
    raise AssertionError(text)


def one_run(slurm: Path, folder: Path, squeue: str = RUNNING) -> RunDir:
    submit(tasks("impala_catch", (), None, ()), folder, OPTIONS, False)
    answer(slurm, "squeue", squeue)
    return RunDir(folder)


def hpc(*arguments: object, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from hpc_rl.cli import main; main()", *map(str, arguments)]
    environment = {**os.environ, **variables}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=cwd, env=environment)


def metrics(run: RunDir, *rows: tuple[float, int, int]) -> Path:
    file = run.metrics / "learner-0.jsonl"
    lines = [{"time": at, "step": n, "env_steps": n, "attempt": attempt} for at, n, attempt in rows]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


# ---- why it waits ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("Priority", "jobs of higher priority come first"),
        ("Resources", "nodes to become free"),
        ("BeginTime", "requeued job is held back"),
        ("Dependency", "waits for another job to end"),
        ("DependencyNeverSatisfied", "never start"),
        ("ReqNodeNotAvail, UnavailableNodes:n3", "down, drained or reserved"),
        ("PartitionTimeLimit", "more time than its partition allows; it will never start"),
        ("JobArrayTaskLimit", "--parallel"),
        ("QOSMaxJobsPerUserLimit", "limit of its QOS on running jobs of one user is reached"),
        ("QOSMaxWallDurationPerJobLimit", "more wall time than its QOS allows one job; it will never start"),
        ("QOSMaxCpuPerUserLimit", "QOS on CPUs of one user"),
        ("QOSMaxGRESPerUser", "QOS on GPUs of one user"),
        ("QOSMinCpuNotSatisfied", "fewer CPUs than its QOS demands"),
        ("AssocGrpCPUMinutesLimit", "account on CPU minutes of all its users together"),
        ("AssocGrpCpuLimit", "account on CPUs of all its users together"),
        ("AssocMaxJobsLimit", "account on running jobs is reached, until other jobs end"),
        ("AssocGrpMemRunMinutes", "account on mem run minutes of all"),
        ("launch_failed_requeued_held", "held; mend the cause"),
        ("Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions", "are down"),
    ],
)
def test_reasons_in_plain_words(reason: str, words: str) -> None:
    assert explain(reason).startswith(f"{reason}: ") and words in explain(reason)


def test_a_limit_that_refuses_a_submission_is_named_in_plain_words(slurm: Path, tmp_path: Path) -> None:
    failed = "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy"
    for limit, words in (
        ("QOSMaxSubmitJobPerUserLimit", "the limit of its QOS on submitted jobs of one user is reached"),
        ("AssocMaxWallDurationPerJobLimit", "it requests more wall time than its account allows one job"),
    ):
        program(slurm, "sbatch", f"echo 'sbatch: error: {limit}' >&2; echo '{failed}' >&2; exit 1")
        with pytest.raises(
            Refused, match=rf"^sbatch says: {limit} \({words}\); Batch job.* accounting/QOS policy; requested"
        ):
            submit(tasks("impala_catch", (), None, ()), tmp_path / "run", OPTIONS, False)


@pytest.mark.parametrize("reason", ["PriorityInversion", "SomethingNew", "", "QOS", "Max"])
def test_a_reason_that_is_not_known_stays(reason: str) -> None:
    assert explain(reason) == reason


def test_a_pending_run_shows_its_own_word_and_what_it_waits_for(slurm: Path, tmp_path: Path) -> None:
    run = one_run(slurm, tmp_path / "run", "12|PENDING|Priority|2026-11-25T12:00:00||0:00|10:00")
    run.write_state(reason="stopped: asked to stop; restart 1 is waiting")
    (line,) = states.status([run.path], unwarned)
    assert (line.elapsed_s, line.left_s, line.nodes, line.over) == (None, None, "", False)
    text = states.render([line])
    assert (
        "waits: Priority: jobs of higher priority come first; starts about 2026-11-25T12:00:00; stopped: asked" in text
    )


# ---- how far, how long ----------------------------------------------------------------------------------------------


def test_elapsed_and_remaining_time_nodes_rate_and_end(slurm: Path, tmp_path: Path) -> None:
    run = one_run(slurm, tmp_path / "run")
    budget = jobs.load(run.job_file).budget.env_steps
    run.write_state(state="running", env_steps=100)
    now = time.time()
    metrics(run, (now - 90, 0, 0), (now - 20, 7000, 0), (now - 10, 8000, 0), (now, 9000, 0))
    (line,) = states.status([run.path], unwarned)
    assert (line.elapsed_s, line.left_s, line.nodes) == (93784, 3598, "n[1-3]")
    assert line.env_steps == 9000 and line.env_steps_per_s == pytest.approx(100.0)
    due = datetime.now() + timedelta(seconds=(budget - 9000) / 100)
    assert abs(datetime.fromisoformat(line.end) - due) < timedelta(seconds=70)
    head, row, *_ = states.render([line]).splitlines()
    assert head.split()[:7] == ["run", "state", "job", "slurm", "elapsed", "left", "nodes"]
    assert "1 day, 2:03:04  0:59:58  n[1-3]  9,000" in row
    assert json.loads(states.as_json([line]))[0]["left_s"] == 3598


def test_a_run_that_does_not_run_has_no_rate_and_no_empty_columns(slurm: Path, tmp_path: Path) -> None:
    run = one_run(slurm, tmp_path / "run", "")
    metrics(run, (time.time() - 10, 0, 0), (time.time(), 1000, 0))
    run.write_state(state="done", reason="done: budget", env_steps=1000)
    (line,) = states.status([run.path], unwarned)
    assert line.env_steps_per_s is None and line.end == "" and line.over
    assert states.render([line]).split("\n")[0].split() == ["run", "state", "job", "env", "steps", "return", "attempt"]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([], None),
        ([(0, 5, 1)], None),
        ([(0, 100, 1), (10, 200, 1)], 10.0),
        ([(0, 100, 0), (10, 200, 1)], None),  # the attempt before
        ([(0, 900, 1), (5, 100, 1), (10, 200, 1)], 20.0),  # it had come further
        ([(0, 0, 1), (100, 100, 1), (110, 300, 1)], 20.0),  # more than a minute ago
        ([(0, 100, 1), (0, 200, 1)], None),
    ],
)
def test_the_rate_is_that_of_the_last_minute_of_this_attempt(
    tmp_path: Path, rows: list[tuple[float, int, int]], expected: float | None
) -> None:
    run = create(tmp_path / "run", jobs.dumps(jobs.load("impala_catch")))
    assert rate(metrics(run, *rows), 1) == (None if expected is None else pytest.approx(expected))


def test_squeue_without_times_and_with_words_for_them() -> None:
    assert queued("1|RUNNING|None|N/A|n1")["1"].left_s is None
    statuses = queued(
        "2|RUNNING|None|N/A|n1|0:07|UNLIMITED\n3|PENDING|None|N/A||0:00|NOT_SET\n4|RUNNING|None|x|n1|INVALID|"
    )
    assert (statuses["2"].elapsed_s, statuses["2"].left_s, statuses["3"].left_s, statuses["4"].elapsed_s) == (
        7,
        None,
        None,
        None,
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0:07", 7), ("59:58", 3598), ("1:00:00", 3600), ("2-03", 183600), ("1-00:00:01", 86401), ("UNLIMITED", None),
     ("", None), ("INVALID", None), (None, None), ("30", 1800)],
)  # fmt: skip
def test_times_of_slurm(text: str | None, expected: int | None) -> None:
    assert seconds(text) == expected


# ---- which run ------------------------------------------------------------------------------------------------------


def test_without_arguments_status_shows_the_folder_runs(slurm: Path, tmp_path: Path) -> None:
    one_run(slurm, tmp_path / "runs" / "x")
    assert "runs/x  pending  12   RUNNING" in hpc("status", cwd=tmp_path).stdout
    process = hpc("status", cwd=tmp_path / "bin")
    assert process.returncode == 2 and "runs holds no run" in process.stderr


def test_a_run_is_named_by_its_job(slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    submit(tasks("impala_catch", (), "0-11", ()), Path("runs/many"), OPTIONS, True)
    answer(slurm, "sbatch", "121")
    submit(tasks("impala_catch", (), None, ()), Path("runs/one"), OPTIONS, False)
    answer(slurm, "squeue", "")
    names = lambda job: [str(run.path) for run in runs_of([Path(job)])]  # noqa: E731
    assert names("121") == ["runs/one"] and names("12_1") == ["runs/many/0001"]
    assert names("12") == [f"runs/many/{k:04d}" for k in range(12)]
    assert single(Path("12_11")).path == Path("runs/many/0011")
    with pytest.raises(BadRun, match=r"12 holds 12 run\(s\); name one"):
        single(Path("12"))
    with pytest.raises(BadRun, match="job 13 belongs to no run below runs"):
        runs_of([Path("13")])
    Path("121").mkdir()  # a folder of that name comes first
    with pytest.raises(BadRun, match="121 holds no run"):
        runs_of([Path("121")])


def test_a_job_of_another_folder_is_found_by_its_script(slurm: Path, tmp_path: Path, monkeypatch: object) -> None:
    run = one_run(slurm, tmp_path / "far away" / "run", "")
    answer(slurm, "squeue", str(run.path / "submit" / "job.sbatch"))
    assert [run_of_job.path for run_of_job in runs_of([Path("12")])] == [run.path]
    with pytest.raises(BadRun, match="job 9 belongs"):
        runs_of([Path("9")])


def test_resume_by_job_and_with_ranks(slurm: Path, tmp_path: Path) -> None:
    run = one_run(slurm, tmp_path / "runs" / "x", "")
    answer(slurm, "sbatch", "13")
    process = hpc("resume", "12", "-n", 5, cwd=tmp_path)
    assert process.stdout == "13\n", process.stderr
    assert jobs.load(run.job_file).resources.ranks == 5 and job_ids(run) == ["12", "13"]
    text = (run.path / "submit" / "job.sbatch").read_text()
    assert "--ntasks=5\n" in text and f"run={run.path}\n" in text


# ---- tell me when it is over ----------------------------------------------------------------------------------------


def waited(runs: list[RunDir], *steps: Callable[[], object]) -> tuple[int, list[str]]:
    lines: list[str] = []
    todo = list(steps)

    def pause(seconds: float) -> None:
        assert todo, f"it should be over: {lines}"
        todo.pop(0)()

    code = follow.wait(runs, lines.append, pause)
    assert not todo, f"it ended too early: {lines}"
    return code, lines


@pytest.mark.parametrize(
    ("state", "code"), [("done", 0), ("stopped", 0), ("failed", 1)],
)  # fmt: skip
def test_wait_ends_when_run_and_slurm_say_so(slurm: Path, tmp_path: Path, state: str, code: int) -> None:
    run = one_run(slurm, tmp_path / "run", "12|PENDING|Resources|N/A|")
    result, lines = waited(
        [run],
        lambda: (answer(slurm, "squeue", RUNNING), run.write_state(state="running")),
        lambda: run.write_state(state="stopped", reason="stopped: asked to stop"),  # the script has yet to requeue it
        lambda: (
            answer(slurm, "squeue", "12|PENDING|BeginTime|N/A|"),
            run.write_state(state="pending", reason="again"),
        ),
        lambda: run.write_state(state=state, reason=f"{state}: because"),
        lambda: answer(slurm, "squeue", "12|COMPLETED|None|N/A|"),
    )
    assert result == code
    assert [line.removeprefix(f"{run.path}: ") for line in lines] == [
        "pending as job 12: Resources: it is next, and waits for nodes to become free",
        "running as job 12",
        "stopped as job 12: stopped: asked to stop",
        "pending as job 12: BeginTime: it may not begin yet; a requeued job is held back, by default for two minutes; "
        "again",
        f"{state} as job 12: BeginTime: it may not begin yet; a requeued job is held back, by default for two minutes; "
        f"{state}: because",
        f"{state} as job 12: {state}: because",
    ]


def test_wait_believes_that_a_run_is_lost_at_the_second_look(slurm: Path, tmp_path: Path) -> None:
    run = one_run(slurm, tmp_path / "run")
    code, _ = waited(
        [run],
        lambda: answer(slurm, "squeue", ""),
        lambda: answer(slurm, "squeue", RUNNING),
        lambda: answer(slurm, "squeue", "12|NODE_FAIL|None|N/A|n1"),
        lambda: None,
    )
    assert code == 1


def test_wait_goes_on_while_slurm_does_not_answer_and_says_so_once(slurm: Path, tmp_path: Path) -> None:
    run = one_run(slurm, tmp_path / "run")
    code, lines = waited(
        [run],
        lambda: (answer(slurm, "squeue", "", 1), run.write_state(state="stopped", reason="stopped: asked to stop")),
        lambda: None,
        lambda: answer(slurm, "squeue", ""),
    )
    assert code == 0 and sum("the states below are those that the runs recorded" in line for line in lines) == 1


def test_wait_of_an_array_counts_what_stays_the_same_and_ends_with_the_worst(slurm: Path, tmp_path: Path) -> None:
    submit(tasks("impala_catch", (), "0-1", ()), tmp_path / "runs", OPTIONS, True)
    first, second = runs_of([tmp_path / "runs"])
    answer(slurm, "squeue", "12_0|RUNNING|None|N/A|n1\n12_1|RUNNING|None|N/A|n1")
    naps: list[float] = []
    lines: list[str] = []

    def pause(seconds: float) -> None:
        naps.append(seconds)
        if sum(naps) > 2.3 * follow.REPORT_S:
            first.write_state(state="done", reason="done: budget")
            second.write_state(state="failed", reason="failed: boom")
            answer(slurm, "squeue", "")

    assert follow.wait([first, second], lines.append, pause) == 1
    assert lines.count("2 pending") == 2 and max(naps) == follow.LATER_S and naps[0] == follow.FIRST_S


@pytest.mark.parametrize("command", ["wait", "logs"])
def test_nobody_waits_for_a_run_whose_folder_is_gone(slurm: Path, tmp_path: Path, command: str) -> None:
    run = one_run(slurm, tmp_path / "run")

    def gone(seconds: float) -> None:
        shutil.rmtree(run.path)

    with pytest.raises(BadRun, match="holds no run any more"):
        if command == "wait":
            follow.wait([run], lambda text: None, gone)
        else:
            list(follow.tail(run.path, True, gone))


def test_submit_waits_and_ends_as_the_run_did(slurm: Path, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    program(slurm, "sbatch", f"""echo 12; echo '{{"state": "failed", "reason": "failed: boom"}}' > {run.state_file}""")
    process = hpc("submit", "impala_catch", "--out", run.path, "--launcher", "srun", "--mpi", "pmi2", "--wait")
    assert (process.returncode, process.stdout) == (1, "12\n") and "failed as job 12: failed: boom" in process.stderr


def test_whoever_stops_waiting_is_told_that_the_job_goes_on(slurm: Path, tmp_path: Path) -> None:
    answer(slurm, "squeue", RUNNING)
    command = [sys.executable, "-c", "from hpc_rl.cli import main; main()", "submit", "impala_catch", "--wait"]
    process = subprocess.Popen([*command, "--out", tmp_path / "a b"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                               text=True)  # fmt: skip
    assert process.stderr is not None
    assert any("pending as job 12" in line for line in process.stderr)
    process.send_signal(signal.SIGINT)
    stderr = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and f"the job goes on, see hpc-rl status '{tmp_path}/a b'" in stderr
    assert not any(call.startswith("scancel") for call in calls(slurm))


def test_watch_goes_on_while_the_job_of_a_run_that_stopped_is_active(slurm: Path, tmp_path: Path) -> None:
    run = one_run(slurm, tmp_path / "run")
    run.write_state(state="stopped", reason="stopped: asked to stop")
    assert [line.over for line in states.status([run.path], unwarned)] == [False]
    answer(slurm, "squeue", "12|COMPLETED|None|N/A|n1")
    assert [line.over for line in states.status([run.path], unwarned)] == [True]


def test_a_run_without_slurm_is_over_by_its_own_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    run = create(tmp_path / "run", jobs.dumps(jobs.load("impala_catch")))
    note_job(run, "12")
    assert [line.over for line in states.status([run.path], unwarned)] == [False]
    run.write_state(state="failed", reason="failed: boom")
    assert [line.over for line in states.status([run.path], unwarned)] == [True]


# ---- logs of what waits ---------------------------------------------------------------------------------------------


def test_the_log_of_a_run_that_waits_says_for_what(slurm: Path, tmp_path: Path) -> None:
    run = one_run(slurm, tmp_path / "run", "12|PENDING|Priority|2026-11-25T12:00:00|")
    lines: list[str] = []
    naps = 0

    def pause(seconds: float) -> None:
        nonlocal naps
        naps += 1
        if naps == 30:
            answer(slurm, "squeue", "12|PENDING|Resources|N/A|")
        if naps == 50:
            (run.logs / "ranks.log").write_text("learning\n")
            run.write_state(state="done", reason="done: budget")
            answer(slurm, "squeue", "12|COMPLETED|None|N/A|n1")

    assert list(follow.tail(run.path, True, pause, lines.append)) == ["learning"]
    assert [re.sub(r"^.* waits: ", "", line) for line in lines] == [
        "Priority: jobs of higher priority come first; it starts about 2026-11-25T12:00:00",
        "Resources: it is next, and waits for nodes to become free",
    ]
    assert lines[0].startswith(f"{run.path} is pending: job 12 waits: ")


def test_the_log_of_a_run_that_has_said_nothing(slurm: Path, tmp_path: Path) -> None:
    run = one_run(slurm, tmp_path / "run", "12|PENDING|Priority|N/A|")
    process = hpc("logs", run.path)
    assert process.stdout == "" and f"{run.path} is pending: job 12 waits: Priority" in process.stderr
    answer(slurm, "squeue", RUNNING)
    assert "is pending, and has printed nothing" in hpc("logs", run.path).stderr
    (run.logs / "ranks.log").write_text("learning\n")
    process = hpc("logs", run.path)
    assert (process.stdout, process.stderr) == ("learning\n", "")


def test_a_log_that_is_followed_goes_on_while_the_job_of_a_run_that_stopped_is_active(
    slurm: Path, tmp_path: Path
) -> None:
    run = one_run(slurm, tmp_path / "run")
    run.write_state(state="stopped", reason="stopped: asked to stop")
    naps = 0

    def pause(seconds: float) -> None:
        nonlocal naps
        naps += 1
        if naps == 3:
            (run.logs / "ranks.log").write_text("the next attempt\n")
            answer(slurm, "squeue", "12|COMPLETED|None|N/A|n1")

    assert list(follow.tail(run.path, True, pause)) == ["the next attempt"]


# ---- the analysis ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        (None, None),
        ("10", "--time=10"),
        ("29:59", "--time=29:59"),
        ("4:00:00", "--time=30"),
        ("UNLIMITED", "--time=30"),
    ],
)
def test_the_analysis_asks_for_no_more_time_than_its_runs(
    slurm: Path, tmp_path: Path, time: str | None, expected: str | None
) -> None:
    (tmp_path / "submit").mkdir()
    then_analyze.analyze_after(["7", "9"], [tmp_path / "0000"], Options(time=time, qos="short"), tmp_path)
    text = (tmp_path / "submit" / "analysis.sbatch").read_text()
    assert [line.split()[1] for line in text.splitlines() if "--time" in line] == ([expected] if expected else [])
    assert "--qos=short" in text and "--dependency=afterany:7:9" in text


def test_an_analysis_that_is_refused_does_not_fail_the_submission(slurm: Path, tmp_path: Path) -> None:
    program(slurm, "sbatch", "case $* in *analysis.sbatch*) echo no >&2; exit 1;; *) echo 12;; esac")
    process = hpc("submit", "impala_catch", "--seeds", "0-1", "--out", tmp_path / "runs", "--then-analyze",
                  "--launcher", "srun", "--mpi", "pmi2")  # fmt: skip
    assert (process.returncode, process.stdout) == (0, "12\n")
    assert "warning: the runs are queued, but their analysis is not: sbatch says: no" in process.stderr
    assert (tmp_path / "runs" / "0001" / "job.toml").exists()


def with_analysis(slurm: Path, folder: Path) -> list[RunDir]:
    submit(tasks("impala_catch", (), "0-1", ()), folder, OPTIONS, True)
    answer(slurm, "sbatch", "14")
    runs = runs_of([folder])
    then_analyze.analyze_after(["12"], [run.path for run in runs], OPTIONS, folder)
    answer(slurm, "squeue", "14|PENDING|Dependency|N/A|\n12_0|PENDING|Priority|N/A|\n12_1|PENDING|Priority|N/A|")
    return runs


def test_status_shows_the_analysis_beside_its_runs(slurm: Path, tmp_path: Path) -> None:
    with_analysis(slurm, tmp_path / "runs" / "x")
    for path in (tmp_path / "runs", tmp_path / "runs" / "x"):
        process = hpc("status", path)
        assert "report/index.html  pending  14" in process.stdout and "analysis; waits: Dependency" in process.stdout
        assert len(json.loads(hpc("status", path, "--json").stdout)) == 3
    assert "report/index.html" not in hpc("status", tmp_path / "runs" / "x" / "0000").stdout


@pytest.mark.parametrize(
    ("queue", "account", "picture", "state"),
    [
        ("14|RUNNING|None|N/A|n1", "", False, "running"),
        ("14|COMPLETED|None|N/A|n1", "", True, "done"),
        ("", "14|FAILED|x|n1", False, "failed"),
        ("", "14|CANCELLED by 0|x|n1", False, "stopped"),
        ("", "", True, "done"),
        ("", "", False, "lost"),
    ],
)
def test_states_of_an_analysis(
    slurm: Path, tmp_path: Path, queue: str, account: str, picture: bool, state: str
) -> None:
    with_analysis(slurm, tmp_path / "x")
    answer(slurm, "squeue", queue)
    answer(slurm, "sacct", account)
    if picture:
        (tmp_path / "x" / "report").mkdir()
        (tmp_path / "x" / "report" / "index.html").touch()
    (line,) = then_analyze.analyses([tmp_path / "x"], unwarned)
    assert (line.state, line.over) == (state, state not in ("pending", "running"))


def test_cancel_of_all_runs_cancels_their_analysis_first(slurm: Path, tmp_path: Path) -> None:
    runs = with_analysis(slurm, tmp_path / "x")
    sentences = cancel_runs(runs)
    assert sentences[2:] == [f"{tmp_path}/x/report/index.html: analysis job 14 cancelled"]
    assert [call for call in calls(slurm) if call.startswith("scancel")] == ["scancel 14", "scancel 12_[0,1]"]


def test_cancel_of_one_run_leaves_the_analysis_of_the_others(slurm: Path, tmp_path: Path) -> None:
    runs = with_analysis(slurm, tmp_path / "x")
    assert len(cancel_runs(runs[:1])) == 1 and "scancel 14" not in calls(slurm)


def test_cancel_of_a_single_run_cancels_its_analysis(slurm: Path, tmp_path: Path) -> None:
    run = one_run(slurm, tmp_path / "run", "12|PENDING|Priority|N/A|")
    answer(slurm, "sbatch", "14")
    then_analyze.analyze_after(["12"], [run.path], OPTIONS, run.path)
    answer(slurm, "squeue", "14|PENDING|Dependency|N/A|\n12|PENDING|Priority|N/A|")
    assert "analysis job 14 cancelled" in cancel_runs([run])[-1]


# ---- short partitions -----------------------------------------------------------------------------------------------


def site(slurm: Path, *partitions: tuple[str, str, str, str]) -> None:
    answer(slurm, "scontrol", "\n".join(PARTITION.format(*values) for values in partitions))


MAIN, BRIEF = ("main", "YES", "NONE", "04:00:00"), ("brief", "NO", "NONE", "00:01:00")


@pytest.mark.parametrize(
    ("partitions", "keys"),
    [
        ([MAIN, BRIEF], {"partition": "brief"}),
        ([("x", "YES", "00:02:00", "UNLIMITED")], {}),
        ([MAIN, BRIEF], {"partition": "brief", "resume_mode": "none"}),
    ],
)
def test_a_partition_that_leaves_no_time_to_work_is_refused(
    slurm: Path, tmp_path: Path, partitions: list[tuple[str, str, str, str]], keys: dict[str, str]
) -> None:
    site(slurm, *partitions)
    options = Options(launcher="srun", mpi="pmi2", **keys)  # type: ignore[arg-type]
    with pytest.raises(BadJob, match=r"partition (brief gives a job 60|x gives a job 120) s, .* lead_s = 120"):
        submit(tasks("impala_catch", (), None, ()), tmp_path / "run", options, False)
    assert not (tmp_path / "run").exists() and not any(call.startswith("sbatch") for call in calls(slurm))


def warned(slurm: Path, options: Options, *partitions: tuple[str, str, str, str]) -> list[str]:
    site(slurm, *partitions)
    warnings: list[str] = []
    check_time(options, warnings.append)
    return warnings


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (Options(partition="main"), ""),
        (Options(partition="brief,main"), ""),  # SLURM takes the one that fits
        (Options(time="4:00:00"), ""),
        (Options(time="3"), "gives each start 180 s; lead_s = 120 leaves 60 s for work, up to 100 times"),
        (Options(time="3", resume_mode="none"), "leaves 60 s for work (SLURM may signal up to 60 s early)"),
        (Options(time="2", lead_s=60), "leaves 60 s for work"),
        (Options(time="3", lead_s=60), ""),
        (Options(time="5:00:00"), "more than partition main allows, 14400 s, so the job would never start"),
        (Options(time="5", partition="brief"), "more than partition brief allows, 60 s"),
        (Options(time="5", partition="brief,main"), ""),
        (Options(time="UNLIMITED"), ""),
        (Options(partition="other"), ""),
    ],
)
def test_a_start_that_is_mostly_lead_is_told_with_the_figures(slurm: Path, options: Options, words: str) -> None:
    warnings = warned(slurm, options, MAIN, BRIEF)
    assert len(warnings) == bool(words) and words in "".join(warnings)


def test_what_is_not_given_sbatch_takes_from_its_variables(slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SBATCH_PARTITION", "brief")
    with pytest.raises(BadJob, match="partition brief gives"):
        warned(slurm, Options(), MAIN, BRIEF)
    assert not warned(slurm, Options(partition="main"), MAIN, BRIEF)
    monkeypatch.setenv("SBATCH_TIMELIMIT", "3")
    assert "time = '3' gives each start 180 s" in warned(slurm, Options(), MAIN, BRIEF)[0]
    monkeypatch.delenv("SBATCH_PARTITION")
    monkeypatch.setenv("SBATCH_TIMELIMIT", "1:00:00")
    assert not warned(slurm, Options(), ("x", "YES", "00:01:00", "04:00:00"))


def test_the_time_that_a_qos_has_given_is_looked_at_too(slurm: Path, tmp_path: Path) -> None:
    site(slurm, MAIN)
    answer(slurm, "squeue", "3:00")
    warnings: list[str] = []
    submit(
        tasks("impala_catch", (), None, ()),
        tmp_path / "run",
        Options(launcher="srun", mpi="pmi2"),
        False,
        warnings.append,
    )
    assert len(warnings) == 1 and "SLURM gives each start 180 s; lead_s = 120 leaves 60 s" in warnings[0]
    RunDir(tmp_path / "run").write_state(state="stopped", reason="")
    program(slurm, "squeue", "case $* in *%l*) echo 2:00;; esac")
    resume(tmp_path / "run", [], None, {}, warnings.append)
    assert "gives each start 120 s; lead_s = 120 leaves 0 s" in warnings[1]


# ---- completion -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_as_the_page_of_commands_has_it(shell: str) -> None:
    page = (Path(__file__).parents[2] / "docs" / "commands.md").read_text()
    assert "_HPC_RL_COMPLETE=bash_source hpc-rl" in page
    tool = Path(sys.executable).parent / "hpc-rl"
    process = subprocess.run([tool], env={**os.environ, "_HPC_RL_COMPLETE": f"{shell}_source"}, capture_output=True,
                             text=True, check=False, timeout=60)  # fmt: skip
    assert "hpc_rl_completion" in process.stdout and not process.stderr


def test_an_analysis_without_a_worker_is_refused(tmp_path: Path) -> None:
    """Mutation seen to fail: the check left out."""
    process = hpc(
        "submit", "impala_catch", "--out", tmp_path / "x", "--then-analyze", "--analysis-tasks", "2", "--dry-run"
    )
    assert process.returncode == 2 and "--analysis-tasks 2 leaves no worker; use 1, or 3 and more" in process.stderr
