"""How many rooms of a game of Atari the recorded moves of runs saw: pictures of which a fifth of the places differ.

python -m tests.learning.rooms RUN… [--pictures FOLDER]

Places are squares of 6 × 6 pixels below the score. A picture belongs to the first room known whose own differs from it
by more than 12 grey levels in less than a fifth of them; else it shows a new one. Dark pictures belong to none, and a
room counts where at least ten moves saw it. What moves, opens or is taken away changes less of Montezuma's rooms; some
of its rooms look alike but for a beam or a gate, and are counted once.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import dask
import numpy as np

from hpc_rl.analysis import open_runs
from hpc_rl.analysis.moves import Moves, Sums, total
from hpc_rl.types import Array

LEVELS, SHARE, DARK, LEAST = 12, 0.2, 6.0, 10
STATUS, SIDE = 18, 6  # rows of the score, of 84, and pixels of a place each way


@dataclass(frozen=True)
class Rooms:
    """``pictures`` [n, 84, 84] uint8, one of each room; ``moves`` [n] that saw it."""

    pictures: Array
    moves: Array

    def __add__(self, other: Rooms) -> Rooms:
        known, moves = list(self.pictures), self.moves.tolist()
        for picture, count in zip(other.pictures, other.moves.tolist(), strict=True):
            same = alike(np.array(known), picture) if known else np.zeros(1, bool)
            if same.any():
                moves[same.argmax()] += count
            else:
                known, moves = [*known, picture], [*moves, count]
        return Rooms(np.array(known, np.uint8).reshape(-1, *other.pictures.shape[1:]), np.array(moves, int))


def alike(pictures: Array, other: Array) -> Array:
    """[n] bool: pictures [n, 84, 84] that show the room of another one [84, 84]."""
    apart = np.abs(places(pictures) - places(other[None])) > LEVELS
    same: Array = apart.mean((1, 2)) < SHARE
    return same


def places(pictures: Array) -> Array:
    """[n, 11, 14] float32: means of the squares of pictures [n, 84, 84]."""
    below = pictures[:, STATUS:]
    n, high, wide = below.shape
    means: Array = below.reshape(n, high // SIDE, SIDE, wide // SIDE, SIDE).mean((2, 4), dtype=np.float32)
    return means


def rooms(frames: Array) -> Rooms:
    """Those of frames [n, 84, 84]."""
    left, found = frames[frames[:, STATUS:].mean((1, 2)) >= DARK], Rooms(frames[:0], np.zeros(0, int))
    while len(left):
        same = alike(left, left[0])
        found += Rooms(left[:1], np.array([same.sum()]))
        left = left[~same]
    return found


def sums(block: Moves) -> Sums:
    return {"rooms": rooms(block.of("observation").reshape(-1, *block.leaves["observation"].shape[-2:]))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--pictures", type=Path, help="folder for one PNG of each room")
    arguments = parser.parse_args()
    for run in open_runs(arguments.runs):
        (found,) = dask.compute(total(run, ["observation"], sums), scheduler="synchronous")
        if not found:
            print(f"{run.path.name}: no recorded moves; record them (output.record > 0)", flush=True)
            continue
        seen = found["rooms"].moves >= LEAST
        told = ", ".join(f"{count:,}" for count in found["rooms"].moves[seen])
        print(f"{run.path.name}: {seen.sum()} rooms; moves that saw each: {told}", flush=True)
        if arguments.pictures is not None:
            from PIL import Image

            arguments.pictures.mkdir(parents=True, exist_ok=True)
            for k, picture in enumerate(found["rooms"].pictures[seen]):
                Image.fromarray(picture).resize((336, 336)).save(arguments.pictures / f"{run.path.name}-{k}.png")


if __name__ == "__main__":
    main()
