"""The fuzz run itself, a process of its own: `python -m tests.fuzz.program BASE FOLDER SEED CASES [ONLY]`.

Each case copies the run directory BASE, damages one file of it, and does with it what a user would. A raw exception, a
write or removal outside the case, a started process, a signal to another process or more than MOST_BYTES more memory is
a failure and is printed as a line of JSON; a case that hangs ends the process with the stacks of all threads.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import json
import os
import random
import resource
import shutil
import sys
import traceback
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import dask

from hpc_rl import cli, submit
from hpc_rl import job as jobs
from hpc_rl.agent import agent_of
from hpc_rl.analysis import open_runs
from hpc_rl.analysis.sections import NotRecorded
from hpc_rl.config import BadJob
from hpc_rl.launchers import attempt as batch
from hpc_rl.launchers import local, slurm
from hpc_rl.launchers.base import Outcome
from hpc_rl.launchers.postmortem import first_failure
from hpc_rl.replay.saving import Saver
from hpc_rl.replay.stores import own_store
from hpc_rl.runtime.messages import schemas
from hpc_rl.runtime.stores import load_store
from hpc_rl.storage import checkpoint, metrics, replay_files
from hpc_rl.storage.run_dir import BadRun, RunDir
from hpc_rl.storage.segments import BadSegment
from tests.analysis.recordings import program
from tests.fuzz.damage import damage

MOST_BYTES = 400 << 20  # 256 MiB + 1100 × the size of a file of some 100 kB, see storage/datasets.py
HANG_S = 20.0
OURS = (str(Path(sys.prefix).resolve()), str(Path(__file__).parents[2]))  # Python writes what it compiled there
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink", "os.chmod",
           "os.utime", "shutil.rmtree")  # fmt: skip
STARTS = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "os.kill",
    "os.killpg",
    "socket.connect",
)


class Watch:
    """What the process does to its surroundings while a case runs, by Python's audit events."""

    def __init__(self) -> None:
        self.folder, self.wrong = "", list[str]()
        sys.addaudithook(self.see)

    def see(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.folder:
            return
        if event == "open":
            path, mode, flags = arguments
            writes = (isinstance(flags, int) and flags & WRITES) or (isinstance(mode, str) and set(mode) & set("wax+"))
            if writes and isinstance(path, str | bytes | os.PathLike):
                self.judge(event, os.fsdecode(path), follow=True)
        elif event in CHANGES:
            for path in arguments[: 2 if event in ("os.rename", "os.link") else 1]:
                if isinstance(path, str | bytes | os.PathLike):
                    self.judge(event, os.fsdecode(path), follow=False)
        elif event in STARTS:
            self.wrong.append(f"{event} {arguments!r:.200}")

    def judge(self, event: str, path: str, follow: bool) -> None:
        """A removal takes away the link itself, an open follows it."""
        real = (
            os.path.realpath(path)
            if follow
            else os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
        )
        if not real.startswith((self.folder, "/dev/null", *OURS)) or "precious" in real:
            self.wrong.append(f"{event} {real}")


def call(*arguments: object) -> None:
    """The program as a user calls it; its output must be text that a terminal takes."""
    sys.argv = ["hpc-rl", *map(str, arguments)]
    try:
        cli.main()
    except SystemExit as ended:
        if ended.code not in (0, 1, 2):
            raise AssertionError(f"exit code {ended.code!r}") from None


def from_batch(*arguments: object) -> None:
    if batch.main([str(x) for x in arguments]) not in (0, 2):
        raise AssertionError("exit code")


def analyse(run: Path) -> None:
    with dask.config.set(scheduler="synchronous"), contextlib.suppress(BadSegment, BadRun, BadJob, NotRecorded):
        curve.analyze(open_runs([run]))


def take_up(run: RunDir) -> None:
    """What a resumed rank does with checkpoint and replay, and what the next checkpoint does to their files."""
    job = jobs.load(run.job_file)
    agent = agent_of(job)
    recorded, _ = schemas(agent.make_policy(), agent.spec)
    with contextlib.suppress(checkpoint.NoUsableCheckpoint, checkpoint.IncompatibleCheckpoint):
        checkpoint.newest(run, print, check=lambda state, _: replay_files.check(run, state))
    with contextlib.suppress(checkpoint.CorruptCheckpoint, checkpoint.IncompatibleCheckpoint):
        saver = Saver("a9", lambda name, state: None, partial(replay_files.read, run))
        store = own_store(agent.experience, recorded, agent.spec, range(2), 1, 1, agent.annotate, saver)
        load_store(store.load, checkpoint.load(checkpoint.numbered(run)[-1])[0].get("stores", []))
    replay_files.prune(run)


def uses(name: str, run: Path) -> list[Callable[[], object]]:
    """What a user would do with a run whose file of this name is damaged."""
    by_hand: list[Callable[[], object]] = [
        lambda: call("status", run.parent), lambda: call("status", "--json", run), lambda: call("logs", run),
        lambda: call("cancel", run), lambda: call("run", "ppo_cartpole", "--out", run, "--resume"),
        lambda: call("resume", run),
        lambda: from_batch("begin", run, "--job", "7", "--token", "7-0-1"),
        lambda: from_batch("note", run, "--job", "9", "--token", "7-0-1"),
        lambda: from_batch("stuck", run, "--token", "7-0-1"),
        lambda: from_batch("end", run, "--token", "7-0-1", "--code", "1", "--max-restarts", "3"),
        lambda: first_failure(RunDir(run), "srun: error: n1: task 0: Killed", 1, {}),
    ]  # fmt: skip
    if "trajectories" in name or "provenance" in name:
        return [lambda: analyse(run)]
    if "checkpoints" in name:
        loads: list[Callable[[], object]] = [lambda: take_up(RunDir(run))]
        plays = [lambda: call("eval", run, "--episodes", "1"), lambda: checkpoint.best_score(RunDir(run))]
        return loads if "replay" in name else [*plays, *loads]
    if name == "job.toml":
        return [
            lambda: call("show", run / "job.toml"),
            lambda: call("eval", run, "--episodes", "1"),
            lambda: analyse(run),
            *by_hand,
        ]
    if "metrics" in name:
        return [lambda: metrics.last(run / "metrics"), lambda: analyse(run), *by_hand]
    return by_hand


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """stdout and stderr as strict UTF-8, thrown away."""
    with (
        contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO(), "utf-8")),
        contextlib.redirect_stderr(io.TextIOWrapper(io.BytesIO(), "utf-8")),
    ):
        yield


