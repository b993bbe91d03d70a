"""A real SLURM on this machine: munged, slurmctld, several slurmd and slurmdbd on MariaDB, all private and temporary.

Nodes n1-n3 are for everybody, p1 is where preemption happens, f1-f3 are killed by tests. Every node claims four CPUs of
the one host. ``python -m tests.slurm.cluster DIR`` starts one by hand and prints the SLURM_CONF to use.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

NODES = ("n1", "n2", "n3", "p1", "f1", "f2", "f3")
NEEDED = ("slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd", "srun")
START_S = 60.0

_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctl_port}
SlurmUser=root
AuthType=auth/munge
CryptoType=crypto/munge
AuthInfo=socket={dir}/munge.socket,cred_expire=10
StateSaveLocation={dir}/state
SlurmdSpoolDir={dir}/spool-%n
SlurmctldPidFile={dir}/slurmctld.pid
SlurmdPidFile={dir}/slurmd-%n.pid
SlurmctldLogFile={dir}/slurmctld.log
SlurmdLogFile={dir}/slurmd-%n.log
SlurmctldDebug=info
SlurmdDebug=info
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=2,sched_min_interval=100000,defer_batch=0,batch_sched_delay=0
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=10
SlurmctldTimeout=60
InactiveLimit=0
KillWait=10
MinJobAge=600
MaxArraySize=4
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={dbd_port}
AccountingStoragePass={dir}/munge.socket
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
{nodes}
PartitionName=main Nodes=n[1-3] Default=YES MaxTime=60 PriorityTier=5
PartitionName=low Nodes=p1 MaxTime=60 PriorityTier=1 PreemptMode=REQUEUE GraceTime=15
PartitionName=lowest Nodes=p1 MaxTime=60 PriorityTier=1 PreemptMode=CANCEL
PartitionName=high Nodes=p1 MaxTime=60 PriorityTier=10 PreemptMode=OFF
PartitionName=frail Nodes=f[1-3] MaxTime=60
"""

_DBD = """
AuthType=auth/munge
AuthInfo=socket={dir}/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={dbd_port}
SlurmUser=root
LogFile={dir}/slurmdbd.log
PidFile={dir}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={sql_port}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct
"""


@dataclass
class Cluster:
    """A running cluster: its folder, the environment in which SLURM's commands reach it, and its daemons."""

    folder: Path
    environment: dict[str, str]
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def mark(self) -> bytes:
        """In the environment of everything that this cluster starts."""
        return f"SLURM_CONF={self.folder}/slurm.conf".encode()

    def ask(self, *command: str, check: bool = True, limit_s: float = 60.0) -> str:
        process = subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=limit_s, check=False
        )
        assert not check or process.returncode == 0, f"{command}: {process.stdout}{process.stderr}"
        return process.stdout

    def start_node(self, name: str) -> None:
        self._start(f"slurmd-{name}", ["slurmd", "-D", "-N", name])

    def kill_daemon(self, name: str) -> None:
        """SIGKILL of the daemon alone."""
        self.daemons[name].kill()
        self.daemons[name].wait()

    def kill_node(self, name: str) -> None:
        """The node is gone: its slurmd, its slurmstepds and all that they started."""
        marks = {f"SLURMD_NODENAME={name}".encode(), self.mark}
        self.kill_daemon(f"slurmd-{name}")
        processes = [process for process in _processes() if marks.issubset(_environment(process))]
        steps = {_parent(process) for process in processes}  # a slurmstepd does not say where it belongs
        scripts = [p for p in _processes() if f"{self.folder}/spool-{name}" in _command(p)]
        for process in [*(p for p in steps if "slurmstepd" in _command(p)), *scripts, *processes]:
            with contextlib.suppress(OSError):
                os.kill(process, signal.SIGKILL)

    def _start(self, name: str, command: list[str], environment: Mapping[str, str] | None = None) -> None:
        log = (self.folder / f"{name}.out").open("ab")
        self.daemons[name] = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            env=environment or self.environment,
            start_new_session=True,
        )
        log.close()

    def stop(self) -> None:
        """Jobs first, then what was started here, and everything that those started."""
        with contextlib.suppress(Exception):
            self.ask("scancel", "--signal=KILL", "--user=root", check=False)
        for name, process in reversed(self.daemons.items()):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM if name in ("mariadbd", "munged") else signal.SIGKILL)
        for process in self.daemons.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
        for process in _processes():
            if self.mark in _environment(process):
                with contextlib.suppress(OSError):
                    os.kill(process, signal.SIGKILL)


def missing() -> list[str]:
    """What Debian's slurm-wlm, slurmdbd, munge and mariadb-server would bring; also root, who may start them."""
    return [name for name in NEEDED if _which(name) is None] + ([] if os.geteuid() == 0 else ["root"])


