"""How the batch script ends an attempt, run by a real bash with SLURM's commands and Python as stubs.

Mutations seen to fail: the look at Restarts left out, an empty answer of scontrol taken for "requeued", the check of
sbatch's answer left out, `begun` taken from the environment alone, the array taken from it, `scrubbed` left out.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from hpc_rl import job as jobs
from hpc_rl.launchers.options import Options
from hpc_rl.launchers.script import for_array, for_run, render

RUNNING = "JobId=7 JobState=RUNNING Reason=None Requeue=1 Restarts=1 BatchFlag=1"
LATER = RUNNING.replace("Restarts=1", "Restarts=2")
FIXED = RUNNING.replace("Requeue=1", "Requeue=0")
PENDING = "JobId=7 JobState=PENDING Reason=BeginTime Requeue=1 Restarts=2"


@dataclass
class Box:
    """A folder with stubs; each takes the next line of NAME.answers (the last one for ever) as output and exit code."""

    folder: Path

    def stub(self, name: str, *answers: str) -> None:
        (self.folder / f"{name}.answers").write_text("".join(f"{answer}\n" for answer in answers))
        file = self.folder / "bin" / name
        file.write_text(_STUB.format(folder=self.folder, name=name))
        file.chmod(0o755)

    def end(self, verdict: str, mode: str = "requeue", array: bool = False, **more: str) -> tuple[int, str]:
        """Exit code and stderr of the script whose ranks are over; ``more`` is exported by whoever sent it."""
        job = jobs.load("impala_catch")
        plan = jobs.plan(job)
        options = Options(python=str(self.folder / "bin" / "py"), launcher="srun", mpi="pmi2", resume_mode=mode)
        place = for_array(job, self.folder, 5, None) if array else for_run(job, self.folder / "run")
        for folder in ("run", "0004"):
            (self.folder / folder / "logs").mkdir(parents=True)
        self.stub("py", "0 1", f"0 {verdict}")  # what begin prints, then end
        for name in ("srun", "sacct", "scancel", "date", "sleep"):
            if not (self.folder / "bin" / name).exists():
                self.stub(name, "0 ")
        (self.folder / "job.sbatch").write_text(render(place, job, plan, options))
        environment = {
            "PATH": f"{self.folder}/bin:/usr/bin:/bin", "SLURM_JOB_ID": "7", "SLURM_NTASKS": "3", "SLURM_NNODES": "1",
            "SLURM_RESTART_COUNT": "1",
        }  # fmt: skip
        if array:
            environment |= {"SLURM_ARRAY_JOB_ID": "6", "SLURM_ARRAY_TASK_ID": "4"}
        environment |= more
        process = subprocess.run(
            ["bash", str(self.folder / "job.sbatch"), "a b"],
            env=environment, capture_output=True, text=True, timeout=20, check=False,
        )  # fmt: skip
        return process.returncode, process.stderr

    def calls(self, name: str) -> list[str]:
        file = self.folder / "calls"
        lines = file.read_text().splitlines() if file.exists() else []
        return [line for line in lines if line.startswith(f"{name} ")]


_STUB = """#!/bin/bash
echo "{name} $*" >> "{folder}/calls"
export -p | sed "s/^declare -x //" > "{folder}/{name}.environment"
[ "$3" != note ] || exit 0
read -r code text < "{folder}/{name}.answers"
[ "$(wc -l < "{folder}/{name}.answers")" = 1 ] || sed -i 1d "{folder}/{name}.answers"
[ -z "$text" ] || echo "$text"
exit "$code"
"""


@pytest.fixture
def box(tmp_path: Path) -> Box:
    (tmp_path / "bin").mkdir()
    return Box(tmp_path)


def test_its_own_attempt_is_requeued(box: Box) -> None:
    box.stub("scontrol", f"0 {RUNNING}", f"0 {RUNNING}", f"0 {RUNNING}", "0 ")
    assert box.end("again")[0] == 0
    assert box.calls("scontrol")[-1] == "scontrol requeue 7"


@pytest.mark.parametrize("record", [LATER, PENDING])
def test_an_attempt_that_the_controller_requeued_is_left_alone(box: Box, record: str) -> None:
    box.stub("scontrol", f"0 {RUNNING}", f"0 {record}")
    assert box.end("again")[0] == 0
    assert set(box.calls("scontrol")) == {"scontrol --oneliner show job 7"}


def test_a_controller_that_is_away_for_a_moment_is_asked_again(box: Box) -> None:
    box.stub("scontrol", "1 ", "0 ", "1 ", f"0 {RUNNING}", "1 ", f"0 {RUNNING}", "0 ")
    assert box.end("again")[0] == 0
    assert box.calls("scontrol").count("scontrol requeue 7") == 2 and len(box.calls("scontrol")) == 7


@pytest.mark.parametrize("answers", [("1 ",), ("0 ",), (f"0 {RUNNING}", *((f"0 {RUNNING}", "1 ") * 7))])
def test_a_job_that_cannot_be_requeued_fails_and_its_run_is_told(box: Box, answers: tuple[str, ...]) -> None:
    box.stub("scontrol", *answers)
    assert box.end("again")[0] == 1
    assert " attempt stuck " in box.calls("py")[-1].replace("hpc_rl.launchers.", "") and not box.calls("sbatch")


def test_where_jobs_are_not_requeued_a_new_one_follows(box: Box) -> None:
    box.stub("scontrol", f"0 {FIXED}")
    box.stub("sbatch", "0 13;cluster")
    assert box.end("again")[0] == 0
    (sent,) = box.calls("sbatch")
    assert "--dependency=afterany:7" in sent and sent.endswith("job.sbatch a b")
    assert any("attempt note" in call and "--job 13 --token 7-1-" in call for call in box.calls("py"))


def test_nothing_is_done_for_an_attempt_that_was_superseded(box: Box) -> None:
    box.stub("scontrol", f"0 {RUNNING}")
    box.stub("sbatch", "0 13")
    assert box.end("superseded", "chain")[0] == 0
    assert not any("requeue" in call for call in box.calls("scontrol")) and not box.calls("scancel")


@pytest.mark.parametrize(("verdict", "code"), [("done", 0), ("stopped", 0), ("failed", 1), ("", 1)])
def test_the_end_of_a_chain_takes_its_successor_back(box: Box, verdict: str, code: int) -> None:
    box.stub("scontrol", "1 ")
    box.stub("sbatch", "0 13")
    assert box.end(verdict, "chain", array=True)[0] == code
    assert box.calls("scancel") == ["scancel 13_4"]
    assert any("attempt note" in call and "--job 13_4 --token" in call for call in box.calls("py"))
    assert "--dependency=afternotok:6_4" in box.calls("sbatch")[0] and "--array=4" in box.calls("sbatch")[0]


def test_a_chain_whose_successor_was_refused_asks_again(box: Box) -> None:
    box.stub("scontrol", "1 ")
    box.stub("sbatch", "1 ", "0 14")
    code, output = box.end("again", "chain")
    assert code == 75 and "refused the successor" in output
    assert [call.split()[3] for call in box.calls("sbatch")] == ["--dependency=afternotok:7", "--dependency=afterany:7"]


def test_a_chain_at_the_limit_of_jobs_goes_on_in_its_own(box: Box) -> None:
    """MaxSubmitJobs leaves no room for a successor while all tasks of the array run: none of them is lost."""
    box.stub("sbatch", "1 ")
    box.stub("scontrol", f"0 {RUNNING}", f"0 {RUNNING}", "0 ", f"0 {RUNNING}", "0 ")
    assert box.end("again", "chain", array=True)[0] == 0
    assert next(call for call in box.calls("scontrol") if "show" not in call) == "scontrol update JobId=6_4 Requeue=1"
    assert box.calls("scontrol")[-1] == "scontrol requeue 6_4"


def test_a_chain_asks_for_its_successor_as_patiently_as_for_a_requeue(box: Box) -> None:
    box.stub("sbatch", *["1 "] * 6, "0 14")
    box.stub("scontrol", "1 ", "1 ", f"0 {FIXED}")  # a job that its site lets nobody requeue
    assert box.end("again", "chain", array=True)[0] == 0
    assert len(box.calls("sbatch")) == 7 and any("--job 14_4 --token" in call for call in box.calls("py"))


def test_a_chain_without_successor_fails(box: Box) -> None:
    box.stub("scontrol", "1 ")
    box.stub("sbatch", "1 ")
    assert box.end("again", "chain")[0] == 1
    assert "attempt stuck" in box.calls("py")[-1]


ENDING = "JobId=7 JobState=COMPLETING Reason=None Requeue=1 Restarts=1 BatchFlag=1"


def test_a_preempted_job_that_will_not_come_back_is_followed_by_a_new_one(box: Box) -> None:
    """PreemptMode=CANCEL without a time of grace: it is being ended, and nobody requeues it."""
    box.stub("scontrol", f"0 {RUNNING}", f"0 {ENDING} PreemptTime=2026-11-25T09:24:32 SuspendTime=None")
    box.stub("sbatch", "0 13")
    assert box.end("again")[0] == 0
    assert "--dependency=afterany:7" in box.calls("sbatch")[0] and not box.calls("sacct")


def test_who_cancelled_a_job_is_asked_of_the_accounts_while_it_is_being_ended(box: Box) -> None:
    box.stub("scontrol", f"0 {RUNNING}", f"0 {ENDING} PreemptTime=None SuspendTime=None")
    box.stub("sacct", "0 CANCELLED by 1000")
    box.end("again")
    (call,) = (call for call in box.calls("py") if " end " in call)
    assert "--account CANCELLED by 1000 --begun 1" in call and not box.calls("sbatch")


def test_a_count_of_restarts_that_another_job_left_behind_is_not_believed(box: Box) -> None:
    first = RUNNING.replace("Restarts=1", "Restarts=0")
    box.stub("scontrol", f"0 {first}")
    assert box.end("again", SLURM_RESTART_COUNT="3")[0] == 0
    assert box.calls("scontrol")[-1] == "scontrol requeue 7"


@pytest.mark.parametrize("other", ["0 JobId=9 ArrayJobId=6 ArrayTaskId=4 JobState=RUNNING Requeue=1 Restarts=1", "1 "])
def test_a_job_that_was_sent_from_inside_an_array_task_is_not_taken_for_that_task(box: Box, other: str) -> None:
    """SLURM_ARRAY_* of the outer job are inherited; to requeue 6_4 would end somebody else's work."""
    box.stub("scontrol", other, f"0 {RUNNING}")
    assert box.end("again", SLURM_ARRAY_JOB_ID="6", SLURM_ARRAY_TASK_ID="4")[0] == 0
    assert box.calls("scontrol")[0].endswith(" 6_4") and box.calls("scontrol")[-1] == "scontrol requeue 7"
    (begin,) = (call for call in box.calls("py") if " begin " in call)
    assert "--job 7 " in begin


