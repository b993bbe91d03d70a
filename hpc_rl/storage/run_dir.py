"""A run's folder: where things lie, what state the run is in, and files that are either whole or absent."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpc_rl.storage.untrusted import Unreadable, created, read_end, read_json

STATES = ("pending", "running", "stopped", "done", "failed")
STOP_BYTES = 300  # of a STOP file that are read


STATE_FIELDS = {"state": str, "env_steps": int, "updates": int, "attempt": int, "reason": str, "updated": float,
                "cause": str, "next": str, "lost": list[str]}  # fmt: skip


class BadRun(ValueError):
    """A run directory cannot be used; the message names it and the remedy."""


@dataclass(frozen=True)
class RunDir:
    """The paths of one run and its few small state files. Paths only: nothing is open, any rank may hold one."""

    path: Path

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics"

    @property
    def trajectories(self) -> Path:
        return self.path / "trajectories"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def provenance(self) -> Path:
        return self.path / "provenance"

    @property
    def job_file(self) -> Path:
        return self.path / "job.toml"

    @property
    def stop_file(self) -> Path:
        return self.path / "STOP"

    @property
    def state_file(self) -> Path:
        return self.path / "state.json"

    @property
    def summary_file(self) -> Path:
        return self.path / "summary.json"

    @property
    def usage_file(self) -> Path:
        return self.path / "usage.json"

    def read_state(self) -> dict[str, Any]:
        """state, env_steps, updates, attempt, reason, cause, next, lost, updated (unix time, s).

        ``cause`` names why the latest attempt that ended did so, ``next`` is the command that goes on after it,
        ``lost`` are the actors that the latest attempt went on without, by rank, role and host.

        Raises:
            BadRun: it is unreadable.
        """
        try:
            state: dict[str, Any] = read_json(self.state_file, STATE_FIELDS)
            if state.get("state", "pending") not in STATES:
                raise Unreadable(f"{self.state_file}: state is {state['state']!r}, none of {', '.join(STATES)}")
        except FileNotFoundError:
            state = {}
        except Unreadable as error:
            raise BadRun(
                f"the state of {self.path} cannot be read: {error}; remove that file and resume the run"
            ) from None
        figures = {"env_steps": 0, "updates": 0, "attempt": 0}
        texts = {"reason": "", "cause": "", "next": ""}
        return {"state": "pending", **figures, **texts, "lost": [], "updated": 0.0} | state

    def write_state(self, **fields: Any) -> None:
        """Merge ``fields`` into state.json. One writer at a time. Raises ValueError for an unknown state, OSError."""
        if fields.get("state", "pending") not in STATES:
            raise ValueError(f"state {fields['state']!r} is unknown; choose one of {', '.join(STATES)}")
        conclusion = {"cause": "", "next": ""} if fields.get("state", "running") != "running" else {}
        write_json(self.state_file, self.read_state() | conclusion | fields | {"updated": time.time()})

    def attempts(self) -> list[int]:
        """The numbers of this run's attempts, by its provenance files."""
        return sorted(int(file.stem) for file in self.provenance.glob("*.json") if _numeral(file.stem))

    def next_attempt(self) -> int:
        """How often this run has been started so far."""
        return max(self.attempts(), default=-1) + 1

    def request_stop(self, text: str = "") -> None:
        """Write the STOP file; ``text`` is its author in one line. Of several requests the first counts."""
        if not self.stop_requested():  # a link that leads nowhere is replaced, not followed
            with os.fdopen(created(self.stop_file), "w") as file:
                file.write(f"{text}\n" if text else "")

    def stop_text(self) -> str:
        """The author of the request to stop; empty where the STOP file does not name one."""
        try:
            text = read_end(self.stop_file, STOP_BYTES).partition("\n")[0]
        except (FileNotFoundError, Unreadable):
            return ""
        return "".join(letter for letter in text if letter.isprintable()).strip()

    def stop_requested(self) -> bool:
        return self.stop_file.exists()

    def clear_stop(self) -> None:
        self.stop_file.unlink(missing_ok=True)


