"""Data sets that Minari's own loader opens hold the games that a run recorded.

Mutations seen to fail: JPEG left on, a terminated episode that is truncated, too, actions as the policy chose them, cut
episodes counted by their beginning alone, env steps counted from 0 in each episode, an environment of frames recovered.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpc_rl.cli import main
from hpc_rl.export import to_minari
from hpc_rl.export.base import NotExported
from hpc_rl.storage.run_dir import RunDir
from hpc_rl.types import Actions, Spec
from tests.export.played import Game, Played, new_run

minari = pytest.importorskip("minari")


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return new_run(tmp_path / "run")


def load(result: to_minari.Exported, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(result.folder))
    return minari.load_dataset(result.id)


def in_order(dataset: Any, played: Played) -> dict[int, list[Any]]:
    """Column -> its episodes."""
    episodes = list(dataset.iterate_episodes())
    return {int(c): [e for e in episodes if e.infos["column"][0] == c] for c in played.columns}


def check(episode: Any, game: Game) -> None:
    moves = len(game.reward)
    np.testing.assert_array_equal(episode.observations, game.observation)
    np.testing.assert_array_equal(episode.rewards, game.reward)
    assert episode.terminations.tolist() == [False] * (moves - 1) + [game.terminated]
    assert episode.truncations.tolist() == [False] * (moves - 1) + [not game.terminated]
    assert episode.infos["env_step"].tolist() == list(range(game.start, game.start + moves))
    np.testing.assert_array_equal(episode.infos["extras"]["value"], 2 * game.reward)


def test_the_loader_finds_the_games(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    played = Played()
    played.record(run.path, [0, 33, 80, 120])
    result = to_minari.export(run.path, run.path / "export", None, keep_cut=False)
    assert result.id == "ppo_cartpole-v0" and not result.faults
    dataset = load(result, monkeypatch)
    assert dataset.total_episodes == result.episodes == sum(len(games) for games in played.whole().values())
    assert dataset.total_steps == result.env_steps
    for column, games in played.whole().items():
        for episode, game in zip(in_order(dataset, played)[column], games, strict=True):
            check(episode, game)
            np.testing.assert_array_equal(episode.actions, game.action)
            rows = episode.infos["version"]
            assert rows.dtype == np.int64 and (np.diff(rows) == 1).all()
            assert set(episode.infos["attempt"]) == {0}
    steps = {c: sum(len(game.reward) for game in games) for c, games in played.whole().items()}
    assert result.cut == int((played.step[-1] > list(steps.values())).sum()) > 0
    assert str(dataset.recover_environment().spec.id) == "CartPole-v1"
    leaves = dataset.storage.metadata["leaves"]
    assert "raw reward" in leaves["rewards"]["doc"] and leaves["infos/version"]["unit"] == "update"
    assert leaves["infos/extras/value"] == {"unit": "reward", "doc": "V"}
    assert {"observations", "actions", "terminations", "infos/attempt", "infos/column"} <= leaves.keys()


def test_pixels_are_single_frames_and_not_changed(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of 32×32 and more would be stored as JPEG by default."""
    spec = Spec("CartPole-v1", (32, 33), "uint8", Actions("discrete", (4,)), stack=4)
    played = Played(moves=30, columns=1, spec=spec)
    played.record(run.path, [0, 10, 30])
    dataset = load(to_minari.export(run.path, run.path / "export", "group/frames-v3", False), monkeypatch)
    assert dataset.observation_space.shape == (32, 33) and dataset.observation_space.dtype == np.uint8
    assert dataset.env_spec is None and dataset.storage.metadata["frame_stack"] == 4
    assert "last 4" in dataset.storage.metadata["leaves"]["observations"]["doc"]
    for episode, game in zip(dataset.iterate_episodes(), played.whole()[4], strict=True):
        check(episode, game)


