"""A checkpoint is whole or refused, and nothing ever silently starts afresh."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from hpc_rl.storage import checkpoint
from hpc_rl.storage.checkpoint import CorruptCheckpoint, IncompatibleCheckpoint, NoUsableCheckpoint, SaveFailed
from hpc_rl.storage.packing import from_bytes, to_bytes
from hpc_rl.storage.run_dir import RunDir, create
from hpc_rl.types import NonFinite


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return create(tmp_path / "run", "")


def state() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    return {
        "net": {
            "body.weight": torch.randn(5, 3, generator=generator),
            "half": torch.randn(4, generator=generator).bfloat16(),
        },
        "optimizer": {"step": torch.tensor(7.0), "count": 3, "empty": torch.zeros(0, 2)},
        "flags": torch.tensor([True, False]),
        "pixels": torch.arange(3 << 20, dtype=torch.int64).to(torch.uint8).reshape(-1, 64, 64),
        "wide": np.arange(6.0).reshape(2, 3).T,  # float64 and not contiguous
        "steps": torch.tensor([2**60, -1]),
        "a/b": torch.ones(1),
        "a": {"b": torch.zeros(1)},
        "replay": {name: torch.tensor([math.nan, 2.0]) for name in ("episode_return", "episode_success")},
        "random": {"actor/3": np.random.PCG64(5).state},
        "parts": [torch.ones(2), "text", None, {"x": np.float32(0.5)}],
        "nothing": {},
        "best": -math.inf,
    }


def same(left: Any, right: Any) -> bool:
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, torch.Tensor | np.ndarray):
        left = torch.as_tensor(left)
        return (
            left.dtype == right.dtype
            and left.shape == right.shape
            and torch.equal(left.nan_to_num(), right.nan_to_num())
        )
    return bool(left == right)


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 0xFF
    path.write_bytes(data)


def test_round_trip(run: RunDir) -> None:
    path = checkpoint.save(run, 123, state(), {"env_steps": 10**12, "shape": (4, 2)})
    assert path.name == "000000123.h5"
    found, meta = checkpoint.load(path)
    assert same(state(), found)
    assert meta == {"env_steps": 10**12, "shape": [4, 2]}
    generator = np.random.PCG64(0)
    generator.state = found["random"]["actor/3"]
    assert generator.random_raw() == np.random.PCG64(5).random_raw()


def test_pixels_are_compressed(run: RunDir) -> None:
    assert checkpoint.save(run, 1, state(), {}).stat().st_size < 1 << 20


def test_no_flipped_byte_gets_through(run: RunDir) -> None:
    small = {"w": torch.arange(50.0), "n": 3, "s": "text"}
    path = checkpoint.save(run, 1, small, {"k": 1})
    data, torn = path.read_bytes(), 0
    for offset in range(0, len(data), 7):
        path.write_bytes(data)
        flip(path, offset)
        try:
            state, meta = checkpoint.load(path)
        except (CorruptCheckpoint, IncompatibleCheckpoint):
            torn += 1
        else:
            assert same(small, state) and meta == {"k": 1}  # the byte was padding
    assert torn > 100


def test_a_truncated_file_is_torn(run: RunDir) -> None:
    path = checkpoint.save(run, 1, state(), {})
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CorruptCheckpoint, match=r"000000001\.h5 is torn"):
        checkpoint.load(path)


def test_a_torn_newest_falls_back_with_a_warning(run: RunDir) -> None:
    older = checkpoint.save(run, 1, {"x": torch.ones(1000)}, {"n": 1})
    newer = checkpoint.save(run, 2, {"x": torch.full((1000,), 2.0)}, {"n": 2})
    data = newer.read_bytes()
    flip(newer, data.index(np.full(20, 2.0, np.float32).tobytes()) + 11)
    warnings: list[str] = []
    newest = checkpoint.newest(run, warnings.append)
    assert newest is not None
    assert newest[0] == older and newest[2] == {"n": 1}
    assert len(warnings) == 1 and "000000002.h5 is torn: the checksum of state/x" in warnings[0]


def test_all_torn_never_starts_afresh(run: RunDir) -> None:
    for number in (1, 2):
        checkpoint.save(run, number, {"x": torch.ones(3)}, {}).write_bytes(b"")
    with pytest.raises(NoUsableCheckpoint, match=r"none of the 2 .* never starts afresh"):
        checkpoint.newest(run, lambda text: None)


def test_none_was_ever_written(run: RunDir) -> None:
    (run.checkpoints / "000000005.h5.tmp").write_bytes(b"half")
    assert checkpoint.newest(run, pytest.fail) is None


def test_numbers_are_compared_as_numbers(run: RunDir) -> None:
    for number in (999_999_999, 1_000_000_000, 5):
        checkpoint.save(run, number, {}, {"n": number})
    newest = checkpoint.newest(run, pytest.fail)
    assert newest is not None and newest[2] == {"n": 1_000_000_000}


def test_another_format_stops_and_is_not_torn(run: RunDir) -> None:
    checkpoint.save(run, 1, {}, {})
    with h5py.File(checkpoint.save(run, 2, {}, {}), "r+") as file:
        file.attrs["format"] = 99
    with pytest.raises(IncompatibleCheckpoint, match="format 99, this version reads 4"):
        checkpoint.newest(run, lambda text: None)


@pytest.mark.parametrize("number", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_non_finite_is_refused_by_name(run: RunDir, number: float, dtype: torch.dtype) -> None:
    weights = torch.tensor([1.0, number], dtype=dtype)
    with pytest.raises(NonFinite, match="state/net/w holds NaN or infinity"):
        checkpoint.save(run, 1, {"net": {"w": weights}}, {})
    assert list(run.checkpoints.iterdir()) == []


@pytest.mark.parametrize("leaf", [object(), {"x"}, lambda: 0])
def test_what_needs_a_pickle_is_refused_by_name(run: RunDir, leaf: object) -> None:
    with pytest.raises(TypeError, match="state/a/0 is a"):
        checkpoint.save(run, 1, {"a": [leaf]}, {})
    with pytest.raises(TypeError, match="state has the key 3"):
        checkpoint.save(run, 1, {3: 1}, {})  # type: ignore[dict-item]


def test_a_full_disk_leaves_the_older_checkpoint(small_disk: Path) -> None:
    run = create(small_disk / "run", "")
    checkpoint.save(run, 1, {"x": torch.ones(10)}, {})
    with pytest.raises(SaveFailed, match=r"000000002\.h5 cannot be written .*No space left.*free space"):
        checkpoint.save(run, 2, {"x": torch.randn(1 << 20)}, {})
    assert [path.name for path in run.checkpoints.iterdir()] == ["000000001.h5"]
    checkpoint.save(run, 3, {"x": torch.randn(1 << 18)}, {})  # the space of the failed one is free again


def test_what_reads_back_wrong_is_not_published(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    crc = checkpoint._crc
    answers = iter(range(100))
    monkeypatch.setattr(checkpoint, "_crc", lambda array: crc(array) + next(answers))
    with pytest.raises(SaveFailed, match="checksum"):
        checkpoint.save(run, 1, {"x": torch.ones(10)}, {})
    assert list(run.checkpoints.iterdir()) == []


def test_prune_keeps_the_last_and_the_best(run: RunDir) -> None:
    paths = [checkpoint.save(run, number, {}, {}) for number in range(5)]
    checkpoint.mark_best(run, paths[0], 1.0)
    (run.checkpoints / "000000009.h5.tmp").touch()
    checkpoint.prune(run, 2, best=paths[1])
    names = sorted(path.name for path in run.checkpoints.iterdir())
    assert names == ["000000001.h5", "000000003.h5", "000000004.h5", "best.h5", "best.json"]
    with pytest.raises(ValueError, match="keep = 0"):
        checkpoint.prune(run, 0)


def test_the_best_outlives_its_number_and_is_replaced(run: RunDir) -> None:
    for number in range(3):
        best = checkpoint.mark_best(run, checkpoint.save(run, number, {"n": number}, {}), 10.0 * number)
    checkpoint.prune(run, 1)
    assert checkpoint.load(best)[0] == {"n": 2}
    assert json.loads((run.checkpoints / "best.json").read_text()) == {"file": "000000002.h5", "score": 20.0}


def test_a_misfit_names_key_values_and_remedy() -> None:
    job = {"algorithm": "ppo", "spec": {"id": "Pong", "frame": (84, 84)}}
    checkpoint.check_compatible(job, {"algorithm": "ppo", "spec": {"id": "Pong", "frame": [84, 84]}})
    with pytest.raises(
        IncompatibleCheckpoint, match=r"spec\.id is 'Catch' in the checkpoint and 'Pong' in the job; resume with"
    ):
        checkpoint.check_compatible(job, {"algorithm": "ppo", "spec": {"id": "Catch", "frame": [1]}})
    with pytest.raises(IncompatibleCheckpoint, match="algorithm is 'absent'"):
        checkpoint.check_compatible(job, {})
    with pytest.raises(IncompatibleCheckpoint, match="extra is 3"):
        checkpoint.check_compatible({}, {"extra": 3})


def test_keep_one_after_a_torn_newest_keeps_the_new_one(run: RunDir) -> None:
    good = checkpoint.save(run, 5, {"n": 5}, {})
    torn = checkpoint.save(run, 10, {"n": 10}, {})
    torn.write_bytes(torn.read_bytes()[:-100])
    assert checkpoint.newest(run, lambda text: None) and torn.exists()  # who only reads renames nothing
    newest = checkpoint.newest(run, lambda text: None, set_aside=True)
    assert newest is not None and newest[0] == good
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["000000005.h5", "000000010.h5.torn"]
    checkpoint.save(run, 7, {"n": 7}, {})  # what a run writes that went on from 5
    checkpoint.prune(run, 1)
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["000000007.h5", "000000010.h5.torn"]
    newest = checkpoint.newest(run, pytest.fail)
    assert newest is not None and newest[1] == {"n": 7}
    checkpoint.save(run, 12, {}, {})
    checkpoint.prune(run, 1)
    assert [path.name for path in run.checkpoints.iterdir()] == ["000000012.h5"]


def test_all_torn_stay_where_they_are(run: RunDir) -> None:
    for number in (1, 2):
        checkpoint.save(run, number, {}, {}).write_bytes(b"")
    for _ in range(2):  # renamed, they would make the second start begin afresh
        with pytest.raises(NoUsableCheckpoint, match="none of the 2"):
            checkpoint.newest(run, lambda text: None, set_aside=True)


def test_what_is_in_flight_may_be_infinite_and_what_was_learned_may_not(run: RunDir) -> None:
    flight = {"reward": torch.tensor([math.inf]), "carry": {"lstm": torch.tensor([math.nan])}}
    path = checkpoint.save(run, 1, {"learner": {"w": torch.ones(1)}, "sampler": flight}, {})
    assert same(flight["reward"], checkpoint.load(path)[0]["sampler"]["reward"])
    with pytest.raises(NonFinite, match="state/learner/reward"):
        checkpoint.save(run, 2, {"learner": flight}, {})
    assert not same(from_bytes(to_bytes({"sampler": flight})), {})  # a rank's part is judged where it is written


def test_the_score_of_the_best_is_read_back(run: RunDir) -> None:
    assert checkpoint.best_score(run) == -math.inf
    checkpoint.mark_best(run, checkpoint.save(run, 1, {}, {}), 3.5)
    assert checkpoint.best_score(run) == 3.5
    for text in ("[1]", '{"score": null}', '{"score": "x"}', "{", '{"score": NaN}'):
        (run.checkpoints / "best.json").write_text(text)
        assert checkpoint.best_score(run) == -math.inf