def no_sbatch(script: Path, *arguments: str) -> str:
    raise slurm.Refused("sbatch is not installed here")


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    base, folder = Path(sys.argv[1]), Path(sys.argv[2])
    seed, cases = int(sys.argv[3]), int(sys.argv[4])
    only = int(sys.argv[5]) if len(sys.argv) > 5 else None
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    local.launch = lambda *arguments, **more: Outcome(0, "done: nothing was started")  # type: ignore[assignment]
    local.command = lambda run, job: []  # type: ignore[assignment]
    submit.slurm.sbatch, submit.slurm.resolved = no_sbatch, lambda options, *more: options  # type: ignore[assignment]
    files = sorted(path.relative_to(base).as_posix() for path in base.rglob("*") if path.is_file())
    files = [name for name in files if "tensorboard" not in name]  # nothing here reads those
    groups: dict[str, list[str]] = {}  # kinds of files, drawn with equal chances
    for name in files:
        single = "/" not in name or "submit" in name
        groups.setdefault(name if single else "replay" if "replay" in name else name.split("/")[0], []).append(name)
    outside, watch = folder / "outside", Watch()
    outside.mkdir()
    (outside / "precious").write_text("precious")
    os.mkfifo(outside / "pipe")
    shutil.copytree(base, folder / "case" / "run")
    for name in (
        "state.json",
        "checkpoints",
        "trajectories",
        "job.toml",
    ):  # undamaged: imports, and what libraries keep for later
        for use in uses(name, folder / "case" / "run"):
            with quiet():
                use()
    count = 0
    for k in range(cases) if only is None else (only,):
        draw = random.Random(seed * 1_000_003 + k)
        case = folder / "case"
        shutil.rmtree(case, ignore_errors=True)
        shutil.copytree(base, case / "run", symlinks=True)
        name = draw.choice(groups[draw.choice(sorted(groups))])
        sentence = damage(case / "run" / name, draw, outside)
        for number, use in enumerate(uses(name, case / "run")):
            before, error = peak_bytes(), ""
            faulthandler.dump_traceback_later(HANG_S, exit=True)
            print(f"case {k}.{number} {name} {sentence!r:.200}", file=sys.stderr, flush=True)
            watch.folder, watch.wrong = os.path.realpath(case), []
            try:
                with quiet():
                    use()
            except Exception:
                error = traceback.format_exc()[-1500:]
            watch.folder = ""
            faulthandler.cancel_dump_traceback_later()
            if (grown := peak_bytes() - before) > MOST_BYTES:
                error += f"\n{grown >> 20} MiB more memory"
            if (outside / "precious").read_text() != "precious":
                error += "\na file outside was changed"
            if error or watch.wrong:
                print(
                    json.dumps(
                        {
                            "case": f"{k}.{number}",
                            "file": name,
                            "damage": sentence,
                            "error": error,
                            "wrong": watch.wrong,
                        }
                    )
                )
        count += 1
    print(json.dumps({"cases": count, "checksum": zlib.crc32(str(files).encode())}))


curve = program("learning_curve")

if __name__ == "__main__":
    main()
