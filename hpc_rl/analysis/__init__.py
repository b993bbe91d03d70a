"""What a run recorded, with Dask: `open_runs`, then `arrays` (moves), `episodes` (a table), `progress` (metrics).

from hpc_rl.analysis import arrays, episodes, open_runs

runs = open_runs(["runs/ppo_cartpole"])
print(episodes(runs).groupby("run")["return"].mean().compute())
leaves = arrays(runs)
print(leaves["reward"][leaves["kept"]].mean().compute())
"""

from hpc_rl.analysis.arrays import arrays
from hpc_rl.analysis.episodes import episodes
from hpc_rl.analysis.progress import progress
from hpc_rl.analysis.runs import RecordedRun, open_runs

__all__ = ["RecordedRun", "arrays", "episodes", "open_runs", "progress"]