def test_actions_are_those_that_the_environment_took(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """−1..1 is scaled to two finite bounds, and handed on where there is only one."""
    actions = Actions("box", (2,), (-4.0, 0.0), (2.0, float("inf")))
    played = Played(moves=40, columns=2, spec=Spec("my.module:make", (2,), "float32", actions))
    played.record(run.path, [0, 40])
    dataset = load(to_minari.export(run.path, run.path / "export", None, False), monkeypatch)
    assert dataset.action_space.low.tolist() == [-4, 0] and dataset.action_space.high.tolist() == [2, np.inf]
    for column, games in played.whole().items():
        for episode, game in zip(in_order(dataset, played)[column], games, strict=True):
            np.testing.assert_allclose(episode.actions[:, 0], -1 + 3 * game.action[:, 0], rtol=1e-6)
            np.testing.assert_allclose(episode.actions[:, 1], np.maximum(game.action[:, 1], 0))
            assert all(dataset.action_space.contains(action) for action in episode.actions)


def test_episodes_that_were_cut_off_are_kept_on_request(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    played = Played()
    paths = played.record(run.path, [0, 40, 80, 120])
    paths[1].write_bytes(b"torn")
    result = to_minari.export(run.path, run.path / "export", "all-v0", keep_cut=True)
    dataset = load(result, monkeypatch)
    assert len(result.faults) == 1 and str(paths[1]) in result.faults[0] and result.cut > 0
    gap = played.step[80] - played.step[40]
    assert dataset.total_steps == (played.step[-1] - gap).sum()
    for episode in dataset.iterate_episodes():
        assert episode.terminations[-1] != episode.truncations[-1]
    fewer = to_minari.export(run.path, run.path / "export", "whole-v0", keep_cut=False)
    assert fewer.episodes == result.episodes - result.cut and fewer.cut == result.cut


def damaged(run: RunDir, value: int) -> None:
    import h5py

    for path in run.trajectories.glob("*/*.h5"):
        with h5py.File(path, "r+") as file:
            file.attrs["format"] = value


def test_bad_input_is_one_sentence(run: RunDir, tmp_path: Path) -> None:
    def refused(id: str | None = None, out: str = "out") -> str:
        with pytest.raises(NotExported) as error:
            to_minari.export(run.path, tmp_path / out, id, False)
        assert not list((tmp_path / out).glob("*")) or out != "out"
        return str(error.value)

    assert "no closed segment yet" in refused()
    assert "'a b' is no id" in refused("a b")
    none = new_run(tmp_path / "none", "output.record=0.0")
    with pytest.raises(NotExported, match="recorded no column"):
        to_minari.export(none.path, tmp_path / "out", None, False)
    played = Played(columns=1)
    played.record(run.path, [0, 1])
    assert "no whole episode; 1 were cut off" in refused()
    played.record(run.path, [1, 120])
    (tmp_path / "there" / "ppo_cartpole-v0").mkdir(parents=True)
    assert "exists; choose another --out or --id" in refused(out="there")
    damaged(run, 2)
    assert "has format 2, this version reads 1" in refused()


def test_a_missing_package_is_one_sentence(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "minari.dataset.minari_storage", None)
    with pytest.raises(NotExported, match=r"install it with pip install 'minari\[hdf5\]'"):
        to_minari.export(run.path, run.path, None, False)


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> Any:
    """Exit code of `hpc-rl`."""
    monkeypatch.setattr(sys, "argv", ["hpc-rl", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code


def test_the_command_says_what_it_wrote_and_left_out(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Played().record(run.path, [0, 50])
    assert command(monkeypatch, "export", run.path, "--to", "minari") == 0
    texts = capsys.readouterr()
    assert texts.out.strip() == str(run.path / "export" / "ppo_cartpole-v0")
    assert "left out (--cut keeps them as truncated)" in texts.err
    assert command(monkeypatch, "export", run.path, "--to", "minari") == 2
    texts = capsys.readouterr()
    assert not texts.out and texts.err.count("\n") == 1 and "exists" in texts.err
