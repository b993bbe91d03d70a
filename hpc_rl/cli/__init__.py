"""The command line. Thin: every command is one call into the package, and heavy imports happen inside commands.

Results go to stdout, diagnostics to stderr. Exit codes: 0 done, or stopped and saved · 1 failed · 2 bad input ·
130 aborted.
"""

from __future__ import annotations

import errno
import sys

import click

from hpc_rl.cli.analysis import analyze
from hpc_rl.cli.data import export, import_, record
from hpc_rl.cli.diagnostics import flush_streams, note, open_closed_streams
from hpc_rl.cli.evaluation import evaluate, play
from hpc_rl.cli.jobs import list_jobs, show
from hpc_rl.cli.machine import bench, doctor, selftest
from hpc_rl.cli.queue import cancel, logs, resume, status, submit
from hpc_rl.cli.training import run

# A full disk, missing rights, and something else in the place of a file or folder of a run.
_REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR,
             errno.ENAMETOOLONG, errno.ELOOP, errno.ENXIO)  # fmt: skip


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="hpc-rl")
def cli() -> None:
    """Deep reinforcement learning as MPI jobs: `hpc-rl list` shows jobs, `hpc-rl run JOB` trains one."""


_QUEUE, _AFTERWARDS = (submit, status, logs, cancel, resume), (evaluate, play, analyze, export, import_, record)
for _command in (run, list_jobs, show, *_QUEUE, *_AFTERWARDS, doctor, selftest, bench):
    cli.add_command(_command)


def main() -> None:
    """Entry point: expected errors become one sentence and exit code 2; a traceback is for bugs only."""
    open_closed_streams()
    try:
        code = cli(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except click.Abort:
        sys.exit(130)
    except OSError as error:
        if error.errno not in _REFUSALS:
            raise
        name = error.filename or "a file"
        note(f"error: {name} cannot be written or read ({error.strerror}); free space, or mend its rights")
        sys.exit(2)
    except Exception as error:
        if not type(error).__module__.startswith("hpc_rl."):  # this package's are sentences for the user
            raise
        note(f"error: {error}")
        sys.exit(2)
    finally:
        flush_streams()
