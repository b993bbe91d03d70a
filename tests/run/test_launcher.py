"""`local.launch` around ranks that are small scripts: nothing outside may hurt them, and each end gets its sentence.

Mutations seen to fail: the display called in the launcher's own thread; an error that kills at once; the STOP file as
the only way to ask; a second SIGHUP that aborts; the exit code of a launcher before the state of the run.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from hpc_rl import job as jobs
from hpc_rl.launchers import display, local, mpiexec
from hpc_rl.launchers.base import Outcome
from hpc_rl.launchers.requests import Requests
from hpc_rl.storage.run_dir import RunDir, create

RANK = '''
import json, os, signal, sys, time
sys.path.insert(0, {package!r})
from pathlib import Path
from hpc_rl.storage.run_dir import open_run

run, asked = open_run(Path(sys.argv[1])), []
signal.signal(signal.SIGUSR1, lambda *_: asked.append("signal"))

def note(**fields):
    (run.logs / "rank-000.json").write_text(json.dumps(
        {{"role": "worker-0", "host": "here", "pid": os.getpid(), "token": os.environ["HPC_RL_TOKEN"], **fields}}))

def over(state, reason):
    run.write_state(state=state, reason=reason, env_steps=7, attempt=0)

def wait():
    """Until somebody asks to stop; 20 s at most."""
    end = time.monotonic() + 20
    while not asked and time.monotonic() < end:
        asked.extend(["file"] * run.stop_requested())
        time.sleep(0.01)
    assert asked

if {begins}:
    run.write_state(state="running")
'''
SAVES = "note()\nwait()\ntime.sleep(0.3)\nover('stopped', 'stopped: ' + asked[0])\nnote(ended='ok')\n"


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Run a script as the rank of a job, through `local.launch`."""
    monkeypatch.setattr(local, "LOOK_S", 0.05)
    monkeypatch.setattr(display, "_CLOSE_S", 0.5)

    def run(script: str, ranks: int = 1, tick: Callable[[], None] = lambda: None, begins: bool = True) -> Outcome:
        code = RANK.format(package=str(jobs.PACKAGE.parent), begins=begins) + script
        monkeypatch.setattr(local, "rank_command", lambda folder, n: [sys.executable, "-c", code, str(folder), str(n)])
        job = jobs.load("impala_pong" if ranks > 1 else "ppo_cartpole")
        return local.launch(job, create(tmp_path / "run", jobs.dumps(job)), tick)

    return run


@pytest.fixture
def send(tmp_path: Path) -> Any:
    """Send signals to this process, the first once the rank is there, each later one after its pause (s)."""
    threads = []

    def later(*numbers: signal.Signals, pause_s: float = 0.0) -> None:
        def work() -> None:
            end = time.monotonic() + 20
            while not (tmp_path / "run" / "logs" / "rank-000.json").exists() and time.monotonic() < end:
                time.sleep(0.02)
            for number in numbers:
                os.kill(os.getpid(), number)
                time.sleep(pause_s)

        threads.append(threading.Thread(target=work))
        threads[-1].start()

    yield later
    for thread in threads:
        thread.join()


def alive(run: Path) -> list[int]:
    pids = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if str(run).encode() in path.read_bytes():
                pids.append(int(path.parent.name))
    return pids


# ---- the display ----------------------------------------------------------------------------------------------------


