"""A data set of Minari becomes a run whose episodes are those of the data set, and an exported run comes back.

Mutations seen to fail: the tail of an episode's frames not handed to the next, the first stack padded with zeros, a
void move that opens an episode, no discount of 0, env steps counted one too many, spaces that Minari would ask an
environment for, the exported run's columns, categories not counted from 0, boxes not scaled back, bytes beside other
numbers not scaled, colours last, success of the first move.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces

from hpc_rl.api import open_run
from hpc_rl.envs.base import BadEnvironment
from hpc_rl.envs.spaces import Observations, chosen, flat, taken
from hpc_rl.export import from_minari, to_minari
from hpc_rl.export.base import NotExported
from hpc_rl.status import status
from hpc_rl.storage.episodes import Episode, Leaves, joined, survey
from hpc_rl.storage.segments import read
from hpc_rl.storage.specs import spec_of
from hpc_rl.types import Actions, Spec
from tests.export.played import Played, new_run

minari = pytest.importorskip("minari")
serialize_space = pytest.importorskip("minari.serialization").serialize_space
ATARI = Spec("my.module:make", (32, 33), "uint8", Actions("discrete", (4,)), stack=4, padding="repeat")
BOX = Spec("my.module:make", (3,), "float32", Actions("box", (2,), (-4.0, 0.0), (2.0, float("inf"))))


def episodes(run: Path) -> list[Episode]:
    return list(joined(survey(run)))


def imported(dataset: object, out: Path, algorithm: str | None = None) -> tuple[from_minari.Imported, list[str]]:
    warnings: list[str] = []
    return from_minari.import_data(str(dataset), out, algorithm, warnings.append), warnings


@pytest.mark.parametrize("spec", [None, ATARI, BOX], ids=["vectors", "stacks", "boxes"])
def test_an_exported_run_comes_back(tmp_path: Path, spec: Spec | None) -> None:
    """The same arrays of every episode, through segments, Minari's file, and segments again."""
    run = new_run(tmp_path / "run", "environment.columns=3")
    Played(moves=50, spec=spec).record(run.path, [0, 13, 30, 50])
    result = to_minari.export(run.path, tmp_path / "out", None, False)
    back, warnings = imported(tmp_path / "out" / result.id, tmp_path / "back")
    assert (back.episodes, back.env_steps, back.endless) == (result.episodes, result.env_steps, 0) and not warnings
    before = [episode for episode in episodes(run.path) if episode.whole]
    after, old, new = episodes(tmp_path / "back"), Leaves(), Leaves()
    assert all(episode.whole for episode in after) and [x.end for x in after] == [x.end for x in before]
    for one, other in zip(before, after, strict=True):
        for name in ("observation", "reward", "discount", "version", "extras/value"):
            np.testing.assert_array_equal(old.read(one, name), new.read(other, name), err_msg=name)
        actions = old.read(one, "action")
        if spec is BOX:  # the environment took them cut at 0, and scaled
            actions = np.stack([actions[:, 0], np.maximum(actions[:, 1], 0)], 1)
        np.testing.assert_allclose(new.read(other, "action"), actions, atol=1e-6)
    (path,) = sorted((tmp_path / "back").glob("trajectories/*/*.h5"))
    (first, *_) = sorted(run.trajectories.glob("*/*.h5"))
    assert spec_of(path) == spec_of(first)
    older = read(path, "observation", slice(spec.stack), 0) if spec else np.zeros((1, 1))
    assert (older == older[-1]).all()  # the first stack is padded with the first frame