def create(path: Path, toml_text: str) -> RunDir:
    """Make the folders of a new run and write its job.toml.

    Raises:
        BadRun: the folder holds a run or anything else, or it cannot be written.
    """
    run = RunDir(Path(path))
    if run.path.exists() and not run.path.is_dir():
        raise BadRun(f"{path} is a file, not a folder; choose another --out")
    if _holds_run(run):
        raise BadRun(_taken(run))
    try:
        if run.path.exists() and any(run.path.iterdir()):
            raise BadRun(f"{path} is not empty and not a run; choose another --out or empty it")
        run.path.mkdir(parents=True, exist_ok=True)
        _fill(run, toml_text)
    except FileExistsError as error:  # another process created it between the look and the write
        raise BadRun(_taken(run)) from error
    except OSError as error:
        raise BadRun(
            f"{path} cannot be written ({error.strerror or error}); choose another --out or free space"
        ) from error
    return run


def _taken(run: RunDir) -> str:
    begun = run.checkpoints.is_dir() and any(run.checkpoints.iterdir())
    empty = "" if begun else "; it has no checkpoint: remove the folder if it is not running"
    return (
        f"{run.path} holds a run already; go on with it (hpc-rl run JOB --out {run.path} --resume, "
        f"or hpc-rl resume {run.path} on SLURM), or choose another --out{empty}"
    )


def open_run(path: Path) -> RunDir:
    """The run in this folder. Raises BadRun where there is none."""
    run = RunDir(Path(path))
    if not run.job_file.is_file():
        raise BadRun(
            f"{path} holds no run (it has no job.toml); start one with hpc-rl run (or submit) JOB --out {path}"
        )
    return run


def refuse_done(run: RunDir, same_budget: bool) -> None:
    """Raises BadRun where the run is done and its budget is still the same: there is nothing left to do."""
    state = run.read_state()
    if state["state"] == "done" and same_budget:
        raise BadRun(f"{run.path} is {state['reason']}; raise that limit to go on (--set budget.…)")


def write_json(path: Path, value: Any) -> None:
    """Replace ``path`` by ``value`` as JSON; readers see the old file or the new one, never a part. Raises OSError."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        _write(temporary, json.dumps(plain(value), indent=1, allow_nan=False) + "\n")
        publish(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def publish(temporary: Path, path: Path) -> None:
    """Give a finished file its name such that it survives a power cut: data to disk, rename, folder to disk."""
    _sync(temporary)
    os.replace(temporary, path)
    _sync(path.parent)


def plain(value: Any) -> Any:
    """``value`` as JSON allows it: NaN and infinities become null, arrays lists, paths and unknown objects text."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):  # NumPy and torch, numbers and arrays alike
        return plain(value.tolist())
    return str(value)


def _holds_run(run: RunDir) -> bool:
    return run.job_file.exists() or run.state_file.exists()


def _fill(run: RunDir, toml_text: str) -> None:
    """job.toml first and exclusively: of two jobs that start in one folder, one gets it."""
    with run.job_file.open("x", encoding="utf-8") as file:
        try:
            file.write(toml_text)
            file.flush()
            os.fsync(file.fileno())
            for folder in (run.logs, run.metrics, run.trajectories, run.checkpoints, run.provenance):
                folder.mkdir()
            run.write_state(state="pending")
        except OSError:
            run.job_file.unlink()  # a folder without it is not a run, so a second try says what is in the way
            for folder in (run.logs, run.metrics, run.trajectories, run.checkpoints, run.provenance):
                if folder.exists():
                    folder.rmdir()
            raise


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # some network file systems refuse to sync a folder; a file must reach the disk
            raise
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Atomic replace of a text file."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    _write(temporary, text)
    publish(temporary, path)


def _write(temporary: Path, text: str) -> None:
    with os.fdopen(created(temporary), "w", encoding="utf-8") as file:
        file.write(text)


def _numeral(text: str) -> bool:
    return text.isascii() and text.isdigit()
