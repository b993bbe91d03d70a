"""The batch script of a submission: plan and options in, text out. No SLURM needed; every value is quoted for bash."""

from __future__ import annotations

import re
import shlex
import sys
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hpc_rl.config import BadJob
from hpc_rl.job import data_folder
from hpc_rl.launcher_variables import RANK, SLURM
from hpc_rl.launchers import environment
from hpc_rl.launchers.options import Options, dependency, nodes_of
from hpc_rl.plan import Plan
from hpc_rl.settings import Job
from hpc_rl.storage.untrusted import Unreadable, read_text


@dataclass(frozen=True)
class Script:
    """What differs between scripts besides the options: the run's folder, or how an array's task finds its own."""

    title: str
    name: str  # of the job in squeue
    locate: tuple[str, ...]  # shell lines that set ``run``
    output: str  # sbatch file name pattern
    prepare: str = ""  # further words for `batch begin`
    array: str = ""
    python: str = ""  # shell words, where the script itself must find one
    same: str = ""  # further sbatch options, in shell words, of a job that goes on for this one
    again: str = ""  # its first arguments


def for_run(job: Job, run: Path) -> Script:
    """One run in its folder."""
    path = run.absolute()
    return Script(
        f"hpc_rl: {one_line(job.name)}: {job.algorithm} on {job.topology}", job.name,
        (f"run={shlex.quote(str(path))}",), f"{pattern(path)}/logs/slurm-%j.out",
    )  # fmt: skip


def for_array(job: Job, base: Path, tasks: int, parallel: int | None, first: int = 0) -> Script:
    """``tasks`` runs in base/0000 …; a later array begins with base/<first>, linked in submit/from-<first>."""
    path = base.absolute()
    place = '"$SLURM_ARRAY_TASK_ID"' if not first else f"$(({first} + SLURM_ARRAY_TASK_ID))"
    output = pattern(path) + (f"/submit/from-{first:04d}" if first else "")
    return Script(
        f"hpc_rl: {one_line(job.name)}: {job.algorithm} on {job.topology}, {tasks} tasks", job.name,
        (f"run={shlex.quote(str(path))}/$(printf %04d {place})",),
        f"{output}/%4a/logs/slurm-%A_%a.out",
        array=f"0-{tasks - 1}" + (f"%{parallel}" if parallel else ""),
    )  # fmt: skip


def render(script: Script, job: Job, plan: Plan, options: Options) -> str:
    """The text for sbatch.

    Raises:
        BadJob: the options do not fit the job (het layout in an array …), or the template cannot be read or used.
    """
    het = options.layout == "het"
    nodes_of(len(plan.ranks), options.nodes or 1)  # refuses more nodes than ranks
    if het and script.array:
        raise BadJob("--layout het cannot be a job array; submit the seeds one by one, or use --layout one")
    components = _het(script, job, plan, options) if het else [_directives(script, job, plan, options)]
    path = Path(options.template) if options.template else data_folder("slurm") / "job.sbatch.j2"
    return _fill(path, _context(script, job, options, components))


def render_analysis(directives: Sequence[str], python: str, runs: str, out: str, options: Options) -> str:
    """The script of a job that writes a report; python, runs and out are shell words."""
    values = {"directives": directives, "python": python, "runs": runs, "out": out}
    return _fill(
        data_folder("slurm") / "analysis.sbatch.j2", {**values, "modules": options.modules, "setup": options.setup}
    )


def _fill(path: Path, values: dict[str, Any]) -> str:
    import jinja2

    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters["q"] = quote
    try:
        return environment.from_string(read_text(path)).render(values)
    except (FileNotFoundError, Unreadable) as error:
        raise BadJob(f"the template {path} cannot be read ({error}); give another --template") from None
    except jinja2.TemplateError as error:
        raise BadJob(f"the template {path} cannot be used ({error}); mend it, or give another --template") from None


