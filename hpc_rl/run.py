"""One rank of a run: take the seat that the plan gives this rank, and become its role.

Started by a launcher as ``python -m hpc_rl.run RUN RANKS``; the job, the attempt and the checkpoint are found in RUN.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import re
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc_rl.launchers import shared_memory
from hpc_rl.launchers.base import END_VARIABLE, TOKEN_VARIABLE
from hpc_rl.storage.untrusted import Unreadable, created, read_json

if TYPE_CHECKING:
    from hpc_rl.envs.base import Environment
    from hpc_rl.job import Job
    from hpc_rl.roles.base import Seat
    from hpc_rl.transport.ports import Ports

STOP_POLL_S = 0.5
ABORT_S = 30  # for the end of all ranks, once one has failed
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_TRACE = 100_000  # letters of a traceback that are kept; a message may hold a whole array
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


class StopFlag:
    """Becomes true by SIGUSR1, SIGTERM, SIGINT or SIGHUP, or by the STOP file; a second SIGTERM or SIGINT aborts."""

    def __init__(self) -> None:
        self.signals, self.first = 0, 0.0
        self.file: Path | None = None
        self.looked, self.seen = 0.0, False
        for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # that is nohup's wish
                signal.signal(number, self._arrived)

    def _arrived(self, number: int, frame: Any) -> None:
        # mpiexec and the launcher may both pass one request on, so only later ones count as a second wish.
        now = time.monotonic()
        # In a batch job they come from SLURM at the wall limit, and saving may still make it before SIGKILL.
        again = self.signals and now - self.first > 1.0 and number in (signal.SIGTERM, signal.SIGINT)
        if again and END_VARIABLE not in os.environ:
            os._exit(128 + number)
        self.first = now if not self.signals else self.first
        self.signals += 1

    def __call__(self) -> bool:
        now = time.monotonic()
        if self.file is not None and not self.seen and now - self.looked > STOP_POLL_S:
            self.looked, self.seen = now, self.file.exists()
        return self.signals > 0 or self.seen


def main() -> None:
    """Entry of every rank. Exit code 0 unless something failed; the reason then lies in logs/rank-NNN.json."""
    stop = StopFlag()  # before the slow imports: a signal must never find the default handler
    _keep_memory()
    folder, ranks = Path(sys.argv[1]), int(sys.argv[2])
    rank = 0
    try:
        _serve_processes(folder)
        # CUDA must not be seen by actors, and threads are counted when torch loads: plan first, import later.
        link, rank = _link(ranks)
        seat = take_seat(folder, link, stop)
        from hpc_rl import job

        job.topology(seat.job.topology).run(seat)
        _close(seat)
        _note(folder, rank, {"ended": "ok"})
        if ranks > 1:
            from hpc_rl.transport import mpi

            mpi.end(link)
    except BaseException as error:
        _fail(folder, rank, error)


def _close(seat: Seat) -> None:
    """Close the environments, once every rank has done its work: foreign code that crashes here ends all ranks."""
    from hpc_rl.envs.base import close
    from hpc_rl.transport.waiting import Deadline

    with contextlib.suppress(Deadline):  # a last checkpoint that takes so long
        seat.ports.barrier(range(seat.ports.link.size))
    for environment in seat.environments:
        close(environment, seat.spec.id)


def _keep_memory() -> None:
    """Blocks up to 32 MiB are kept for the next use: a tensor of new pages costs more to fault in than to compute."""
    with contextlib.suppress(OSError, AttributeError):  # another C library than glibc has its own ways
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        libc.mallopt(_M_TRIM_THRESHOLD, 512 << 20)


def _serve_processes(folder: Path) -> None:
    """Where the job asks for environment processes, their server starts here: a rank must not fork once MPI runs."""
    from hpc_rl import job

    wanted = 0
    with contextlib.suppress(job.BadJob):  # every rank hears of it in `take_seat`, where rank 0 can tell the others
        wanted = job.load(folder / "job.toml").environment.processes
    if wanted:
        from hpc_rl.envs import forkserver

        forkserver.start()


def _link(ranks: int) -> tuple[Any, int]:
    if ranks == 1:
        from hpc_rl.transport.local import alone

        return alone(), 0
    shared_memory.clear()
    os.environ.setdefault("UCX_LOG_LEVEL", "error")  # at every clean end it warns of objects in its own pools
    from hpc_rl.transport import mpi

    link = mpi.world(ranks)
    return link, link.rank


def take_seat(folder: Path, link: Any, stop: StopFlag) -> Seat:
    """Everything that is decided once per attempt: rank 0 decides, the others hear it as JSON.

    Raises:
        BadJob, BadEnvironment, NoUsableCheckpoint, Misfit: see there; the sentence is for the user.
    """
    from hpc_rl import job as jobs
    from hpc_rl.storage.run_dir import open_run
    from hpc_rl.transport.ports import Ports
    from hpc_rl.transport.waiting import Waiting

    run = open_run(folder)
    stop.file = run.stop_file
    job = jobs.load(run.job_file)
    ports = Ports(link, Waiting(job.resources.deadline_s))
    _agree(ports, job, run.job_file)
    plan = jobs.topology(job.topology).plan(job)
    place = plan.places[link.rank]
    _note(folder, link.rank, {"role": place.name, "host": _host(), **_traces()})
    if place.rank in place.peers:  # its inference server is a thread of this process
        from hpc_rl.transport import mpi

        mpi.need_threads()
    if not place.gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    return _seat(job, plan, place, ports, run, stop)


def _seat(job: Any, plan: Any, place: Any, ports: Ports, run: Any, stop: StopFlag) -> Seat:
    import torch

    from hpc_rl import hardware
    from hpc_rl import job as jobs
    from hpc_rl.envs.generators import seed_shared
    from hpc_rl.envs.make import describe
    from hpc_rl.envs.shares import shares
    from hpc_rl.nets.precision import set_precision
    from hpc_rl.roles.base import Seat

    everyone = range(ports.link.size)
    if place.rank in plan.learners:
        ports.link.prepare(plan.learners)
    spec = describe(job.environment.id, job.environment.arguments)
    nodes = ports.link.nodes()
    row = {**_row(place), **hardware.sight(job, plan, place, nodes)}
    table = ports.broadcast([json.loads(x) for x in ports.gather(json.dumps(row).encode(), everyone)], everyone)
    decided = ports.broadcast(_decide(job, plan, run, spec, table) if place.rank == 0 else {}, everyone)
    ports.waiting.hosts = tuple(row["host"] for row in table)
    if place.rank == 0:
        print(_table(table), flush=True)
    threads = decided["threads"] if place.gpu else place.threads
    torch.set_num_threads(threads)
    device = hardware.device(decided["device"], plan, place, nodes, row)
    precision = _precision(ports, job, plan, run, spec, table, decided["device"], device)
    torch.manual_seed(job.seed)
    seed_shared(job.seed, place.columns.start if place.columns else job.environment.columns, decided["attempt"])
    algorithm, config = jobs.algorithm(job.algorithm), jobs.method_config(job)
    shares(spec.id, len(place.columns) or job.environment.columns, job.environment.processes)

    def make_policy() -> Any:
        policy = algorithm.policy(config, spec)
        set_precision(policy.net, precision)
        policy.net.to(device)
        return policy

    seat = Seat(
        job=job,
        plan=plan,
        place=place,
        ports=ports,
        run=run,
        attempt=decided["attempt"],
        token=decided["token"],
        nodes=nodes,
        device=device,
        spec=spec,
        algorithm=algorithm,
        config=config,
        resume=_resumed(run, decided["checkpoint"], job, spec),
        stop=stop,
        end_s=float(os.environ.get(END_VARIABLE) or 0) or None,
        make_environment=lambda columns, threads: _environment(job, columns, threads, seat.environments),
        make_policy=make_policy,
    )
    return seat


def _precision(ports: Ports, job: Any, plan: Any, run: Any, spec: Any, table: Any, kind: str, device: str) -> str:
    """What this rank computes in; rank 0 writes into job.toml what every processor does."""
    import torch

    from hpc_rl import hardware
    from hpc_rl import job as jobs
    from hpc_rl.storage.run_dir import write_text

    if device != "cpu":
        torch.cuda.set_device(device)  # else this rank would take memory on GPU 0, too
    names = hardware.processors(kind, plan, table)
    precisions = hardware.settled(ports, job, spec, names, device)
    if ports.link.rank == 0:
        write_text(run.job_file, jobs.dumps(hardware.kept(jobs.load(run.job_file), spec, precisions)))
    return precisions.get(names[ports.link.rank], "fp32")


def _resumed(run: Any, file: str | None, job: Any, spec: Any) -> Any:
    """State and meta of the checkpoint to go on from, None for none. Raises Misfit: it is another job's."""
    from hpc_rl.roles.fit import fit
    from hpc_rl.storage import checkpoint

    if file is None:
        return None
    state, meta = checkpoint.load(run.path / file)
    checkpoint.fit(fit(job, spec), meta["fit"])
    return state, meta


