"""Options and site profiles: what is refused, and in which sentence.

Mutations seen to fail: `_check` emptied; the types of the fields not read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hpc_rl.job import BadJob
from hpc_rl.launchers.options import load, profiles


@pytest.fixture
def homes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    user, site = tmp_path / "user", tmp_path / "site"
    for home in (user, site):
        (home / "hpc_rl").mkdir(parents=True)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(user))
    monkeypatch.setenv("XDG_CONFIG_DIRS", str(site))
    return user / "hpc_rl", site / "hpc_rl"


def test_user_hides_site_and_the_command_line_hides_both(homes: tuple[Path, Path]) -> None:
    user, site = homes
    (site / "big.toml").write_text('partition = "site"\n')
    assert load("big", {}).partition == "site"
    (user / "big.toml").write_text('partition = "mine"\nmodules = ["gcc"]\nlead_s = 60\n')
    assert load("big", {}).partition == "mine" and profiles()["big"].parent == user
    options = load("big", {"partition": "now", "modules": ("mpi",), "time": None, "setup": ()})
    assert (
        options.partition == "now"
        and options.modules == ("gcc", "mpi")
        and options.lead_s == 60
        and options.time is None
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('partitoin = "x"', "did you mean 'partition'"),
        ("nodes = 0", "nodes = 0 is out of range; it must be >= 1"),
        ('nodes = "two"', "nodes = 'two' must be a whole number"),
        ("x = [", "is not a cluster profile"),
        ('modules = "gcc"', "must be a list"),
    ],
)
def test_a_bad_profile_is_one_sentence(homes: tuple[Path, Path], text: str, sentence: str) -> None:
    (homes[0] / "c.toml").write_text(text)
    with pytest.raises(BadJob, match=sentence.replace("[", r"\[")):
        load("c", {})


@pytest.mark.parametrize("time", ["3", "2:01", "0:2:01", "1-0", "0-1:0", "0-0:2:1", "UNLIMITED"])
def test_times_longer_than_the_lead(time: str) -> None:
    assert load(None, {"time": time, "container": "docker://x/y"}).time == time


def test_an_unknown_profile_names_where_to_write_it(homes: tuple[Path, Path]) -> None:
    with pytest.raises(BadJob, match=r"no cluster profile 'nowhere'.*write one in"):
        load("nowhere", {})


@pytest.mark.parametrize(
    ("option_values", "sentence"),
    [
        ({"time": "four hours"}, "time = 'four hours' cannot be read; write it like 4:00:00"),
        ({"mem": "lots"}, "mem = 'lots'"),
        ({"gpus_per_node": "-1"}, "gpus_per_node = '-1'"),
        ({"nodes": 0}, "nodes = 0 is out of range; it must be >= 1"),
        ({"lead_s": 5}, "lead_s = 5 is out of range; it must be >= 10"),
        ({"time": "1:59"}, "time = '1:59' is not longer than lead_s = 120"),
        ({"time": "0-0:14:59", "lead_s": 899}, "is not longer than lead_s = 899"),
        ({"container": "no.sif"}, "container = 'no.sif' does not exist"),
        ({"resume_mode": "never"}, "choose from requeue, chain, none"),
        ({"mpi": "pmi1"}, "choose from auto, pmi2"),
        ({"after": ("12",)}, "write ok:ID"),
        ({"env": ("A",)}, "NAME=VALUE"),
        ({"env": ("A B=1",)}, "NAME=VALUE"),
        ({"sbatch": ("output=x",)}, "'output' is set by hpc-rl"),
        ({"sbatch": ("--partition=x",)}, "its own option"),
        ({"sbatch": ("$(x)=1",)}, "cannot be read; write KEY=VALUE"),
        ({"learners": ("gpus-per-node=1",)}, "--layout het"),
        ({"comment": "a\nb"}, "line break"),
        ({"modules": ("a\nb",)}, "line break"),
    ],
)
def test_bad_options(option_values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadJob) as error:
        load(None, option_values)
    assert sentence in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("time", ["30", "4:00:00", "1-12", "1-12:30", "2-00:00:00", "UNLIMITED"])
def test_times_of_sbatch(time: str) -> None:
    assert load(None, {"time": time}).time == time
