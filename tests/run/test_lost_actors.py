"""Actors that are killed where that is tolerated: Open MPI's ranks go on without them; MPICH's cannot.

Mutation seen to fail: mpiexec without --with-ft ulfm.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from hpc_rl.job import BadJob
from hpc_rl.launchers import mpiexec
from hpc_rl.launchers.mpiexec import with_survivors
from hpc_rl.storage.segments import read, segments
from tests.run.gapless import assert_gapless
from tests.run.program import OPENMPI, ended, learning, leftovers, records, started, state, summary, wait_for, write_job

TOLERANT = ("--set", "resources.tolerate_lost_actors=true")


def versions(run: Path, rank_name: str) -> int:
    """The newest weights that an actor has acted by, as far as it has recorded."""
    paths = [path for path in segments(run) if rank_name in str(path)]
    return max((int(read(path, "version").max()) for path in paths), default=-1)


@pytest.mark.skipif(not OPENMPI, reason="HPC_RL_OPENMPI_PYTHON names no Python with Open MPI")
def test_killed_actors_change_nothing_but_the_rate(tmp_path: Path) -> None:
    """One of the two was its node's relay; the run is stopped by a signal, and ends as any other."""
    job, run = write_job(tmp_path, "impala", 4, environment="toy/counter"), tmp_path / "run"
    more = (*TOLERANT, "--set", "output.segment_s=0.5", "--set", "environment.columns=3")
    with started("run", job, "--out", run, *more, python=OPENMPI, HPC_RL_RANKS_PER_NODE="2") as process:
        wait_for(lambda: learning(run, 4) and state(run)["env_steps"] > 100, process)  # all have closed segments
        host = records(run)[0]["host"]
        for rank in (1, 2):  # of ranks 2 and 3 the first is the relay
            os.kill(records(run)[rank]["pid"], signal.SIGKILL)
        lost = [f"rank {rank} (actor-{rank - 1}) on {host}" for rank in (1, 2)]
        wait_for(lambda: sorted(state(run)["lost"]) == lost, process, 10.0)
        since = state(run)["updates"]
        wait_for(lambda: versions(run, "actor-2") > since + 30, process)
        process.send_signal(signal.SIGTERM)
        result = ended(process)
    assert result.code == 0 and result.err.count("2 actors were lost: rank") == 2, result.err
    assert state(run)["state"] == "stopped" and summary(run)["lost_actors"] == ["actor-0", "actor-1"]
    assert "Traceback" not in (run / "logs" / "ranks.log").read_text()
    assert_gapless(run)
    assert leftovers(run) == []


def test_the_mpiexec_of_mpich_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mpiexec, "find_mpiexec", lambda: ("/opt/mpich/mpiexec", "mpich"))
    with pytest.raises(BadJob, match="needs srun or Open MPI, and /opt/mpich/mpiexec"):
        mpiexec.prefix(3, tolerant=True)
    assert with_survivors("mpiexec", "openmpi") == ["--with-ft", "ulfm"]
