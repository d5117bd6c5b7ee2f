from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgebert.bench.codec import to_json
from edgebert.bench.environment.computer import Activity, other_busy_ratio, read_activity, read_environment, steal_ratio


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


CPUINFO = """processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Core(TM) i5-1235U
microcode\t: 0x42c
flags\t\t: fpu avx2 avx_vnni fma

processor\t: 1
model name\t: Intel(R) Core(TM) i5-1235U
flags\t\t: fpu avx2 avx_vnni fma
"""


def bare_metal(root: Path) -> Path:
    cpu = "sys/devices/system/cpu"
    return tree(
        root,
        {
            "proc/cpuinfo": CPUINFO,
            "proc/meminfo": "MemTotal:       16000000 kB\nSwapTotal:       1000 kB\nSwapFree:         400 kB\n",
            "proc/stat": "cpu  100 0 50 800 50 0 0 25 0 0\ncpu0 1 2 3\n",
            f"{cpu}/cpu0/topology/physical_package_id": "0\n",
            f"{cpu}/cpu0/topology/core_id": "0\n",
            f"{cpu}/cpu1/topology/physical_package_id": "0\n",
            f"{cpu}/cpu1/topology/core_id": "0\n",
            f"{cpu}/cpu0/cache/index0/level": "1",
            f"{cpu}/cpu0/cache/index0/type": "Data",
            f"{cpu}/cpu0/cache/index0/size": "48K",
            f"{cpu}/cpu0/cpufreq/scaling_driver": "intel_pstate",
            f"{cpu}/cpu0/cpufreq/scaling_governor": "powersave",
            f"{cpu}/cpu1/cpufreq/scaling_governor": "performance",
            f"{cpu}/cpu0/cpufreq/energy_performance_preference": "balance_power",
            f"{cpu}/cpu0/thermal_throttle/core_throttle_count": "7",
            f"{cpu}/cpu1/thermal_throttle/package_throttle_count": "5",
            f"{cpu}/intel_pstate/no_turbo": "0",
            f"{cpu}/smt/active": "1",
            "sys/class/power_supply/AC/type": "Mains",
            "sys/class/power_supply/AC/online": "0",
            "sys/class/dmi/id/product_name": "Edge Box 3",
            "sys/fs/cgroup/cpu.max": "150000 100000",
            "sys/fs/cgroup/memory.max": "max",
            "sys/fs/cgroup/cpu.stat": "usage_usec 1\nnr_throttled 3\n",
            "etc/os-release": 'NAME="X"\nPRETTY_NAME="Debian 12"\n',
        },
    )


def test_read_environment_reads_a_recorded_computer(tmp_path: Path) -> None:
    found = read_environment(bare_metal(tmp_path))
    cpu = found.device.cpu
    assert (cpu.model, cpu.sockets, cpu.cores, cpu.microcode) == ("Intel(R) Core(TM) i5-1235U", 1, 1, "0x42c")
    assert cpu.flags == ("avx2", "fma", "avx_vnni")
    assert cpu.caches == {"L1 Data": "48K"}
    assert found.device.model == "Edge Box 3"
    assert found.device.memory_bytes == 16_000_000 * 1024
    power = found.power_state
    assert (power.driver, power.governor, power.turbo) == ("intel_pstate", ("performance", "powersave"), True)
    assert (power.epp, power.smt, power.ac) == ("balance_power", True, False)
    assert found.os.cgroup.cpu_max == "150000 100000"
    assert found.os.cgroup.memory_max_bytes is None
    assert found.os.distro == "Debian 12"
    assert found.virtualised is False


def test_read_environment_gives_a_reason_for_everything_it_cannot_read(tmp_path: Path) -> None:
    found = read_environment(tmp_path)
    assert found.virtualised is None
    expected = {"device.memory_bytes", "device.model", "os.distro", "os.hypervisor", "power_state.governor"}
    assert expected <= set(found.not_available)
    assert all(found.not_available.values())
    assert found.device.cpu.threads >= 1


def test_read_environment_says_that_a_virtual_machine_sees_no_clock(tmp_path: Path) -> None:
    tree(tmp_path, {"proc/cpuinfo": CPUINFO.replace("fpu", "fpu hypervisor")})
    found = read_environment(tmp_path)
    assert found.virtualised is True
    assert found.os.hypervisor == "unknown"
    assert "virtual machine" in found.not_available["power_state.turbo"]


def test_read_environment_survives_files_of_nonsense(tmp_path: Path) -> None:
    tree(tmp_path, {"proc/cpuinfo": "\x00\xff:::\n\n", "proc/meminfo": "MemTotal: many kB", "proc/stat": "cpu x y"})
    assert read_environment(tmp_path).device.memory_bytes is None
    assert read_activity(tmp_path).ticks is None


def test_read_environment_imports_no_backend() -> None:
    import subprocess

    code = (
        "import sys; from edgebert.bench.environment.computer import read_environment; read_environment();"
        "print([name for name in ('torch', 'openvino', 'onnxruntime', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_read_environment_lists_thread_variables_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("MY_SECRET", "x")
    found = read_environment().env
    assert found["OMP_NUM_THREADS"] == "3"
    assert "MY_SECRET" not in found


def test_read_activity_adds_up_throttling_and_swap(tmp_path: Path) -> None:
    found = read_activity(bare_metal(tmp_path))
    assert found.throttle_events == 7 + 5 + 3
    assert found.swap_used_bytes == 600 * 1024
    assert found.ticks == (25, 850, 1_025)


def activity(stolen: int, idle: int, everything: int) -> Activity:
    return Activity(load=(), ticks=(stolen, idle, everything), throttle_events=None, swap_used_bytes=None)


def test_steal_ratio_is_the_share_in_between() -> None:
    assert steal_ratio(activity(10, 0, 100), activity(30, 0, 200)) == pytest.approx(0.2)
    assert steal_ratio(activity(0, 0, 5), activity(0, 0, 5)) is None


@pytest.mark.skipif(sys.platform == "win32", reason="there are no clock ticks to count")
def test_other_busy_ratio_leaves_out_what_was_idle_stolen_or_ours() -> None:
    import os

    second = os.sysconf("SC_CLK_TCK")
    before, after = activity(0, 0, 0), activity(second, 4 * second, 10 * second)
    assert other_busy_ratio(before, after, own_cpu_s=3.0) == pytest.approx(0.2)
    assert other_busy_ratio(before, after, own_cpu_s=9.0) == 0.0


def test_read_environment_is_json_without_loss() -> None:
    import json

    value = to_json(read_environment())
    assert json.loads(json.dumps(value)) == value
