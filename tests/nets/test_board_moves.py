"""The linear policy on local patterns against a loop over places, neighbours and lines.

Mutations seen to fail: rows and columns of the padded board exchanged; a pattern's weights that begin in another's; the
other player's stones as the mover's; the place above the lowest empty one; a pass with the weights of a place.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hpc_rl.nets.board_moves import PatternPolicy, suits
from hpc_rl.types import Actions, Array, Spec


def spec_of(rows: int, columns: int, moves: int, planes: int = 2) -> Spec:
    return Spec("board", (planes, rows, columns), "float32", Actions("discrete", (moves,)))


def board_of(rng: np.random.Generator, rows: int, columns: int, drops: bool) -> Array:
    """0 empty, 1 the mover's, 2 the other's; where stones drop, none hangs over an empty place."""
    board = rng.integers(0, 3, (rows, columns))
    if drops:
        for column in range(columns):
            height = rng.integers(0, rows + 1)
            board[: rows - height, column] = 0
            board[rows - height :, column] = rng.integers(1, 3, height)
    return board


def symbol(board: Array, row: int, column: int) -> int:
    rows, columns = board.shape
    return int(board[row, column]) if 0 <= row < rows and 0 <= column < columns else 3


def logit(net: PatternPolicy, board: Array, row: int, column: int, head: int) -> float:
    """Σ_g w_g[pattern] + w[place], by loops."""
    groups = [[(r, c) for r in (-1, 0, 1) for c in (-1, 0, 1) if (r, c) != (0, 0)]]
    for r, c in ((0, 1), (1, 0), (1, 1), (1, -1)):
        groups.append([(k * r, k * c) for k in (-3, -2, -1, 1, 2, 3)])
    total, begin = float(net.place[row * board.shape[1] + column, head]), 0
    for group in groups:
        code = sum(symbol(board, row + r, column + c) * 4**k for k, (r, c) in enumerate(group))
        total, begin = total + float(net.pattern[begin + code, head]), begin + 4 ** len(group)
    return total


@pytest.mark.parametrize(("rows", "columns", "moves"), [(3, 4, 12), (4, 4, 17), (6, 7, 7)])
def test_logits_are_those_of_the_patterns(rows: int, columns: int, moves: int) -> None:
    rng, drops = np.random.default_rng(0), moves == columns
    net = PatternPolicy(spec_of(rows, columns, moves, 3), 2)
    torch.manual_seed(0)
    with torch.no_grad():
        net.pattern.normal_()
        net.place.normal_()
    boards = [board_of(rng, rows, columns, drops) for _ in range(5)]
    planes = np.stack([np.stack([board == 1, board == 2, board * 0]) for board in boards]).astype(np.float32)
    output = net(torch.from_numpy(planes)).reshape(5, 2, moves).detach().numpy()
    for k, board in enumerate(boards):
        for head in range(2):
            for move in range(moves):
                if drops:
                    empty = np.flatnonzero(board[:, move] == 0)
                    if not len(empty):
                        continue  # not legal
                    expected = logit(net, board, int(empty[-1]), move, head)
                elif move == rows * columns:
                    expected = float(net.place[-1, head])
                else:
                    expected = logit(net, board, move // columns, move % columns, head)
                assert output[k, head, move] == pytest.approx(expected, abs=1e-4)


def test_it_begins_uniform_and_learns_to_complete_a_line() -> None:
    net = PatternPolicy(spec_of(6, 7, 7), 1)
    rng = np.random.default_rng(1)
    boards = torch.zeros(64, 2, 6, 7)
    target = torch.tensor(rng.integers(0, 7, 64))
    for k, column in enumerate(target.tolist()):
        boards[k, 0, 3:, column] = 1  # three of the mover's, one above the other
        boards[k, 1, 5, [c for c in range(7) if c != column]] = torch.tensor(rng.integers(0, 2, 6)).float()
    assert (net(boards) == 0).all()
    optimizer = torch.optim.SGD(net.parameters(), 0.5)
    for _ in range(40):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(boards), target).backward()
        optimizer.step()
    assert (net(boards).argmax(-1) == target).all()


def test_which_boards_it_suits() -> None:
    assert suits(spec_of(6, 7, 7)) and suits(spec_of(3, 3, 9)) and suits(spec_of(5, 5, 26))
    assert not suits(spec_of(6, 7, 8)) and not suits(spec_of(3, 3, 9, planes=1))
    assert not suits(Spec("box", (2, 3, 3), "float32", Actions("box", (9,), (-1.0,) * 9, (1.0,) * 9)))
    assert not suits(Spec("vector", (7,), "float32", Actions("discrete", (7,))))
