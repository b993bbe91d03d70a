"""A job file is checked when it is loaded: every number finite and in range, and job.toml gives the same job back.

Mutations seen to fail: the finite check left out of ``convert``; items of lists not looked at; ``seed`` taken as it is;
U+007F written as it is; keys of arguments written with \\u escapes of UTF-16; dates left to the ranks.
"""

from __future__ import annotations

import datetime
import tomllib
from pathlib import Path
from types import NoneType
from typing import Any, get_args

import pytest
from click.testing import CliRunner

from hpc_rl import job as jobs
from hpc_rl.checking import hints_of, word
from hpc_rl.cli import cli
from hpc_rl.job import BadJob
from hpc_rl.launchers import options
from hpc_rl.methods import config_class

NUMBERS = [
    (section, name)
    for section, kind in {**jobs.SECTIONS, **{name: config_class(name) for name in jobs.algorithms()}}.items()
    for name, hint in hints_of(kind).items()
    if any("number" in word(kind) for kind in (get_args(hint) if NoneType in get_args(hint) else [hint]))
]


def test_what_is_left_of_both_budgets() -> None:
    """In env steps, at the env steps per update so far. Mutation seen to fail: the larger of both."""
    plain, both = jobs.Budget(env_steps=1000), jobs.Budget(env_steps=1000, updates=20)
    assert plain.left(400, 8) == 600 and plain.left(1200, 8) == 0
    assert both.left(400, 8) == 600 and both.left(400, 16) == 100 and both.left(400, 20) == both.left(400, 21) == 0
    assert both.left(0, 0) == 1000


def table(**changes: Any) -> dict[str, Any]:
    return {"algorithm": "a2c", "topology": "solo", "environment": {"id": "toy/catch"}, **changes}


def with_value(section: str, name: str, value: Any) -> dict[str, Any]:
    algorithm = section if section in jobs.algorithms() else "a2c"
    tables: dict[str, Any] = {**table(), "algorithm": algorithm}
    tables[section] = {**tables.get(section, {}), name: value}
    return tables


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 2**63, 10**400], ids=str)
@pytest.mark.parametrize(("section", "name"), NUMBERS)
def test_every_number_is_finite(section: str, name: str, value: float) -> None:
    with pytest.raises(BadJob, match=rf"^{section}\.{name} "):
        jobs.parse(with_value(section, name, value))


@pytest.mark.parametrize(("section", "name"), NUMBERS)
def test_a_truth_value_is_no_number(section: str, name: str) -> None:
    for value in (True, [True]):
        with pytest.raises(BadJob, match=rf"^{section}\.{name}.* must be"):
            jobs.parse(with_value(section, name, value))


@pytest.mark.parametrize("hidden", [[-3], [0], ["a"], [64.5], [64, True], [[64]], 64, [float("nan")]], ids=str)
def test_units_of_layers_are_whole_numbers(hidden: Any) -> None:
    for name in jobs.algorithms():
        with pytest.raises(BadJob, match=rf"{name}\.hidden"):
            jobs.parse({**table(), "algorithm": name, name: {"hidden": hidden}})


@pytest.mark.parametrize("seed", [True, 1.0, -1, 2**31, float("nan"), "1"], ids=str)
def test_a_seed_is_a_whole_number(seed: Any) -> None:
    with pytest.raises(BadJob, match="seed"):
        jobs.parse(table(seed=seed))


@pytest.mark.parametrize("name", ["decay", "momentum"])
def test_what_the_optimiser_would_refuse_is_out_of_range(name: str) -> None:
    with pytest.raises(BadJob, match=f"impala.{name} = 1.0 is out of range; it must be < 1"):
        jobs.parse(with_value("impala", name, 1.0))


TEXTS = ["\x7f", "\x00\x1f\\\"'", "é\u2028", "\U0001f600", "", "a.b = [1]"]


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_arguments_are_read_back_as_they_were(text: str) -> None:
    arguments = {"text": text, text: [1, {"deep": text, "big": 1e300, "bound": float("inf")}], "least": -(2**63)}
    job = jobs.parse(table(name=text, environment={"id": "toy/catch", "arguments": arguments}))
    assert jobs.parse(tomllib.loads(jobs.dumps(job))) == job


BAD_ARGUMENTS = {
    "a date": datetime.date(2026, 1, 2),
    "a time": datetime.time(1),
    "in a list": [1, datetime.datetime(2026, 1, 2)],
    "in a table": {"deep": {"er": datetime.date(2026, 1, 2)}},
    "nan": float("nan"),
    "nan in a list": [[float("nan")]],
    "65 bits": 2**63,
    "broken text": "\udc80",
    "broken key": {"\udc80": 1},
}


@pytest.mark.parametrize("kind", BAD_ARGUMENTS)
def test_an_argument_that_job_toml_cannot_hold_is_refused_at_once(kind: str) -> None:
    with pytest.raises(BadJob, match=r"^environment\.arguments\.x"):
        jobs.parse(table(environment={"id": "toy/catch", "arguments": {"x": BAD_ARGUMENTS[kind]}}))


def test_a_date_in_a_file_or_an_override_is_one_sentence(tmp_path: Path) -> None:
    head = 'algorithm = "a2c"\ntopology = "solo"\n[environment]\nid = "toy/catch"\narguments = { '
    for text in ("day = 2026-01-02 }", f"n = {'1' * 5000} }}"):
        (tmp_path / "job.toml").write_text(head + text)
        with pytest.raises(BadJob):
            jobs.load(tmp_path / "job.toml")
    with pytest.raises(BadJob, match=r"arguments\.day"):
        jobs.load("ppo_cartpole", ["environment.arguments.day=2026-01-02"])


def test_numbers_of_a_profile_and_of_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "hpc_rl").mkdir()
    for line in ("nodes = true", "lead_s = nan", "nice = 1.5", "setup = [3]", f"max_restarts = {2**63}"):
        (tmp_path / "hpc_rl" / "here.toml").write_text(line)
        with pytest.raises(BadJob, match=line.split()[0]):
            options.load("here", {})
    for seconds in ("nan", "inf", "-1", "0"):
        for words in (["bench", "roofline", "ppo_cartpole", "--seconds", seconds], ["selftest", "--wait", seconds]):
            result = CliRunner().invoke(cli, words)
            assert result.exit_code == 2 and "is not a number of seconds above 0" in result.output, result.output
