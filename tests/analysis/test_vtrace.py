"""Importance ratios by stage, from metrics made by hand.

Mutations seen to fail: total variation with ρ̄ = 2; lines before the first update counted as 0; stages by lines
instead of env steps.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hpc_rl.analysis.sections import NotRecorded
from tests.analysis.recordings import analysed, made, write_metrics

STEPS = np.array([*range(10, 101, 10), *range(101, 201)])  # lines come more often later on


def lines(names: dict[str, np.ndarray]) -> list[dict[str, float | None]]:
    """Lines at `STEPS`, of which the first has no figures yet."""
    rows: list[dict[str, float | None]] = []
    for k, step in enumerate(STEPS):
        figures = {name: float(values[k]) if k else None for name, values in names.items()}
        rows.append({"step": int(step), "time": float(k), "policy_lag": float(k % 7), **figures})
    return rows


@pytest.mark.parametrize("rho_bar", [1.0, 2.0])
def test_means_by_stage(tmp_path: Path, rho_bar: float) -> None:
    rho, clipped = 1 - STEPS / 1000, STEPS / 400
    run = made(tmp_path / "run", impala={"rho_bar": rho_bar})
    write_metrics(run, lines({"rho": rho, "clipped": clipped}))
    section = analysed("vtrace", run.path)
    table = section.tables["importance_ratios_stages"]
    for row in table.itertuples():
        own = [k for k, step in enumerate(STEPS) if k and min(int(step * 10 / 200), 9) == row.stage]
        assert (row.rho, row.clipped) == pytest.approx((rho[own].mean(), clipped[own].mean()))
        assert row.policy_lag == pytest.approx(np.mean([k % 7 for k in own]))
        if rho_bar == 1:
            assert row.total_variation == pytest.approx(1 - rho[own].mean())
    assert ("total_variation" in table) == (rho_bar == 1)
    (whole,) = section.tables["importance_ratios_runs"].itertuples()
    assert (whole.rho, whole.rho_10) == pytest.approx((rho[1:].mean(), np.quantile(rho[1:], 0.1)))
    assert ("total variation" in section.findings[0]) == (rho_bar == 1)


def test_ppo_and_what_has_no_ratios(tmp_path: Path) -> None:
    run = made(tmp_path / "ppo", algorithm="ppo")
    write_metrics(run, lines({"clip_fraction": STEPS / 400, "kl": STEPS / 4000}))
    assert "PPO clips" in analysed("vtrace", run.path).findings[0]
    plain = made(tmp_path / "none", impala={"correction": "none"})
    write_metrics(plain, lines({"rho": np.ones(len(STEPS))}))
    with pytest.raises(NotRecorded, match="no importance ratios"):
        analysed("vtrace", plain.path)
    old = made(tmp_path / "old")
    write_metrics(old, lines({"rho": np.ones(len(STEPS))}))
    assert any("did not log" in sentence for sentence in analysed("vtrace", old.path).findings)
