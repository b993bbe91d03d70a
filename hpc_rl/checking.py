"""The one checker over the types of configuration values: job sections, methods' Configs and site profiles.

Every number is finite and fits into 64 bits, every text is Unicode: what was accepted can be written back. Only a value
of free form (`Any`, the arguments of an environment) may be infinite, because environments take that for "no bound".
"""

from __future__ import annotations

import difflib
import functools
import math
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args, get_origin

from hpc_rl.config import BadJob, Range

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Section = TypeVar("Section", bound="DataclassInstance")
_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text in quotes", dict: "a table"}
_PLURALS = {int: "whole numbers", float: "numbers", bool: "truth values", str: "texts in quotes", dict: "tables"}
GREEK = {"alpha": "α", "beta": "β", "gamma": "γ", "epsilon": "ε", "lambda": "λ", "rho": "ρ", "sigma": "σ", "tau": "τ"}
_SHOWN = 200  # characters of a refused value that its sentence repeats


def build(kind: type[Section], table: object, name: str) -> Section:
    """The dataclass ``kind`` with the values of section ``[name]`` over its defaults.

    Raises:
        BadJob: no table, an unknown key, or a value that its hint does not allow.
    """
    if not isinstance(table, Mapping):
        raise BadJob(f"{name} = {shown(table)} must be a table; write [{name}]")
    hints = hints_of(kind)
    values = {}
    for key, value in table.items():
        if key not in hints:
            raise BadJob(
                f"unknown key {name}.{_quoted(key)}" + (_other_name(str(key), hints) or _nearest_in(key, hints))
            )
        values[key] = convert(f"{name}.{key}", value, hints[key])
    return replace(kind(), **values)


@functools.cache
def hints_of(kind: type[DataclassInstance]) -> dict[str, object]:
    """Field -> type hint, ranges and choices included."""
    hints = typing.get_type_hints(kind, include_extras=True)
    return {item.name: hints[item.name] for item in fields(kind)}


def kind_of(hint: object) -> type[Any]:
    """The builtin type of a hint's values; of several the first that is not None."""
    kind: type[Any] = next(_base(kind) for kind in _alternatives(hint) if kind is not type(None))
    return kind


def check_defaults(kind: type[DataclassInstance], name: str) -> None:
    """Refuse a dataclass whose own defaults could not be given in a job file.

    Raises:
        BadJob: a default that its hint does not allow, or a hint that this file does not know.
    """
    defaults = kind()
    for key, hint in hints_of(kind).items():
        value = getattr(defaults, key)
        try:
            convert(f"{name}.{key}", value, hint)
        except TypeError as error:
            raise BadJob(f"{name}.{key}: {error}") from None
        if type(None) in _alternatives(hint) and value is not None:
            raise BadJob(f"{name}.{key} may be None, which TOML cannot express; make None its default")


def convert(key: str, value: object, hint: object) -> object:
    """The value as its hint has it: a list as a tuple, a whole number as a float where a number is asked for.

    Raises:
        BadJob: another type, out of range, not a choice, not finite, or nothing that TOML can hold.
    """
    kinds = [kind for kind in _alternatives(hint) if kind is not type(None)]
    if value is None and len(kinds) < len(_alternatives(hint)):
        return None
    _refuse_unwritable(key, value)
    for kind in kinds:
        if _is_a(kind, value):
            return _converted(key, value, kind)
    raise BadJob(f"{key} = {shown(value)} must be {' or '.join(map(word, kinds))}{_remedy(value, kinds)}")


def nearest(name: str, names: Iterable[str], noun: str) -> str:
    """The end of a sentence about an unknown name: the known one that is most like it, or all of them."""
    names = list(names)
    if close := difflib.get_close_matches(name, names, 1, 0.5):
        return f"; did you mean {close[0]!r}?"
    nouns = noun[:-1] + "ies" if noun.endswith("y") and noun != "key" else noun + "s"
    return f"; the known {nouns} are {', '.join(names)}"


def _other_name(name: str, hints: Mapping[str, object]) -> str:
    """The end of a sentence about ``gamma``, a Greek letter that a key's text begins with, or ``lr``, its initials."""
    letter = GREEK.get(name, "")
    for key, hint in hints.items():
        text = next((mark for mark in get_args(hint)[1:] if isinstance(mark, str)), "")
        if name == "".join(part[:1] for part in key.split("_")) or (letter and re.match(rf"{letter}\b", text)):
            return f"; did you mean {key!r}?"
    return ""


def _nearest_in(name: object, hints: Mapping[str, object]) -> str:
    """The end of a sentence about an unknown key of a section, which may have been meant for its free table."""
    end = nearest(str(name), hints, "key")
    free = [key for key, hint in hints.items() if get_args(_plain(hint))[1:] == (Any,)]
    if end.endswith("?"):
        return end
    return end + "".join(f"; what an environment takes goes into its table {key!r}" for key in free)


def _plain(hint: object) -> object:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _remedy(value: object, kinds: list[Any]) -> str:
    """The value as it would be accepted, where that is plain: 2e5 as 200000, 64 as [64]."""
    bases = {_base(kind) for kind in kinds}
    if int in bases and isinstance(value, float) and value.is_integer():
        return f"; write {int(value)}"
    if tuple in bases and isinstance(value, int | float) and not isinstance(value, bool):
        return f"; write [{value}]"
    return ""


