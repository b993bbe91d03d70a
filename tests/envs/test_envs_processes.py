"""Columns in child processes: the same moves, one sentence for every way to fail, and nobody left behind.

Mutations seen to fail: in the child no signal at the rank's end, or another than SIGKILL; SIG_IGN for the stop signals,
or their block left on, or neither; another column named; the first column's moves for all; SystemExit not told; a
closed pipe not forgiven; CUDA_VISIBLE_DEVICES as of the server's start. In the server MPI's variables, threads or stop
signals let through, its tracker started along with it, its folder kept; the rank's variables not put back. In the rank
no deadline for answers, for half a message or for the server; work begun in recv; answers in another order;
one column's clone for all; no atexit; a dead pipe raised by send; a failed start passed over. In rank.py
no server, always one, no processes; one too many; ALE let in; show unchecked or without memory; no range in job.py.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import fields
from multiprocessing import forkserver

import numpy as np
import pytest

from hpc_rl import job as jobs
from hpc_rl.envs import processes
from hpc_rl.envs.base import BadEnvironment, TimeSteps
from hpc_rl.envs.column_shares import Processes, split_columns
from hpc_rl.envs.make import make
from hpc_rl.launchers.base import TOKEN_VARIABLE
from hpc_rl.launchers.leftovers import processes as marked
from hpc_rl.memory import budget, gather
from hpc_rl.resume import resumed
from hpc_rl.show import render
from hpc_rl.storage.run_dir import create

TASKS = '''
import ctypes, os, signal, sys, time
import gymnasium
import numpy as np


class Task(gymnasium.Env):
    """Random observations; every sixth move truncates. ``act`` is called at move ``at``."""

    observation_space = gymnasium.spaces.Box(-9, 9, (3,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, act=lambda self: None, at=0):
        self.act, self.at, self.moves = act, at, 0

    def look(self):
        return self.np_random.normal(size=3).astype(np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed, self.count = seed if seed is not None else self.seed, 0
        return self.look(), {}

    def step(self, action):
        self.moves, self.count = self.moves + 1, self.count + 1
        if self.moves >= self.at:
            self.act(self)
        return self.look(), float(action.sum()), False, self.count == 6, {}


def fail(task):
    if task.seed == 3:
        raise ArithmeticError("the wheel came off")


def kill(task):
    if task.seed == 2:
        os.kill(os.getpid(), signal.SIGKILL)


def hang(task):
    while task.seed == 2:
        time.sleep(60)


def stop_in_a_message(task):
    """Write the length of an answer and a piece of it, then nothing more."""
    pipe = max(int(n) for n in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{n}") and
               os.readlink(f"/proc/self/fd/{n}").startswith("socket:"))  # fmt: skip
    os.write(pipe, (1000).to_bytes(4, "big") + b"x")
    time.sleep(600)


def leave(task):
    sys.exit(7)


def inside():
    if "forkserver" in repr(sys.orig_argv):
        raise OSError("no licence")
    return Task()


def tell(task):
    wrong = [name for name in os.environ if name.startswith(("PMI", "OMPI", "SLURM_PROCID", "SLURM_STEP"))]
    wrong += [name for name in ("torch", "mpi4py", "hpc_rl.cli") if name in sys.modules]
    wrong += [name for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if os.environ[name] != "1"]
    wrong += [name for name in ("SLURM_JOB_ID", "CUDA_VISIBLE_DEVICES") if os.environ[name] != "5"]
    if wrong or len(os.listdir("/proc/self/task")) > 1:
        raise RuntimeError(f"inherited {wrong}")
    import subprocess

    sleeper = subprocess.Popen(["sleep", "60"])
    sleeper.terminate()
    assert sleeper.wait(5) == -signal.SIGTERM
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
        os.kill(os.getpid(), number)
        os.kill(os.getppid(), number)


plain = Task
slow = lambda: Task(lambda task: time.sleep(0.4))
failing = lambda: Task(fail, 3)
killing = lambda: Task(kill, 3)
hanging = lambda: Task(hang, 3)
stuck = lambda: Task(stop_in_a_message, 2)
leaving = lambda: Task(leave, 2)
telling = lambda: Task(tell)
sleeping = lambda: Task(lambda task: time.sleep(600))
stubborn = lambda: Task(lambda task: ctypes.PyDLL(None).sleep(600))  # keeps the GIL
'''


@pytest.fixture(autouse=True)
def tasks(tmp_path, monkeypatch):
    (tmp_path / "my_tasks.py").write_text(TASKS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_tasks", raising=False)


@pytest.fixture
def build(monkeypatch):
    made = []

    def function(id, columns, count, deadline_s=30.0, **arguments):
        made.append(make(id, arguments, columns, 1, Processes(count, deadline_s)))
        return made[-1]

    yield function
    monkeypatch.setattr(processes, "GRACE_S", 0.1)  # for those that hang
    for environment in made:
        environment.close()


def play(environment, moves, seed=0):
    """Observations from the reset on, and the moves."""
    actions, rng = environment.spec.actions, np.random.default_rng(seed)
    run = [environment.reset(np.arange(environment.columns) + seed)]
    for _ in range(moves):
        shape = (environment.columns, *actions.shape)
        box = actions.kind == "box"
        environment.send(
            rng.normal(size=shape).astype(np.float32) if box else rng.integers(actions.sizes[0], size=shape)
        )
        run.append(environment.recv())
    return run


def assert_same(one, other):
    assert np.array_equal(one[0], other[0]) and one[0].dtype == other[0].dtype
    for left, right in zip(one[1:], other[1:], strict=True):
        for item in fields(TimeSteps):
            a, b = getattr(left, item.name), getattr(right, item.name)
            assert np.array_equal(a, b, equal_nan=True) and a.dtype == b.dtype, item.name


@pytest.mark.parametrize("count", [2, 5])
@pytest.mark.parametrize(
    ("id", "arguments"),
    [
        ("CartPole-v1", {"max_episode_steps": 12}),
        ("my_tasks:plain", {}),
        ("toy/counter", {}),
        ("toy/catch", {"pixels": True, "stack": 2}),
    ],
)
def test_the_same_moves_as_in_one_process(build, id, arguments, count):
    here, there = build(id, 5, 0, **arguments), build(id, 5, count, **arguments)
    assert here.spec == there.spec
    for seed in (3, 4):  # a second reset begins afresh
        run = play(here, 30, seed)
        assert_same(run, play(there, 30, seed))
        assert any((move.ended & (move.discount == 1)).any() for move in run[1:]) == (id != "toy/catch")
        assert any(move.first.any() for move in run[1:])


def test_moves_stay_as_they_were_handed_out(build):
    run = play(build("my_tasks:plain", 2, 2), 8)
    copies = [np.array(run[0])] + [np.array(move.observation) for move in run[1:]]
    assert len(np.unique(np.stack(copies), axis=0)) == 9


def test_clones_travel_between_layouts(build):
    here, there = build("toy/catch", 5, 0), build("toy/catch", 5, 2)
    play(here, 7), play(there, 7)
    one, other = here.state(), there.state()
    assert one["generators"] == other["generators"]
    assert all(np.array_equal(x, other["memory"][name]) for name, x in one["memory"].items())
    fresh = build("toy/catch", 5, 3)
    assert np.array_equal(fresh.load(one).observation, here.load(other).observation)
    for _ in range(20):
        for environment in (fresh, here):
            environment.send(np.array([0, 1, 2, 1, 0]))
        assert_same([one["shown"], fresh.recv()], [one["shown"], here.recv()])


def test_open_episodes_travel_between_layouts(build):
    """One column is replayed in each process; an environment that does not repeat itself is named by its own column."""
    here, there = build("my_tasks:plain", 5, 0), build("my_tasks:plain", 5, 2)
    play(here, 10), play(there, 10)  # four moves into the second episode
    one, other = here.state(), there.state()
    assert one.keys() == other.keys()
    for name, x in one.items():
        assert np.array_equal(x, other[name]) and type(x) is type(other[name]), name
    assert [len(text) for text in one["moves"]] == [4 * -(-3 * 2 * 4 // 3)] * 5
    one["shown"] = one["shown"].copy()
    one["shown"][3] += 1
    fresh = build("my_tasks:plain", 5, 3)
    resumed, kept = fresh.load(one), here.load(other)
    assert (resumed.lost != "").tolist() == [False, False, False, True, False] and not (kept.lost != "").any()
    action = np.ones((5, 2), np.float32)
    fresh.send(action), here.send(action)
    left, right = fresh.recv(), here.recv()
    same = (left.observation == right.observation).all(1)
    assert same.tolist() == [True, True, True, False, True]


def test_send_starts_the_work_and_returns(build):
    environment = build("my_tasks:slow", 2, 2)
    environment.reset(np.arange(2))
    began = time.monotonic()
    environment.send(np.zeros((2, 2), np.float32))
    assert time.monotonic() - began < 0.2
    time.sleep(0.5)
    environment.recv()
    assert time.monotonic() - began < 0.75  # 0.4 twice, had they moved one after the other or in recv


def test_what_an_environment_raises_is_told(build):
    with pytest.raises(BadEnvironment) as told:
        play(build("my_tasks:failing", 4, 2), 9)
    text = "my_tasks:failing: column 3 of this rank failed in step: ArithmeticError: the wheel came off"
    assert str(told.value) == text
    with pytest.raises(BadEnvironment, match=r"my_tasks:leaving: column 0 .* SystemExit: 7"):
        play(build("my_tasks:leaving", 1, 1), 9)
    with pytest.raises(BadEnvironment, match=r"^toy/chain cannot be made .* pickle"):
        build("toy/chain", 2, 2, length=lambda: 8)
    with pytest.raises(BadEnvironment, match=r"my_tasks:inside cannot be made .* no licence"):
        build("my_tasks:inside", 2, 2)


def test_a_process_that_dies_or_hangs_is_told(build):
    with pytest.raises(
        BadEnvironment, match=r"^my_tasks:killing: process \d+ with columns 2 to 4 .* step \(.*SIGKILL\)"
    ):
        play(build("my_tasks:killing", 5, 2), 9)
    began = time.monotonic()
    late = r"^my_tasks:hanging: process \d+ with column 2 of this rank still in step after 0.5 s"
    with pytest.raises(BadEnvironment, match=late):
        play(build("my_tasks:hanging", 3, 3, 0.5), 9)
    assert time.monotonic() - began < 3


def test_a_process_that_is_gone_before_it_is_asked(build):
    environment = build("my_tasks:plain", 2, 2)
    environment.reset(np.arange(2))
    environment._processes[1].kill()
    environment._processes[1].join(5)
    environment.send(np.zeros((2, 2), np.float32))
    with pytest.raises(BadEnvironment, match=r"with column 1 of this rank died in step \(killed by SIGKILL\)"):
        environment.recv()


def test_half_a_message_is_no_wait_for_ever(build):
    environment = build("my_tasks:stuck", 1, 1, 0.5)
    began = time.monotonic()
    with pytest.raises(BadEnvironment, match="with column 0 of this rank"):
        play(environment, 3)
    assert time.monotonic() - began < 3


def test_a_server_that_does_not_answer_is_no_wait_for_ever(build):
    build("my_tasks:plain", 1, 1)
    server = forkserver._forkserver._forkserver_pid
    os.kill(server, signal.SIGSTOP)
    began = time.monotonic()
    try:
        with pytest.raises(BadEnvironment, match=r"^my_tasks:plain: the server .* not answered for 0.3 s"):
            build("my_tasks:plain", 2, 2, 0.3)
        assert time.monotonic() - began < 3
    finally:
        os.kill(server, signal.SIGCONT)


def test_what_is_refused():
    assert [list(x) for x in split_columns("toy/chain", 5, 2)] == [[0, 1], [2, 3, 4]]
    assert split_columns("ALE/Pong-v5", 5, 0) == []
    with pytest.raises(BadEnvironment, match=r"^environment.processes = 3 is more than the 2 columns .* use at most 2"):
        make("CartPole-v1", {}, 2, 1, Processes(3))
    with pytest.raises(BadEnvironment, match=r"^environment.processes = 2, but ALE/Pong-v5 .* leave processes out"):
        make("ALE/Pong-v5", {}, 2, 1, Processes(2))
    with pytest.raises(jobs.BadJob, match=r"environment.processes = -1 is out of range"):
        jobs.load("ppo_cartpole", ["environment.processes=-1"])
    with pytest.raises(BadEnvironment, match="more than the 8 columns of a rank"):
        render(jobs.load("ppo_cartpole", ["environment.processes=9"]))


def test_the_page_of_a_job_counts_their_memory():
    alone, shared = (gather(jobs.load("ppo_cartpole", [f"environment.processes={count}"])) for count in (0, 2))
    more = sum(budget(shared, shared.plan.ranks[0]).values()) - sum(budget(alone, alone.plan.ranks[0]).values())
    assert more == 60 << 20


def test_processes_may_change_on_resume():
    few, many = (jobs.load("ppo_cartpole", [f"environment.processes={count}"]) for count in (0, 2))
    assert resumed(few, many) == many


START = """
import os, sys, time
import numpy as np
from hpc_rl.envs.make import make
from hpc_rl.envs.column_shares import Processes
from hpc_rl.envs import forkserver
from multiprocessing.forkserver import _forkserver

