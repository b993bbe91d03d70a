"""Episodes joined over segments are the games that were played; what is missing or was made again is left out.

Mutations seen to fail: frames or edges read from row 0 of their dataset, the edge row of every piece kept, no limit
of an attempt, an open game that goes on where ``first`` is true or where steps are missing, a game at the end of the
recording that waits for the next row, no discount looked at, blocks that are never dropped.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hpc_rl.storage import segments, trajectories
from hpc_rl.storage.episodes import Episode, Leaves, joined, survey
from hpc_rl.types import Actions, Spec
from tests.export.played import Game, Played, began

PIXELS = Spec("toy/catch", (3, 2), "uint8", Actions("discrete", (4,)), stack=4)


def episodes(run: Path) -> list[Episode]:
    return list(joined(survey(run)))


def by_column(found: list[Episode]) -> dict[int, list[Episode]]:
    columns = sorted({episode.column for episode in found})
    return {column: [episode for episode in found if episode.column == column] for column in columns}


def check(found: dict[int, list[Episode]], games: dict[int, list[Game]]) -> None:
    leaves = Leaves()
    assert {column: len(games) for column, games in found.items()} == {c: len(g) for c, g in games.items()}
    for column, list_of_games in games.items():
        for episode, game in zip(found[column], list_of_games, strict=True):
            assert episode.start == game.start and episode.length == len(game.reward)
            assert episode.end == ("terminated" if game.terminated else "truncated")
            for name in ("observation", "action", "reward"):
                np.testing.assert_array_equal(leaves.read(episode, name), getattr(game, name), err_msg=name)
            np.testing.assert_array_equal(leaves.read(episode, "extras/value"), 2 * game.reward)


@pytest.mark.parametrize("spec", [None, PIXELS], ids=["vectors", "stacks"])
@pytest.mark.parametrize("chunk", [1 << 20, 96], ids=["shared", "by column"])
def test_episodes_are_the_games(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: Spec | None, chunk: int) -> None:
    """Segments end in the middle of games, before and after the move that leads to the next one."""
    monkeypatch.setattr(trajectories, "_CHUNK_BYTES", chunk)
    played = Played(spec=spec)
    paths = played.record(tmp_path, [0, 2, 7, 30, 31, 33, 80, 120])
    assert len({path: None for path in paths}) == 7
    found = episodes(tmp_path)
    rest = [episode for episode in found if not episode.whole]
    assert {episode.end for episode in rest} <= {"cut"} and all(episode.begun for episode in rest)
    check(by_column([episode for episode in found if episode.whole]), played.whole())
    steps = sum(episode.length for episode in found)
    assert steps == played.step[-1].sum()
    assert any(len(episode.pieces) > 2 for episode in found)


def test_a_game_that_ends_with_the_recording_is_whole(tmp_path: Path) -> None:
    played = Played()
    end = int(np.flatnonzero(played.rows["episode_length"][:, 0])[-1]) + 1
    played.record(tmp_path, [0, 20, end])
    check(by_column([episode for episode in episodes(tmp_path) if episode.whole]), played.whole(end))


def test_moves_that_were_made_again_belong_to_the_later_attempt(tmp_path: Path) -> None:
    """Attempt 1 goes on at row 50 of what attempt 0 recorded to row 80; open games go on over the border."""
    played = Played()
    played.record(tmp_path, [0, 40, 80])
    steps = dict(zip(played.columns.tolist(), played.step[50].tolist(), strict=True))
    began(tmp_path, 0, None, {})
    began(tmp_path, 1, "checkpoints/000000010.h5", steps)
    played.record(tmp_path, [50, 120], attempt=1)
    found = [episode for episode in episodes(tmp_path) if episode.whole]
    check(by_column(found), played.whole())
    crossing = [episode for episode in found if {piece.attempt for piece in episode.pieces} == {0, 1}]
    assert crossing


def test_a_game_that_a_restart_gave_up_is_cut(tmp_path: Path) -> None:
    """As of ALE's games: the next attempt opens new ones where the old ones stood."""
    played, later = Played(), Played(seed=1)
    played.record(tmp_path, [0, 60])
    later.step += played.step[60]
    later.record(tmp_path, [0, 60], attempt=1)
    found = by_column(episodes(tmp_path))
    for k, column in enumerate(played.columns.tolist()):
        over = sum(len(game.reward) for game in played.whole(60)[column])
        cut = [episode for episode in found[column] if episode.end == "cut" and episode.start < later.step[0, k]]
        assert [episode.start for episode in cut] == [over] * bool(over < later.step[0, k])
        assert all(episode.begun for episode in found[column])
        assert sum(episode.length for episode in found[column]) == later.step[60, k]
    assert any(episode.end == "cut" and len(episode.pieces) == 1 for episode in found[4])


def test_a_missing_segment_cuts_both_sides(tmp_path: Path) -> None:
    played = Played()
    paths = played.record(tmp_path, [0, 40, 80, 120])
    paths[1].write_bytes(paths[1].read_bytes()[:700])
    view = survey(tmp_path)
    found = list(joined(view))
    assert len(view.faults) == 1 and str(paths[1]) in view.faults[0]
    for k, column in enumerate(played.columns.tolist()):
        own = [episode for episode in found if episode.column == column]
        low, high = played.step[40, k], played.step[80, k]
        assert all(episode.start + episode.length <= low or episode.start >= high for episode in own)
        starts = {game.start for game in played.games[k]}
        for episode in own:
            assert episode.begun == (episode.start in starts)
            assert (episode.end == "cut") == (episode.start + episode.length in (low, played.step[120, k]))


def test_blocks_are_read_once_while_neighbours_need_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    played = Played(moves=400)
    played.record(tmp_path, [0, 400])
    found, reads = episodes(tmp_path), []
    whole = segments.read
    monkeypatch.setattr("hpc_rl.storage.episodes.read", lambda *rest: reads.append(rest[1]) or whole(*rest))
    leaves = Leaves()
    for episode in found:
        leaves.read(episode, "reward")
    assert reads == ["reward"] and len(found) > 100
    small = Leaves(cache_bytes=1)
    for episode in found[:3]:
        small.read(episode, "reward")
        small.read(episode, "action")
    assert reads[1:] == ["reward", "action"] * 3  # room for one block only
