"""SLURM's answers, as several versions give them; unknown ones are survived. Mutation seen to fail: exact match."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from hpc_rl.job import BadJob
from hpc_rl.launchers import slurm
from hpc_rl.launchers.options import Options
from hpc_rl.launchers.slurm import Refused, SlurmError, accounted, query, queued, sbatch, state_word


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("RUNNING", "RUNNING"),
        ("CANCELLED by 1000", "CANCELLED"),
        ("CANCELLED+", "CANCELLED"),
        ("OUT_OF_ME+", "OUT_OF_ME"),
        ("NODE_FAIL", "NODE_FAIL"),
        ("HIBERNATING", "HIBERNATING"),
        ("", "UNKNOWN"),
        ("completed", "COMPLETED"),
        ("REQUEUE_HOLD", "REQUEUE_HOLD"),
        ("EXPEDITING by 7", "EXPEDITING"),
    ],
)
def test_state_words(text: str, word: str) -> None:
    assert state_word(text) == word


def test_squeue_of_22_05_with_an_array_and_an_end() -> None:
    output = (
        "12|PENDING|Resources|2026-11-21T04:00:00|\n13_0|RUNNING|None|2026-11-21T03:00:00|n[1-3]\n"
        "13_1|PENDING|Dependency|N/A|\nslurm_load_jobs warning: something\n14|COMPLETED|None|2026-11-21T02:00:00|n1\n"
    )
    statuses = queued(output)
    assert (
        statuses["12"].start == "2026-11-21T04:00:00" and statuses["12"].active and statuses["12"].reason == "Resources"
    )
    assert (
        statuses["13_0"].nodes == "n[1-3]"
        and statuses["13_1"].start == ""
        and not statuses["14"].active
        and len(statuses) == 4
    )


def test_sacct_of_several_versions() -> None:
    output = "7|CANCELLED by 0|2026-11-21T02:00:00|n1\n8|TIMEOUT|2026-11-21T02:00:00|n2|more|fields\n"
    output += "9_3|FROZEN|Unknown|None assigned\n"
    statuses = accounted(output)
    assert (statuses["7"].state, statuses["8"].state, statuses["9_3"].state) == ("CANCELLED", "TIMEOUT", "FROZEN")
    assert (
        statuses["9_3"].start == ""
        and statuses["9_3"].nodes == ""
        and not any(item.active for item in statuses.values())
    )


def test_a_state_of_a_later_version_is_active_in_the_queue() -> None:
    assert queued("7|HIBERNATING|None|N/A|n1")["7"].active and not queued("7|TIMEOUT|None|N/A|n1")["7"].active


def test_the_leader_of_a_heterogeneous_job_stands_for_it() -> None:
    output = "12+1|PENDING|None|N/A|\n12+0|RUNNING|None|2026-11-21T03:00:00|n1\n"
    assert list(queued(output)) == ["12"] and queued(output)["12"].nodes == "n1"
    assert list(accounted("12+0|NODE_FAIL|x|n1\n12+1|CANCELLED by 0|x|n2\n")) == ["12"]


def fake(folder: Path, name: str, out: str, code: int = 0, err: str = "") -> None:
    file = folder / name
    file.write_text(
        f"#!/bin/sh\ncat <<'E'\n{out}\nE\necho '{err}' >&2\necho \"$0 $*\" >> {folder}/calls\nexit {code}\n"
    )
    file.chmod(0o755)


@pytest.fixture
def bin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Fake commands on PATH, and x, a script to send."""
    (tmp_path / "x").write_text("#!/bin/bash\n#SBATCH --signal=B:USR1@120\n#SBATCH --account=rl\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path


@pytest.mark.parametrize("output", ["12", "12;cluster", "sbatch: warning: x\n12;c"])
def test_the_job_id_of_sbatch(bin_folder: Path, output: str) -> None:
    fake(bin_folder, "sbatch", output)
    assert sbatch(bin_folder / "x") == "12"


def test_sbatch_that_refuses_is_quoted(bin_folder: Path) -> None:
    fake(bin_folder, "sbatch", "", 1, "sbatch: error: Batch job submission failed: Invalid account")
    sentence = "^sbatch says: Batch job submission failed: Invalid account; requested: --account=rl; see sinfo"
    with pytest.raises(SlurmError, match=sentence):
        sbatch(bin_folder / "x")
    fake(
        bin_folder, "sbatch", "", 1, 'sbatch: unrecognized option --nosuch=3\nTry "sbatch --help" for more information'
    )
    with pytest.raises(SlurmError, match=r"^sbatch says: unrecognized option --nosuch=3; requested"):
        sbatch(bin_folder / "x")


def test_no_slurm_is_one_sentence(bin_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(bin_folder))
    with pytest.raises(SlurmError, match=r"login node of a SLURM cluster$"):
        sbatch(bin_folder / "x")


def test_jobs_that_squeue_forgot_are_asked_of_sacct_in_one_query(bin_folder: Path) -> None:
    fake(bin_folder, "squeue", "3|RUNNING|None|N/A|n1")
    fake(bin_folder, "sacct", "1|COMPLETED|N/A|n1\n2|NODE_FAIL|N/A|n1")
    statuses = query([str(k) for k in range(1, 101)])
    assert statuses["3"].active and statuses["2"].state == "NODE_FAIL" and len(statuses) == 3
    assert len((bin_folder / "calls").read_text().splitlines()) == 2


def test_a_job_that_nobody_knows_is_no_error_but_a_dead_controller_is(bin_folder: Path) -> None:
    fake(bin_folder, "squeue", "", 1, "slurm_load_jobs error: Invalid job id specified")
    fake(bin_folder, "sacct", "")
    assert query(["9"]) == {}
    for words in ("Unable to contact slurm controller (connect failure)", "Unexpected message received"):
        fake(bin_folder, "squeue", "", 1, f"slurm_load_jobs error: {words}")
        with pytest.raises(SlurmError, match=words[:12]):
            query(["9"])


def test_without_its_database_only_the_past_is_unknown(bin_folder: Path) -> None:
    fake(bin_folder, "squeue", "3|RUNNING|None|N/A|n1")
    fake(bin_folder, "sacct", "", 1, "sacct: error: Problem talking to the database: Connection refused")
    assert list(query(["2", "3"])) == ["3"]


def test_a_controller_that_is_late_may_have_taken_the_job(bin_folder: Path) -> None:
    fake(bin_folder, "sbatch", "", 1, "sbatch: error: Batch job submission failed: Socket timed out on send/recv")
    with pytest.raises(SlurmError, match="timed out") as error:
        sbatch(bin_folder / "x")
    assert not isinstance(error.value, Refused)


@pytest.mark.parametrize(("vendor", "flags"), [("mpich", ""), ("openmpi", " --bind-to none")], ids=["mpich", "openmpi"])
def test_mpiexec_is_that_of_the_ranks_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vendor: str, flags: str
) -> None:
    python = tmp_path / "an env" / "python"
    monkeypatch.setattr(slurm, "find_mpiexec", lambda interpreter: (str(Path(interpreter).parent / "mpiexec"), vendor))
    monkeypatch.setattr(slurm, "_pmi_types", lambda: {"pmi2"})
    options = slurm.resolved(Options(python=str(python), launcher="mpiexec"))
    assert options.launcher == f"'{tmp_path}/an env/mpiexec'{flags} -n \"$ranks\""
    auto = slurm.resolved(Options(python=str(python)))
    assert (auto.launcher, auto.mpi) == (("srun", "pmi2") if vendor == "mpich" else (options.launcher, "auto"))
    assert slurm.resolved(Options(container="x.sif")).mpi == "none"
    if vendor == "openmpi":
        tolerant = slurm.resolved(Options(python=str(python), launcher="mpiexec"), tolerant=True)
        assert tolerant.launcher.endswith('mpiexec\' --bind-to none --with-ft ulfm -n "$ranks"')
    else:
        with pytest.raises(BadJob, match=r"tolerate_lost_actors .* \(MPICH\)"):
            slurm.resolved(Options(python=str(python), launcher="mpiexec"), tolerant=True)
        assert slurm.resolved(Options(python=str(python)), tolerant=True).launcher == "srun"


def test_a_controller_that_hangs(bin_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*arguments: object, **more: object) -> None:
        raise subprocess.TimeoutExpired("sbatch", 1)

    monkeypatch.setattr(slurm.subprocess, "run", hang)
    with pytest.raises(SlurmError, match="did not answer"):
        sbatch(bin_folder / "x")
