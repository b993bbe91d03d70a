"""Toys: the counter's arithmetic by hand, next-step autoreset, exact clones, time and faults."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from hpc_rl.envs.base import BadEnvironment
from hpc_rl.envs.make import describe, make
from hpc_rl.fragments import stacked
from tests.envs.test_rules import actions_of

FIELDS = ("observation", "reward", "discount", "first", "ended", "success")
CASES = [
    ("toy/counter", {}),
    ("toy/box_counter", {}),
    ("toy/chain", {"length": 3}),
    ("toy/catch", {}),
    ("toy/catch", {"rows": 4, "columns": 3, "pixels": True, "stack": 4}),
    ("toy/latency", {"step_s": 1e-5, "reset_s": 0.0, "end_probability": 0.2}),
    ("toy/faulty", {"at": 10_000}),
    ("toy/tmaze", {"length": 3}),
    ("toy/grid", {"size": 3}),
    ("toy/deep_sea", {"size": 3}),
    ("toy/four_rooms", {"size": 5, "limit": 9}),
    ("toy/point_maze", {"steps": 9}),
    ("toy/pilco_pendulum", {"moves": 9}),
    ("toy/pilco_cartpole", {"moves": 9}),
    ("toy/maze", {"steps": 9}),
    ("toy/keychest", {"steps": 9}),
    ("toy/six_states", {}),
    ("toy/goal_counter", {}),
    ("toy/goal_mountaincar", {"limit": 20}),
    ("toy/goal_pendulum", {"limit": 20}),
]


def play(env, steps, seed=0):
    """Moves as one dict of time-major arrays."""
    rng = np.random.default_rng(seed)
    moves = []
    for _ in range(steps):
        env.send(actions_of(env.spec, rng, env.columns))
        moves.append(env.recv())
    return {name: np.stack([getattr(move, name) for move in moves]) for name in FIELDS}


def same(left, right):
    return all(np.array_equal(left[name], right[name], equal_nan=True) for name in FIELDS)


def test_the_counters_arithmetic():
    env = make("toy/counter", {}, 2)
    assert env.reset(np.array([3, 4])).tolist() == [[0, 0, 0]] * 2
    run = play(env, 60)
    expected, total = [], 0
    for episode in range(8):
        length = [5, 7, 11][episode % 3]
        if episode:
            expected.append(([episode, 0, total], 0, 1, True, False))
        for step in range(1, length + 1):
            total += 1
            over = step == length
            discount = 0 if over and episode % 2 == 0 else 1
            expected.append(([episode, step, total], total, discount, False, over))
    for t, values in enumerate(expected[:60]):
        assert np.isnan(run["success"][t]).all()
        for name, value in zip(FIELDS[:-1], values, strict=True):
            assert (run[name][t] == np.array(value)).all(), (t, name)


@pytest.mark.parametrize(("id", "arguments"), CASES)
def test_autoreset_and_repeatability(id, arguments):
    env = make(id, arguments, 3)
    assert env.spec == describe(id, arguments)
    assert env.spec.id == id
    opening = env.reset(np.arange(3))
    run = play(env, 80)
    assert opening.shape == (3, *env.spec.observation)
    assert (opening.dtype, run["reward"].dtype, run["discount"].dtype) == (env.spec.dtype, np.float32, np.float32)
    assert run["ended"].any()
    assert np.array_equal(run["first"][1:], run["ended"][:-1])
    assert not run["first"][0].any()
    assert (run["reward"][run["first"]] == 0).all()
    assert (run["discount"][run["first"]] == 1).all()
    assert not (run["ended"] & run["first"]).any()
    assert run["ended"][run["discount"] == 0].all()
    again = make(id, arguments, 3)
    again.reset(np.arange(3))
    assert same(run, play(again, 80))
    env.reset(np.arange(3))
    assert same(run, play(env, 80)), "a second reset starts everything afresh"


@pytest.mark.parametrize(("id", "arguments"), CASES)
def test_a_clone_goes_on_bitwise(id, arguments):
    env = make(id, arguments, 3)
    env.reset(np.arange(3))
    before = play(env, 17)
    state = env.state()
    after = play(env, 60, seed=1)
    saved = json.loads(json.dumps(state, default=lambda x: x.tolist()))  # plain values survive any file
    for written in (state, saved):
        clone = make(id, arguments, 3)
        assert np.array_equal(clone.load(written).observation, before["observation"][-1])
        assert same(after, play(clone, 60, seed=1))
    with pytest.raises(BadEnvironment, match="3 columns does not fit 2"):
        make(id, arguments, 2).load(state)


def test_columns_do_not_depend_on_their_neighbours():
    alone, both = make("toy/catch", {}, 1), make("toy/catch", {}, 2)
    assert np.array_equal(alone.reset(np.array([7])), both.reset(np.array([8, 7]))[1:])
    for _ in range(40):
        alone.send(np.array([0]))
        both.send(np.array([2, 0]))
        assert np.array_equal(alone.recv().observation[0], both.recv().observation[1])


def test_handed_out_arrays_stay_as_they_were():
    for id, arguments in CASES:
        env = make(id, arguments, 2)
        shown = env.reset(np.arange(2))
        copy = shown.copy()
        play(env, 30)
        assert np.array_equal(shown, copy)


def test_chain():
    env = make("toy/chain", {"length": 4}, 2)
    env.reset(np.zeros(2, int))
    for step in range(1, 17):
        env.send(np.array([1, 0]))
        moves = env.recv()
        if step == 3:
            assert moves.observation[0].tolist() == [0, 0, 0, 1]
            assert (moves.reward.tolist(), moves.discount.tolist()) == ([1, 0], [0, 1])
        assert moves.ended[0] == (step % 4 == 3)  # three moves and the reset
        assert moves.ended[1] == (step == 16)
    assert (moves.discount[1], moves.reward[1], moves.observation[1].tolist()) == (1, 0, [1, 0, 0, 0])


def test_catch_by_a_perfect_and_an_idle_player():
    env = make("toy/catch", {"rows": 6, "columns": 5}, 16)
    board = env.reset(np.arange(16)).reshape(16, 6, 5)
    ball = board[:, 0].argmax(1)
    assert len(set(ball.tolist())) > 2
    for step in range(1, 6):
        paddle = board[:, -1].argmax(1)
        env.send(np.where(np.arange(16) < 8, 1 + np.sign(ball - paddle), 1))
        moves = env.recv()
        board = moves.observation.reshape(16, 6, 5)
        assert moves.ended.all() == (step == 5)
    assert (moves.reward[:8] == 1).all()
    assert np.array_equal(moves.reward[8:], np.where(ball[8:] == 2, 1, -1))
    assert (moves.discount == 0).all()


def test_catch_stacks_rebuilt_from_single_frames_are_its_own():
    env = make("toy/catch", {"rows": 4, "columns": 3, "pixels": True, "stack": 4}, 3)
    assert (env.spec.frame, env.spec.stack, env.spec.dtype) == ((4, 3), 4, "uint8")
    opening = env.reset(np.arange(3))
    run = play(env, 50)
    own = np.concatenate([opening[None], run["observation"]])
    frames = np.concatenate([opening.swapaxes(0, 1), own[1:, :, -1]])
    first = np.concatenate([np.ones((1, 3), bool), run["first"]])
    rebuilt = stacked(torch.from_numpy(frames), torch.from_numpy(first), 4, env.spec.padding).numpy()
    assert np.array_equal(rebuilt, own)
    assert not own[first][:, :-1].any()


def test_the_tmaze_pays_who_remembers_the_sign():
    """Column 0 turns to where the sign pointed, 1 the other way, 2 turns in the corridor first, 3 never turns."""
    env = make("toy/tmaze", {"length": 4}, 4)
    sides, corridor, junction = set(), np.eye(4)[2], np.eye(4)[3]
    for seed in range(8):
        shown = env.reset(np.full(4, seed))
        side = int(shown[0].argmax())
        sides.add(side)
        sign = np.eye(4)[side]
        assert side in (0, 1) and (shown == sign).all()
        for step in range(1, 4):
            env.send(np.array([0, 0, 1 + side, 0]))
            moves = env.recv()
            assert (moves.observation[[0, 1, 3]] == (junction if step == 3 else corridor)).all()
            assert (moves.observation[2] == sign).all()
            assert not moves.ended.any() and (moves.reward == 0).all() and (moves.discount == 1).all()
        for step in range(4, 9):
            env.send(np.array([1 + side, 2 - side, 0, 0]))
            moves = env.recv()
            assert (moves.observation[2:] == [corridor if step < 6 else junction, junction]).all()
            assert moves.ended[2:].tolist() == [step == 8, step == 8] and (moves.discount[2:] == 1).all()
            if step == 4:
                assert moves.reward.tolist() == [1, -1, 0, 0] and moves.discount[:2].tolist() == [0, 0]
                assert moves.success[:2].tolist() == [1, 0] and moves.ended[:2].all()
        assert moves.success[2:].tolist() == [0, 0]
    assert sides == {0, 1}


def test_latency_takes_as_long_as_its_slowest_column():
    env = make("toy/latency", {"step_s": 0.01, "reset_s": 0.05, "end_probability": 0.0}, 4)
    started = time.monotonic()
    env.reset(np.arange(4))
    assert time.monotonic() - started >= 0.05
    busy = 0.0
    started = time.monotonic()
    for _ in range(20):
        env.send(np.zeros(4, int))
        env.recv()
        busy += env.state()["memory"]["busy_s"].max()
    took = time.monotonic() - started
    assert busy <= took < busy + 0.5
    assert busy > 20 * 0.01, "the slowest of four is slower than the mean"
    env.send(np.zeros(4, int))
    time.sleep(0.1)  # the clock runs from `send`
    started = time.monotonic()
    env.recv()
    assert time.monotonic() - started < 0.05


def test_latency_draws_the_mean_and_spread_it_was_asked_for(monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda s: None)
    env = make("toy/latency", {"end_probability": 0.0}, 50)
    env.reset(np.arange(50))
    drawn = []
    for _ in range(100):
        env.send(np.zeros(50, int))
        env.recv()
        drawn.append(env.state()["memory"]["busy_s"])
    drawn = np.stack(drawn)
    assert drawn.mean() == pytest.approx(0.02, rel=0.05)
    assert drawn.std() / drawn.mean() == pytest.approx(0.5, rel=0.1)


def test_faulty_raises_at_its_move_and_once(tmp_path):
    for once, strikes in (("", True), (str(tmp_path / "struck"), True), (str(tmp_path / "struck"), False)):
        env = make("toy/faulty", {"at": 9, "once": once}, 2)
        env.reset(np.arange(2))
        play(env, 9)  # eight moves and a reset
        if strikes:
            with pytest.raises(RuntimeError, match="move 9"):
                play(env, 1)
        else:
            play(env, 1)


def test_faulty_kills_or_hangs():
    script = (
        "import sys, numpy as np; from hpc_rl.envs.make import make;"
        "e = make('toy/faulty', {'at': 2, 'how': sys.argv[1]}, 1); e.reset(np.zeros(1, int));"
        "[(e.send(np.zeros(1)), e.recv(), print(t, flush=True)) for t in range(3)]"
    )
    done = subprocess.run([sys.executable, "-c", script, "kill"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (-9, "0\n")
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        subprocess.run([sys.executable, "-c", script, "hang"], capture_output=True, timeout=3, check=False)
    assert caught.value.stdout == b"0\n"


def test_the_grid_pays_at_the_far_corner_alone():
    """Column 0 goes right along its row and then down, 1 into the wall on its left until its time is over."""
    env, size, limit = make("toy/grid", {"size": 3}, 2), 3, 12
    rows = set()
    for seed in range(12):
        shown = env.reset(np.full(2, seed))
        begin = int(shown[0].argmax())
        row, column = divmod(begin, size)
        rows.add(row)
        assert column == 0 and shown.sum(1).tolist() == [1, 1]
        way = [1, 1] + [2] * (2 - row)
        for step in range(1, limit + 1):
            env.send(np.array([way[step - 1] if step <= len(way) else 0, 3]))
            moves, there, late = env.recv(), step == len(way), step == limit
            assert moves.observation[1].argmax() == begin and moves.reward[1] == 0 and moves.discount[1] == 1
            assert moves.ended[1] == late and (not late or moves.success[1] == 0)
            if step <= len(way):
                assert moves.reward[0] == moves.ended[0] == there and moves.discount[0] == 1 - there
                assert not there or (moves.success[0] == 1 and moves.observation[0].argmax() == size**2 - 1)
    assert rows == {0, 1, 2}
