"""Files of strangers are refused in a sentence, at once, and nothing is written through a link.

Mutations seen to fail: no look at the kind of file; no bound on the size; no RecursionError; the search for long keys
left out; kinds not compared; ``true`` taken for 1; links followed.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hpc_rl.launchers import shared_memory
from hpc_rl.launchers.attempt import job_ids
from hpc_rl.launchers.postmortem import first_failure
from hpc_rl.storage.metrics import Metrics, last, rows
from hpc_rl.storage.rank_records import all_records
from hpc_rl.storage.run_dir import BadRun, RunDir, create, write_json, write_text
from hpc_rl.storage.untrusted import (
    MOST_BYTES,
    Unreadable,
    appended,
    parse_toml,
    printable,
    read_bytes,
    read_end,
    read_json,
    read_lines,
    read_toml,
)

FIELDS = {"count": int, "share": float, "name": str, "on": bool, "best": float | None, "names": list[str], "at": dict}
GOOD = {"count": 3, "share": 1, "name": "x", "on": True, "best": None, "names": ["a"], "at": {}, "more": [1]}


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    def late(number: int, frame: Any) -> None:
        raise AssertionError("it hangs")

    limits = ((signal.ITIMER_PROF, signal.SIGPROF, 10.0), (signal.ITIMER_REAL, signal.SIGALRM, 60.0))  # CPU s, wall s
    before = {number: signal.signal(number, late) for _, number, _ in limits}
    for timer, _, seconds in limits:
        signal.setitimer(timer, seconds)
    yield
    for timer, number, _ in limits:
        signal.setitimer(timer, 0)
        signal.signal(number, before[number])


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return create(tmp_path / "run", "")


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "socket"])
def test_only_ordinary_files_are_opened(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "state.json"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "socket":
        import socket

        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    else:
        path.symlink_to("/dev/zero")
    for read in (
        read_bytes,
        read_toml,
        read_end,
        lambda file: read_json(file, {}),
        lambda file: list(read_lines(file, {})),
    ):
        with pytest.raises(Unreadable, match=f"{path} is a {kind}, not an ordinary file"):
            read(path)
    with pytest.raises(Unreadable, match="link" if kind == "device" else kind):
        appended(path)


def test_sizes_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with path.open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    with pytest.raises(Unreadable, match="more than"):
        read_json(path, {})
    with path.open("wb") as file:
        file.truncate(8 << 30)  # sparse: a line of 8 GiB
        file.seek(0, os.SEEK_END)
        file.write(b'\n{"step": 5}\n')
    assert last(tmp_path) == {}
    path.rename(tmp_path / "x.jsonl")
    assert last(tmp_path) == {"x": {"step": 5}}
    assert len(read_end(tmp_path / "x.jsonl", 100)) == 100
    with pytest.raises(Unreadable, match="more than"):
        read_toml(tmp_path / "x.jsonl")


@pytest.mark.parametrize(
    "text",
    ["", "{", "[1]", "null", "3", '"x"', "[" * 100_000, '{"a":' * 5000 + "1" + "}" * 5000, '{"share": NaN}', "\xff",
     '{"share": -Infinity}', '{"share": 1e999}', '{"count": 1.5}', '{"count": true}', '{"count": 9223372036854775808}',
     '{"count": null}', '{"on": 1}', '{"name": 1}', '{"name": "\\ud800"}', '{"names": "abc"}', '{"names": [1]}',
     '{"at": []}', '{"count": ' + "1" * 5000 + "}", '{"more": 1}'],
)  # fmt: skip
def test_json_of_another_kind_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(Unreadable, match=str(path)):
        read_json(path, FIELDS, required=("count",))


def test_json_of_the_stated_kind_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(GOOD))
    assert read_json(path, FIELDS, required=("count",)) == GOOD
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none", FIELDS)


@pytest.mark.parametrize(
    "text",
    ["a = " + "[" * 5000 + "]" * 5000, "a = " + "{a = " * 5000 + "1" + "}" * 5000, ".".join("a" * 5000) + " = 1",
     ".".join(["a"] * 200_000) + " = 1", "[" + " . ".join(['"b\\"."'] * 150_000) + "]",
     "a = {" + ".".join("x" * 300_000) + " = 1}", '"' * 500_000, '"\\' * 500_000, "'a" * 500_000, ". " * 500_000,
     (".".join(["x" * 199] * 63) + " ") * 80, (".".join(['"' + "x" * 199 + '"'] * 63) + " ") * 80,
     "a . " * 63 + " " * 500_000, ("a" + " " * 100 + "." + " " * 90) * 5000,
     "['" + "'.'".join("x" * 50_000) + "']", "a = " + "1" * 5000, "[" * 20 + "]" * 20 + " = 1",
     "\n".join(f"[{'.'.join('a' * k)}]" for k in range(1, 60))],
)  # fmt: skip
def test_deep_and_long_toml_is_refused_at_once(text: str) -> None:
    with pytest.raises(Unreadable):
        parse_toml(text)


def test_long_texts_and_lists_are_no_long_keys() -> None:
    numbers = ", ".join(f"{k}.5" for k in range(1000))
    table = parse_toml(f'a.b.c = [{numbers}]\nd = "{"x" * 500_000}"\ne = "{"1.2.3.4, " * 5000}"\n{"k" * 100_000} = 1')
    assert len(table["a"]["b"]["c"]) == 1000 and len(table["d"]) == 500_000


def test_what_steers_a_terminal_is_not_printed() -> None:
    assert printable("über 3 × 4 – \x1b[2J\x07\n") == "über 3 × 4 – \ufffd[2J\ufffd\ufffd"


def test_nothing_is_written_through_a_link(run: RunDir, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("precious")
    (run.metrics / "learner-0.jsonl").symlink_to(outside)
    with pytest.raises(Unreadable, match="link"):
        Metrics(run.metrics, "learner-0")
    for name in ("state.json", "job.toml"):
        temporary = run.path / f"{name}.{os.getpid()}.tmp"
        temporary.symlink_to(outside)
        write_json(run.path / name, {}) if name == "state.json" else write_text(run.path / name, "")
        assert not temporary.is_symlink() and not (run.path / name).is_symlink()
    run.stop_file.symlink_to(tmp_path / "nowhere")
    run.request_stop()
    assert run.stop_requested() and not (tmp_path / "nowhere").exists() and outside.read_text() == "precious"


# --- the small files of a run directory ---


@pytest.mark.parametrize(
    "text",
    ["[]", "[1, 2]", '"running"', "7", '{"state": 3}', '{"state": "asleep"}', '{"env_steps": "many"}', "{" * 5000,
     '{"reason": ["x"]}', '{"attempt": 1.5}', '{"updated": "now"}', '{"state": null}'],
)  # fmt: skip
def test_a_state_of_another_kind_is_a_bad_run(run: RunDir, text: str) -> None:
    run.state_file.write_text(text)
    with pytest.raises(BadRun, match="remove that file and resume"):
        run.read_state()


def test_only_numbers_count_as_attempts(run: RunDir) -> None:
    for name in ("0003.json", "0x.json", "12-3.json", "²3.json", "9.json.tmp"):
        (run.provenance / name).touch()
    assert run.next_attempt() == 4


def test_metric_lines_of_another_kind_are_left_out(tmp_path: Path) -> None:
    lines = ['{"step": 1, "time": 2, "loss": null, "x": "text", "y": [1]}', "[]", '{"step": "a"}', '{"time": true}',
             '{"step": 2, "loss": NaN}', "[" * 5000, "null", '{"step": 3}']  # fmt: skip
    (tmp_path / "learner-0.jsonl").write_text("\n".join(lines) + "\n")
    os.mkfifo(tmp_path / "actor-0.jsonl")
    assert rows(tmp_path / "learner-0.jsonl") == [{"step": 1, "time": 2, "loss": None}, {"step": 3}]
    assert last(tmp_path) == {"learner-0": {"step": 3}}


def test_records_of_another_kind_are_left_out(run: RunDir) -> None:
    record = {"role": "actor-0", "host": "h", "pid": 4242, "token": "t", "shared": []}
    damaged = ["[]", "3", "{", json.dumps({**record, "pid": -1}), json.dumps({**record, "pid": "1"}),
               json.dumps({"pid": 7}), json.dumps({**record, "shared": "/etc/passwd"}),
               json.dumps({**record, "ended": "error"}), json.dumps({**record, "token": None}), "[" * 5000]  # fmt: skip
    for k, text in enumerate(damaged):
        (run.logs / f"rank-{k:03d}.json").write_text(text)
    (run.logs / "rank-x.json").write_text(json.dumps(record))
    os.mkfifo(run.logs / "rank-900.json")
    (run.logs / "rank-100.json").write_text(json.dumps({**record, "rank": "../../x"}))
    assert all_records(run) == [{**record, "rank": 100}]
    error = {"ended": "error", "time": 1.0, "error": "", "bug": False}
    (run.logs / "rank-100.json").write_text(json.dumps({**record, **error}))
    assert first_failure(run, "", 1, {}) == "rank 100 (actor-0) on h failed: no error message"


def test_only_job_numbers_reach_scancel(run: RunDir) -> None:
    (run.path / "submit").mkdir()
    (run.path / "submit" / "jobs").write_text("12\n--user=me\n13_4\n-1\n12\n14+1\n٣\n")
    assert job_ids(run) == ["12", "13_4"]


# --- what a run directory names in /dev/shm ---


def test_a_noted_file_is_removed_only_if_it_is_one_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, other = tmp_path / "shm", tmp_path / "other"
    folder.mkdir(), other.mkdir()
    monkeypatch.setattr(shared_memory, "SHARED", folder)
    stay = [other / "precious", other / "mpich_shm_1", other / "hpc_rl-t-1", folder / "precious", folder / "hpc_rl-u-1"]
    gone = [folder / "mpich_shm_2", folder / "hpc_rl-t-2"]
    for path in (*stay, *gone):
        path.write_text("x")
    linked = folder / "mpich_shm_link"
    linked.symlink_to(other / "precious")
    names = [*map(str, (*stay, *gone, linked)), f"{folder}/../other/mpich_shm_1", "", "\0", "mpich_shm_2"]
    shared_memory.remove({"t", "*", "../other/hpc_rl-t", ""}, names, set())
    assert all(path.exists() for path in stay) and linked.is_symlink() and not any(path.exists() for path in gone)


def test_files_of_others_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "SHARED", tmp_path)
    files = [tmp_path / "mpich_shm_1", tmp_path / "hpc_rl-t-1"]
    for path in files:
        path.write_text("x")
        os.utime(path, (time.time() - 60, time.time() - 60))
    monkeypatch.setattr(shared_memory.os, "getuid", lambda: os.stat(tmp_path).st_uid + 1)
    shared_memory.remove({"t"}, map(str, files), files)
    shared_memory.clear()
    assert all(path.exists() for path in files)