def _context(script: Script, job: Job, options: Options, components: list[list[str]]) -> dict[str, Any]:
    groups = range(len(components)) if len(components) > 1 else ()
    return {
        "title": script.title,
        "same": script.same,
        "again": script.again,
        **_variables([line for lines in components for line in lines]),
        "components": [
            {"directives": lines, "each_node": _each_node(k if groups else None)} for k, lines in enumerate(components)
        ],
        "locate": script.locate,
        "ranks": f"$(({' + '.join(f'SLURM_NTASKS_HET_GROUP_{k}' for k in groups)}))" if groups else "$SLURM_NTASKS",
        "python": interpreter(options, script.python),
        "resume_mode": options.resume_mode,
        "max_restarts": options.max_restarts,
        "lead_s": options.lead_s,
        "grace_s": options.lead_s * 3 // 4,
        "modules": options.modules,
        "setup": options.setup,
        "teardown": options.teardown,
        "env": [(name, value) for name, _, value in (item.partition("=") for item in options.env)],
        "scratch": options.scratch,
        "prepare": script.prepare,
        "start": _start(options, groups, job.resources.tolerate_lost_actors),
    }


def _variables(directives: Sequence[str]) -> dict[str, str]:
    """The names of the environment that the script drops, as words of bash; ``${!PMI@}`` are all that begin so."""

    def beginning(*prefixes: str) -> list[str]:
        return [f"${{!{prefix}@}}" for prefix in prefixes]

    def lines(words: Sequence[str], between: str = " ") -> str:
        rows = textwrap.wrap(between.join(words), 100, break_long_words=False, break_on_hyphens=False)
        return " \\\n        ".join(rows)

    answers = beginning(*RANK, *environment.OF_ANSWERS)
    options = re.findall(r"^--([a-z-]+)", "\n".join(directives), re.MULTILINE)
    return {
        "foreign": lines([*environment.OURS, "SLURM_TIME_FORMAT", *answers]),
        "of_a_step": lines(beginning(*environment.STEP)),
        "of_a_job": lines(beginning(*SLURM)),
        "kept": lines((*environment.KEPT, *environment.DEFAULTS), " | "),
        "gpus": lines(environment.GPUS),
        "overruled": lines(environment.overruled(options)),
    }


def interpreter(options: Options, script_python: str = "") -> str:
    """The shell words that start Python, in a container if there is one; ``script_python`` where the script chooses."""
    python = script_python if script_python and not options.python else quote(options.python or sys.executable)
    if not options.container:
        return python
    nvidia = " --nv" if options.gpus_per_node else ""
    return f"apptainer exec{nvidia} {quote(options.container)} {python}"


def _each_node(group: int | None) -> str:
    """The shell words that run a command once on every node of the allocation, or of one component."""
    nodes = '"$SLURM_NNODES"' if group is None else f'"$SLURM_JOB_NUM_NODES_HET_GROUP_{group}"'
    het = "" if group is None else f"--het-group={group} "
    return f"srun {het}--nodes={nodes} --ntasks={nodes} --ntasks-per-node=1"


def _start(options: Options, groups: Sequence[int], tolerant: bool) -> str:
    """The shell words that start all ranks; without ``auto``, which only the login node can resolve.

    Components of a heterogeneous job are one step, and one MPI world, each with its own CPUs per task. In a
    ``tolerant`` job neither a task that is killed nor a node that is lost ends the others.
    """
    rank = '"${python[@]}" -m hpc_rl.rank "$run" "$ranks"'
    if options.launcher == "srun":
        pmi = "" if options.mpi in ("none", "auto") else f" --mpi={options.mpi}"
        usual = pmi + (" --kill-on-bad-exit=0 --no-kill --wait=0" if tolerant else " --kill-on-bad-exit=1 --wait=60")
        cpus = '--cpus-per-task="${{SLURM_CPUS_PER_TASK_HET_GROUP_{0}:-1}}"'
        parts = [f"--het-group={k} {cpus.format(k)}{usual} {rank}" for k in groups]
        return f"srun {' : '.join(parts)}" if parts else f"srun{usual} {rank}"
    return f"{options.launcher} {rank}"


def _directives(script: Script, job: Job, plan: Plan, options: Options) -> list[str]:
    lines = _head(script, options)
    lines.append(f"--ntasks={len(plan.ranks)}")
    if options.nodes:
        lines.append(f"--ntasks-per-node={-(-len(plan.ranks) // options.nodes)}")
        lines.append("--distribution=block")
    values = {item.metadata["directive"]: getattr(options, item.name) for item in fields(options)}
    values["cpus-per-task"] = options.cpus_per_task or max(1, job.resources.threads)
    values["gpus-per-node"] = options.gpus_per_node or _gpus(job, plan, options.nodes or 1)
    return lines + _typed(values) + _others(job, options)