forkserver.start()
server = _forkserver._forkserver_pid
os.environ["CUDA_VISIBLE_DEVICES"] = "5"  # as rank.py does for ranks that learn nothing
environment = make(f"my_tasks:{sys.argv[1]}", {}, 3, 1, Processes(2))
environment.reset(np.arange(3))
environment.send(np.zeros((3, 2), np.float32))
assert not [name for name in ("OMPI_COMM", "PMI_RANK", "SLURM_PROCID") if name not in os.environ]
assert os.environ.get("OMP_NUM_THREADS") == "3" and "MKL_NUM_THREADS" not in os.environ
"""


def begin(script, *arguments, **variables):
    token = f"test{time.time_ns()}"
    paths = os.pathsep.join([str(jobs.PACKAGE.parent), os.getcwd()])
    settings = {**os.environ, "PYTHONPATH": paths, TOKEN_VARIABLE: token, **variables}
    command = [sys.executable, "-c", script, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=settings)
    return process, token


RANK = {"PMI_RANK": "1", "OMPI_COMM": "1", "SLURM_PROCID": "1", "SLURM_STEP_ID": "0", "SLURM_JOB_ID": "5"}
RANK |= {"OMP_NUM_THREADS": "3", "CUDA_VISIBLE_DEVICES": "4"}


def assert_none_left(token):
    deadline = time.monotonic() + 5
    while (living := marked({token})) and time.monotonic() < deadline:
        time.sleep(0.02)
    for pid in living:
        os.kill(pid, signal.SIGKILL)
    assert not living


@pytest.fixture
def short():
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # the path of a socket has 107 bytes at most
        yield folder


@pytest.mark.parametrize("work", ["plain", "sleeping", "stubborn"])
def test_a_killed_rank_leaves_nobody(work, short):
    rank, token = begin(START + "print('ready', flush=True); time.sleep(600)", work, TMPDIR=short, **RANK)
    assert rank.stdout.readline() == "ready\n"
    time.sleep(0.3)
    assert len(marked({token})) == 5  # the rank, the server, its tracker, two children
    rank.kill()
    rank.communicate(timeout=5)  # its pipes are closed: nobody who inherited them lives
    assert_none_left(token)
    assert os.listdir(short) == []


def test_an_end_without_close_leaves_nobody():
    rank, token = begin(START, "plain", **RANK)
    out, err = rank.communicate(timeout=10)
    assert (rank.returncode, out, err) == (0, "", "")
    assert_none_left(token)


def test_a_socket_that_cannot_be_made(tmp_path):
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    rank, token = begin(START, "plain", TMPDIR=str(deep), **RANK)
    assert "AF_UNIX path too long); set TMPDIR to a short local path" in rank.communicate(timeout=10)[1]
    assert_none_left(token)


def test_children_are_no_ranks_and_outlive_the_stop_signals():
    """One thread, no MPI variable, nothing heavy; SIGUSR1, SIGTERM and SIGINT hit neither them nor their server."""
    twice = "environment.recv(); environment.close()\n"
    twice += "environment = make('my_tasks:plain', {}, 1, 1, Processes(1))\n"
    twice += "assert _forkserver._forkserver_pid == server, 'another one had to be started'"
    rank, token = begin(START + twice, "telling", **RANK)
    out, err = rank.communicate(timeout=10)
    assert (rank.returncode, out, err) == (0, "", "")
    assert_none_left(token)


RUN = """
import os, sys
from multiprocessing import forkserver
from hpc_rl import rank

