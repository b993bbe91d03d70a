"""Starting the program as a user does, and looking at what it leaves: shared by the tests of this folder."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from hpc_rl import cli
from hpc_rl.launchers.leftovers import take_over
from hpc_rl.storage.run_dir import RunDir
from tests.run.starting import run_to_end

HARD_LIMIT_S = 150.0  # a run that takes longer hangs
OPENMPI = os.environ.get("HPC_RL_OPENMPI_PYTHON", "")
BOTH_MPIS = [
    pytest.param(sys.executable, id="this-mpi"),
    pytest.param(
        OPENMPI,
        id="openmpi",
        marks=pytest.mark.skipif(not OPENMPI, reason="HPC_RL_OPENMPI_PYTHON names no Python with Open MPI"),
    ),
]

_COMMON = """
[environment]
id = "{environment}"
columns = 4
arguments = {arguments}

[budget]
env_steps = {env_steps}

[resources]
ranks = {ranks}
threads = 1
precision = "fp32"
device = "cpu"
deadline_s = 60.0

[output]
metrics_s = 0.2

[checkpoint]
interval_s = 0.5
"""
IMPALA = 'algorithm = "impala"\ntopology = "actor_learner"\n[impala]\nunroll = 5\nhidden = [8]\nanneal = false\n'
PPO = """algorithm = "ppo"
topology = "{topology}"
[ppo]
unroll = 16
epochs = 2
minibatches = 2
hidden = [8]
anneal = false
"""
DQN = """algorithm = "dqn"
topology = "actor_replay_learner"
[dqn]
unroll = 5
min_size = 100
samples_per_insert = 1.0
hidden = [8]
"""


def write_job(
    folder: Path,
    method: str,
    ranks: int,
    env_steps: int = 100_000_000,
    environment: str = "toy/catch",
    arguments: str = "{}",
    topology: str = "allreduce",
) -> Path:
    """A small job file; ``method`` is "impala", "dqn" or "ppo", which alone has a choice of topologies."""
    head = {"impala": IMPALA, "dqn": DQN, "ppo": PPO.replace("{topology}", topology)}[method]
    common = _COMMON.format(environment=environment, arguments=arguments, env_steps=env_steps, ranks=ranks)
    path = folder / f"{method}.toml"
    path.write_text(head + common)
    return path


@dataclass
class Ended:
    """How a run ended: exit code, what it printed, and when."""

    code: int
    out: str
    err: str
    at: float = 0.0

    @property
    def last(self) -> str:
        """The last line of the talk: the sentence for the user."""
        return self.err.strip().splitlines()[-1]


def command(*arguments: object, python: str = sys.executable) -> list[str]:
    return [str(Path(python).with_name("hpc-rl")), *map(str, arguments)]


def environment(**extra: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", **extra}


def hpc_rl(*arguments: object, python: str = sys.executable, cwd: Path | None = None, **extra: str) -> Ended:
    """One call of the program, to its end; after HARD_LIMIT_S it is killed with all its ranks."""
    result = run_to_end(command(*arguments, python=python), HARD_LIMIT_S, environment(**extra), cwd=cwd)
    return Ended(result.returncode, result.stdout, result.stderr, time.monotonic())


def in_process(*arguments: object, **extra: str) -> Ended:
    """The same without a process of its own, for calls that start no rank: a second less to import."""
    out, err = io.StringIO(), io.StringIO()
    environment, words = mock.patch.dict(os.environ, extra), mock.patch.object(sys, "argv", command(*arguments))
    with environment, words, redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as end:
        cli.main()
    return Ended(int(end.value.code or 0), out.getvalue(), err.getvalue(), time.monotonic())


@contextmanager
def started(*arguments: object, python: str = sys.executable, **extra: str) -> Iterator[subprocess.Popen[str]]:
    """The program in the background; nothing of it survives the block."""
    process = subprocess.Popen(
        command(*arguments, python=python), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment(**extra),
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.communicate()
        run = Path(str(arguments[arguments.index("--out") + 1]))
        if processes(run):  # the test failed, or killed the launcher alone
            kill_everything(run)
            take_over(RunDir(run))


def ended(process: subprocess.Popen[str]) -> Ended:
    out, err = process.communicate(timeout=HARD_LIMIT_S)
    return Ended(process.returncode, out, err, time.monotonic())


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str] | None = None, limit_s: float = 90.0) -> Any:
    """Wait until ``what()`` is true, and return it; the process must not end before."""
    limit = time.monotonic() + limit_s
    while not (value := condition()):
        if process is not None and process.poll() is not None:
            raise AssertionError(f"ended too early: {process.communicate()}")
        assert time.monotonic() < limit, "nothing happened for too long"
        time.sleep(0.05)
    return value


def records(run: Path) -> list[dict[str, Any]]:
    """What every rank noted of itself, by rank."""
    return [json.loads(path.read_text()) for path in sorted((run / "logs").glob("rank-*.json"))]


def learning(run: Path, ranks: int, attempt: int = 0) -> bool:
    """All ranks of this attempt are there and the first one has reported figures."""
    lines = list((run / "metrics").glob("*-0.jsonl"))
    ready = (run / "provenance" / f"{attempt:04d}.json").exists() and len(records(run)) == ranks
    since = (run / "provenance" / f"{attempt:04d}.json").stat().st_mtime if ready else 0.0
    return ready and any(path.stat().st_mtime > since and path.stat().st_size for path in lines)


def state(run: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((run / "state.json").read_text())
    return value


def summary(run: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((run / "summary.json").read_text())
    return value


def checkpoints(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("[0-9]*.h5"))


def processes(run: Path) -> list[int]:
    """Ranks and launchers that name this run and are alive."""
    pids = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if str(run).encode() in path.read_bytes() and int(path.parent.name) != os.getpid():
                pids.append(int(path.parent.name))
    return pids


def leftovers(run: Path) -> list[str]:
    """What should be gone after a run: processes, files in node-shared memory, half-written files."""
    wait_until = time.monotonic() + 2  # a killed process takes a moment to go
    while (alive := processes(run)) and time.monotonic() < wait_until:
        time.sleep(0.05)
    files = [str(path) for record in records(run) for path in Path("/dev/shm").glob(f"hpc_rl-{record['token']}-*")]
    mapped = [name for record in records(run) for name in record["shared"] if Path(name).exists()]
    return [*map(str, alive), *files, *mapped, *map(str, run.glob("trajectories/*/*.tmp"))]


def assert_failed(run: Path, result: Ended, *words: str) -> None:
    """Non-zero, one sentence with these words at the end of the talk, state failed, nothing left behind."""
    assert result.code == 1 and result.out == "", result.err
    assert result.last.startswith("error: "), result.err
    for word in words:
        assert word in result.last, result.err
    assert "Traceback" not in result.err
    assert state(run)["state"] == "failed" and leftovers(run) == []


def kill_everything(run: Path) -> None:
    """SIGKILL to the launcher, mpiexec and all ranks at once."""
    for _ in range(20):
        for pid in (alive := processes(run)):
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        if not alive:
            return
        time.sleep(0.05)
    raise AssertionError("something cannot be killed")
