"""The programs of `analysis/` as modules, so that worker processes find their functions by name."""

from hpc_rl.job import data_folder

__path__ = [str(data_folder("analysis"))]
