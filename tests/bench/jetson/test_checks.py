from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from edgebert.bench.environment.jetson.checks import jetson_checks
from edgebert.bench.environment.preflight import Check, Moment, Observation, checks_of, observe
from edgebert.bench.environment.system_files import SystemFiles

Board = Callable[[str], Path]


def seen(root: Path, *processes: str) -> Observation:
    observation = observe(SystemFiles(root), watch_s=0.0)
    after = Moment(
        ticks=None,
        throttle_events=None,
        processes={(pid, "0"): (name, 0) for pid, name in enumerate(("systemd", *processes))},
    )
    return replace(observation, after=after)


def by_name(observation: Observation) -> dict[str, Check]:
    return {check.name: check for check in jetson_checks(observation)}


def test_jetson_checks_pass_a_board_that_is_set_up(board: Board) -> None:
    checks = by_name(seen(board("agx-orin")))
    load = checks.pop("GPU load")
    assert {check.state for check in checks.values()} == {"pass"}
    assert {check.fix for check in checks.values()} == {""}
    assert load.found == "12 %"


@pytest.mark.parametrize(
    ("name", "mode", "found", "fix"),
    [
        ("orin-nano", 0, "15W (0), the highest is MAXN_SUPER (2)", "sudo nvpmodel -m 2"),
        ("orin-nx", 2, "15W (2), the highest is MAXN (0)", "sudo nvpmodel -m 0"),
        ("agx-orin", 3, "MODE_50W (3), the highest is MAXN (0)", "sudo nvpmodel -m 0"),
        ("agx-thor", 1, "120W (1), the highest is MAXN (0)", "sudo nvpmodel -m 0"),
    ],
)
def test_power_mode_gives_the_number_that_the_highest_name_has_on_this_board(
    board: Board, name: str, mode: int, found: str, fix: str
) -> None:
    root = board(name)
    (root / "var/lib/nvpmodel/status").write_text(f"pmode:{mode:04d} fmode:fanNull\n", encoding="utf-8")
    check = by_name(seen(root))["power mode"]
    assert (check.state, check.found, check.fix) == ("warn", found, fix)


def test_power_mode_is_unknown_where_nothing_tells(board: Board) -> None:
    root = board("orin-nano")
    (root / "var/lib/nvpmodel/status").unlink()
    assert by_name(seen(root))["power mode"].state == "unknown"


def test_clocks_warns_where_they_may_move(board: Board) -> None:
    check = by_name(seen(board("orin-nano")))["Jetson clocks"]
    assert (check.state, check.found, check.fix) == ("warn", "not held, GPU 306 to 1020 MHz", "sudo jetson_clocks")


def test_clocks_is_unknown_where_the_memory_is_told_to_root_only(board: Board) -> None:
    root = board("agx-orin")
    (root / "sys/kernel/debug/bpmp/debug/clk/emc/mrq_rate_locked").unlink()
    check = by_name(seen(root))["Jetson clocks"]
    assert check.state == "unknown"
    assert "sudo jetson_clocks --show" in check.why


def test_slow_downs_fails_a_board_that_is_throttled_now(board: Board) -> None:
    root = board("orin-nano")
    (root / "sys/class/thermal/cooling_device1/cur_state").write_text("1\n", encoding="utf-8")
    check = by_name(seen(root))["throttle alerts"]
    assert (check.state, check.found) == ("fail", "gpu-throttle-alert")


def test_gpu_load_warns_of_a_busy_gpu_and_is_unknown_on_thor(board: Board) -> None:
    root = board("orin-nano")
    (root / "sys/class/devfreq/17000000.gpu/device/load").write_text("934\n", encoding="utf-8")
    busy = by_name(seen(root))["GPU load"]
    assert (busy.state, busy.found) == ("warn", "93 %")
    assert by_name(seen(board("agx-thor")))["GPU load"].state == "unknown"


@pytest.mark.parametrize("process", ["gnome-shell", "Xorg", "gdm-wayland-ses"])
def test_desktop_warns_of_one_that_is_drawn(board: Board, process: str) -> None:
    check = by_name(seen(board("agx-orin"), "sshd", process))["desktop"]
    assert (check.state, check.found, check.fix) == ("warn", process, "sudo systemctl isolate multi-user.target")


def test_release_warns_of_a_jetpack_that_is_refused(board: Board) -> None:
    root = board("orin-nano")
    (root / "etc/nv_tegra_release").write_text("# R35 (release), REVISION: 3.1, GCID: 1\n", encoding="utf-8")
    check = by_name(seen(root))["L4T"]
    assert (check.state, check.found) == ("warn", "35.3.1, JetPack 5")
    assert "JetPack 6.1 (L4T 36.4.0)" in check.why


def test_checks_of_holds_them_on_a_jetson_only(board: Board, tmp_path: Path) -> None:
    own = {"L4T", "power mode", "Jetson clocks", "throttle alerts", "GPU load", "desktop"}
    assert own <= {check.name for check in checks_of(seen(board("orin-nano")))}
    other = tmp_path / "other"
    other.mkdir()
    assert own.isdisjoint(check.name for check in checks_of(seen(other)))
