"""The number of ranks changes nothing: the same environments, the same draws, the same parameters.

PPO with everything that could depend on the layout: epochs and minibatches, advantages, observations and rewards
normalised over all ranks, the KL stop; plain and recurrent. Rollouts hold terminations and time limits.

Mutations seen to fail: minibatches of a rank's own columns; advantages, observations or filtered returns normalised
over this rank; this rank's KL alone; streams keyed by the rank.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.contract.seats import Ran, run_job
from tests.contract.test_witness import column_of

COLUMNS, ROWS = 12, 12

PLAIN = {
    "unroll": ROWS,
    "epochs": 4,
    "minibatches": 4,
    "learning_rate": 2e-3,
    "anneal": False,
    "target_kl": 0.002,
    "hidden": [16],
}
PLAIN |= {"normalize_observation": True, "normalize_reward": True}
KINDS: dict[str, tuple[int, dict[str, Any]]] = {"plain": (20, PLAIN), "recurrent": (8, {**PLAIN, "lstm": 8})}


@pytest.fixture(autouse=True)
def generator_per_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's generator is one per process; ranks that are threads must not take each other's numbers."""
    plain = torch.randint
    monkeypatch.setattr(torch, "randint", lambda *a, **k: plain(*a, **k, generator=torch.Generator().manual_seed(5)))


def trained(folder: Path, ranks: int, updates: int, method: dict[str, Any]) -> Ran:
    table = {
        "algorithm": "ppo",
        "topology": "allreduce",
        "environment": {"id": "CartPole-v1", "columns": COLUMNS, "arguments": {"max_episode_steps": 11}},
        "budget": {"env_steps": updates * ROWS * COLUMNS},
        "resources": {"ranks": ranks, "threads": 1},
        "output": {"record": 1.0, "compression": "none"},
        "ppo": method,
    }
    return run_job(table, folder / f"{ranks}")


@pytest.mark.parametrize("kind", KINDS)
def test_one_to_four_ranks_train_the_same(kind: str, tmp_path: Path) -> None:
    runs = {ranks: trained(tmp_path, ranks, *KINDS[kind]) for ranks in (1, 2, 3, 4)}
    summary = json.loads(runs[1].run.summary_file.read_text())
    assert summary["updates"] >= KINDS[kind][0]
    expected = runs[1].learners[0].weights.data
    assert runs[1].learners[0].normalizers.seen.count == summary["updates"] * ROWS * COLUMNS
    columns = [column_of(runs[1].run.path, column) for column in range(COLUMNS)]
    for ranks in (2, 3, 4):
        for learner in runs[ranks].learners.values():
            assert (learner.weights.data - expected).abs().max() <= 1e-5, f"{ranks} ranks"
        for column, one in enumerate(columns):
            many = column_of(runs[ranks].run.path, column)
            for leaf in ("observation", "action"):
                assert one[leaf][:ROWS].tobytes() == many[leaf][:ROWS].tobytes(), (
                    f"{leaf} of column {column}, {ranks} ranks"
                )
