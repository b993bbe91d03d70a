"""Whatever table is accepted as a job, its text gives the same job back; whatever is not is refused with `BadJob`.

Mutations seen to fail: keys of tables written without quotes; a lone surrogate accepted in a key; tuples or NumPy's
numbers kept in arguments; the text not read back when a job is loaded (a text of 64 dots).
"""

from __future__ import annotations

import datetime
import math
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hpc_rl import job as jobs
from hpc_rl.job import BadJob
from hpc_rl.storage.untrusted import MOST_LEVELS, MOST_TOML_BYTES

TEXT = st.text(st.characters(exclude_categories=()), max_size=8)  # lone surrogates, too
NUMBERS = st.integers(-(2**65), 2**65) | st.floats() | st.floats().map(np.float64)
DATES = st.datetimes() | st.dates() | st.times()
SCALARS = st.booleans() | NUMBERS | TEXT | DATES | st.none() | st.binary(max_size=2)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(TEXT | st.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)
TABLES = st.fixed_dictionaries(
    {"environment": st.fixed_dictionaries({"id": TEXT, "arguments": st.dictionaries(TEXT, VALUES, max_size=3)})},
    optional={
        "name": TEXT | SCALARS,
        "seed": SCALARS,
        "sampler": st.sampled_from(["vector", "central", "alternating"]) | SCALARS,
        "a2c": st.fixed_dictionaries({}, optional={"hidden": st.lists(NUMBERS, max_size=3), "discount": SCALARS}),
        "budget": st.fixed_dictionaries({}, optional={"env_steps": SCALARS, "stop_at_return": SCALARS}),
        "resources": st.fixed_dictionaries(
            {}, optional={"precisions": st.dictionaries(TEXT, st.sampled_from(["fp32", "bf16"]))}
        ),
    },
)


def with_argument(value: object) -> dict[str, Any]:
    return {"environment": {"id": "toy/catch", "arguments": {"x": value}}}


def parsed(table: dict[str, Any]) -> jobs.Job:
    return jobs.parse({"algorithm": "a2c", "topology": "solo", **table})


def comes_back(job: jobs.Job) -> bool:
    back = jobs.parse(tomllib.loads(jobs.dumps(job)))
    return back == job and repr(back) == repr(job)  # 1 == 1.0 == True, and -0.0 == 0.0


@given(TABLES)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_an_accepted_table_comes_back_from_its_text(table: dict[str, Any]) -> None:
    try:
        job = parsed(table)
    except BadJob as refusal:
        assert "\n" not in str(refusal)
        return
    assert comes_back(job)


ACCEPTED = {
    "keys that need quotes": {"a b": {'"': 1, "": 2, "é.ü": 3, "\x7f": 4, "\n": 5}},
    "tuples": (1, (2.0, [True])),
    "numbers at their limits": [-0.0, math.inf, 5e-324, 1e16, 2**63 - 1],
    "numbers of NumPy": [np.float64(0.1)],
    "letters of all kinds": "x\u2028\x00\r\n\U0001f600",
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_these_are_accepted_and_come_back(name: str) -> None:
    assert comes_back(parsed(with_argument(ACCEPTED[name])))


def test_the_file_comes_back_too(tmp_path: Path) -> None:
    job = parsed({**with_argument({"a b": ["\u2028", math.inf]}), "name": "two words"})
    (tmp_path / "job.toml").write_text(jobs.dumps(job), encoding="utf-8")
    assert repr(jobs.load(tmp_path / "job.toml")) == repr(job)


def nested(levels: int) -> object:
    value: object = 1
    for _ in range(levels):
        value = [value]
    return value


UNWRITABLE = {
    "a date": (datetime.date(2026, 1, 2), r"^environment\.arguments\.x = .*date"),
    "half a letter in a key": ({"y": {"\ud800": 1}}, r"^environment\.arguments\.x\.y has a key '\\ud800'"),
    "64 dots": (
        ".".join("a" * 66),
        r"^\[environment\] cannot be written as TOML and read back: a key has more than 64",
    ),
    "too deep": (nested(MOST_LEVELS), rf"^\[environment\] cannot be .* more than {MOST_LEVELS} deep"),
    "too long": ("x" * MOST_TOML_BYTES, f"bytes as TOML; write at most {MOST_TOML_BYTES}"),
}


@pytest.mark.parametrize("name", UNWRITABLE)
def test_what_could_not_be_read_back_is_refused(name: str) -> None:
    value, sentence = UNWRITABLE[name]
    with pytest.raises(BadJob, match=sentence):
        parsed(with_argument(value))


def test_an_override_of_many_parts_is_refused() -> None:
    with pytest.raises(BadJob, match=f"more than {MOST_LEVELS} parts"):
        jobs.load("a2c_cartpole", [".".join(["environment.arguments", *"a" * 5000]) + "=1"])
