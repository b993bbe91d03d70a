"""What rank 0 decides for all ranks of an attempt, and writes into job.toml, state.json and provenance."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any

from hpc_rl.launchers.base import TOKEN_VARIABLE

if TYPE_CHECKING:
    from hpc_rl.transport.ports import Ports


def decide(job: Any, plan: Any, run: Any, spec: Any, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Rank 0's part: attempt, checkpoint, device, threads; written into job.toml and provenance."""
    from hpc_rl import hardware
    from hpc_rl import job as jobs
    from hpc_rl.runtime.fingerprint import fingerprint
    from hpc_rl.runtime.restoring import usable
    from hpc_rl.storage import checkpoint, provenance
    from hpc_rl.storage.run_dir import write_text

    takes = usable(
        jobs.algorithm(job.algorithm),
        jobs.method_config(job),
        spec,
        fingerprint(job, spec),
        job.environment.columns if plan.ranks[0].role == "worker" else None,
    )
    found = checkpoint.newest(run, lambda text: print(f"warning: {text}", flush=True), set_aside=True, check=takes)
    threads = job.resources.threads or hardware.threads(plan, rows)
    device = hardware.device_kind(job, plan, rows)
    jobs.check_reduction(job.resources.reduction, device)
    write_text(run.job_file, jobs.dumps(jobs.with_resources(job, threads=threads, device=device)))
    attempt = run.next_attempt()
    if attempt and not found:
        print("warning: the attempts before wrote no checkpoint; this one starts from the beginning", flush=True)
    path = found[0].relative_to(run.path) if found else None
    steps = found[2]["steps"] if found else {}
    extra = {"resumed_from": {"file": str(path) if path else None, "steps": steps}, "mpi": _library(len(plan.ranks))}
    provenance.write(run, attempt, provenance.collect(sys.argv, attempt, job.seed, extra))
    run.write_state(state="running", attempt=attempt, reason="")
    token = os.environ.get(TOKEN_VARIABLE) or f"{os.getpid():x}{time.time_ns() & 0xFFFFFF:x}"
    return {
        "attempt": attempt,
        "checkpoint": str(path) if path else None,
        "device": device,
        "threads": threads,
        "token": token,
    }


def _library(ranks: int) -> str | None:
    if ranks == 1:
        return None
    from hpc_rl.transport import mpi

    return mpi.library()


def settle_precision(ports: Ports, job: Any, plan: Any, run: Any, spec: Any, table: Any, kind: str, device: str) -> str:
    """What this rank computes in; rank 0 writes into job.toml what every processor does."""
    import torch

    from hpc_rl import hardware
    from hpc_rl import job as jobs
    from hpc_rl.storage.run_dir import write_text

    if device != "cpu":
        torch.cuda.set_device(device)  # else this rank would take memory on GPU 0, too
    names = hardware.processors(kind, plan, table)
    precisions = hardware.settled(ports, job, spec, names, device)
    if ports.link.rank == 0:
        write_text(run.job_file, jobs.dumps(hardware.kept(jobs.load(run.job_file), spec, precisions)))
    return precisions.get(names[ports.link.rank], "fp32")
