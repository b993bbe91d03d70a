"""How fast analyses are on large runs: `python -m tests.analysis.bench FOLDER [--scale 1.0] [--programs NAME…]`

Makes 2 000 segments of 20 M moves with small observations and 1 M frames below FOLDER (once), then prints seconds of
the episode table, of each program of a report, and of scanning frames against a loop of bare h5py, and the peak memory
of all processes together.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from hpc_rl.analysis import arrays, episodes, open_runs, programs
from hpc_rl.analysis.clusters import Where, computing, recorded_bytes
from hpc_rl.analysis.sections import NotRecorded
from hpc_rl.storage.h5 import open_h5
from tests.analysis.generator import pixels, small


class Peak:
    """The largest sum of proportional memory (PSS) of this process and its children, sampled four times a second."""

    def __init__(self) -> None:
        self.bytes, self._over = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        own = psutil.Process()
        while not self._over.wait(0.25):
            total = 0
            for process in (own, *own.children(recursive=True)):
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:
                    continue
            self.bytes = max(self.bytes, total)

    def end(self) -> float:
        """GB."""
        self._over.set()
        self._thread.join()
        return self.bytes / 1e9


def timed(name: str, action: Callable[[], object]) -> float:
    peak, begin = Peak(), time.perf_counter()
    action()
    seconds = time.perf_counter() - begin
    print(f"{name:<40}{seconds:8.1f} s {peak.end():8.2f} GB", flush=True)
    return seconds


def scan(folder: Path) -> None:
    """Frames per second of blocks of `arrays` and of bare h5py, in this process, on the first segments."""
    import dask

    (run,) = open_runs([folder])
    bare, ours, frames = 0.0, 0.0, 0
    for segment in run.segments[:4]:
        one = [type(run)(run.path, run.name, run.job, run.state, (segment,), run.limits, (), ())]
        for which in ("bare", "ours", "bare", "ours"):
            begin = time.perf_counter()
            if which == "bare":
                with open_h5(segment.path) as file:
                    data = file["observation"]
                    for row in range(0, segment.moves, 512):
                        data[row : row + 512].max()
                bare += time.perf_counter() - begin
            else:
                with dask.config.set(scheduler="synchronous"):
                    arrays(one, ["observation"])["observation"].max().compute()
                ours += time.perf_counter() - begin
        frames += 2 * segment.moves * len(segment.columns)
    print(f"{'scanning frames':<40}{frames / ours:10.0f} frames/s, bare h5py {frames / bare:.0f}: {bare / ours:.0%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the segments [1]")
    parser.add_argument("--programs", nargs="*", default=programs.ORDER)
    parser.add_argument("--make", action="store_true", help="only make the runs")
    parser.add_argument("--without-frames", action="store_true")
    options = parser.parse_args()
    names = {"small": (small, 2000), "pixels": (pixels, 20)}
    folders = []
    for name, (make, segments) in names.items():
        folder = options.folder / f"{name}-{options.scale:g}"
        if not folder.exists():
            timed(
                f"making {name}",
                lambda make=make, folder=folder, n=segments: make(folder, max(int(n * options.scale), 2)),
            )  # type: ignore[misc]
        folders.append(folder)
    if not options.make:
        measure(folders[: 1 if options.without_frames else 2], options.programs)


def measure(folders: Sequence[Path], names: Sequence[str]) -> None:
    if len(folders) > 1:
        scan(folders[1])
    with computing(Where(workers=2), recorded_bytes(list(folders))):
        total = timed("opening", lambda: open_runs(folders))
        runs = open_runs(folders)
        moves = sum(segment.moves * len(segment.columns) for run in runs for segment in run.segments)
        print(f"{sum(len(run.segments) for run in runs)} segments, {moves / 1e6:.2f} M moves")
        total += timed("episode table", lambda: episodes(runs).compute())
        for name in names:

            def program(name: str = name) -> None:
                try:
                    programs.load(name)(runs)
                except NotRecorded as error:
                    print(error)

            total += timed(name, program)
    print(f"{'all':<40}{total:8.1f} s")


if __name__ == "__main__":
    main()