def _environment(job: Job, columns: int, threads: int, kept: list[Environment]) -> Environment:
    """Columns for training or evaluation, also put into ``kept``; a process is named before others give up on us."""
    from hpc_rl.envs.make import make
    from hpc_rl.envs.shares import Processes

    wanted = job.environment
    # `_seat` has refused too many for training; an evaluation may well have fewer columns
    processes = Processes(min(wanted.processes, columns), job.resources.deadline_s / 2)
    kept.append(make(wanted.id, wanted.arguments, columns, threads, processes))
    return kept[-1]


def _agree(ports: Ports, job: Job, file: Path) -> None:
    """Raise BadJob on rank 0, which ends all, where a rank has read another job: a folder that is not shared, say."""
    from hpc_rl.job import BadJob, dumps

    digest = hashlib.sha256(dumps(job).encode()).hexdigest()
    rows = [json.loads(row) for row in ports.gather(json.dumps([_host(), digest]).encode(), range(ports.link.size))]
    for rank, (host, found) in enumerate(rows):
        if found != digest:
            raise BadJob(
                f"rank {rank} on {host} reads another job than rank 0 in {file}; "
                "put the run where every node sees the same files, with --out"
            )


def _host() -> str:
    return os.environ.get("SLURMD_NODENAME") or os.uname().nodename