def link(ranks):
    heavy = [name for name in ("torch", "mpi4py") if name in sys.modules]
    print(forkserver._forkserver._forkserver_pid is not None, heavy, flush=True)
    os._exit(0)

rank._link = link
rank.main()
"""


@pytest.mark.parametrize("count", [0, 2])
def test_the_server_is_there_before_mpi(tmp_path, count):
    job = jobs.load("ppo_cartpole", [f"environment.processes={count}"])
    folder = create(tmp_path / "run", jobs.dumps(job)).path
    rank, token = begin(RUN, str(folder), "2")
    assert rank.communicate(timeout=10)[0] == f"{count > 0} []\n"
    assert_none_left(token)


def test_a_run_ends_with_the_sentence(tmp_path):
    changes = ["environment.processes=2", "resources.ranks=1", "topology=solo", "environment.id=toy/faulty"]
    job = jobs.load("ppo_cartpole", [*changes, "environment.columns=4", "environment.arguments={ at = 20 }"])
    run = create(tmp_path / "run", jobs.dumps(job))
    script = "import runpy; runpy.run_module('hpc_rl.rank', run_name='__main__')"
    rank, token = begin(script, str(run.path), "1", OMP_NUM_THREADS="1")
    _, err = rank.communicate(timeout=60)
    assert rank.returncode == 1
    assert "rank 0: toy/faulty: column" in err and "toy/faulty fails at move 20" in err
    assert 'toys.py", line' in err  # the trace of the child
    assert_none_left(token)