def _gpus(job: Job, plan: Plan, nodes: int) -> int | None:
    """GPUs that the fullest node needs where the job insists on them; nodes are filled in the order of ranks."""
    if job.resources.device != "cuda":
        return None
    node_of = nodes_of(len(plan.ranks), nodes)
    return max(Counter(node_of[rank] for rank in plan.accelerated).values())


def _het(script: Script, job: Job, plan: Plan, options: Options) -> list[list[str]]:
    """Learners first: ranks are counted through the components in order."""
    learners = plan.learners
    if learners != list(range(len(learners))) or len(learners) == len(plan.ranks):
        raise BadJob(f"topology {plan.topology} has no learners apart from the others; use --layout one")
    values = {item.metadata["directive"]: getattr(options, item.name) for item in fields(options)}
    learner_options = dict(item.lstrip("-").partition("=")[::2] for item in options.learners)
    threads = plan.ranks[0].threads
    first = {**values, "gpus-per-node": None, "nodes": None, "cpus-per-task": max(1, threads), **learner_options}
    second = {**values, "gpus-per-node": None, "cpus-per-task": options.cpus_per_task or 1}
    nodes = re.match(r"[1-9]\d{0,5}(?!\d)", learner_options.get("nodes", "1"))  # "2-4" is a range
    if not nodes:
        raise BadJob(f"learners = 'nodes={learner_options['nodes']}' cannot be read; write nodes=2")
    first["gpus-per-node"] = (
        learner_options.get("gpus-per-node") or options.gpus_per_node or _gpus(job, plan, int(nodes[0]))
    )
    extra = _others(job, options)
    return [
        [*_head(script, options), f"--ntasks={len(learners)}", *_typed(first), *extra],
        [f"--ntasks={len(plan.ranks) - len(learners)}", *_typed(second), *extra],
    ]


def _head(script: Script, options: Options) -> list[str]:
    lines = [f"--job-name={word(one_line(script.name))}", f"--output={word(script.output)}", "--open-mode=append"]
    lines.append("--requeue" if options.resume_mode == "requeue" else "--no-requeue")
    lines.append(f"--signal=B:USR1@{options.lead_s}")
    if script.array:
        lines.append(f"--array={script.array}")
    if options.after:
        lines.append(f"--dependency={dependency(options.after)}")
    return lines


def _others(job: Job, options: Options) -> list[str]:
    """What every component gets besides; an allocation outlives its nodes where lost actors are tolerated."""
    return ["--no-kill"] * job.resources.tolerate_lost_actors + [_directive(item) for item in options.sbatch]


def _typed(values: dict[str, Any]) -> list[str]:
    """``--key=value`` of every value that is present, the flags without a value."""
    directives = {key: value for key, value in values.items() if key and value is not None and value is not False}
    return [f"--{key}" if value is True else f"--{key}={word(str(value))}" for key, value in directives.items()]


def _directive(item: str) -> str:
    key, equals, value = item.lstrip("-").partition("=")
    return f"--{key}={word(value)}" if equals else f"--{key}"


def word(text: str) -> str:
    """One value for sbatch, whose directives know quotes and backslashes like a shell. Raises BadJob."""
    if not text.isprintable():
        raise BadJob(f"{text!r} holds a line break or control character, which a batch script cannot carry; rename it")
    return shlex.quote(text)


def pattern(path: Path) -> str:
    """A path in sbatch's file name pattern, where % begins a symbol and a backslash ends them all. Raises BadJob."""
    if "\\" in str(path):
        raise BadJob(f"{path} holds a backslash, which sbatch does not take in the name of an output; rename it")
    return str(path).replace("%", "%%")


def one_line(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def quote(value: object) -> str:
    """One shell word."""
    return shlex.quote(str(value))


def command_line(words: Sequence[str]) -> str:
    return " ".join(shlex.quote(item) for item in words)
