"""What a gradient exchange costs: the reduction of this package against the raw MPI call on the same bytes.

``python -m hpc_rl.bench.mpi RANKS`` is one rank of it, started by ``hpc-rl bench mpi`` through mpiexec.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median

SIZES = {"64 KiB": 1 << 16, "1 MiB": 1 << 20, "6.4 MiB, Nature network": 4 * 1_687_206}
ROUNDS, REPEATS, LIMIT_S = 40, 7, 300


class NoExchange(RuntimeError):
    """The ranks gave no figure; the message names the reason and the remedy."""


def measure(ranks: int) -> list[dict[str, float | str]]:
    """One row a size: seconds of both ways and their ratio, medians of paired rounds; from ``ranks`` new processes.

    Raises:
        NoExchange: mpiexec failed or took too long.
    """
    from hpc_rl.launchers import mpiexec

    line = [*mpiexec.prefix(ranks), sys.executable, "-m", "hpc_rl.bench.mpi", str(ranks)]
    try:
        process = subprocess.run(
            line, capture_output=True, text=True, timeout=LIMIT_S, check=False, env=mpiexec.environment(),
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise NoExchange(f"{ranks} ranks took more than {LIMIT_S} s; use as many as there are cores (-n)") from None
    if process.returncode:
        words = (process.stderr.strip().splitlines() or ["no error message"])[-1]
        raise NoExchange(f"{line[0]} -n {ranks} ended with exit code {process.returncode} ({words}); see hpc-rl doctor")
    rows: list[dict[str, float | str]] = json.loads(process.stdout.splitlines()[-1])
    return rows


def render(rows: list[dict[str, float | str]], ranks: int) -> str:
    lines = [
        f"all-reduce over {ranks} ranks, ms   {'raw MPI':>9} {'hpc_rl':>9} {'ratio':>7}  (each the median of rounds)"
    ]
    for row in rows:
        raw, reduced = 1e3 * float(row["raw_s"]), 1e3 * float(row["ours_s"])
        lines.append(f"{row['size']:<28} {raw:>12.3f} {reduced:>9.3f} {float(row['ratio']):>7.2f}")
    return "\n".join(lines)


def main() -> None:
    """One rank: both ways in turn, so that a drifting clock hits both alike."""
    import numpy as np

    from hpc_rl.transport import mpi
    from hpc_rl.transport.ports import Ports

    link = mpi.world(int(sys.argv[1]))
    ports, everyone = Ports(link), range(link.size)
    rows = []
    for name, nbytes in SIZES.items():
        data, into = np.ones(nbytes // 4, np.float32), np.empty(nbytes // 4, np.float32)

        def raw(data: np.ndarray = data, into: np.ndarray = into) -> None:
            link.comm.Allreduce(data, into)

        def ours(into: np.ndarray = into) -> None:
            ports.reduce(into, everyone)

        pairs = [(_timed(raw), _timed(ours)) for _ in range(REPEATS)]
        ratio = median(b / a for a, b in pairs)
        row = {"size": name, "raw_s": median(a for a, _ in pairs), "ours_s": median(b for _, b in pairs)}
        rows.append(row | {"ratio": ratio})
    if link.rank == 0:
        print(json.dumps(rows), flush=True)
    mpi.end(link)


def _timed(work: Callable[[], None]) -> float:
    """Median seconds of one call, after a warm one."""
    work()
    spans = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        work()
        spans.append(time.perf_counter() - begin)
    return median(spans)


if __name__ == "__main__":
    main()
