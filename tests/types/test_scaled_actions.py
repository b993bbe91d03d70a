"""What −1..1 of a box means, as readers of segments and checkpoints learn it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from hpc_rl import job as jobs
from hpc_rl.fragments import trajectory_schema
from hpc_rl.runtime.fingerprint import fingerprint
from hpc_rl.storage import checkpoint
from hpc_rl.types import Actions, Spec

BOX = Actions("box", (3,), (-2.0, 0.0, -np.inf), (2.0, np.inf, 5.0))
SPEC = Spec("some", (3,), "float32", BOX)


def test_the_bounds_stand_beside_recorded_actions() -> None:
    assert BOX.scaled_to == ((-2.0, 2.0), None, None)
    assert trajectory_schema(SPEC, {}, {})["action"].doc.endswith("scaled to [[-2.0, 2.0], null, null], null as it was")
    discrete = replace(SPEC, actions=Actions("discrete", (2,)))
    assert trajectory_schema(discrete, {}, {})["action"].doc == "what the policy chose"


def test_a_policy_of_other_bounds_does_not_fit() -> None:
    job = jobs.load("ppo_pendulum")
    print_of_job = fingerprint(job, SPEC)
    checkpoint.check_compatible(fingerprint(job, SPEC), print_of_job)
    wider = replace(SPEC, actions=replace(BOX, low=(-3.0, 0.0, -np.inf)))
    with pytest.raises(checkpoint.IncompatibleCheckpoint, match=r"actions\.scaled_to"):
        checkpoint.check_compatible(fingerprint(job, wider), print_of_job)
    del print_of_job["actions"]["scaled_to"]  # a checkpoint from when actions were handed on as they were
    with pytest.raises(checkpoint.IncompatibleCheckpoint, match="is 'absent' in the checkpoint"):
        checkpoint.check_compatible(fingerprint(job, SPEC), print_of_job)
