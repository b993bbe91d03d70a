"""The best and the worst recorded episode of runs, as films of their frames or plots of rewards and actions.

A program to copy and edit: `python episode_films.py RUN [RUN…] --out FOLDER`. Other episodes: pick a row of the episode
table, and `episode_video.rows` reads what was recorded of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from hpc_rl.analysis import RecordedRun, episode_video, programs
from hpc_rl.analysis.sections import Section


def analyze(runs: Sequence[RecordedRun]) -> Section:
    """Two episodes of each of the first runs. Raises NotRecorded."""
    clips = episode_video.find(runs)
    return Section(
        "Best and worst episode",
        tuple(f"{clip.title}." for clip in clips),
        "Of the whole recorded episodes those with the highest and the lowest raw return; of equal ones the earliest is"
        " the worst and the last the best. Frames are those that were recorded, of a long episode every n-th.",
        pictures={clip.stem: clip.draw for clip in clips if clip.draw is not None},
        films={clip.stem: clip.film for clip in clips if clip.film is not None},
    )


if __name__ == "__main__":
    programs.main(analyze, __doc__)
