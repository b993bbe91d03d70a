"""Bad input: exit code 2, one sentence with the remedy, no traceback, and no run directory.

Mutations seen to fail: the first rank left to find a missing environment; a run directory made before the checks.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.run.program import hpc_rl, in_process, write_job

CASES: dict[str, tuple[list[str], list[str]]] = {  # --set …  ->  words of the sentence
    "unknown key": (["ppo.epoch=3"], ["ppo.epoch", "did you mean 'epochs'"]),
    "unknown section": (["budgets.env_steps=3"], ["budgets", "did you mean 'budget'"]),
    "key of another table": (["clip=0.2"], ["unknown key 'clip'", "did you mean 'ppo.clip'"]),
    "key of the top": (["budget.seed=3"], ["budget.seed", "'seed' at the top of the file, before the first [table]"]),
    "table of another method": (["dqn.tau=0.1"], ["[dqn] is the table of another method than this job's 'ppo'"]),
    "method of one's own": (["algorithm=mine_own_"], ["a method of your own is a file of", "algorithms"]),
    "unknown method": (["algorithm=pppo"], ["'pppo'", "did you mean 'ppo'"]),
    "unknown topology": (["topology=allreduced"], ["did you mean 'allreduce'"]),
    "wrong topology": (["topology=actor_learner"], ["ppo cannot run on topology 'actor_learner'", "solo, allreduce"]),
    "out of range": (["ppo.discount=1.5"], ["ppo.discount = 1.5", "0..1"]),
    "below its range": (["budget.env_steps=0"], ["budget.env_steps = 0", ">= 1"]),
    "wrong type": (["ppo.unroll=many"], ["ppo.unroll = 'many'", "must be a whole number"]),
    "no choice": (["resources.device=tpu"], ["'tpu'", "auto, cpu, cuda"]),
    "no GPU to sum on": (
        ["resources.reduction=nccl"],
        ['resources.reduction = "nccl"', 'device is "cpu"', 'use "mpi" or "gloo"'],
    ),
    "no such reduction": (["resources.reduction=ncll"], ["'ncll'", "mpi, gloo, nccl"]),
    "nearly a choice": (["ppo.network=natur"], ["'natur'", "nature, shallow", "did you mean 'nature'"]),
    "not divisible": (["resources.ranks=3"], ["environment.columns = 4", "multiple of 3"]),
    "no value": (["budget.env_steps"], ["has no '='"]),
    "missing module": (["environment.id=no_such_package.module:make"], ["no module no_such_package", "install"]),
    "missing environment": (["environment.id=CartPoel-v1"], ["CartPoel-v1", "did you mean", "CartPole-v1"]),
    "missing game": (["environment.id=ALE/Pogn-v5"], ["ALE/Pogn-v5", "ALE/Pong-v5"]),
    "missing toy": (["environment.id=toy/cach"], ["toy/catch"]),
    "unknown argument": (["environment.arguments={ row = 3 }"], ["takes no argument 'row'", "rows"]),
}


def refused(words: list[str], run: Path, *arguments: object) -> None:
    result = in_process("run", *arguments, "--out", run)
    assert result.code == 2 and result.out == "", result.err
    *before, sentence = result.err.splitlines()
    assert sentence.startswith("error: "), result.err
    notices = [line for line in before if line.startswith("environment.id = ") and " imports " in line]
    assert before == notices[:1], result.err  # code that a job names is told before it is imported, and nothing else
    for word in words:
        assert word in sentence
    assert not run.exists()


@pytest.mark.parametrize("name", CASES)
def test_a_bad_value_is_refused_before_anything_starts(name: str, tmp_path: Path) -> None:
    settings, words = CASES[name]
    job = write_job(tmp_path, "ppo", 2)
    refused(words, tmp_path / "run", job, *[part for item in settings for part in ("--set", item)])


def test_too_few_ranks_names_the_minimum(tmp_path: Path) -> None:
    refused(["at least 2 ranks", "-n 2"], tmp_path / "run", write_job(tmp_path, "impala", 3), "-n", "1")


def test_a_missing_rom_is_named(tmp_path: Path) -> None:
    job = write_job(tmp_path, "ppo", 2, environment="ALE/Pong-v5")
    (tmp_path / "roms").mkdir()
    result = in_process("run", job, "--out", tmp_path / "run", ALE_ROMS_DIR=str(tmp_path / "roms"))
    assert result.code == 2 and len(result.err.splitlines()) == 1 and "Traceback" not in result.err
    assert "ALE/Pong-v5" in result.err and str(tmp_path / "roms") in result.err
    assert not (tmp_path / "run").exists()


def test_a_file_that_is_not_toml(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text("\nalgorithm = ppo\n")
    refused(
        [str(path), "not a TOML file", "line 2", "'algorithm = ppo'; text stands in quotes"], tmp_path / "run", path
    )


def test_a_job_that_does_not_exist(tmp_path: Path) -> None:
    refused(["'impala_pogn'", "did you mean 'impala_pong'"], tmp_path / "run", "impala_pogn")


def test_a_folder_that_holds_something_else(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("all of it")
    result = hpc_rl("run", write_job(tmp_path, "ppo", 2), "--out", tmp_path / "run")
    assert result.code == 2 and "not empty and not a run" in result.err
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("arguments", [("--resume",), ("eval",)])
def test_a_run_that_is_not_there(arguments: tuple[str, ...], tmp_path: Path) -> None:
    run = tmp_path / "run"
    line = ["eval", run] if arguments == ("eval",) else ["run", write_job(tmp_path, "ppo", 2), "--out", run, "--resume"]
    result = in_process(*line)
    assert result.code == 2 and "holds no run" in result.err and len(result.err.splitlines()) == 1 and not run.exists()
