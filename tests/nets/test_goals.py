"""Goals named in a job: what a network is shown of them, and which frames of Montezuma's first room reach a box.

Mutations seen to fail: the mask of another goal, or rows for columns; pixels that moved anywhere, or outside; one pixel
enough; flicker taken for a move, or what darkens for none; another scene taken for a touch; a frame before the two
newest; the mark left out of what the controller is shown; an entry taken for its goal's number.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hpc_rl import job as jobs
from hpc_rl.envs.make import make
from hpc_rl.nets.goals import BoxGoals, EntryGoals, TwoLevelQ
from hpc_rl.types import Actions, Spec

PIXELS = Spec("pixel", (40, 50), "uint8", Actions("discrete", (3,)), stack=3)
BOXES = ((2, 4, 8, 10), (20, 30, 50, 40))  # x0, y0, x1, y1


def test_an_entry_is_reached_where_it_is_one() -> None:
    goals = EntryGoals(Spec("flags", (4,), "float32", Actions("discrete", (2,))), (3, 0))
    observation = torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 1], [1, 0, 0, 1]])
    assert goals.reached(observation, torch.tensor([0, 0, 0])).tolist() == [False, True, True]
    assert goals.reached(observation, torch.tensor([1, 1, 1])).tolist() == [True, False, True]
    joined = goals.joined(observation, torch.tensor([0, 1, 1]))
    assert torch.equal(joined[:, :4], observation) and joined[:, 4:].tolist() == [[1, 0], [0, 1], [0, 1]]
    assert goals.spec.observation == (6,) and goals.count == 2


def frames_with(*changes: tuple[int, slice, slice, int]) -> torch.Tensor:
    """Three frames of grey 100 but for (frame, rows, columns, grey levels more)."""
    frames = torch.full((1, 3, 40, 50), 100, dtype=torch.uint8)
    for frame, rows, columns, more in changes:
        frames[0, frame, rows, columns] += more
    return frames


def reached(frames: torch.Tensor) -> list[bool]:
    goals = BoxGoals(PIXELS, BOXES)
    return [bool(goals.reached(frames, torch.tensor([k]))) for k in range(2)]


def test_a_box_is_reached_where_something_moves_in_it() -> None:
    inside = (slice(4, 6), slice(7, 8))
    assert reached(frames_with()) == [False, False]
    assert reached(frames_with((2, *inside, 40))) == [True, False]
    assert reached(frames_with((1, *inside, 40), (2, *inside, 20))) == [True, False], "it left"
    assert reached(frames_with((0, *inside, 40))) == [False, False], "that was a frame before"
    assert reached(frames_with((2, *inside, 12))) == [False, False], "within what flickers"
    assert reached(frames_with((2, slice(4, 5), slice(7, 8), 40))) == [False, False], "one pixel"
    assert reached(frames_with((2, slice(4, 6), slice(8, 9), 40))) == [False, False], "beside it"
    assert reached(frames_with((2, slice(30, 32), slice(49, 50), 40))) == [False, True]
    assert reached(frames_with((2, slice(0, 40), slice(0, 50), 40))) == [False, False], "another scene"


def test_a_network_is_shown_the_goal_as_one_more_plane() -> None:
    goals = BoxGoals(PIXELS, BOXES)
    frames = frames_with((2, slice(0, 1), slice(0, 1), 1)).repeat(2, 1, 1, 1)
    joined = goals.joined(frames, torch.tensor([0, 1]))
    assert goals.spec.observation == joined.shape[1:] == (4, 40, 50) and torch.equal(joined[:, :3], frames)
    for plane, (x0, y0, x1, y1) in zip(joined[:, 3], BOXES, strict=True):
        expected = np.zeros((40, 50))
        for x in range(x0, x1):
            for y in range(y0, y1):
                expected[y, x] = 255
        assert np.array_equal(plane.numpy(), expected)


@pytest.mark.parametrize("spec", [PIXELS, Spec("flags", (4,), "float32", Actions("discrete", (3,)))])
def test_values_depend_on_the_goal(spec: Spec) -> None:
    torch.manual_seed(1)
    goals = BoxGoals(spec, BOXES) if spec.stack > 1 else EntryGoals(spec, (0, 1))
    net = TwoLevelQ(spec, goals, (16,), "shallow")
    x = torch.randint(0, 256, (1, *spec.observation), dtype=getattr(torch, spec.dtype))
    q = net.q1(x.repeat(2, *[1] * len(spec.observation)), torch.tensor([0, 1]))
    assert q.shape == (2, 3) and not torch.allclose(q[0], q[1]) and net.q2(x).shape == (1, 2)


def test_the_ladder_of_montezumas_first_room_is_reached_on_its_last_rungs() -> None:
    """Twenty frames: three moves of waiting, then down the ladder, and along the belt below it."""
    job = jobs.load("hdqn_montezuma")
    boxes = tuple(tuple(box) for box in job.method["boxes"])
    env = make(job.environment.id, {"repeat_action_probability": 0.0, "noop_max": 0, "use_fire_reset": False}, 1)
    goals, ladder = BoxGoals(env.spec, boxes), []
    env.reset(np.array([1]))
    for action in [0] * 3 + [5] * 17:
        env.send(np.array([action]))
        frames = torch.from_numpy(env.recv().observation)
        touched = [bool(goals.reached(frames, torch.tensor([k]))) for k in range(len(boxes))]
        assert not any(touched[1:]), "the skull and the belts move on, beside all boxes"
        ladder.append(touched[0])
    env.close()
    assert not any(ladder[:6]) and all(ladder[9:13]) and not any(ladder[16:])
