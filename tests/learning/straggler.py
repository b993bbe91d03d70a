"""One worker of four is five times slower: what a quorum of three is worth against waiting for all.

python -m tests.learning.straggler --out runs/straggler
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tests.learning.run import trained


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/straggler"))
    out = parser.parse_args().out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    rates = {}
    for quorum in (4, 3):
        slow = f'environment.arguments={{ slow = 5.0, once = "{out}/slow-{quorum}" }}'
        figures = trained("dppo_latency", 1, out, f"quorum-{quorum}", (f"resources.quorum={quorum}", slow))
        rates[quorum] = figures["env_steps_per_s"]
        updates = figures["updates"] / figures["wall_s"]
        print(f"D = {4 - quorum}: {rates[quorum]:.1f} env steps/s, {updates:.2f} updates/s")
    print(f"D = 1 is {rates[3] / rates[4]:.2f} times as fast as D = 0")


if __name__ == "__main__":
    main()
