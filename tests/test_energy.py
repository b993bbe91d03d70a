"""Counters of energy, on made-up folders of the kernel and a made-up NVML, and what a run makes of them.

Mutations seen to fail: a counter that came round taken as it is, "core" counted beside its package, what a zone showed
at the beginning counted, a closed zone passed over while others are read, millijoules taken for joules, a host that
does not tell left out of the sum, energy of GPUs that no attempt used wanted.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest

from hpc_rl import efficiency, energy, usage
from hpc_rl import job as jobs
from hpc_rl.analysis.resources import resources
from hpc_rl.analysis.runs import open_runs
from hpc_rl.run_files import run_files
from hpc_rl.storage.run_dir import RunDir, create
from hpc_rl.types import Actions, Spec
from tests.slurm.test_usage import lines


@pytest.fixture
def zones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two packages, the first with its cores and its memory, and the whole platform; ranges of 1000 J."""
    folder = tmp_path / "powercap"
    for zone, name in {"0": "package-0", "0:0": "core", "0:1": "dram", "1": "package-1", "2": "psys"}.items():
        (folder / f"intel-rapl:{zone}").mkdir(parents=True)
        (folder / f"intel-rapl:{zone}" / "name").write_text(f"{name}\n")
        (folder / f"intel-rapl:{zone}" / "max_energy_range_uj").write_text("1000000000\n")
        show(folder, zone, 900)
    monkeypatch.setattr(energy, "POWERCAP", folder)
    return folder


def show(folder: Path, zone: str, joules: float) -> None:
    (folder / f"intel-rapl:{zone}" / "energy_uj").write_text(f"{int(joules * 1e6)}\n")


def test_packages_and_memory_are_counted_once_and_come_round(zones: Path) -> None:
    meter = energy.meter(gpus=False)
    assert meter.figures() == {"processor_energy_j": 0}
    show(zones, "0", 950)
    show(zones, "0:0", 940)
    show(zones, "0:1", 905)
    show(zones, "2", 999)
    assert meter.figures() == {"processor_energy_j": 55}
    show(zones, "1", 20)  # 120 J later
    show(zones, "0", 960)
    assert meter.figures() == {"processor_energy_j": 185}


def test_a_closed_counter_makes_all_unknown(zones: Path) -> None:
    (zones / "intel-rapl:1" / "energy_uj").unlink()
    assert energy.meter(gpus=False).figures() == {}


def test_a_host_without_counters_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "POWERCAP", tmp_path / "none")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert energy.meter(gpus=True).figures() == {}


def test_gpus_are_counted_by_nvml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "POWERCAP", tmp_path / "none")
    module, shown = ModuleType("pynvml"), [5_000, 7_000]

    class NVMLError(Exception):
        pass

    def total(card: int) -> int:
        if shown[card] < 0:
            raise NVMLError("Not Supported")
        return shown[card]

    names = {"NVMLError": NVMLError, "nvmlInit": lambda: None, "nvmlDeviceGetCount": lambda: 2}
    calls = {"nvmlDeviceGetHandleByIndex": lambda k: k, "nvmlDeviceGetTotalEnergyConsumption": total}
    for name, value in (names | calls).items():
        setattr(module, name, value)
    monkeypatch.setitem(sys.modules, "pynvml", module)
    meter = energy.meter(gpus=True)
    shown[:] = [6_500, 7_500]
    assert meter.figures() == {"gpu_energy_j": 2}
    shown[0] = -1
    assert meter.figures() == {"gpu_energy_j": 2}  # as far as it was known
    assert energy.meter(gpus=True).figures() == {} == energy.meter(gpus=False).figures()


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return create(tmp_path / "run", jobs.dumps(jobs.load("ppo_cartpole")))


def test_metric_lines_of_a_rank_with_a_meter_have_it(run: RunDir, zones: Path) -> None:
    job = jobs.load("ppo_cartpole")
    spec = Spec("x", (4,), "float32", Actions("discrete", (2,)))
    meter, seat = energy.meter(gpus=False), jobs.plan(job).ranks[0]
    show(zones, "1", 910)
    metrics = run_files(run, job, spec, seat, 0, meter=meter).metrics(0)
    metrics.write(5, {"x": 1.0})
    metrics.close()
    assert '"processor_energy_j": 10' in (run.metrics / f"{seat.name}.jsonl").read_text()


@pytest.mark.parametrize("hosts", [1, 2])
def test_energy_of_a_run_is_that_of_all_its_hosts(run: RunDir, hosts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"host": str(k), "cores": [0], "gpus": 0} for k in range(2)]
    usage.begin(run, 0, rows, False, 0)
    usage.ready(run, 0)
    for k in range(2):
        lines(run, f"worker-{k}", 0, (usage.usage(run)[0]["start"] + 3600, 10, 1, 1))
        if k < hosts:
            file = run.metrics / f"worker-{k}.jsonl"
            file.write_text(file.read_text().replace("}", ', "processor_energy_j": 3.6e6}'))
    assert usage.usage(run)[0]["processor_energy_j"] == (7.2e6 if hosts == 2 else None)
    usage.end(run, 0, {}, {})
    figures = efficiency.of(run)
    assert figures is not None and figures["gpu_energy_kwh"] is None
    assert figures["processor_energy_kwh"] == (2 if hosts == 2 else None)
    assert any("2 kWh of processors" in line for line in efficiency.told(figures)) == (hosts == 2)
    monkeypatch.setattr("hpc_rl.launchers.accounting.consumed", lambda ids: None)
    (recorded,) = open_runs([run.path])
    given = resources(recorded)
    if hosts == 2:
        assert given.kilowatts * figures["wall_hours"] == pytest.approx(2) and given.energy == "counters of the hosts"
    else:
        assert given.kilowatts != given.kilowatts and given.energy == ""