def test_the_run_says_where_it_comes_from(tmp_path: Path) -> None:
    run = new_run(tmp_path / "run", "environment.columns=3", "seed=7")
    Played().record(run.path, [0, 120])
    result = to_minari.export(run.path, tmp_path / "out", None, False)
    imported(tmp_path / "out" / result.id / "data", tmp_path / "back")
    back = open_run(tmp_path / "back")
    assert back.state["state"] == "done" and "imported from data set ppo_cartpole-v0" in back.state["reason"]
    assert (back.job.algorithm, back.job.seed, back.job.environment.columns) == ("ppo", 7, 1)
    assert back.summary["episodes"] == result.episodes and back.summary["env_steps"] == result.env_steps
    origin = json.loads((tmp_path / "back" / "provenance" / "0000.json").read_text())["imported_from"]
    assert origin["dataset_id"] == result.id and str(tmp_path / "out") in origin["folder"]
    (line,) = status([tmp_path / "back"], print)
    assert line.state == "done" and line.over


OBSERVATIONS = spaces.Dict(
    {
        "arm": spaces.Tuple([spaces.Box(-1, 1, (2, 2)), spaces.Discrete(3, start=1)]),
        "buttons": spaces.MultiBinary(2),
        "eye": spaces.Box(0, 255, (2,), np.uint8),
        "kinds": spaces.MultiDiscrete([2, 3]),
    }
)


