"""`hpc-rl export RUN --to minari`: the whole episodes of a run as a data set that Minari's own loader opens.

Of an episode of T moves: observations [T + 1, *frame] (single frames where the policy saw a stack of them), actions as
the environment took them [T, *A], raw rewards, terminations (discount 0), truncations (an end with any other discount),
and as infos, one row a move: attempt, column, env_step, version and the policy's extras. What a unit is and what a leaf
means stands in the data set's metadata under "leaves".
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hpc_rl import job as jobs
from hpc_rl.export.base import NotExported, new, optional
from hpc_rl.settings import Job
from hpc_rl.storage.episodes import Episode, Leaves, Survey, joined, survey
from hpc_rl.storage.recorded import series
from hpc_rl.storage.run_dir import open_run
from hpc_rl.storage.segments import BadSegment
from hpc_rl.storage.specs import spec_of
from hpc_rl.types import Array, Spec

PACKAGE = "minari[hdf5]"
_ID = re.compile(r"(?:[-_\w][-_\w/]*[-_\w]+/)?[-_\w]+?-v\d+", re.ASCII)
_NAMES = {"observations": "observation", "actions": "action", "rewards": "reward", "terminations": "discount"}
_OWN = {
    "attempt": ("", "how often the job had been started before this move"),
    "column": ("", "global number of the environment column"),
    "env_step": ("env step", "the column's number of this move, from 0"),
}


@dataclass
class Exported:
    """What was written, and what was not."""

    id: str
    folder: Path  # of data sets, Minari's MINARI_DATASETS_PATH
    episodes: int = 0
    env_steps: int = 0
    cut: int = 0  # episodes that the run's end, a restart or a gap cut off
    faults: list[str] = field(default_factory=list)


def export(run: Path, out: Path, id: str | None, keep_cut: bool) -> Exported:
    """Write the data set ``id`` below ``out``, a folder of data sets.

    ``keep_cut`` also writes what there is of episodes that were cut off, as truncated.

    Raises:
        NotExported: Minari is missing, the id is none, the target exists, or no episode can be read.
        BadRun, BadJob: there is no run that can be read.
    """
    minari_storage = optional("minari.dataset.minari_storage", PACKAGE).MinariStorage
    optional("minari.dataset._storages.hdf5_storage", PACKAGE)
    job = jobs.load(open_run(run).job_file)
    result = Exported(_checked(id) if id is not None else f"{_plain(job.name)}-v0", out)
    view = _surveyed(run, job)
    spec = spec_of(view.segments[0].path)
    with new(out / result.id, "choose another --out or --id") as folder:
        folder.mkdir()
        from hpc_rl.envs import spaces

        storage = minari_storage.new(
            folder / "data",
            spaces.observation_space(spec),
            spaces.action_space(spec.actions),
            spaces.registered(spec, job.environment.arguments),
            data_format="hdf5",
            jpeg_encoding=False,  # which would change the pixels
        )
        storage.update_metadata(_metadata(result, job, spec, view))
        storage.update_episodes(_buffers(view, spec, keep_cut, result))
        if result.episodes == 0:
            left_out = f"; {result.cut} were cut off by its end or by a gap (--cut keeps them)" if result.cut else ""
            why = f": {view.faults[0]}" if view.faults else left_out
            raise NotExported(f"{run} holds no whole episode{why}")
    result.faults = view.faults
    return result


def _surveyed(run: Path, job: Job) -> Survey:
    view = survey(run)
    if view.segments:
        return view
    if view.faults:
        raise NotExported(f"no segment of {run} can be read: {view.faults[0]}")
    if job.output.record == 0:
        raise NotExported(f"{run} recorded no column (output.record = 0); raise that in a job to have its episodes")
    raise NotExported(f"{run} has no closed segment yet; export it later, or lower output.segment_s")


def _buffers(view: Survey, spec: Spec, keep_cut: bool, result: Exported) -> Iterator[Any]:
    """Minari's EpisodeBuffer of one episode after the other; counts them in ``result``."""
    from minari.data_collector.episode_buffer import EpisodeBuffer

    from hpc_rl.envs.spaces import taken

    leaves, remembered = Leaves(), _extras(series(view.segments[0]))
    for episode in joined(view):
        result.cut += not episode.whole
        if not (episode.whole or keep_cut):
            continue
        try:
            tree = {name: leaves.read(episode, name) for name in (*_NAMES.values(), "version", *remembered)}
        except (BadSegment, KeyError) as error:
            view.faults.append(f"an episode of column {episode.column} is left out: {error}")
            continue
        terminations = tree["discount"] == 0
        truncations = np.zeros(episode.length, bool)
        truncations[-1] = not terminations[-1]
        result.episodes, result.env_steps = result.episodes + 1, result.env_steps + episode.length
        yield EpisodeBuffer(
            id=result.episodes - 1,
            observations=tree["observation"],
            actions=taken(tree["action"], spec.actions),
            rewards=tree["reward"],
            terminations=terminations,
            truncations=truncations,
            infos=_numbers(episode)
            | {"version": tree["version"], **({"extras": _short(tree, remembered)} if remembered else {})},
        )


def _extras(names: Iterable[str]) -> list[str]:
    """The leaves that the policy remembered of its moves."""
    return [name for name in names if name.startswith("extras/")]


def _numbers(episode: Episode) -> dict[str, Array]:
    counts = [piece.end - piece.begin for piece in episode.pieces]
    return {
        "attempt": np.repeat(np.array([piece.attempt for piece in episode.pieces], np.int32), counts),
        "column": np.full(episode.length, episode.column, np.int32),
        "env_step": episode.start + np.arange(episode.length),
    }


def _short(tree: dict[str, Array], names: list[str]) -> dict[str, Array]:
    return {name.removeprefix("extras/"): tree[name] for name in names}


def _metadata(result: Exported, job: Job, spec: Spec, view: Survey) -> dict[str, Any]:
    from importlib.metadata import version

    recorded = {name: (leaf.unit, leaf.doc) for name, leaf in series(view.segments[0]).items()}
    leaves = {name: recorded[leaf] for name, leaf in _NAMES.items()}
    leaves |= {f"infos/{name}": text for name, text in _OWN.items()}
    leaves |= {f"infos/{name}": recorded[name] for name in ("version", *_extras(recorded))}
    if spec.stack > 1:
        unit, doc = leaves["observations"]
        leaves["observations"] = (unit, f"{doc}; the policy saw the last {spec.stack}, before them {spec.padding}")
    return {
        "dataset_id": result.id,
        "minari_version": version("minari"),
        "algorithm_name": job.algorithm,
        "description": f"episodes that the run {job.name} recorded while it learned; hpc-rl {version('hpc-rl')}",
        "leaves": {name: {"unit": unit, "doc": doc} for name, (unit, doc) in leaves.items()},
        "environment": spec.id,
        "job": jobs.dumps(job),
        "frame_stack": spec.stack,
        "padding": spec.padding,
        "action_repeat": spec.action_repeat,
    }


def _checked(id: str) -> str:
    if not _ID.fullmatch(id):
        raise NotExported(f"{id!r} is no id of a data set; write it as name-v0 or group/name-v0")
    return id


def _plain(name: str) -> str:
    return re.sub(r"[^-_\w]+", "_", name, flags=re.ASCII) or "run"