def test_a_display_that_fails_is_a_warning(launch: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> None:
        raise KeyError("time")

    outcome = launch("note()\ntime.sleep(0.5)\nover('done', 'done: budget used')\nnote(ended='ok')\n", tick=broken)
    assert outcome == Outcome(0, "done: budget used (7 env steps)")
    assert capsys.readouterr().err.count("warning: the display failed (KeyError: 'time'); the ranks go on") == 1


def test_a_terminal_that_takes_nothing_keeps_no_signal_back(launch: Any, send: Any) -> None:
    """As after Ctrl-S, or into a pager that nobody turns: the write blocks, and the request reaches the ranks."""
    free = threading.Event()
    send(signal.SIGTERM)
    outcome = launch(SAVES, tick=lambda: free.wait(30) and None)
    free.set()
    assert outcome.code == 0 and outcome.sentence.startswith("stopped: ")


def test_the_first_request_is_answered_at_once(launch: Any, send: Any, capsys: pytest.CaptureFixture[str]) -> None:
    sentences: list[str] = []
    send(signal.SIGINT)

    def tick() -> None:
        sentences.append(capsys.readouterr().err)

    assert launch(SAVES, tick=tick).code == 0
    text = "".join(sentences)
    assert "Ctrl-C: the ranks save and stop" in text and "a second Ctrl-C aborts" in text
    assert [part for part in sentences[:-2] if "Ctrl-C" in part], "it came with the end, not before"


# ---- requests -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_each_signal_asks_the_ranks(number: signal.Signals, launch: Any, send: Any, tmp_path: Path) -> None:
    send(number)
    outcome = launch(SAVES)
    assert outcome.code == 0 and outcome.sentence.startswith("stopped: ") and not alive(tmp_path / "run")


def test_who_asked_and_what_goes_on_are_kept(launch: Any, send: Any, tmp_path: Path) -> None:
    send(signal.SIGINT)
    assert launch(SAVES) == Outcome(0, "stopped: Ctrl-C (7 env steps)")
    state, run = RunDir(tmp_path / "run").read_state(), tmp_path / "run"
    assert (state["state"], state["reason"], state["cause"]) == ("stopped", "stopped: Ctrl-C", "cancelled")
    assert state["next"] == f"hpc-rl run {run}/job.toml --out {run} --resume"


def test_a_stop_file_of_somebody_is_told(launch: Any, tmp_path: Path) -> None:
    outcome = launch("note()\nrun.stop_file.touch()\nwait()\nover('stopped', 'stopped: asked to stop')\n")
    assert outcome == Outcome(0, f"stopped: {tmp_path}/run/STOP was written (7 env steps)")


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_what_comes_twice_by_itself_is_no_abort(number: signal.Signals, launch: Any, send: Any) -> None:
    """A terminal that is closed sends SIGHUP by the kernel and again by the shell."""
    send(signal.SIGHUP, number, number, pause_s=0.7)
    outcome = launch(SAVES.replace("0.3", "2.0"))
    assert outcome.code == 0, outcome


def test_a_second_ctrl_c_aborts(launch: Any, send: Any, tmp_path: Path) -> None:
    send(signal.SIGINT, signal.SIGINT, pause_s=0.7)
    outcome = launch("note()\ntime.sleep(60)\n")
    assert outcome == Outcome(130, "aborted by a second signal; the last checkpoint stands")
    assert not alive(tmp_path / "run")


def test_nohup_is_respected() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Requests() as requests:
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGHUP)
            assert requests.first == ""
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_ranks_that_do_not_save_are_named(launch: Any, send: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "GRACE_S", 0.5)
    send(signal.SIGTERM)
    outcome = launch("note()\ntime.sleep(60)\n")
    assert outcome.code == 1 and outcome.sentence.startswith("rank 0 (worker-0) on here did not save within 0 s")


# ---- faults of the launcher -----------------------------------------------------------------------------------------


