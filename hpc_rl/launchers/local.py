"""`hpc-rl run`: mpiexec on this machine, in a session of its own, watched until it ends."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hpc_rl.job import BadJob, Job
from hpc_rl.launchers.base import Outcome, rank_command
from hpc_rl.storage.run_dir import RunDir

GRACE_S = 120.0  # between being asked to stop and being killed
_ROOT_SETTINGS = {
    f"{prefix}_ALLOW_RUN_AS_ROOT{suffix}": "1" for prefix in ("OMPI", "PRTE") for suffix in ("", "_CONFIRM")
}


def find_mpiexec() -> tuple[str, str]:
    """(path, vendor "mpich" or "openmpi") of the mpiexec that belongs to this Python, else of the first on PATH.

    Raises:
        BadJob: there is none.
    """
    beside = Path(sys.executable).parent / "mpiexec"
    path = str(beside) if beside.exists() else shutil.which("mpiexec")
    if path is None:
        raise BadJob(
            "no mpiexec found; install the extra with its own MPI (pip install 'hpc-rl[mpi]') or load a module"
        )
    said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30, check=False).stdout
    return path, "openmpi" if re.search("open.?mpi|prte|prrte", said, re.IGNORECASE) else "mpich"


def command(folder: Path, ranks: int) -> list[str]:
    """What starts ``ranks`` ranks here; a single one needs no MPI at all."""
    if ranks == 1:
        return rank_command(folder, 1)
    path, vendor = find_mpiexec()
    extra = ["--oversubscribe", "--bind-to", "none"] if vendor == "openmpi" else []
    return [path, *extra, "-n", str(ranks), *rank_command(folder, ranks)]


def launch(job: Job, run: RunDir, tick: Callable[[], None] = lambda: None) -> Outcome:
    """Run every rank to its end; ``tick`` is called several times a second. Ctrl-C, TERM and USR1 save and stop.

    A second signal aborts. Nothing is left behind: no process, no file in /dev/shm.
    """
    run.clear_stop()
    for old in run.logs.glob("rank-*.json"):
        old.unlink()
    token = secrets.token_hex(6)
    ranks = job.resources.ranks
    environment = {**os.environ, **_ROOT_SETTINGS, "HPC_RL_TOKEN": token, "PYTHONUNBUFFERED": "1"}
    environment.setdefault("OMP_NUM_THREADS", "1")
    before = set(Path("/dev/shm").iterdir()) if Path("/dev/shm").is_dir() else set()
    with (run.logs / "ranks.log").open("ab") as log:
        begin = log.tell()
        process = subprocess.Popen(
            command(run.path, ranks), stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment,
            start_new_session=True,
        )  # fmt: skip
        requests = _watch_signals()
        try:
            _attend(process, run, requests, tick)
        finally:
            _kill(process)
            _restore(requests)
            _sweep(token, before, run)
    tick()
    return _outcome(run, process.returncode, begin, requests)


def _watch_signals() -> dict[str, Any]:
    requests: dict[str, Any] = {"count": 0, "old": {}}

    def arrived(number: int, frame: Any) -> None:
        requests["count"] += 1

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        requests["old"][number] = signal.signal(number, arrived)
    return requests


def _restore(requests: dict[str, Any]) -> None:
    for number, handler in requests["old"].items():
        signal.signal(number, handler)


def _attend(process: subprocess.Popen[bytes], run: RunDir, requests: dict[str, Any], tick: Callable[[], None]) -> None:
    """Wait for the end; pass one request on as a STOP file and SIGUSR1, take a second one as an abort."""
    asked: float | None = None
    while process.poll() is None:
        tick()
        time.sleep(0.1)
        if requests["count"] and asked is None:
            asked = time.monotonic()
            run.request_stop()
            for record in rank_records(run):
                with contextlib.suppress(OSError):
                    os.kill(record["pid"], signal.SIGUSR1)
        if asked is not None and (requests["count"] > 1 or time.monotonic() - asked > GRACE_S):
            return


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the whole session of mpiexec, if it is still there."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _sweep(token: str, before: set[Path], run: RunDir) -> None:
    """Kill ranks that outlived mpiexec (in sessions of their own) and remove what they left in /dev/shm."""
    for record in rank_records(run):
        if _is_rank(record["pid"], run):
            with contextlib.suppress(OSError):
                os.kill(record["pid"], signal.SIGKILL)
    shared = Path("/dev/shm")
    if not shared.is_dir():
        return
    ours = set(shared.glob(f"hpc_rl-{token}-*"))
    mpi = {p for p in set(shared.iterdir()) - before if re.match(r"mpich|.*vader|sm_segment|psm", p.name)}
    users = _mapped_files()
    for path in ours | {p for p in mpi if str(p) not in users}:
        path.unlink(missing_ok=True)


def _mapped_files() -> set[str]:
    """Files in /dev/shm that some living process still maps: another job's, not ours."""
    found: set[str] = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            found.update(re.findall(r"/dev/shm/\S+", maps.read_text()))
    return found


def _is_rank(pid: int, run: RunDir) -> bool:
    with contextlib.suppress(OSError):
        return str(run.path).encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    return False


def rank_records(run: RunDir) -> list[dict[str, Any]]:
    """logs/rank-NNN.json of every rank that got as far as its seat, by rank."""
    records = []
    for path in sorted(run.logs.glob("rank-*.json")):
        with contextlib.suppress(OSError, json.JSONDecodeError):
            record = json.loads(path.read_text())
            if "pid" in record:
                records.append({"rank": int(path.stem.split("-")[1]), **record})
    return records


def _outcome(run: RunDir, code: int, begin: int, requests: dict[str, Any]) -> Outcome:
    """Exit code and sentence; the run's state becomes failed unless the ranks said how it ended."""
    state = run.read_state()
    if code == 0 and state.get("state") in ("done", "stopped"):
        return Outcome(0, f"{state['reason']} ({state.get('env_steps', 0):,} env steps)")
    with (run.logs / "ranks.log").open("rb") as log:
        log.seek(begin)
        said = log.read().decode(errors="replace")
    if requests["count"] > 1:
        sentence, status = "aborted by a second signal; the last checkpoint stands", "stopped"
    else:
        sentence, status = _blame(run, said, code), "failed"
    run.write_state(state=status, reason=sentence)
    return Outcome(1 if status == "failed" else 130, sentence)


def _blame(run: RunDir, said: str, code: int) -> str:
    """Which rank failed first, in which role, and how."""
    records = rank_records(run)
    for record in records:
        if record.get("ended") == "error":
            where = f"; the traceback is in {run.logs}/rank-{record['rank']:03d}.json" if record["bug"] else ""
            return f"rank {record['rank']} ({record['role']}) failed: {record['error'].splitlines()[0]}{where}"
    pids = {record["pid"]: record for record in records}
    for text in re.findall(r"PID[ :]+(\d+)", said, re.IGNORECASE):
        if int(text) in pids:
            record = pids[int(text)]
            how = re.search(
                r"signal[: ]+(?:\(?)(\d+)|KILLED BY SIGNAL: (\d+)|EXIT CODE: (\d+)|EXIT STATUS: (\d+)", said
            )
            number = next((g for g in how.groups() if g), "?") if how else "?"
            return f"rank {record['rank']} ({record['role']}) on {record['host']} was killed by signal {number}"
    if len(records) == 1 and code < 0:
        return f"rank 0 ({records[0]['role']}) was killed by signal {-code}"
    last = next((line for line in reversed(said.splitlines()) if line.strip()), "nothing was printed")
    return f"the ranks ended with exit code {code}: {last.strip()}; see {run.logs}/ranks.log"
