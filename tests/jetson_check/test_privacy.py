"""What is kept out of the file: names, paths, numbers of one board; and what must stay readable in it."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from edgebert._json import JsonObject
from edgebert.jetson_check.privacy import HIDDEN, PATH, Names, names_here

NAMES = Names(home="/home/anna", secrets=("anna", "line-7-camera", "1423019123456"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("`/home/anna/a b/x.plan`", f"`{PATH}`"),
        ("[Errno 2] No such file: '/home/a b c/x'", f"[Errno 2] No such file: '{PATH}'"),
        ("cannot write /tmp/edgebert-x/engine.plan: no space", f"cannot write {PATH}: no space"),
        ("/media/usb0/x, /srv/data and /root/.cache", f"{PATH}, {PATH} and {PATH}"),
        ("anna@line-7-camera", f"{HIDDEN}@{HIDDEN}"),
        ("serial 1423019123456.", f"serial {HIDDEN}."),
        ("eth0 48:B0:2D:11:22:33", f"eth0 {HIDDEN}"),
        ("/home/annabel/x", PATH),
        ("//home//anna/x", PATH),
        ("/usr/../srv/x", PATH),
        ("file:///srv/x", f"file:{PATH}"),
        ("Linux 5.15.148-anna and ANNA_2", f"Linux 5.15.148-{HIDDEN} and {HIDDEN}_2"),
        ("LINE-7-Camera", HIDDEN),
    ],
)
def test_scrubbed_hides(text: str, expected: str) -> None:
    assert NAMES.scrubbed(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "see NVIDIA/TensorRT#4832 and strong/weak, 3 mV/mA, 10.3.0/10.7.0",
        "/proc/meminfo, /sys/class/devfreq/17000000.gpu/cur_freq and /usr/local/cuda/lib64/libcudart.so.12",
        "TensorRT 10.13.3.9, L4T 36.4.3, annalise, inline-7-cameras",
        "https://github.com/NVIDIA/TensorRT/issues/4832, /dev/ and /proc//meminfo",
        "[06/08/2026-12:34:56] [E] Error Code 9: Internal Error",
    ],
)
def test_scrubbed_keeps_what_tells_of_the_board(text: str) -> None:
    assert NAMES.scrubbed(text) == text


def test_scrubbed_value_reaches_everything_inside() -> None:
    value: JsonObject = {"anna": [1, None, {"at": "/home/anna"}], "ok": True}
    assert NAMES.scrubbed_value(value) == {HIDDEN: [1, None, {"at": PATH}], "ok": True}


def test_scrubbed_value_loses_no_fact() -> None:
    names = Names(secrets=("max", "min"))
    value: JsonObject = {"max_mhz": 1, "min_mhz": 2, "max": 3, "MIN": 4}
    assert names.scrubbed_value(value) == {"max_mhz": 1, "min_mhz": 2, HIDDEN: 3, f"{HIDDEN}_": 4}


def test_names_here_knows_user_host_and_board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "line-7-camera.plant.example")
    monkeypatch.setenv("HOME", "/home/annegret")
    for variable in ("USER", "LOGNAME", "LNAME", "USERNAME"):
        monkeypatch.setenv(variable, "annegret")
    for path, text in {"proc/device-tree/serial-number": "1423019123456\x00", "etc/machine-id": "0f" * 16}.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    names = names_here(tmp_path)
    assert {"annegret", "line-7-camera", "line-7-camera.plant.example", "1423019123456", "0f" * 16} == set(
        names.secrets
    )
    assert names.home == "/home/annegret"


def test_names_here_leaves_what_every_image_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "tegra-ubuntu")
    for variable in ("USER", "LOGNAME", "LNAME", "USERNAME"):
        monkeypatch.setenv(variable, "nvidia")
    monkeypatch.delenv("SUDO_USER", raising=False)
    assert names_here(tmp_path).scrubbed("nvidia,tegra234") == "nvidia,tegra234"
