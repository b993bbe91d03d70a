"""The part of its roofline that a run reaches; no timing is asserted.

Mutations seen to fail: halts counted as work; only halts that are over left out; rates averaged by the arithmetic mean;
the run never goes on.
"""

from __future__ import annotations

import pytest

from hpc_rl import job as jobs
from hpc_rl.bench import share
from hpc_rl.bench.roofline import Roofline

CATCH = {"algorithm": "ppo", "topology": "solo", "environment": {"id": "toy/catch"}}


def test_env_steps_are_counted_over_the_time_that_the_run_worked() -> None:
    halts = [(5.0, 105.0), (110.0, 210.0), (215.0, 315.0)]
    rows: list[dict[str, object]] = [
        {"time": t, "env_steps": n} for t, n in ((0, 0), (106, 60), (212, 120), (320, 200))
    ]
    assert share.env_steps_per_s(rows, halts, 0.0, 5.0) == pytest.approx(10)
    assert share.env_steps_per_s(rows, halts, 0.0, 110.0) == pytest.approx(10)  # 10 s of work, 60 at its sixth
    assert share.env_steps_per_s(rows, halts, 105.0, 215.0) == pytest.approx((120 + 3 * 80 / 8 - 50) / 10)


def test_rates_of_rounds_are_averaged_by_the_time_of_a_unit() -> None:
    assert share.together([{"env": 100.0}, {"env": 300.0}]) == {"env": pytest.approx(150.0)}


def test_the_share_of_each_block_and_their_median_are_told() -> None:
    roofline = Roofline(100.0, 100.0, 100.0, 1.0, 1, learn_flops=1.0, peak_flops=1000.0)
    text = share.render([share.Block(rate, roofline) for rate in (30.0, 20.0, 33.3)])
    assert [line.split()[3] for line in text.splitlines()[1:4]] == ["0.90", "0.60", "1.00"]
    assert "share of the roofline: 0.90, median of 3 blocks\nlearning computes at 10% of" in text


@pytest.mark.alone
def test_a_run_and_its_roofline_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WARM_UP_S": 0.5, "BLOCKS": 2, "WINDOWS": 2}.items():
        monkeypatch.setattr(share, name, value)
    blocks = share.measure(jobs.parse({**CATCH, "budget": {"env_steps": 16, "stop_at_return": -1.0}}), seconds=12.0)
    assert [block.share > 0 for block in blocks] == [True, True]


@pytest.mark.alone
def test_a_run_that_does_not_train_is_told_with_its_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(share.jobs, "dumps", lambda job: "no = 'job'")
    with pytest.raises(share.RunEnded, match=r"^the run that is measured does not train; its last words: error: "):
        share.measure(jobs.parse(CATCH), seconds=1.0)
