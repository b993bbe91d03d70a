"""`python -m hpc_rl` is `hpc-rl`, where that is not on the path."""

from hpc_rl.cli import main

main()
