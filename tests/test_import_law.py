"""The import law and the brakes of the house plan, read from the source.

Mutations seen to fail: mpi4py, pickle or a room above imported in nets/; a method named outside job.py; h5py in cli/;
``isend`` in transport/mpi.py; ``.cpu()``, ``.numpy()``, ``.to(device=…)``, ``torch.from_numpy`` in a role.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from hpc_rl import job as jobs
from hpc_rl.storage.run_dir import create

ROOT = jobs.PACKAGE
FILES = sorted(ROOT.rglob("*.py"))
TREES = {path.relative_to(ROOT).as_posix(): ast.parse(path.read_text()) for path in FILES}
LINES = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in FILES}
METHODS = jobs.algorithms()
LOWEST = ("types.py", "devices.py", "fragments.py")
"""The nouns, where numbers move between devices, and the arrays of a fragment: what every room may import."""


def imports(name: str) -> set[str]:
    """Dotted names that a file imports anywhere in it; ``from a import b`` gives both a and a.b."""
    found: set[str] = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def file_of(module: str) -> str | None:
    """hpc_rl.nets.torsos -> nets/torsos.py; None for a package, a name inside a file and somebody else's module."""
    path = module.removeprefix("hpc_rl.").replace(".", "/") + ".py"
    return path if module.startswith("hpc_rl.") and path in TREES else None


def ours(name: str) -> set[str]:
    return {found for module in imports(name) if (found := file_of(module))}


def closure(name: str) -> set[str]:
    seen, todo = set(), [name]
    while todo:
        here = todo.pop()
        if here not in seen:
            seen.add(here)
            todo += ours(here)
    return seen


def below(*folders: str) -> list[str]:
    return [name for name in TREES if name.split("/")[0] in folders]


def users(package: str) -> set[str]:
    return {name for name in TREES if any(x == package or x.startswith(package + ".") for x in imports(name))}


def test_the_reader_sees_imports() -> None:
    assert "transport/ports.py" in ours("transport/group.py") and "mpi4py" in imports("transport/mpi.py")
    assert "types.py" in closure("samplers/lanes.py")


def test_nouns_equations_and_networks_know_nothing_above_them() -> None:
    for name in below(*LOWEST):
        wrong = [x for x in ours(name) if x not in LOWEST]
        assert not wrong, f"{name} imports {wrong}"
    for name in below("formulas", "nets"):
        wrong = [x for x in ours(name) if x not in LOWEST and x.split("/")[0] not in ("formulas", "nets")]
        assert not wrong, f"{name} imports {wrong}"
    for name in below("algorithms"):
        allowed = (*LOWEST, "algorithms/base.py")
        wrong = [x for x in ours(name) if x not in allowed and x.split("/")[0] not in ("formulas", "nets")]
        assert not wrong, f"{name} imports {wrong}"