def test_a_successor_gets_nothing_that_describes_this_job(box: Box) -> None:
    box.stub("scontrol", f"0 {FIXED}")
    box.stub("sbatch", "0 13")
    box.end(
        "again", SLURM_CONF="/c", SLURM_MEM_PER_CPU="1", SLURMD_NODENAME="n1", SLURM_STEP_GPUS="0", SRUN_DEBUG="3",
        PMI_RANK="0", SBATCH_ACCOUNT="mine", SBATCH_SIGNAL="KILL", SLURM_JOB_GPUS="3", CUDA_VISIBLE_DEVICES="3",
    )  # fmt: skip
    names = {line.partition("=")[0] for line in (box.folder / "sbatch.environment").read_text().splitlines()}
    assert {"SLURM_CONF", "SBATCH_ACCOUNT"} <= names
    assert {name for name in names if name.startswith(("SLURM", "SRUN", "PMI"))} == {"SLURM_CONF"}
    assert not names & {"SBATCH_SIGNAL", "CUDA_VISIBLE_DEVICES", "HPC_RL_TOKEN"}


@pytest.mark.parametrize("value", ["NONE", "NIL", "A=1"])
def test_the_ranks_get_what_is_set_whatever_the_submitting_shell_wanted_exported(box: Box, value: str) -> None:
    box.stub("scontrol", f"0 {RUNNING}")
    box.end("done", SLURM_EXPORT_ENV=value, SBATCH_EXPORT=value)
    variables = (box.folder / "srun.environment").read_text()
    assert (
        'SLURM_EXPORT_ENV="ALL"' in variables
        and 'HPC_RL_TOKEN="7-1-' in variables
        and 'OMP_NUM_THREADS="1"' in variables
    )


def test_nothing_is_started_for_a_run_that_is_done(box: Box) -> None:
    box.stub("scontrol", f"0 {RUNNING}")
    job = jobs.load("impala_catch")
    text = render(for_run(job, box.folder / "run"), job, jobs.plan(job),
                  Options(python=str(box.folder / "bin" / "py"), launcher="srun", mpi="pmi2"))  # fmt: skip
    (box.folder / "job.sbatch").write_text(text)
    box.stub("py", "0 done")
    box.stub("srun", "0 ")
    environment = {"PATH": f"{box.folder}/bin:/usr/bin:/bin", "SLURM_JOB_ID": "7", "SLURM_NTASKS": "3"}
    process = subprocess.run(["bash", box.folder / "job.sbatch"], env=environment, timeout=20, check=False)
    assert process.returncode == 0 and not box.calls("srun")
