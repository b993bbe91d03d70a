"""Every field of a method's Config is read, and the login node sees the same Config without torch.

Mutations seen to fail: a field added that nothing reads; a default that differs between file and exec.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from typing import Any, Literal, get_args, get_origin

import numpy as np
import pytest
import torch

from hpc_rl import job as jobs
from hpc_rl.checking import hints_of
from hpc_rl.methods import config_class
from hpc_rl.optim.alone import Alone
from tests.contract.batches import NAMES, config_of, rules_of, sampled, step_of


class Recording:
    """A Config, or a job's method table, that remembers which fields were read."""

    def __init__(self, values: dict[str, Any], read: set[str]) -> None:
        self.__dict__.update(_values=values, _read=read)

    def __getattr__(self, name: str) -> Any:
        self._read.add(name)
        try:
            return self._values[name]
        except KeyError:
            raise AttributeError(name) from None

    __getitem__ = __getattr__

    def get(self, name: str, default: Any = None) -> Any:
        return getattr(self, name, default)


def variants(name: str) -> list[dict[str, Any]]:
    """The defaults, and one variant for each other choice of a field that has choices."""
    plain = {item.name: getattr(config_of(name), item.name) for item in fields(config_of(name))}
    kinds = {key: get_args(hint)[0] for key, hint in hints_of(config_class(name)).items()}  # of Annotated[kind, …]
    choices = {key: get_args(kind) for key, kind in kinds.items() if get_origin(kind) is Literal}
    words = [(key, word) for key, names in choices.items() for word in names]
    return [plain, *({**plain, key: word} for key, word in words if word != plain[key])]


@pytest.mark.parametrize("name", NAMES)
def test_every_config_field_is_read(name: str) -> None:
    read: set[str] = set()
    spec, _ = sampled(name, "toy/catch", 0)
    together = {"lstm": 4, "replay": 0.5, "target_every": 1, "epsilon_base": 0.4}
    for values in [*variants(name), {**variants(name)[0], **together}]:
        config, algorithm = Recording(values, read), jobs.algorithm(name)
        experience = algorithm.config.experience(config)
        algorithm.exploration(config, np.arange(2), 2, 0.5)
        rules = rules_of(spec)
        learner = algorithm.learner(config, spec, rules, algorithm.policy(config, spec, rules), Alone())
        for batch in sampled(name, "toy/catch", 2, config=config)[1]:
            learner.update({items.name: batch for items in experience.items}, 0.5)
        policy = algorithm.policy(config, spec, rules)
        noise, greedy = torch.zeros(2, policy.fragment_noise + policy.noise), torch.zeros(2)
        policy.act(step_of(spec, 2), policy.initial_carry(2), greedy, noise)
        for key in starts(config).values() if (starts := getattr(algorithm.config, "starts", None)) else ():
            assert isinstance(getattr(config, key), str), "the directory of a run, which methods.py reads"
    assert read == {item.name for item in fields(config_of(name))}


@pytest.mark.parametrize("name", NAMES)
def test_the_config_read_without_torch_is_the_modules_own(name: str) -> None:
    light, config = config_class(name), jobs.algorithm(name).config
    assert hints_of(light) == hints_of(config)
    assert [item.name for item in fields(light)] == [item.name for item in fields(config)]
    assert {item.name: getattr(light(), item.name) for item in fields(light)} == vars(config())
    code = f"import sys; from hpc_rl.methods import config_class as c; c({name!r})(); assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