def _row(place: Any) -> dict[str, Any]:
    """What one rank tells about itself; the table of all answers most questions about a slow start."""
    gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "all")
    cores = sorted(os.sched_getaffinity(0))
    return {"rank": place.rank, "role": place.name, "host": _host(), "cores": cores, "gpu": gpus if place.gpu else ""}


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [f"{'rank':>4}  {'role':<12} {'host':<16} {'cores':<16} gpu"]
    for row in rows:
        cores = f"{len(row['cores'])}: {row['cores'][0]}-{row['cores'][-1]}"
        lines.append(f"{row['rank']:>4}  {row['role']:<12} {row['host']:<16} {cores:<16} {row['gpu']}".rstrip())
    return "\n".join(lines)


def _decide(job: Any, plan: Any, run: Any, spec: Any, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Rank 0's part: attempt, checkpoint, device, threads; written into job.toml and provenance."""
    from hpc_rl import hardware
    from hpc_rl import job as jobs
    from hpc_rl.roles.fit import fit
    from hpc_rl.roles.restoring import usable
    from hpc_rl.storage import checkpoint, provenance
    from hpc_rl.storage.run_dir import write_text

    takes = usable(
        jobs.algorithm(job.algorithm),
        jobs.method_config(job),
        spec,
        fit(job, spec),
        job.environment.columns if plan.places[0].role == "worker" else None,
    )
    found = checkpoint.newest(run, lambda text: print(f"warning: {text}", flush=True), set_aside=True, check=takes)
    threads = job.resources.threads or hardware.threads(plan, rows)
    device = hardware.device_kind(job, plan, rows)
    jobs.check_reduction(job.resources.reduction, device)
    write_text(run.job_file, jobs.dumps(jobs.with_resources(job, threads=threads, device=device)))
    attempt = run.next_attempt()
    if attempt and not found:
        print("warning: the attempts before wrote no checkpoint; this one starts from the beginning", flush=True)
    path = found[0].relative_to(run.path) if found else None
    steps = found[2]["steps"] if found else {}
    extra = {"resumed_from": {"file": str(path) if path else None, "steps": steps}, "mpi": _library(len(plan.places))}
    provenance.write(run, attempt, provenance.collect(sys.argv, attempt, job.seed, extra))
    run.write_state(state="running", attempt=attempt, reason="")
    token = os.environ.get(TOKEN_VARIABLE) or f"{os.getpid():x}{time.time_ns() & 0xFFFFFF:x}"
    return {
        "attempt": attempt,
        "checkpoint": str(path) if path else None,
        "device": device,
        "threads": threads,
        "token": token,
    }


def _library(ranks: int) -> str | None:
    if ranks == 1:
        return None
    from hpc_rl.transport import mpi

    return mpi.library()


def _traces() -> dict[str, Any]:
    """What a launcher needs to find this rank and what it would leave behind: process, token, files in /dev/shm."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        maps = ""
    shared = set(re.findall(r" (/dev/shm/\S+)$", maps, re.MULTILINE))  # those marked (deleted) are gone already
    return {"pid": os.getpid(), "token": os.environ.get(TOKEN_VARIABLE, ""), "shared": sorted(shared)}


def _note(folder: Path, rank: int, fields: dict[str, Any]) -> None:
    """Merge fields into logs/rank-NNN.json, which the launcher reads when a rank dies."""
    path = folder / "logs" / f"rank-{rank:03d}.json"
    known: dict[str, Any] = {}
    if "pid" not in fields:
        with contextlib.suppress(FileNotFoundError, Unreadable):
            known = read_json(path, {})
    with contextlib.suppress(OSError):
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_suffix(".tmp")
        with os.fdopen(created(temporary), "w") as file:
            file.write(json.dumps({**known, **fields}))
        temporary.replace(path)


def _fail(folder: Path, rank: int, error: BaseException) -> None:
    """Put the reason into the rank's file and on stderr, then end the whole job: the others would only wait for us."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(ABORT_S)  # an abort that hangs must not keep this rank
    try:
        sentence, trace, bug = _described(folder, error)
        end = {"ended": "error", "time": time.time(), "error": sentence, "bug": bug, "trace": trace}
        text = trace if bug else f"rank {rank}: {sentence}"
        # Each by itself: the log may lie on the very disk that is full, and the others are ended all the same.
        with contextlib.suppress(Exception):
            _note(folder, rank, end)
        with contextlib.suppress(Exception):
            print(text, file=sys.stderr, flush=True)
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        if int(sys.argv[2]) > 1 and "hpc_rl.transport.mpi" in sys.modules:
            from hpc_rl.transport import mpi

            mpi.abort(1)
    finally:
        os._exit(1)


def _described(folder: Path, error: BaseException) -> tuple[str, str, bool]:
    """(sentence, traceback, whether it is a bug): the exceptions of this package are sentences for the user."""
    trace = "".join(traceback.format_exception(error))[-_TRACE:]
    try:
        text = str(error)
    except Exception as broken:  # an environment's exception may fail as it is printed
        text = f"(its text cannot be had: {type(broken).__name__})"
    if isinstance(error, OSError) and error.errno in _DISK:
        return f"{folder} cannot be written ({text}); free space or make it writable, then resume the run", trace, False
    if type(error).__module__.startswith("hpc_rl"):
        return text, trace, False
    return f"{type(error).__name__}: {text}", trace, True


if __name__ == "__main__":
    main()
