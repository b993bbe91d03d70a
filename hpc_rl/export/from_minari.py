"""`hpc-rl import DATASET --out RUN`: a data set of Minari as a run directory that the same programs read.

All episodes lie one after the other in one column of worker 0, as if that had played them; no policy of this package
acted, so the job names a method that only stands in, unless the data set came from `hpc-rl export`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hpc_rl import job as jobs
from hpc_rl.config import BadJob
from hpc_rl.export.base import NotExported, new, optional
from hpc_rl.export.to_minari import PACKAGE
from hpc_rl.methods import algorithms, allowed_topologies
from hpc_rl.settings import Job
from hpc_rl.storage import provenance
from hpc_rl.storage.run_dir import RunDir, create, write_json
from hpc_rl.storage.trajectories import Recorder
from hpc_rl.storage.untrusted import Unreadable, parse_toml
from hpc_rl.types import Spec

_MOST_STACK = 64
_ORIGIN = ("dataset_id", "minari_version", "algorithm_name", "author", "author_email", "code_permalink", "description")
_OF_RANKS = ("resources", "sampler", "schedule", "name", "checkpoint", "evaluate")  # keys that no imported run has


@dataclass
class Imported:
    """What was read."""

    episodes: int = 0
    env_steps: int = 0
    endless: int = 0  # episodes whose last move neither terminated nor truncated them
    returns: tuple[float, ...] = ()  # of the last 100


def import_data(name: str, out: Path, algorithm: str | None, warn: Callable[[str], None]) -> Imported:
    """Write the run ``out`` from a data set: a folder, or the id of one in Minari's own folder.

    Raises:
        NotExported: Minari is missing, there is no such data set, it cannot be read or is empty, or ``out`` exists.
        BadEnvironment: its observations or actions are of a kind that a run cannot hold. BadJob: no such method.
    """
    dataset, metadata = _opened(name)
    from hpc_rl.envs.spaces import Observations

    id = dataset.env_spec.id if dataset.env_spec else str(metadata.get("environment") or dataset.id)
    shown = Observations.of(id, dataset.observation_space, dataset.action_space)
    spec = _stacked(shown.spec, metadata)
    job = _job(dataset, metadata, id, algorithm, warn)
    origin = {key: metadata[key] for key in _ORIGIN if key in metadata}
    started = {
        "resumed_from": {"file": None, "steps": {}},
        "imported_from": {**origin, "folder": str(dataset.storage.data_path)},
    }
    with new(out, "choose another --out") as folder:
        run = create(folder, jobs.dumps(job))
        provenance.write(run, 0, provenance.collect(sys.argv, 0, job.seed, started))
        result = _record(run, dataset, metadata, shown, spec, job)
        reason = f"done: imported from data set {dataset.id}"
        finish(run, job, result, reason)
    return result


def finish(run: RunDir, job: Job, result: Imported, reason: str) -> None:
    """Write what a run's end leaves."""
    write_json(run.summary_file, _summary(job, result, reason))
    run.write_state(state="done", env_steps=result.env_steps, reason=reason)


def _opened(name: str) -> tuple[Any, Mapping[str, Any]]:
    """(MinariDataset, its metadata as written). Raises NotExported."""
    optional("minari.dataset._storages.hdf5_storage", PACKAGE)
    minari, storage = (optional(module, PACKAGE) for module in ("minari", "minari.dataset.minari_storage"))
    own = optional("minari.storage.datasets_root_dir", PACKAGE).get_dataset_path()
    places = (Path(name), Path(name) / "data", own / name / "data")
    folder = next((place for place in places if (place / "metadata.json").is_file()), None)
    if folder is None:
        raise NotExported(f"{name} is neither the folder of a Minari data set nor the id of one in {own}")
    try:
        metadata = storage.MinariStorage.read_raw_metadata(folder)
        if not {"observation_space", "action_space"} <= metadata.keys():  # Minari would make what env_spec names
            raise NotExported(f"{folder} does not state its spaces; load it with Minari and save it anew")
        return minari.MinariDataset(folder), metadata
    except (ValueError, KeyError, TypeError, AssertionError, OSError, NotImplementedError, ImportError) as error:
        if isinstance(error, NotExported):
            raise
        raise NotExported(f"{folder} is no data set that Minari can read: {error!r}") from error


