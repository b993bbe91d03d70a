"""README and docs/ say what is: links and anchors lead somewhere, commands and options exist, job keys are valid, the
reference is that of the types, and a page names every metric that its method logs.

Mutations seen to fail: a link to a missing file, to a missing anchor; an option that no command has, in a block and in
a sentence; an unknown key in a TOML block; a doc of settings.py changed; a metric left out of a method's page.
"""

from __future__ import annotations

import json
import shlex
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import click
import pytest

from hpc_rl import job as jobs
from hpc_rl import reference
from hpc_rl.checking import hints_of
from hpc_rl.cli import cli
from hpc_rl.launchers.options import Options
from hpc_rl.methods import config_class
from tests.contract.batches import fed, learner_of, sampled
from tests.contract.seats import run_job
from tests.docs.pages import PAGES, ROOT, Page, commands, page

METHODS = jobs.algorithms()
SITE = {item.name for item in fields(Options)}


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    here = page(name)
    for line, target in here.links:
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / name).parent / path if path else ROOT / name
        assert file.exists(), f"{name}:{line}: there is no {target}"
        if anchor:
            there = page(file.resolve().relative_to(ROOT).as_posix())
            assert anchor in there.anchors, f"{name}:{line}: {path or name} has no heading #{anchor}"


@pytest.mark.parametrize("name", PAGES)
def test_every_page_of_docs_is_reached_from_its_index(name: str) -> None:
    if name.startswith("docs/") and name != "docs/README.md":
        targets = {target for _, target in page("docs/README.md").links}
        assert name.removeprefix("docs/") in targets, f"docs/README.md has no link to {name}"


# ---- commands -------------------------------------------------------------------------------------------------------


def command_of(words: list[str]) -> tuple[click.Command, list[str]] | None:
    """The command of the click program that these words name, and what follows; None where they name none."""
    command: click.Command = cli
    while isinstance(command, click.Group) and words and words[0] in command.commands:
        command, words = command.commands[words[0]], words[1:]
    return None if isinstance(command, click.Group) and command is cli else (command, words)


def check_command(text: str, whole: bool) -> str:
    """What is wrong with a line that begins with hpc-rl, or nothing; in a sentence only names and options count."""
    words = shlex.split(text.partition(" | ")[0])[1:]
    if not words or words[0].startswith("-") or words[0].isupper():
        return ""
    if (named := command_of(words)) is None:
        return f"there is no command {words[0]}"
    command, rest = named
    if isinstance(command, click.Group):
        return f"{command.name} has no command {rest[0]}" if rest and rest[0].isalpha() else ""
    try:
        if whole:
            command.make_context(command.name, list(rest))
    except click.ClickException as error:
        return error.format_message()
    job = rest[0] if rest and command.name in ("run", "show", "submit", "roofline") else "JOB"
    if not (job.isupper() or job.endswith(".toml") or job.startswith("-") or job in jobs.shipped_jobs()):
        return f"no job {job} ships with the package"
    options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    wrong = [word for word in rest if word.startswith("--") and word.split("=")[0] not in {*options, "--help"}]
    return f"{command.name} has no option {wrong[0]}" if wrong else ""


@pytest.mark.parametrize("name", PAGES)
def test_commands_and_options_exist(name: str) -> None:
    here = page(name)
    makefile = (ROOT / "Makefile").read_text()
    for block in here.blocks:
        assert block.language, f"{name}:{block.line}: the block has no language; write bash, python, toml or text"
        if block.language == "mermaid":
            assert ";" not in block.code, f"{name}:{block.line}: a semicolon ends a statement of mermaid; write a comma"
        for line, text in commands(block) if block.language == "bash" else []:
            wrong = check_command(text, whole=True) if text.startswith("hpc-rl") else ""
            if text.startswith("make "):
                wrong = "" if f"\n{text.split()[1]}:" in makefile else "the Makefile has no such target"
            assert not wrong, f"{name}:{line}: {text}: {wrong}"
    for line, span in here.spans:
        if span.startswith("hpc-rl "):
            wrong = check_command(span, whole=False)
            assert not wrong, f"{name}:{line}: {span}: {wrong}"


