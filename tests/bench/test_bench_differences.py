from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from edgebert.bench.environment.difference import Difference, differences, surroundings
from edgebert.bench.environment.schema import Battery, ClockLimits
from edgebert.bench.environment.threads import affinity_text, thread_facts
from edgebert.bench.samples import Samples
from edgebert.bench.schema import Result

Synthetic = Callable[..., tuple[Result, Samples]]


@pytest.fixture
def result(synthetic: Synthetic) -> Result:
    made, _ = synthetic()
    power = replace(made.power_state, governor=("performance",), turbo=False)
    return replace(made, power_state=power, software={**made.software, "onnxruntime": "1.23.0", "openvino": "2026.1"})


def only(a: Result, b: Result) -> Difference:
    found = differences(a, b)
    assert len(found) == 1, found
    return found[0]


def test_differences_of_a_result_with_itself_are_none(result: Result) -> None:
    assert differences(result, result) == ()


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (lambda r: replace(r, device=replace(r.device, cpu=replace(r.device.cpu, model="Z80"))), "device.cpu.model"),
        (
            lambda r: replace(r, device=replace(r.device, cpu=replace(r.device.cpu, usable_threads=99))),
            "device.cpu.usable_threads",
        ),
        (
            lambda r: replace(r, power_state=replace(r.power_state, governor=("powersave",))),
            "power_state.governor",
        ),
        (lambda r: replace(r, power_state=replace(r.power_state, turbo=True)), "power_state.turbo"),
        (lambda r: replace(r, os=replace(r.os, kernel="2" + r.os.kernel)), "os.kernel"),
        (lambda r: replace(r, os=replace(r.os, hypervisor="another")), "os.hypervisor"),
        (lambda r: replace(r, env={**r.env, "KMP_AFFINITY": "compact"}), "env.KMP_AFFINITY"),
        (lambda r: replace(r, software={**r.software, "onnxruntime": "1.24.0"}), "software.onnxruntime"),
    ],
)
def test_differences_that_decide(result: Result, change: Callable[[Result], Result], path: str) -> None:
    found = only(result, change(result))
    assert (found.path, found.weight) == (path, "decides")
    assert found.why
    assert found.a != found.b


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (lambda r: replace(r, os=replace(r.os, distro="Another 1")), "os.distro"),
        (lambda r: replace(r, os=replace(r.os, kernel=r.os.kernel + "-7")), "os.kernel"),
        (lambda r: replace(r, software={**r.software, "openvino": "2026.2"}), "software.openvino"),  # no arm uses it
        (lambda r: replace(r, software={**r.software, "numpy": "0"}), "software.numpy"),
        (lambda r: replace(r, device=replace(r.device, memory_bytes=5)), "device.memory_bytes"),
        (lambda r: replace(r, power_state=replace(r.power_state, turbo=None)), "power_state.turbo"),  # unknown there
    ],
)
def test_differences_that_inform(result: Result, change: Callable[[Result], Result], path: str) -> None:
    found = only(result, change(result))
    assert (found.path, found.weight, found.why) == (path, "informs", "")


def test_differences_say_so_where_one_result_has_no_such_field(result: Result) -> None:
    limits = ClockLimits(hardware_min_khz=1, hardware_max_khz=2, min_khz=1, max_khz=2)
    newer = replace(result, power_state=replace(result.power_state, clock=limits))
    older = replace(result, power_state=replace(result.power_state, clock=None))
    found = differences(older, newer)
    assert {entry.a for entry in found} == {"not recorded"}
    assert {entry.weight for entry in found} == {"informs"}


def test_differences_leave_out_what_changes_by_itself(result: Result) -> None:
    later = replace(
        result,
        created="later",
        interference=replace(result.interference, load_before=(9.0,), steal_ratio=0.5, swap_used_bytes=10**9),
        power_state=replace(result.power_state, battery=Battery(status="Charging", charge_percent=3)),
    )
    assert differences(result, later) == ()


def test_differences_look_at_the_threads_of_arms_both_have(result: Result) -> None:
    first, second, _ = result.arms
    changed = replace(first, options={**first.options, "threads": "7"}, effective={**first.effective, "threads": "7"})
    found = differences(result, replace(result, arms=(changed, replace(second, id="another", target="gpu"))))
    assert {entry.path for entry in found} == {f"arms.{first.id}.options.threads", f"arms.{first.id}.effective.threads"}
    assert {entry.weight for entry in found} == {"decides"}


def test_differences_put_what_decides_first(result: Result) -> None:
    changed = replace(
        result,
        device=replace(result.device, memory_bytes=5),
        power_state=replace(result.power_state, turbo=True),
    )
    assert [entry.weight for entry in differences(result, changed)] == ["decides", "informs"]


def test_surroundings_hold_every_section_but_not_what_was_measured(result: Result) -> None:
    paths = surroundings(result)
    assert {"device", "os", "power_state", "software", "process", "arms"} <= {path.partition(".")[0] for path in paths}
    assert not [path for path in paths if "accuracy" in path or "latency" in path or "interference" in path]


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc/self/task")
def test_thread_facts_counts_the_threads_of_the_process() -> None:
    before, stop = int(thread_facts()["os_threads"]), threading.Event()
    threads = [threading.Thread(target=stop.wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    facts = thread_facts()
    stop.set()
    for thread in threads:
        thread.join()
    assert int(facts["os_threads"]) == before + 3
    assert sum(int(entry.split(" x ")[1]) for entry in facts["thread_affinity"].split(", ")) == before + 3


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_thread_facts_tells_that_an_import_moved_the_process() -> None:
    usable = os.sched_getaffinity(0)
    before = affinity_text()
    try:
        os.sched_setaffinity(0, {min(usable)})
        facts = thread_facts(before)
    finally:
        os.sched_setaffinity(0, usable)
    assert facts["affinity_before_import"] == before
    assert facts["affinity"] == str(min(usable))


def test_thread_facts_names_libraries_and_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("MY_SECRET", "x")
    folder = tmp_path / "proc/self"
    folder.mkdir(parents=True)
    lines = ("/usr/lib/libgomp.so.1.0.0", "/venv/lib/libiomp5.so", "/usr/lib/libgomp.so.1.0.0", "/usr/lib/libm.so.6")
    (folder / "maps").write_text("".join(f"7f-80 r-xp 0 00:00 1   {line}\n" for line in lines))
    facts = thread_facts(root=tmp_path)
    assert facts["thread_libraries"] == "libgomp.so.1.0.0, libiomp5.so"
    assert facts["OMP_NUM_THREADS"] == "3"
    assert "MY_SECRET" not in facts