def shown(value: object) -> str:
    """The value for an error sentence, cut where it is long."""
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def _alternatives(hint: object) -> tuple[Any, ...]:
    """The members of a union, else the hint alone."""
    return get_args(hint) if get_origin(hint) in (types.UnionType, typing.Union) else (hint,)


def _base(kind: Any) -> Any:
    """The builtin type that values of this hint have. Raises TypeError for a hint that no job file can hold."""
    origin, inside = get_origin(kind) or kind, get_args(kind)
    if origin is Annotated:
        return _base(inside[0])
    if origin is Literal and all(isinstance(choice, str) for choice in inside):
        return str
    if origin is Any:
        return object
    if (origin is tuple and inside[1:] == (...,)) or (origin is dict and inside[:1] == (str,)):
        items = inside[0] if origin is tuple else inside[1]
        for item in _alternatives(items):
            _base(item)
        return origin
    if origin not in _WORDS or origin is dict or inside:
        raise TypeError(
            f"{kind} is no type of a configuration value; "
            "use bool, int, float, str, Annotated, Literal, tuple[…, ...] or dict[str, …]"
        )
    return origin


def _is_a(kind: Any, value: object) -> bool:
    """Whether ``value`` may stand for a ``kind``: a whole number for a number, a list for a tuple, true for neither."""
    base = _base(kind)
    if isinstance(value, bool):
        return base in (bool, object)
    accepted: Any = {float: (int, float), tuple: (list, tuple), dict: Mapping}.get(base, base)
    return isinstance(value, accepted)


def _converted(key: str, value: Any, kind: Any) -> Any:
    """``value``, which `_is_a` kind, as that kind."""
    origin, inside = get_origin(kind) or kind, get_args(kind)
    if origin is Annotated:
        return _in_range(key, _converted(key, value, inside[0]), inside[1:])
    if origin is Literal:
        return _chosen(key, value, inside)
    if origin is tuple:
        return tuple(convert(f"{key}[{k}]", x, inside[0]) for k, x in enumerate(value))
    if origin is dict:
        return {_name(key, name): convert(f"{key}.{_quoted(name)}", x, inside[1]) for name, x in value.items()}
    if origin is Any:
        return _free(key, value)
    if origin is float and not math.isfinite(value):
        raise BadJob(f"{key} = {value!r} is not a finite number; write the number itself")
    return origin(value)


def _in_range(key: str, value: Any, marks: tuple[Any, ...]) -> Any:
    for mark in marks:
        if isinstance(mark, Range) and value not in mark:
            raise BadJob(f"{key} = {value!r} is out of range; it must {mark}")
    return value


def _chosen(key: str, value: str, choices: tuple[str, ...]) -> str:
    if value in choices:
        return value
    close = difflib.get_close_matches(value, choices, 1, 0.5)
    likely = f"; did you mean {close[0]!r}?" if close else ""
    raise BadJob(f"{key} = {shown(value)}; choose from {', '.join(choices)}{likely}")


def _free(key: str, value: Any) -> Any:
    """A value of free form as tomllib would give it: lists for tuples, dicts for other mappings, builtin numbers."""
    _refuse_unwritable(key, value)
    if isinstance(value, Mapping):
        return {_name(key, name): _free(f"{key}.{_quoted(name)}", x) for name, x in value.items()}
    if isinstance(value, list | tuple):
        return [_free(f"{key}[{k}]", x) for k, x in enumerate(value)]
    if isinstance(value, float) and math.isnan(value):
        raise BadJob(f"{key} = nan is not a number; write the number, or leave the argument out")
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    raise BadJob(
        f"{key} = {shown(value)} is a {type(value).__name__}; "
        "an argument is a number, text in quotes, true, false, list or table"
    )


def _refuse_unwritable(key: str, value: object) -> None:
    """Refuse integers and texts that TOML cannot carry."""
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise BadJob(f"{key} does not fit into 64 bits; write a smaller number")
    if isinstance(value, str) and not _is_unicode(value):
        raise BadJob(f"{key} = {shown(value)} is not Unicode text; write it in UTF-8")


def _name(key: str, name: object) -> str:
    """A key of the table ``key``, which may be any text."""
    if not isinstance(name, str) or not _is_unicode(name):
        raise BadJob(f"{key} has a key {shown(name)}, which is not Unicode text; write it in UTF-8")
    return str(name)


def _is_unicode(text: str) -> bool:
    """False where half of a UTF-16 pair is in it, which UTF-8 cannot express."""
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


def _quoted(name: object) -> str:
    """A key inside an error sentence, with quotes where TOML wants them."""
    plain = isinstance(name, str) and name.isascii() and name.replace("_", "").replace("-", "").isalnum()
    return str(name) if plain else repr(name)


def word(kind: Any) -> str:
    """In words: "a whole number", "a list of whole numbers"."""
    base = _base(kind)
    if get_origin(kind) is Annotated:
        return word(get_args(kind)[0])
    if base is tuple:
        return f"a list of {_PLURALS.get(_base(get_args(kind)[0]), 'values')}"
    return _WORDS.get(base, "a value")