def test_an_error_of_the_launcher_lets_the_ranks_save(
    launch: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(attempt: local.Attempt, now: float) -> str:
        if not local.rank_records(attempt.run):
            return ""
        raise RuntimeError("a fault of the launcher")

    monkeypatch.setattr(local, "_late_start", broken)
    with pytest.raises(RuntimeError, match="a fault of the launcher"):
        launch(SAVES)
    run = RunDir(tmp_path / "run")
    assert run.read_state()["state"] == "stopped" and not alive(run.path)


def test_without_room_for_a_stop_file_the_signal_asks(launch: Any, send: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: RunDir, *more: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RunDir, "request_stop", full)
    send(signal.SIGTERM)
    assert launch(SAVES) == Outcome(0, "stopped: signal (7 env steps)")


def test_a_log_that_is_removed_changes_nothing(launch: Any) -> None:
    remove = "note()\n(run.logs / 'ranks.log').unlink()\ntime.sleep(0.5)\nover('done', 'done: all')\n"
    assert launch(remove).code == 0


def test_an_unreadable_state_is_a_failure_in_a_sentence(launch: Any) -> None:
    outcome = launch("note()\nrun.state_file.write_text('{')\n")
    assert outcome.code == 1 and "rank 0 (worker-0) on here ended with exit code 0" in outcome.sentence


# ---- starts ---------------------------------------------------------------------------------------------------------


def fake_mpiexec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> str:
    path = tmp_path / "mpiexec"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    monkeypatch.setattr(mpiexec, "prefix", lambda ranks, tolerant: [str(path), "-n", str(ranks)])
    return str(path)


def test_a_launcher_that_starts_nothing_is_named_and_ended(
    launch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As MPICH's mpiexec inside a step of SLURM, which waits for CPUs that the step itself holds."""
    path = fake_mpiexec(tmp_path, monkeypatch, "sleep 60")
    monkeypatch.setattr(local, "START_S", 0.5)
    begin = time.monotonic()
    outcome = launch("", ranks=3)
    assert time.monotonic() - begin < 20
    assert outcome.code == 1 and outcome.sentence.startswith(f"{path} started none of 3 rank(s) within 0 s")
    assert "hpc-rl doctor" in outcome.sentence and RunDir(tmp_path / "run").read_state()["state"] == "failed"
    assert not alive(tmp_path / "run")


def test_ranks_that_never_begin_are_ended(launch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_mpiexec(tmp_path, monkeypatch, 'shift 2; exec "$@"')
    monkeypatch.setattr(local, "START_S", -119.5)  # with the deadline of 120 s that the job has
    outcome = launch("time.sleep(60)\n", ranks=3)
    assert outcome.code == 1 and "none of 3 rank(s) began within" in outcome.sentence, outcome
    assert not alive(tmp_path / "run")


def test_a_launcher_that_is_killed_is_not_a_rank(launch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_mpiexec(tmp_path, monkeypatch, "kill -9 $$")
    outcome = launch("", ranks=3)
    assert outcome.code == 1
    assert outcome.sentence.startswith("the ranks' launcher was killed by signal 9 (SIGKILL)")


# ---- ends -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_a_lone_rank_that_is_killed_is_told_so(number: signal.Signals, launch: Any) -> None:
    outcome = launch(f"note()\ntime.sleep(0.5)\nos.kill(os.getpid(), {int(number)})\n")
    assert outcome.code == 1
    assert f"rank 0 (worker-0) on here was killed by signal {int(number)} ({number.name})" in outcome.sentence


def test_a_lone_rank_that_leaves_or_never_began_is_told_so(launch: Any) -> None:
    outcome = launch("note()\ntime.sleep(0.3)\nos._exit(3)\n")
    assert (
        outcome.code == 1
        and "rank 0 (worker-0) on here ended with exit code 3 and no error message" in outcome.sentence
    )


def test_a_lone_rank_killed_before_its_seat(launch: Any) -> None:
    outcome = launch("os.kill(os.getpid(), 11)\n")
    assert outcome.code == 1 and outcome.sentence.startswith("the rank was killed by signal 11 (SIGSEGV)")


def test_what_was_saved_counts_whatever_comes_after(launch: Any) -> None:
    """As an environment that crashes as it is closed, or a library at Python's end."""
    outcome = launch("note()\nover('done', 'done: budget used')\ntime.sleep(0.3)\nos.kill(os.getpid(), 11)\n")
    assert outcome.code == 0
    assert outcome.sentence.startswith(
        "done: budget used (7 env steps); after that rank 0 (worker-0) on here was killed"
    )


def test_ranks_that_do_not_leave_are_ended(launch: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(local, "LEAVE_S", 0.5)
    outcome = launch("note()\nover('done', 'done: budget used')\ntime.sleep(60)\n")
    assert outcome.code == 0 and "after that rank 0 (worker-0) on here did not leave within" in outcome.sentence
    assert not alive(tmp_path / "run")


def test_the_state_of_the_attempt_before_does_not_count(launch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = local._start

    def start(job: Any, run: RunDir, *more: Any) -> local.Attempt:
        run.write_state(state="done", reason="done: long ago")
        return real(job, run, *more)

    monkeypatch.setattr(local, "_start", start)
    outcome = launch("os._exit(1)\n", begins=False)
    assert outcome.code == 1 and "ended with exit code 1" in outcome.sentence


# ---- inside a job of SLURM ------------------------------------------------------------------------------------------


def test_the_environment_of_local_ranks_has_nothing_of_an_outer_launcher() -> None:
    outer = {
        "PATH": "/bin", "CUDA_VISIBLE_DEVICES": "1", "TMPDIR": "/scratch", "OMPI_MCA_btl": "self,sm",
        "PMIX_MCA_gds": "hash", "SLURM_CONF": "/etc/slurm.conf", "SLURM_JOB_ID": "7", "SLURM_TMPDIR": "/scratch",
        "SLURM_JOBID": "7", "SLURM_NODELIST": "n[1-2]", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NNODES": "2",
        "SLURM_TASKS_PER_NODE": "1(x2)", "SLURM_CPU_BIND": "mask", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2",
        "PMI_RANK": "0", "PMI_FD": "9", "PMIX_RANK": "0", "OMPI_COMM_WORLD_RANK": "0", "HYDI_CONTROL_FD": "3",
        "HYDRA_LAUNCHER": "slurm", "HYDRA_BOOTSTRAP": "slurm", "PBS_NODEFILE": "/x", "SRUN_DEBUG": "3",
    }  # fmt: skip
    variables = mpiexec.environment(outer)
    names = {"PATH", "CUDA_VISIBLE_DEVICES", "TMPDIR", "OMPI_MCA_btl", "PMIX_MCA_gds"}
    names |= {"SLURM_CONF", "SLURM_JOB_ID", "SLURM_TMPDIR"}
    assert {name for name in variables if name in outer} - set(mpiexec._HERE) == names
    assert variables["HYDRA_LAUNCHER"] == variables["HYDRA_BOOTSTRAP"] == "fork"


def test_ranks_know_when_the_job_around_them_ends() -> None:
    outer = {"SLURM_JOB_ID": "7", "SLURM_JOB_END_TIME": "1700000000"}
    assert "HPC_RL_END_S" not in mpiexec.environment(outer), "a shell of salloc on another host does not end with it"
    assert mpiexec.environment({**outer, "SLURMD_NODENAME": "n1"})["HPC_RL_END_S"] == "1700000000"
    assert "HPC_RL_END_S" not in mpiexec.environment({"SLURMD_NODENAME": "n1", "SLURM_JOB_END_TIME": "Unknown"})


def test_a_shell_inside_a_job_is_told_where_the_ranks_start() -> None:
    assert mpiexec.allocation_hint({}) == ""
    inside = {"SLURM_JOB_ID": "7", "SLURMD_NODENAME": "n1"}
    assert mpiexec.allocation_hint({**inside, "SLURM_JOB_NUM_NODES": "1"}) == ""
    assert "has 2 nodes; all ranks start on this one" in mpiexec.allocation_hint({**inside, "SLURM_JOB_NUM_NODES": "2"})
    assert "not on the nodes of that job" in mpiexec.allocation_hint({"SLURM_JOB_ID": "7"})
