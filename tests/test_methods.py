"""Files of algorithms/ that are no methods: one sentence that names the file; and what the torch-free reader sees.

Mutations seen to fail: the imports that a Config uses left out of what is executed; an error at import passed on as it
came; TOPOLOGIES not compared with the folder; the line of a mistake taken from the reader's own frames.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from hpc_rl import job as jobs
from hpc_rl import methods
from hpc_rl.cli import cli
from hpc_rl.experience import Experience, Items
from hpc_rl.methods import BadMethod

WHOLE = '''"""A method."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import Any, Literal

from hpc_rl.config import Positive, PositiveInt
from hpc_rl.experience import Experience, Items
from hpc_rl.types import Schema

TOPOLOGIES = ("solo", "allreduce")
EXTRAS: Schema = {}


@dataclass(frozen=True)
class Config:
    unroll: PositiveInt = 5
    rate: Positive = 0.1
    loss: Literal["mean", "sum"] = "mean"

    def double(self) -> int:
        return 2 * self.unroll if self.rate < inf else 0

    def experience(self) -> Experience:
        return Experience(self.unroll, (Items("items", 0),))


ALGORITHM = "a value"
'''


def refused(text: str) -> str:
    """The sentence about a job of method foo, and the same from the command line without a traceback."""
    (methods.FOLDER / "foo.py").write_text(text)
    table = {"algorithm": "foo", "topology": "solo", "environment": {"id": "toy/catch"}}
    with pytest.raises(BadMethod) as caught:
        jobs.parse(table)
    job = methods.FOLDER / "job.toml"
    job.write_text('algorithm = "foo"\ntopology = "solo"\n[environment]\nid = "toy/catch"\n')
    result = CliRunner().invoke(cli, ["show", str(job)])
    assert isinstance(result.exception, BadMethod) and str(result.exception) == str(caught.value)
    sentence = str(caught.value)
    assert sentence.startswith("algorithms/foo.py") and "\n" not in sentence
    return sentence


def test_a_config_is_read_with_its_methods_and_imports(method_folder: Path) -> None:
    (method_folder / "foo.py").write_text(WHOLE)
    (method_folder / ".#foo.py").touch()
    (method_folder / "foo copy.py").touch()
    assert methods.algorithms() == ["foo"]
    assert methods.config_class("foo")().double() == 10  # type: ignore[attr-defined]
    assert methods.config_class("foo") is methods.config_class("foo")
    assert methods.allowed_topologies("foo") == ("solo", "allreduce")
    assert methods.algorithm("foo") == "a value"
    assert methods.experience("foo", {"unroll": 7}) == Experience(7, (Items("items", 0),))
    job = jobs.parse({"algorithm": "foo", "topology": "solo", "environment": {"id": "toy/catch"}, "foo": {"rate": 2}})
    assert job.method == {"unroll": 5, "rate": 2.0, "loss": "mean"}


@pytest.mark.parametrize("value", ['["solo"]', "()", '"solo"', '("solo", "sole")', "(3,)", "None", '(["solo"],)'])
def test_wrong_topologies(method_folder: Path, value: str) -> None:
    sentence = refused(WHOLE.replace('("solo", "allreduce")', value))
    assert "TOPOLOGIES = " in sentence and "must be a tuple of topologies; choose from" in sentence
    assert "actor_learner, actor_replay_learner, allreduce, parameter_server, solo" in sentence


CASES = {
    "no topologies": (WHOLE.replace("TOPOLOGIES", "TOPOLOGY"), "defines no TOPOLOGIES"),
    "topologies that are computed": (
        WHOLE.replace('("solo", "allreduce")', "tuple(x)"),
        "TOPOLOGIES must be a literal",
    ),
    "a mistake of syntax": (WHOLE.replace("unroll: PositiveInt = 5", "unroll: PositiveInt ="), "line 19: the file"),
    "no text": ("\0", "the file cannot be read"),
    "another encoding": ("# coding: no-such-code\n", "the file cannot be read"),
    "no config": (WHOLE.replace("class Config", "class Configuration"), "defines no Config"),
    "no dataclass": (WHOLE.replace("@dataclass(frozen=True)\n", ""), "dataclass"),
    "torch in a config": (
        WHOLE.replace("rate: Positive = 0.1", "rate: Positive = torch.ones(1)"),
        "line 20: Config cannot be read (NameError: name 'torch' is not defined); it may use builtins and names from "
        "dataclasses, typing, math, hpc_rl.config, hpc_rl.types, hpc_rl.experience",
    ),
    "a default out of its range": (
        WHOLE.replace("rate: Positive = 0.1", "rate: Positive = 0.0"),
        "Config: foo.rate = 0.0 is out of range; it must be > 0",
    ),
    "a type that no file can give": (
        WHOLE.replace("rate: Positive = 0.1", "rate: complex = 0j"),
        "Config: foo.rate: <class 'complex'> is no type of a configuration value; use bool, int",
    ),
    "a field without a default": (
        WHOLE.replace("unroll: PositiveInt = 5", "unroll: PositiveInt"),
        "missing 1 required",
    ),
    "a mistake that a library finds": (
        WHOLE.replace("= 0.1", "= field(default=1, default_factory=int)"),
        "line 20: Config cannot be read (ValueError: ",
    ),
    "a mistake in two lines": (WHOLE.replace("= 0.1", "= int('a\\nb')"), "line 20: "),
}


@pytest.mark.parametrize("name", CASES)
def test_a_file_that_is_no_method_is_one_sentence(method_folder: Path, name: str) -> None:
    text, words = CASES[name]
    assert words in refused(text)


RETURN = 'return Experience(self.unroll, (Items("items", 0),))'
EXPERIENCES = {
    "def experience(": ("def experiences(", "Config has no method experience(self) -> Experience; add it"),
    RETURN: ("return 0", "experience() of Config returns 0; return an Experience with items"),
    RETURN[:-1]: ("return Experience(self.unroll, ()", "items=(), "),
    "self.unroll, (": ("self.rollout, (", "line 27: experience() of Config fails (AttributeError: "),
    "Items(": ("items_of(", "(NameError: name 'items_of' is not defined); it may use builtins and names from "),
}


@pytest.mark.parametrize("before", EXPERIENCES)
def test_a_config_without_its_experience(method_folder: Path, before: str) -> None:
    after, words = EXPERIENCES[before]
    assert words in refused(WHOLE.replace(before, after))


def test_an_experience_that_fails_for_some_values_only(method_folder: Path) -> None:
    (method_folder / "foo.py").write_text(
        WHOLE.replace("Experience(self.unroll", "Experience(self.unroll + 1 // (self.unroll - 7)")
    )
    job = jobs.parse({"algorithm": "foo", "topology": "solo", "environment": {"id": "toy/catch"}, "foo": {"unroll": 7}})
    with pytest.raises(BadMethod, match=r"algorithms/foo.py, line 27: experience\(\) of Config fails \(ZeroDivision"):
        jobs.experience(job)


IMPORTS = {
    "raise ValueError('a\\nb')": "line 1: the file cannot be imported (ValueError: a b)",
    "import no_such_package": "line 1: the file cannot be imported (ModuleNotFoundError: No module named",
    "x = (": "line 1: the file cannot be imported (SyntaxError: ",
    "x = 3": "defines no ALGORITHM",
}


@pytest.mark.parametrize("text", IMPORTS)
def test_a_file_that_cannot_be_imported_is_one_sentence(method_folder: Path, text: str) -> None:
    (method_folder / "foo.py").write_text(text + "\n")
    with pytest.raises(BadMethod) as caught:
        methods.algorithm("foo")
    assert IMPORTS[text] in str(caught.value) and "\n" not in str(caught.value)


def test_one_wrong_file_does_not_disturb_the_others(method_folder: Path) -> None:
    (method_folder / "foo.py").write_text(WHOLE)
    (method_folder / "broken.py").write_text("x = (\n")
    assert methods.algorithms() == ["broken", "foo"]
    assert jobs.parse({"algorithm": "foo", "topology": "solo", "environment": {"id": "toy/catch"}}).algorithm == "foo"