def test_a_command_that_is_not_there_is_named() -> None:
    assert check_command("hpc-rl shw impala_pong", True) == "there is no command shw"
    assert "--node" in check_command("hpc-rl show impala_pong --node 3", True)
    assert check_command("hpc-rl show JOB --node", False) == "show has no option --node"
    assert check_command("hpc-rl run ppo_carpole", True) == "no job ppo_carpole ships with the package"
    assert check_command("hpc-rl bench roof", False) == "bench has no command roof"
    assert check_command("hpc-rl show impala_pong -n 9 --nodes 3", True) == ""


# ---- jobs -----------------------------------------------------------------------------------------------------------


def job_table(table: dict[str, Any]) -> dict[str, Any]:
    """A whole job with these sections, where they are but some of one."""
    method = next((key for key in table if key in METHODS), "ppo")
    base = {"algorithm": method, "topology": jobs.allowed_topologies(method)[0], "environment": {"id": "CartPole-v1"}}
    return {**base, **table, "environment": {**base["environment"], **table.get("environment", {})}}  # type: ignore[dict-item]


@pytest.mark.parametrize("name", PAGES)
def test_jobs_in_blocks_are_valid(name: str) -> None:
    for block in page(name).blocks:
        table = tomllib.loads(block.code) if block.language == "toml" and block.runs else {}
        if table and table.keys() <= SITE:  # a site profile
            continue
        if table and table.get("algorithm", "ppo") in METHODS:  # else of the method that the page writes
            try:
                jobs.parse(job_table(table))
            except jobs.BadJob as error:
                pytest.fail(f"{name}:{block.line}: {error}")


# ---- what pages must say --------------------------------------------------------------------------------------------


def test_the_reference_of_keys_is_that_of_the_types() -> None:
    path = "docs/job-file.md"
    assert (ROOT / path).read_text() == reference.page(), f"stale; run: python -m hpc_rl.reference {path}"


@pytest.mark.parametrize("section", [*jobs.SECTIONS, *METHODS])
def test_every_key_has_a_doc(section: str) -> None:
    kind = jobs.SECTIONS.get(section) or config_class(section)
    for key, hint in hints_of(kind).items():
        marks = [mark for part in (hint, *get_args(hint)) if get_origin(part) is Annotated for mark in get_args(part)]
        assert any(isinstance(mark, str) for mark in marks), f"{section}.{key} says nothing of what it is"


def missing(here: Page, names: set[str]) -> list[str]:
    spans = {span for _, span in here.spans}
    return sorted(names - spans)


@pytest.mark.parametrize("name", METHODS)
def test_a_methods_page_names_every_metric(name: str) -> None:
    spec, (batch,) = sampled(name, "toy/catch", 1)
    learner = learner_of(name, spec)
    metrics = set(learner.update(fed(learner, batch), 0.0).metrics)
    path = f"docs/methods/{name}.md"
    assert (ROOT / path).is_file(), f"the method {name} has no page {path}; copy that of another"
    assert not missing(page(path), metrics), f"{path} does not name these metrics"


RUNS = [("a2c", "solo", 1), ("a2c", "parameter_server", 2), ("impala", "actor_learner", 2), ("dqn", "solo", 1)]


@pytest.mark.parametrize(("name", "topology", "ranks"), RUNS)
def test_the_run_directory_page_names_what_every_run_writes(
    name: str, topology: str, ranks: int, tmp_path: Path
) -> None:
    table = {
        "algorithm": name,
        "topology": topology,
        "environment": {"id": "toy/catch", "columns": 4},
        "budget": {"env_steps": 200},
        "resources": {"ranks": ranks, "threads": 1},
        "output": {"metrics_s": 1e-6},
        "evaluate": {"every_steps": 100, "episodes": 2},
        name: {"unroll": 10, **({"min_size": 50, "samples_per_insert": 1.0} if name == "dqn" else {})},
    }
    run = run_job(table, tmp_path / "run").run
    lines = [json.loads(text) for file in run.metrics.glob("*.jsonl") for text in file.read_text().splitlines()]
    spec, (batch,) = sampled(name, "toy/catch", 1)
    learner = learner_of(name, spec)
    own = set(learner.update(fed(learner, batch), 0.0).metrics)
    here = page("docs/run-directory.md")
    assert not missing(here, {key for line in lines for key in line} - own), "metrics of every run"
    assert not missing(here, set(json.loads(run.summary_file.read_text()))), "keys of summary.json"
    assert not missing(here, set(json.loads(run.state_file.read_text()))), "keys of state.json"
