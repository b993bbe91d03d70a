"""Type hints as the rules of configuration values: types, ranges, choices, items of lists, tables.

Mutations seen to fail: an open end taken for a closed one; the items of a list not in their range; a choice not looked
at inside a table; a whole number left whole where a number is asked for; an infinite number refused in a free value;
Greek letters left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest

from hpc_rl import job as jobs
from hpc_rl.checking import build, check_defaults, convert, hints_of
from hpc_rl.config import BadJob, BelowOne, Fraction, NonNegative, NonNegativeInt, Positive, PositiveInt, Range


@dataclass(frozen=True)
class Settings:
    count: PositiveInt = 5
    rate: Positive = 0.1
    decay: BelowOne = 0.9
    loss: Literal["mean", "sum"] = "mean"
    target: float | None = None
    hidden: tuple[PositiveInt, ...] = (64, 64)
    names: dict[str, Literal["fp32", "bf16"]] = field(default_factory=dict)
    sets: tuple[dict[str, Any], ...] = ()
    flag: bool = False


GOOD = [
    (PositiveInt, [1, 2**63 - 1]),
    (NonNegativeInt, [0]),
    (Positive, [1e-300, 1, 1e300]),
    (NonNegative, [0, 0.0]),
    (Fraction, [0, 1, 0.5]),
    (BelowOne, [0, 1 - 1e-16]),
    (Annotated[float, Range(-1, 1, open_low=True)], [1, -0.999]),
    (Annotated[float, Range(high=3)], [3, -1e300]),
    (float | None, [None, 1]),
    (Literal["mean", "sum"] | None, [None, "sum"]),
    (tuple[Fraction, ...], [[], [0, 1]]),
    (dict[str, Any], [{}, {"a b": [math.inf, {"": True}]}]),
]
BAD: list[tuple[Any, Any, str]] = [
    (PositiveInt, 0, "x = 0 is out of range; it must be >= 1"),
    (PositiveInt, 1.0, "x = 1.0 must be a whole number; write 1"),
    (PositiveInt, True, "x = True must be a whole number"),
    (NonNegativeInt, -1, "x = -1 is out of range; it must be >= 0"),
    (Positive, 0, "x = 0.0 is out of range; it must be > 0"),
    (Positive, math.inf, "x = inf is not a finite number; write the number itself"),
    (NonNegative, math.nan, "x = nan is not a finite number; write the number itself"),
    (Fraction, 1.5, "x = 1.5 is out of range; it must lie in 0..1"),
    (BelowOne, 1, "x = 1.0 is out of range; it must be < 1 and >= 0"),
    (Annotated[float, Range(-1, 1, open_low=True)], -1, "x = -1.0 is out of range; it must be <= 1 and > -1"),
    (Annotated[float, Range(high=3)], 4, "x = 4.0 is out of range; it must be <= 3"),
    (float | None, "1", "x = '1' must be a number"),
    (int | str, 1.5, "x = 1.5 must be a whole number or text in quotes"),
    (float, None, "x = None must be a number"),
    (Literal["mean", "sum"], "meen", "x = 'meen'; choose from mean, sum; did you mean 'mean'?"),
    (Literal["mean", "sum"], "zzz", "x = 'zzz'; choose from mean, sum"),
    (Literal["mean", "sum"], 1, "x = 1 must be text in quotes"),
    (tuple[PositiveInt, ...], 64, "x = 64 must be a list of whole numbers; write [64]"),
    (tuple[PositiveInt, ...], [64, 0], "x[1] = 0 is out of range; it must be >= 1"),
    (tuple[dict[str, Any], ...], [1], "x[0] = 1 must be a table"),
    (
        dict[str, Literal["fp32", "bf16"]],
        {"a b": "fp8"},
        "x.'a b' = 'fp8'; choose from fp32, bf16; did you mean 'fp32'?",
    ),
    (dict[str, Any], {"y": [math.nan]}, "x.y[0] = nan is not a number; write the number, or leave the argument out"),
    (dict[str, Any], {1: 2}, "x has a key 1, which is not Unicode text; write it in UTF-8"),
    (bool, 1, "x = 1 must be true or false"),
    (str, "\udc80", "x = '\\udc80' is not Unicode text; write it in UTF-8"),
]


@pytest.mark.parametrize(("hint", "values"), GOOD, ids=str)
def test_values_that_a_hint_allows_come_back_as_its_type(hint: Any, values: list[Any]) -> None:
    for value in values:
        converted = convert("x", value, hint)
        assert converted == (tuple(value) if isinstance(value, list) else value)
        assert not (isinstance(converted, int) and "float" in str(hint)), "a whole number stayed whole"


@pytest.mark.parametrize(("hint", "value", "sentence"), BAD, ids=str)
def test_what_a_hint_does_not_allow_is_one_sentence(hint: Any, value: Any, sentence: str) -> None:
    with pytest.raises(BadJob) as caught:
        convert("x", value, hint)
    assert str(caught.value) == sentence


def test_a_long_value_is_cut_in_its_sentence() -> None:
    with pytest.raises(BadJob) as caught:
        convert("x", "y" * 10_000, int)
    assert len(str(caught.value)) < 300


def test_free_values_are_what_toml_would_give_back() -> None:
    class Two(int):
        pass

    converted = convert("x", {"pair": (1, (2.0, Two(2))), "flag": True}, dict[str, Any])
    assert (
        converted == {"pair": [1, [2.0, 2]], "flag": True}
        and repr(converted) == "{'pair': [1, [2.0, 2]], 'flag': True}"
    )


def test_a_section_is_built_over_its_defaults() -> None:
    table = {"rate": 1, "hidden": [8], "names": {"New CPU": "bf16"}, "sets": [{"rows": 3}]}
    assert build(Settings, table, "s") == Settings(
        rate=1.0, hidden=(8,), names={"New CPU": "bf16"}, sets=({"rows": 3},)
    )
    with pytest.raises(BadJob, match=r"^unknown key s\.ratee; did you mean 'rate'\?$"):
        build(Settings, {"ratee": 1}, "s")
    with pytest.raises(BadJob, match=r"^s = 3 must be a table; write \[s\]$"):
        build(Settings, 3, "s")


def test_every_default_of_a_job_lies_in_its_own_range() -> None:
    for name, kind in jobs.SECTIONS.items():
        check_defaults(kind, name)
    assert hints_of(jobs.Job).keys() >= {"seed", "sampler", "schedule"}


@dataclass(frozen=True)
class WrongDefault:
    rate: Positive = 0.0


@dataclass(frozen=True)
class NoneIsNoDefault:
    target: float | None = 1.0


@dataclass(frozen=True)
class UnknownHint:
    values: set[int] = frozenset()  # type: ignore[assignment]


@dataclass(frozen=True)
class UnknownItems:
    values: tuple[complex, ...] = ()


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (WrongDefault, "s.rate = 0.0 is out of range"),
        (NoneIsNoDefault, "s.target may be None, which TOML cannot express; make None its default"),
        (UnknownHint, r"s.values: set\[int\] is no type of a configuration value; use bool, int"),
        (UnknownItems, r"s.values: <class 'complex'> is no type of a configuration value"),
    ],
)
def test_a_dataclass_that_no_file_can_give_is_refused(kind: Any, sentence: str) -> None:
    with pytest.raises(BadJob, match=sentence):
        check_defaults(kind, "s")


@dataclass(frozen=True)
class Rates:
    learning_rate: Annotated[Positive, "of Adam"] = 0.1
    lambda_: Annotated[Fraction, "λ of GAE"] = 0.9
    discount: Annotated[Fraction, "γ"] = 0.99
    layers: tuple[PositiveInt, ...] = ()
    arguments: dict[str, Any] = field(default_factory=dict)


@pytest.mark.parametrize(
    ("table", "end"),
    [
        ({"lr": 1}, "unknown key rates.lr; did you mean 'learning_rate'?"),
        ({"gamma": 1}, "unknown key rates.gamma; did you mean 'discount'?"),  # its letters are most like lambda_
        ({"gae_lambda": 1}, "unknown key rates.gae_lambda; did you mean 'lambda_'?"),
        ({"size": 7}, "what an environment takes goes into its table 'arguments'"),
        ({"layers": 64}, "rates.layers = 64 must be a list of whole numbers; write [64]"),
    ],
)
def test_a_key_of_another_spelling_is_named(table: dict[str, Any], end: str) -> None:
    with pytest.raises(BadJob) as error:
        build(Rates, table, "rates")
    assert str(error.value).endswith(end)