def test_only_job_turns_a_name_into_a_method() -> None:
    for name, tree in TREES.items():
        if name == "job.py":
            continue
        wrong = [x for x in imports(name) for method in METHODS if x.startswith(f"hpc_rl.algorithms.{method}")]
        assert not wrong, f"{name} imports {wrong}"
        if not name.startswith("algorithms/"):
            texts = {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
            assert not texts & set(METHODS), f"{name} names the method {texts & set(METHODS)}"


def test_each_library_has_one_door() -> None:
    assert users("mpi4py") == {"transport/mpi.py"}
    assert users("torch.distributed") == {"transport/torch_group.py"}
    assert {name.split("/")[0] for name in users("click")} == {"cli"}
    assert {name.split("/")[0] for name in users("h5py") | users("hdf5plugin")} == {"storage"}
    assert {name.split("/")[0] for name in users("gymnasium") | users("ale_py")} == {"envs"}
    for pickles in ("pickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"):
        assert users(pickles) == set()


def test_no_drawer_for_odds_and_ends() -> None:
    parts = {part.removesuffix(".py") for name in TREES for part in name.split("/")}
    assert not parts & {"utils", "util", "common", "helpers", "helper", "misc", "tools"}


def test_own_classes_are_at_most_one_deep() -> None:
    bases: dict[str, list[str]] = {}
    for tree in TREES.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                bases[node.name] = [b.id if isinstance(b, ast.Name) else ast.unparse(b) for b in node.bases]
    for name, parents in bases.items():
        for parent in parents:
            grand = [x for x in bases.get(parent, []) if x in bases]
            assert not grand, f"{name} < {parent} < {grand}"


def length(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (node.end_lineno or 0) - node.lineno + 1


@pytest.mark.parametrize("name", TREES)
def test_functions_are_short(name: str) -> None:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    long = {n.name: length(n) for n in ast.walk(TREES[name]) if isinstance(n, kinds) and length(n) > 60}
    assert not long, f"{name}: {long} lines, at most 60"


def test_files_are_short() -> None:
    for name in below("algorithms"):
        assert LINES[name] <= 250, f"{name} has {LINES[name]} lines, at most 250"
    for name in below("roles"):
        assert LINES[name] <= 120, f"{name} has {LINES[name]} lines, at most 120"


@pytest.mark.parametrize("method", METHODS)
def test_a_method_can_be_read_in_an_afternoon(method: str) -> None:
    files = {name for name in closure(f"algorithms/{method}.py") if LINES[name]}
    assert len(files) <= 16, sorted(files)
    assert sum(LINES[name] for name in files) <= 1800


def test_mpi_moves_buffers_only() -> None:
    """Lower-case methods of mpi4py pickle; only these of our calls in mpi.py may be lower-case."""
    pickling = {"send", "recv", "isend", "irecv", "ssend", "bsend", "sendrecv", "bcast", "gather", "scatter"}
    pickling |= {"allgather", "alltoall", "reduce", "allreduce", "scan", "exscan", "mprobe", "improbe"}
    calls = [n.func.attr for n in ast.walk(TREES["transport/mpi.py"]) if isinstance(n, ast.Call) and
             isinstance(n.func, ast.Attribute)]  # fmt: skip
    assert "Isend" in calls and not pickling & set(calls)


CROSSINGS = {"numpy", "cpu", "cuda", "to", "pin_memory", "from_numpy", "as_tensor", "asarray", "frombuffer"}
MAY_CROSS = {
    "types.py": CROSSINGS,  # to_host, write_back, to_device
    "startup.py": {"to"},  # a rank's policy, once, before its parameters become one buffer
    "nets/precision.py": {"to"},  # the torso that is measured
    "topologies/actor_learner.py": {"to"},  # Place.to
}


def crossings(tree: ast.AST) -> set[str]:
    """Calls that bring a tensor to another device, or its memory to NumPy; a memory format is neither.

    ``xp`` is the array module that Rules are made with, whose asarray changes dtypes only.
    """
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CROSSINGS:
            by_numpy = isinstance(node.func.value, ast.Name) and node.func.value.id in ("np", "xp")
            if not by_numpy and (node.args or not node.keywords or {k.arg for k in node.keywords} - {"memory_format"}):
                found.add(node.func.attr)
    return found


def test_tensors_change_device_in_named_functions_only() -> None:
    for name, tree in TREES.items():
        wrong = crossings(tree) - MAY_CROSS.get(name, set())
        assert not wrong, f"{name} calls {wrong}; use to_host, to_device or write_back of devices.py"
    for name, allowed in MAY_CROSS.items():
        assert allowed == CROSSINGS or crossings(TREES[name]) == allowed, f"{name} needs no exception"
    text = "x.cpu(); y.to(device); torch.from_numpy(z); x.numpy(); x.to(device=d); x.to(memory_format=m); np.asarray(z)"
    assert crossings(ast.parse(text)) == {"cpu", "to", "from_numpy", "numpy"}


SUBMIT = ["submit", "impala_catch", "--dry-run", "--seeds", "0-3", "--time", "10"]


ON_RUNS = [["status", "run"], ["logs", "run"], ["cancel", "run"]]
LIGHT = [["--help"], ["list"], ["show", "ppo_cartpole"], ["show", "impala_pong"], SUBMIT, *ON_RUNS]


@pytest.mark.parametrize("arguments", LIGHT, ids=" ".join)
def test_light_commands_import_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    run = create(tmp_path / "run", jobs.dumps(jobs.load("impala_catch")))
    (run.logs / "ranks.log").write_text("said\n")
    heavy = ("torch", "mpi4py", "dask", "h5py")
    code = (
        "import sys\nfrom hpc_rl.cli import cli\n"
        f"code = cli({arguments!r}, standalone_mode=False)\nassert not code, code\n"
        f"found = [name for name in {heavy!r} if name in sys.modules]\nassert not found, found"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() or "no job is queued" in done.stderr