def of_space(space: Any, rows: list[Any]) -> Any:
    """Rows of a space as Minari keeps them: one array of each leaf."""
    if isinstance(space, spaces.Dict):
        return {name: of_space(part, [row[name] for row in rows]) for name, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(of_space(part, [row[k] for row in rows]) for k, part in enumerate(space.spaces))
    return np.stack(rows)


def foreign(folder: Path, observation: Any, action: Any, lengths: tuple[int, ...] = (3, 1, 4), **metadata: Any) -> Any:
    """A data set of another program; the last episode has no end."""
    observation.seed(1), action.seed(1)
    storage = minari.dataset.minari_storage.MinariStorage.new(folder, observation, action, data_format="hdf5")
    storage.update_metadata({"dataset_id": "other/games-v2", "minari_version": minari.__version__, **metadata})
    buffers = []
    for number, count in enumerate(lengths):
        buffers.append(
            minari.data_collector.EpisodeBuffer(
                observations=of_space(observation, [observation.sample() for _ in range(count + 1)]),
                actions=of_space(action, [action.sample() for _ in range(count)]),
                rewards=np.arange(count, dtype=np.float64),
                terminations=np.arange(1, count + 1) == (count if number == 0 else 0),
                truncations=np.arange(1, count + 1) == (count if number == 1 else 0),
                infos={"success": np.arange(count + 1) == count, "qpos": np.zeros((count + 1, 2))},
            )
        )
    storage.update_episodes(buffers)
    return list(minari.MinariDataset(folder))


def test_a_data_set_of_another_program(tmp_path: Path) -> None:
    """Parts of a Dict become the vector that a run of the environment would record; the first actions count from 0."""
    action = spaces.Discrete(4, start=2)
    original = foreign(tmp_path / "set", OBSERVATIONS, action)
    result, _ = imported(tmp_path / "set", tmp_path / "run")
    assert (result.episodes, result.env_steps, result.endless) == (3, 8, 1)
    leaves, after = Leaves(), episodes(tmp_path / "run")
    assert [episode.end for episode in after] == ["terminated", "truncated", "truncated"]
    scale = np.where(np.arange(4 + 3 + 2 + 2 + 5) < 9, 1, np.where(np.arange(16) < 11, 1 / 255, 1))
    for one, other in zip(original, after, strict=True):
        rows = [
            spaces.flatten(OBSERVATIONS, {
                "arm": tuple(part[t] for part in one.observations["arm"]),
                **{name: one.observations[name][t] for name in ("buttons", "eye", "kinds")},
            })
            for t in range(len(one) + 1)
        ]  # fmt: skip
        np.testing.assert_allclose(leaves.read(other, "observation"), np.stack(rows) * scale, rtol=1e-6)
        np.testing.assert_array_equal(leaves.read(other, "action"), one.actions - 2)
        np.testing.assert_array_equal(leaves.read(other, "reward"), one.rewards)
        assert leaves.read(other, "episode_return")[-1] == one.rewards.sum()
        assert leaves.read(other, "episode_success")[-1] == 1
        assert leaves.read(other, "version").tolist() == [0] * len(one)
    (path,) = (tmp_path / "run").glob("trajectories/*/*.h5")
    spec = spec_of(path)
    assert spec.id == "other/games-v2" and spec.actions == Actions("discrete", (4,))
    assert (spec.parts["arm/1"].start, spec.parts["kinds"].stop) == (4, 16)


def test_images_of_other_programs_have_their_colours_first(tmp_path: Path) -> None:
    shape = spaces.Box(0, 255, (6, 5, 3), np.uint8)
    original = foreign(tmp_path / "set", shape, spaces.MultiBinary(2))
    imported(tmp_path / "set", tmp_path / "run", "ppo")
    after = episodes(tmp_path / "run")
    rows = Leaves().read(after[0], "observation")
    np.testing.assert_array_equal(rows, original[0].observations.transpose(0, 3, 1, 2))
    assert open_run(tmp_path / "run").job.algorithm == "ppo"


@pytest.mark.parametrize(
    "space",
    [spaces.Discrete(3, start=-1), spaces.MultiDiscrete([2, 4]), spaces.MultiBinary((2, 2)),
     spaces.Box(np.array([-3, 0], np.float32), np.array([5, np.inf], np.float32))],
    ids=str,
)  # fmt: skip
def test_actions_go_through_a_policy_s_numbers_and_back(space: Any) -> None:
    space.seed(3)
    native = np.stack([space.sample() for _ in range(20)])
    actions = Observations.of("x", spaces.Box(0, 1, (1,)), space).spec.actions
    numbers = chosen(native, space, actions)
    assert numbers.shape == (20, *actions.shape) and numbers.dtype == actions.dtype
    if actions.kind == "box":
        assert np.abs(numbers[:, 0]).max() <= 1
        np.testing.assert_allclose(taken(numbers, actions), native, rtol=1e-5, atol=1e-6)
    else:
        assert numbers.min() == 0 and (numbers.reshape(20, -1).max(0) < np.array(actions.sizes)).all()


def test_rows_of_spaces_are_flat_as_gymnasium_makes_them() -> None:
    OBSERVATIONS.seed(2)
    rows = [OBSERVATIONS.sample() for _ in range(5)]
    expected = np.stack([spaces.flatten(OBSERVATIONS, row) for row in rows])
    np.testing.assert_array_equal(flat(of_space(OBSERVATIONS, rows), OBSERVATIONS), expected)


def test_bad_input_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "own"))
    box, action = spaces.Box(0, 1, (2,)), spaces.Discrete(2)

    def refused(name: str, kind: type[Exception] = NotExported) -> str:
        with pytest.raises(kind) as error:
            imported(tmp_path / name, tmp_path / "run")
        assert not (tmp_path / "run").exists() and not list(tmp_path.glob(".run*"))
        return str(error.value)

    assert "neither the folder of a Minari data set nor the id" in refused("none")
    foreign(tmp_path / "empty", box, action, ())
    assert "has no episode" in refused("empty")
    foreign(tmp_path / "words", box, spaces.Dict({"a": action}))
    assert "actions Dict" in refused("words", BadEnvironment)
    foreign(tmp_path / "torn", box, action)
    (tmp_path / "torn" / "main_data.hdf5").write_bytes(b"torn")
    assert "cannot be read to its end" in refused("torn")
    for name, changes, sentence in (
        ("new", {"minari_version": "99.0"}, "is no data set that Minari can read"),
        ("bare", {"observation_space": None}, "does not state its spaces"),
        ("short", {"observation_space": serialize_space(spaces.Box(0, 1, (3,)))}, "does not fit its spaces"),
    ):  # fmt: skip
        foreign(tmp_path / name, box, action)
        file = tmp_path / name / "metadata.json"
        values = json.loads(file.read_text()) | changes
        file.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
        assert sentence in refused(name)
    foreign(tmp_path / "good", box, action)
    (tmp_path / "run").mkdir()
    with pytest.raises(NotExported, match="exists; choose another --out"):
        imported(tmp_path / "good", tmp_path / "run")
