"""Whole episodes of a run as something to learn from: which there are, and leaves of some of their moves.

Segments are read through this folder's own readers, which trust no file; what a later attempt made again is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from hpc_rl.config import BadJob
from hpc_rl.sources import Source
from hpc_rl.storage.episodes import Episode, Leaves, joined, survey
from hpc_rl.storage.recorded import ends
from hpc_rl.storage.run_dir import BadRun, open_run
from hpc_rl.storage.segments import BadSegment, Limits, Segment, segments
from hpc_rl.storage.specs import spec_of
from hpc_rl.types import Spec, Tree


class BadSource(BadJob):
    """Recorded moves cannot be learned from; the message names the run, what is wrong, and the remedy."""


@dataclass
class Archive:
    """Episodes in the order in which they ended; ``faults`` says what could not be read."""

    stack: int
    episodes: Sequence[Episode]
    faults: Sequence[str] = ()
    leaves: Leaves = field(default_factory=Leaves)

    def read(self, number: int, begin: int, end: int, names: Sequence[str]) -> Tree:
        """Leaves of the moves ``begin`` to ``end`` − 1 of an episode, [n, …]; of "observation" the single frames that
        their stacks show and the one behind them, [n + 1 + older, …], older = min(begin, stack − 1).

        Raises:
            BadSource: a segment lacks a leaf, or cannot be read.
        """
        moves = self.episodes[number].part(begin, end)
        frames = self.episodes[number].part(max(begin - self.stack + 1, 0), end)
        try:
            return {name: self.leaves.read(frames if name == "observation" else moves, name) for name in names}
        except (BadSegment, KeyError) as error:
            raise BadSource(f"recorded moves cannot be read: {error}") from error


def check(source: Source, spec: Spec) -> list[Path]:
    """The closed segments of the source, the first of which is of this environment; without reading a row of them.

    Raises:
        BadSource: there is no such run, it recorded nothing, or it is one of another environment.
    """
    if not source.run:
        raise BadSource(
            "the job learns from recorded moves and names no run of them; set source to a run directory "
            "(hpc-rl import makes one of a Minari data set)"
        )
    try:
        files = segments(open_run(Path(source.run)).path)
    except BadRun as error:
        raise BadSource(f"source = {source.run!r}: {error}") from None
    if not files:
        raise BadSource(
            f"{source.run} has no closed segment of recorded moves; record it with output.record > 0, and let it end"
        )
    _check_spec(files[0], source, spec)
    return files


def archive(source: Source, spec: Spec) -> Archive:
    """The whole episodes of the source that are asked for.

    Raises:
        BadSource: as `check`, a later segment is of another environment, or no episode is left.
    """
    check(source, spec)
    view = survey(Path(source.run))
    for segment in view.segments:
        _check_spec(segment.path, source, spec)
    every = list(joined(view))
    whole = [episode for episode in every if episode.whole and episode.length]
    if not whole:
        why = f": {view.faults[0]}" if view.faults else f"; {len(every)} are cut off by its end or by a gap"
        raise BadSource(f"{source.run} holds no whole episode{why}; record a longer run")
    if source.least_return is not None:
        returns = _returns(view.segments, view.limits)
        kept = [x for x in whole if returns.get((x.column, x.start + x.length), -float("inf")) >= source.least_return]
        if not kept:
            raise BadSource(
                f"none of {len(whole)} episodes of {source.run} returned {source.least_return:g} or more (the best is "
                f"{max(returns.values(), default=float('nan')):g}); lower least_return"
            )
        whole = kept
    whole.sort(key=lambda episode: (episode.start + episode.length, episode.column))
    if source.episodes > len(whole):
        raise BadSource(f"{source.run} holds {len(whole)} such episodes, not {source.episodes}; lower episodes")
    return Archive(spec.stack, whole[-source.episodes :], view.faults)


def _returns(whole: Sequence[Segment], limits: Limits) -> dict[tuple[int, int], float]:
    """(column, its env steps at the end of an episode) -> raw return; what cannot be read is named elsewhere."""
    returns: dict[tuple[int, int], float] = {}
    for segment in whole:
        try:
            table = ends(segment, limits)
        except BadSegment:
            continue
        keys = zip(table["column"].tolist(), table["end"].tolist(), strict=True)
        returns |= dict(zip(keys, table["return"].tolist(), strict=True))
    return returns


def _check_spec(path: Path, source: Source, spec: Spec) -> None:
    """Raise BadSource where a segment was recorded in another environment."""
    try:
        other = spec_of(path)
    except BadSegment as error:
        raise BadSource(str(error)) from None
    for item in fields(Spec):
        own, recorded = getattr(spec, item.name), getattr(other, item.name)
        if item.name == "actions":
            own, recorded = ((x.kind, x.sizes, x.scaled_to if x.kind == "box" else ()) for x in (own, recorded))
        if own != recorded:
            raise BadSource(
                f"{source.run} was recorded in {other.id}, whose {item.name} is {recorded!r}, and that of the job's "
                f"{spec.id} is {own!r}; learn in the environment of the run, or name another source"
            )
