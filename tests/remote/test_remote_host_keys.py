"""Whose key counts when `compile`, `bench` and `size` go to a device: cases in which nothing is run, sent or written."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from edgebert.bench.options import BenchOptions
from edgebert.errors import RefusedError
from edgebert.remote.bench import bench_on
from edgebert.remote.session import DeviceSession
from edgebert.remote.transport import transport_of

if TYPE_CHECKING:
    from tests.conftest import Toy

asyncssh = pytest.importorskip("asyncssh")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from edgebert.export.compile import CompileOptions
from edgebert.export.metadata import bytes_of_model, parse_graph, with_metadata
from edgebert.remote.compile import bundle_on

Start = Callable[..., Any]
Command = Callable[[Any], object]


@dataclass(frozen=True)
class Case:
    """A device whose key does not count: how it is started, what the known-hosts file says, and what the refusal says."""

    device: Any
    said: str


def known_hosts(host_home: Path) -> Path:
    return host_home / ".ssh/known_hosts"


def another_key(kind: str = "ssh-ed25519") -> Any:
    return asyncssh.generate_private_key(kind)


def hashed(host_home: Path) -> None:
    """Hide the names of a known-hosts file, as Debian's OpenSSH does by default."""
    command = ["ssh-keygen", "-q", "-H", "-f", str(known_hosts(host_home))]
    subprocess.run(command, check=True, capture_output=True)
    assert "127.0.0.1" not in known_hosts(host_home).read_text()


CASES = (
    "unknown",
    "changed",
    "revoked",
    "another authority",
    "hashed and changed",
    "of another port",
    "of another kind",
)


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, start_device: Start, host_home: Path) -> Iterator[Case]:
    options: dict[str, Any] = {"authority": another_key()} if request.param == "another authority" else {}
    with start_device(**options) as device:
        known_hosts(host_home).write_text("")
        match request.param:
            case "unknown":
                said = "is not known"
            case "changed":
                device.trust(known_hosts(host_home), key=another_key())
                said = "has changed"
            case "revoked":
                device.trust(known_hosts(host_home))
                device.trust(known_hosts(host_home), marker="@revoked ")
                said = "is revoked"
            case "another authority":
                device.trust(known_hosts(host_home), key=another_key(), marker="@cert-authority ")
                said = "is not known"
            case "hashed and changed":
                device.trust(known_hosts(host_home), key=another_key())
                hashed(host_home)
                said = "has changed"
            case "of another port":
                device.trust(known_hosts(host_home), port=device.port + 1)
                said = "is not known"
            case "of another kind":
                device.trust(known_hosts(host_home), key=another_key("ecdsa-sha2-nistp256"))
                said = "has changed"
        yield Case(device=device, said=said)


@pytest.fixture
def graph(toy: Toy, tmp_path: Path) -> Path:
    path = tmp_path / "toy.onnx"
    path.write_bytes(bytes_of_model(with_metadata(parse_graph(toy.graph()), toy.card, ())))
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for name in ("bolt", "gear", "nut", "washer"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for index in range(6):
            pixels = generator.integers(0, 256, (9, 11, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{index}.png")
    return tmp_path / "images"


@pytest.fixture
def compile_(graph: Path, tmp_path: Path) -> Command:
    options = CompileOptions(targets=("cpu",), canary="synthetic")
    return lambda transport: bundle_on(transport, graph, tmp_path / "out.edgebert", options)


@pytest.fixture
def bench(make_toy_bundle: Callable[[Path], Path], images: Path, tmp_path: Path) -> Command:
    bundle = make_toy_bundle(tmp_path / "toy.edgebert")
    options = BenchOptions(data=str(images), targets=("cpu",), launches=1, queries=40, threads=1)
    return lambda transport: bench_on(transport, [bundle], tmp_path / "out.json", options)


@pytest.fixture
def size(tmp_path: Path) -> Command:
    pytest.importorskip("torch")
    from edgebert.remote.size import sizes_on
    from edgebert.train.sizing import SizeOptions

    options = SizeOptions(image_size=8, target="cpu", budget_ms=1000.0, shapes=("d32-l2-h2-r2",), threads=1)
    return lambda transport: sizes_on(transport, "digits", options, tmp_path / "out.json")


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("command", ["compile_", "bench", "size"])
def test_session_is_refused_before_anything_is_run_sent_or_written(
    case: Case, command: str, request: pytest.FixtureRequest, host_home: Path, tmp_path: Path
) -> None:
    run: Command = request.getfixturevalue(command)
    before, known = files(tmp_path), known_hosts(host_home).read_bytes()
    with pytest.raises(RefusedError, match=case.said) as caught:
        run(transport_of(f"pi@127.0.0.1:{case.device.port}"))
    assert caught.value.exit_code == 77
    assert case.device.commands == []
    assert files(tmp_path) == before
    assert known_hosts(host_home).read_bytes() == known
    assert case.device.host_key.get_fingerprint() in caught.value.what


# What the refusals are held against: the same devices, and a key that counts.


def opens_a_session(device: Any) -> bool:
    with DeviceSession(transport_of(f"pi@127.0.0.1:{device.port}")):
        return len(device.commands) == 1


def test_session_is_opened_where_the_authority_of_the_device_is_known(start_device: Start, host_home: Path) -> None:
    authority = another_key()
    with start_device(authority=authority) as device:
        device.trust(known_hosts(host_home), key=authority, marker="@cert-authority ")
        assert opens_a_session(device)


def test_session_is_opened_where_the_key_stands_under_a_hashed_name(start_device: Start, host_home: Path) -> None:
    with start_device() as device:
        device.trust(known_hosts(host_home))
        hashed(host_home)
        assert opens_a_session(device)


def test_certificate_for_another_name_is_refused(start_device: Start, host_home: Path) -> None:
    authority = another_key()
    with start_device(authority=authority, principals=("other-device",)) as device:
        device.trust(known_hosts(host_home), key=authority, marker="@cert-authority ")
        with (
            pytest.raises(RefusedError, match="is not known"),
            DeviceSession(transport_of(f"pi@127.0.0.1:{device.port}")),
        ):
            pass
        assert device.commands == []


def test_certificate_of_a_revoked_authority_is_refused(start_device: Start, host_home: Path) -> None:
    authority = another_key()
    with start_device(authority=authority) as device:
        device.trust(known_hosts(host_home), key=authority, marker="@cert-authority ")
        device.trust(known_hosts(host_home), key=authority, marker="@revoked ")
        with (
            pytest.raises(RefusedError, match="is not known"),
            DeviceSession(transport_of(f"pi@127.0.0.1:{device.port}")),
        ):
            pass
        assert device.commands == []


def test_bench_command_exits_with_77_where_the_host_key_is_unknown(
    start_device: Start, host_home: Path, images: Path, make_toy_bundle: Callable[[Path], Path], tmp_path: Path
) -> None:
    bundle = make_toy_bundle(tmp_path / "toy.edgebert")
    with start_device() as device:
        command = [sys.executable, "-m", "edgebert", "bench", str(bundle), "--data", str(images), "-o", "out.json"]
        command += ["--target", "cpu", "--host", f"pi@127.0.0.1:{device.port}"]
        ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, cwd=tmp_path)
        assert ran.returncode == 77, ran.stderr
        assert device.host_key.get_fingerprint() in ran.stderr
        assert not (tmp_path / "out.json").exists()