def start(folder: Path) -> Cluster:
    """Start everything; returns once all nodes are idle. Raises AssertionError with the logs otherwise."""
    ports = _free_ports(3 + len(NODES))
    host = socket.gethostname().split(".")[0]
    lines = [
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=4 RealMemory=16000 Gres=gpu:1"
        for name, port in zip(NODES, ports[3:], strict=True)
    ]
    values = {"dir": folder, "host": host, "ctl_port": ports[0], "dbd_port": ports[1], "sql_port": ports[2]}
    (folder / "slurm.conf").write_text(_CONF.format(nodes="\n".join(lines), **values))
    (folder / "gres.conf").write_text("".join(f"NodeName={name} Name=gpu File=/dev/null\n" for name in NODES))
    (folder / "slurmdbd.conf").write_text(_DBD.format(**values))
    (folder / "slurmdbd.conf").chmod(0o600)
    for name in ("state", "sql", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir()
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH", "PMI", "OMPI", "HPC_RL"))}
    cluster = Cluster(folder, {**clean, "PATH": path, "SLURM_CONF": str(folder / "slurm.conf")})
    try:
        _munge(cluster)
        _database(cluster, ports[2])
        _daemons(cluster)
    except BaseException:
        cluster.stop()
        raise
    return cluster


def _munge(cluster: Cluster) -> None:
    folder = cluster.folder
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)
    files = {
        "key-file": "munge.key",
        "socket": "munge.socket",
        "pid-file": "munge.pid",
        "log-file": "munge.log",
        "seed-file": "munge.seed",
    }
    flags = [f"--{flag}={folder / name}" for flag, name in files.items()]
    cluster._start("munged", ["munged", "--foreground", "--force", *flags])
    _until((folder / "munge.socket").exists, "munged", cluster)


def _database(cluster: Cluster, port: int) -> None:
    folder = cluster.folder
    data = [f"--datadir={folder}/sql", "--user=root"]
    subprocess.run(
        ["mariadb-install-db", "--no-defaults", *data, "--auth-root-authentication-method=normal", "--skip-test-db"],
        check=True,
        capture_output=True,
        timeout=120,
        env=cluster.environment,
    )
    init = folder / "init.sql"
    statements = ["CREATE DATABASE slurm_acct;"]  # one to a line, or MariaDB reads the first alone
    for host in ("%", "localhost"):
        statements += [
            f"CREATE USER 'slurm'@'{host}' IDENTIFIED BY 'slurm';",
            f"GRANT ALL ON slurm_acct.* TO 'slurm'@'{host}';",
        ]
    init.write_text("\n".join(statements) + "\n")
    cluster._start(
        "mariadbd",
        [
            "mariadbd",
            "--no-defaults",
            *data,
            f"--port={port}",
            "--bind-address=127.0.0.1",
            f"--socket={folder}/sql.socket",
            f"--pid-file={folder}/sql.pid",
            f"--init-file={init}",
            "--innodb-buffer-pool-size=32M",
            "--skip-log-bin",
        ],
    )
    _until(lambda: _open(port), "mariadbd", cluster)


def _daemons(cluster: Cluster) -> None:
    values = dict(line.split("=", 1) for line in (cluster.folder / "slurm.conf").read_text().split("\n") if "=" in line)
    cluster._start("slurmdbd", ["slurmdbd", "-D", "-s"], {**cluster.environment})
    _until(lambda: _open(int(values["AccountingStoragePort"])), "slurmdbd", cluster)
    cluster.ask("sacctmgr", "--immediate", "add", "cluster", "test", check=False)
    cluster._start("slurmctld", ["slurmctld", "-D", "-c"])
    _until(lambda: _open(int(values["SlurmctldPort"])), "slurmctld", cluster)
    for name in NODES:
        cluster.start_node(name)
    idle = lambda: cluster.ask("sinfo", "-h", "-N", "-o", "%N %t", check=False).count(" idle") >= len(NODES)  # noqa: E731
    _until(idle, "all nodes idle", cluster)


def _until(arrived: object, event: str, cluster: Cluster) -> None:
    end = time.monotonic() + START_S
    while not arrived():  # type: ignore[operator]
        died = [name for name, process in cluster.daemons.items() if process.poll() is not None]
        if died or time.monotonic() > end:
            logs = "".join(
                f"--- {p.name}\n{p.read_text(errors='replace')[-800:]}" for p in cluster.folder.glob("*.[lo]*")
            )
            raise AssertionError(f"{event} did not come up within {START_S:.0f} s; ended: {died}\n{logs}")
        time.sleep(0.1)


def _open(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for item in sockets:
        item.bind(("127.0.0.1", 0))
    ports = [item.getsockname()[1] for item in sockets]
    for item in sockets:
        item.close()
    return ports


def _which(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _processes() -> Iterator[int]:
    return (int(path.name) for path in Path("/proc").glob("[0-9]*"))


def _command(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _environment(process: int) -> list[bytes]:
    try:
        return Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


def _parent(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except (OSError, IndexError):
        return 0


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):  # in the background a shell lets the first be ignored
        signal.signal(number, signal.default_int_handler)
    made = start(Path(sys.argv[1]))
    print(f"export SLURM_CONF={made.folder}/slurm.conf", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        signal.pause()
    made.stop()
