"""A replay that cannot be is refused in a sentence, before anything is allocated.

Mutations seen to fail: the capacity compared in place of what is held of each column; one rank's replay for those of
its whole host; the memory of another host; a group's limit without its parents'; files' pages counted as taken.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from hpc_rl import host_memory
from hpc_rl import job as jobs
from hpc_rl.decisions import check_memory
from hpc_rl.experience import Experience, Items
from hpc_rl.replay.room import Unreplayable, check_room

GIB = 2**30


@pytest.mark.parametrize(
    ("min_size", "batch", "sentence"),
    [
        (97, 8, "min_size = 97 env steps are waited for .* the replay holds 96; lower min_size or raise"),
        (0, 97, "a batch of 97 items is larger than the replay, which holds 96 env steps; lower the batch size"),
    ],
)
def test_what_an_update_waits_for_must_fit(min_size: int, batch: int, sentence: str) -> None:
    def experience(min_size: int, batch: int) -> Experience:
        return Experience(4, (Items("items", batch, 3),), 100, min_size)  # 100 // 8 moves of each of 8 columns: 96

    check_room(experience(96, 96), 8, 1)
    with pytest.raises(Unreplayable, match=sentence):
        check_room(experience(min_size, batch), 8, 1)


def test_a_replay_must_fit_into_the_memory_of_its_host() -> None:
    job = jobs.parse({
        "algorithm": "dqn", "topology": "actor_replay_learner", "environment": {"id": "toy/catch", "columns": 6},
        "resources": {"ranks": 7, "replays": 3},
    })  # fmt: skip
    plan = jobs.plan(job)
    assert plan.of("replay_server") == [1, 2, 3]
    hosts = ["a", "a", "b", "b", "b", "a", "a"]
    rows = [{"host": host, "memory": 5 * GIB if host == "b" else 3 * GIB} for host in hosts]
    check_memory(job, plan, 5 * GIB // 2, rows)
    with pytest.raises(Unreplayable, match=r"takes 5.2 GiB on b \(2 rank\(s\)\), where 5 GiB are free; lower dqn.cap"):
        check_memory(job, plan, int(2.6 * GIB), rows)
    with pytest.raises(Unreplayable, match=r"takes 3.5 GiB on a \(1 rank\(s\)\), where 3 GiB are free"):
        check_memory(job, plan, int(3.5 * GIB), rows)
    check_memory(job, plan, 99 * GIB, [{"host": host, "memory": 0} for host in hosts])  # nothing is known


def put(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")


@pytest.mark.parametrize(
    ("version", "groups"), [(2, "0::/slurm/job_7/step_0"), (1, "9:cpu:/x\n4:memory:/slurm/job_7/step_0")]
)
def test_memory_is_what_every_group_above_leaves(tmp_path: Path, version: int, groups: str) -> None:
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
    put(proc, meminfo="MemTotal: 64 kB\nMemAvailable:  32 kB")
    assert host_memory.available(proc, cgroups) == 32 * 1024
    put(proc / "self", cgroup=groups)
    root = cgroups / ("memory" if version == 1 else "")
    limit, use, cache = ("memory__max", "memory__current", "file") if version == 2 else (
        "memory__limit_in_bytes", "memory__usage_in_bytes", "total_cache")  # fmt: skip
    put(root / "slurm/job_7", **{limit: 20_000, use: 9_000, "memory__stat": f"anon 8000\n{cache} 1000"})
    put(root / "slurm/job_7/step_0", **{limit: "max", use: 8_000, "memory__stat": f"{cache} 0"})
    assert host_memory.available(proc, cgroups) == 12_000
    put(root / "slurm", **{limit: 10_000, use: 9_900, "memory__stat": f"{cache} 0"})
    assert host_memory.available(proc, cgroups) == 100
    assert host_memory.available(tmp_path / "none", cgroups) == 0
