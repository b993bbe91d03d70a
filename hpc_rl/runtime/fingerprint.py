"""What a checkpoint must agree on with the job that takes it up."""

from __future__ import annotations

from typing import Any

from hpc_rl.settings import Job
from hpc_rl.types import Spec


def fingerprint(job: Job, spec: Spec) -> dict[str, Any]:
    """Values to be compared by `storage.checkpoint.check_compatible`."""
    bounds = [list(span) if span else None for span in spec.actions.scaled_to]
    scaled = {"scaled_to": bounds} if spec.actions.kind == "box" else {}
    return {
        "algorithm": job.algorithm,
        "environment": {"id": spec.id, "columns": job.environment.columns, "frame": list(spec.frame)},
        "stack": spec.stack,
        "actions": {"kind": spec.actions.kind, "sizes": list(spec.actions.sizes), **scaled},
        "hidden": list(job.method.get("hidden", [])),
        "network": job.method.get("network"),
        "lstm": job.method.get("lstm", 0),
    }