def _stacked(spec: Spec, metadata: Mapping[str, Any]) -> Spec:
    """With the stack that the policy of an exported run saw; frames of other data sets stand alone."""
    stack, padding = metadata.get("frame_stack", 1), metadata.get("padding")
    if not isinstance(stack, int) or not 1 <= stack <= _MOST_STACK:
        return spec
    return replace(spec, stack=stack, padding="repeat" if padding == "repeat" else "zeros")


def _job(dataset: Any, metadata: Mapping[str, Any], id: str, algorithm: str | None, warn: Callable[[str], None]) -> Job:
    """The exported run's own job where there is one, else one of ``algorithm``, by default the first in the list."""
    name, total = dataset.id.replace("/", "_"), max(1, int(dataset.total_steps))
    changes = {"budget": {"env_steps": total}, "output": {}}
    if algorithm is None and "job" in metadata:
        try:
            table = parse_toml(str(metadata["job"]))
            jobs.parse(table)
            kept = {key: value for key, value in table.items() if key not in _OF_RANKS}
            environment = {**table["environment"], "columns": 1, "processes": 0}
            return jobs.parse({**kept, **changes, "environment": environment}, name)
        except (BadJob, Unreadable) as error:
            warn(f"the job in the data set cannot be read, so {algorithms()[0]} stands in: {error}")
    return stand_in({"id": id}, algorithm, total, name)


def stand_in(environment: dict[str, Any], algorithm: str | None, total: int, name: str) -> Job:
    """A job of one column for a run in which no method acted. Raises BadJob."""
    method = algorithm or algorithms()[0]
    topology = allowed_topologies(method)[0] if method in algorithms() else "solo"
    table = {"algorithm": method, "topology": topology, "environment": {**environment, "columns": 1}}
    return jobs.parse({**table, "budget": {"env_steps": total}}, name)


def _record(run: RunDir, dataset: Any, metadata: Mapping[str, Any], shown: Any, spec: Spec, job: Job) -> Imported:
    """Write the segments, one fragment an episode."""
    from hpc_rl.export.fragments_of import form, fragment

    result, recorder, tail, layout = Imported(), None, None, None
    for episode in _episodes(dataset):
        if recorder is None or layout is None:
            layout = form(dataset.id, shown, dataset.action_space, spec, episode, metadata.get("leaves"))
            columns, attributes = np.zeros(1, np.int32), {"job": job.name, "environment": job.environment.id}
            folder = run.trajectories / "a0-worker-0"
            recorder = Recorder(folder, layout.schema, spec, columns, np.ones(1, bool), 0, attributes=attributes)
        tree, tail = fragment(layout, episode, result.env_steps, tail)
        recorder.write(tree)
        result.episodes, result.env_steps = result.episodes + 1, result.env_steps + len(episode.rewards)
        result.endless += not (episode.terminations[-1] or episode.truncations[-1])
        result.returns = (*result.returns, float(np.sum(episode.rewards)))[-100:]
    if recorder is None:
        raise NotExported(f"data set {dataset.id} has no episode with a move")
    recorder.close()
    return result


def _episodes(dataset: Any) -> Iterator[Any]:
    """Those that have a move. Raises NotExported."""
    try:
        yield from (episode for episode in dataset.iterate_episodes() if len(episode.rewards))
    except (OSError, KeyError, ValueError, TypeError, AssertionError) as error:  # what HDF5 and Minari raise
        raise NotExported(f"data set {dataset.id} cannot be read to its end: {error!r}") from error


def _summary(job: Job, result: Imported, reason: str) -> dict[str, Any]:
    return {
        "name": job.name,
        "reason": reason,
        "env_steps": result.env_steps,
        "frames": result.env_steps,
        "updates": 0,
        "episodes": result.episodes,
        "mean_return_100": sum(result.returns) / len(result.returns),
        "attempt": 0,
    }
