"""Central inference: requests answered per second against how many at a time, and what an env step waits for it.

python -m tests.learning.central --out runs/central; three minutes. One column an environment rank, moves of 2 ms; the
answers come from an actor rank of its own. A request is the observation of one rank. An environment stepped in the
actor's process would wait for the inference alone: the rest of an answer is what the way there and back adds.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean

from hpc_rl.storage.metrics import rows
from tests.learning.run import trained

ARGUMENTS = "environment.arguments={ step_s = 0.002, reset_s = 0.0 }"


def row(ranks: int, out: Path) -> dict[str, float]:
    """One run with ``ranks`` environment ranks: requests per second, how many at a time, ms an answer takes."""
    size = (f"environment.columns={ranks}", f"resources.ranks={ranks + 2}", f"impala.batch_columns={ranks}")
    more = ("resources.inference=actor", "budget.time_limit_s=30", "output.metrics_s=2", ARGUMENTS)
    trained("seed_latency", 1, out, f"ranks-{ranks}", (*size, *more))
    metrics = out / f"ranks-{ranks}" / "metrics"
    actor = [line for line in rows(metrics / "actor-0.jsonl") if "requests" in line]
    actor = actor[len(actor) // 2 :]  # the second half: all ranks are up
    seconds = actor[-1]["time"] - actor[0]["time"]
    requests = actor[-1]["requests"] - actor[0]["requests"]
    batch = actor[-1]["inference_batch"]
    share = mean(line["time/infer"] for line in actor[1:])
    answers = [line["answer_s"] for path in metrics.glob("env_worker-*") for line in rows(path) if "answer_s" in line]
    return {
        "ranks": ranks,
        "requests_per_s": requests / seconds,
        "batch": batch,
        "infer_ms": 1e3 * share * seconds * batch / requests,
        "answer_ms": 1e3 * mean(answers[len(answers) // 2 :]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/central"))
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    arguments = parser.parse_args()
    table = [row(ranks, arguments.out) for ranks in arguments.ranks]
    print("environment ranks  requests/s  batch  inference, ms  answer, ms  added, ms")
    for found in table:
        line = "{ranks:>17} {requests_per_s:>11.0f} {batch:>6.1f} {infer_ms:>14.2f} {answer_ms:>11.2f}"
        print(f"{line.format(**found)} {found['answer_ms'] - found['infer_ms']:>10.2f}")


if __name__ == "__main__":
    main()
