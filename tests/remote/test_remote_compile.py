"""`compile --host` and `size --host`: forms are converted, answered and opened on the device, and nothing half-done gets a name."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from edgebert import Classifier
from edgebert.bundle import read_bundle
from edgebert.errors import LinkLostError, RefusedError, UnavailableError
from edgebert.remote.transport import LocalPipe, transport_of

if TYPE_CHECKING:
    from tests.conftest import Toy

pytest.importorskip("asyncssh")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
from edgebert.export.compile import CompileOptions
from edgebert.export.metadata import bytes_of_model, parse_graph, with_metadata
from edgebert.remote.compile import DevicePlace, bundle_on
from edgebert.remote.engine import array_of
from edgebert.remote.session import DeviceSession

Start = Callable[..., Any]


@pytest.fixture
def pipe(tmp_path: Path) -> LocalPipe:
    home = tmp_path / "device"
    (home / "tmp").mkdir(parents=True)
    return LocalPipe(environment={"HOME": str(home), "PATH": os.environ["PATH"], "TMPDIR": str(home / "tmp")})


@pytest.fixture
def graph(toy: Toy, tmp_path: Path) -> Path:
    path = tmp_path / "toy.onnx"
    path.write_bytes(bytes_of_model(with_metadata(parse_graph(toy.graph()), toy.card, ())))
    return path


def test_bundle_on_records_what_the_device_answers(
    pipe: LocalPipe, graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    answers = DevicePlace.answers

    def counted(place: DevicePlace, backend: str, *rest: Any) -> Any:
        asked.append(backend)
        return answers(place, backend, *rest)

    monkeypatch.setattr(DevicePlace, "answers", counted)
    pytest.importorskip("openvino")
    options = CompileOptions(targets=("cpu", "intel-cpu"), canary="synthetic")
    made = bundle_on(pipe, graph, tmp_path / "toy.edgebert", options)
    assert made.verified == ("cpu", "intel-cpu")
    assert asked.count("onnxruntime") >= 2
    assert asked.count("openvino") >= 2
    manifest = read_bundle(made.path).manifest
    assert set(manifest.canaries[0].logits) == {"onnxruntime", "openvino"}
    with Classifier(made.path, target="intel-cpu"):
        pass


def test_bundle_on_writes_nothing_where_the_link_breaks(
    start_device: Start,
    host_home: Path,
    graph: Path,
    tmp_path: Path,
    cutting_proxy: Start,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with start_device() as device, cutting_proxy(device.port, None) as proxy:
        device.trust(host_home / ".ssh/known_hosts", port=proxy.port)

        def cut(*_: object) -> bool:
            proxy.cut()
            raise_where_it_is_noticed.append(True)
            return answers(*_)  # type: ignore[arg-type]  # as it was called

        raise_where_it_is_noticed: list[bool] = []
        answers = DevicePlace.opens
        monkeypatch.setattr(DevicePlace, "opens", cut)
        with pytest.raises(LinkLostError):
            bundle_on(
                transport_of(f"pi@127.0.0.1:{proxy.port}"),
                graph,
                tmp_path / "toy.edgebert",
                CompileOptions(targets=("cpu",), canary="synthetic"),
            )
    assert raise_where_it_is_noticed
    assert [path.name for path in tmp_path.iterdir() if "edgebert" in path.name] == []


def test_bundle_on_has_succeeded_where_the_link_breaks_at_the_goodbye(
    start_device: Start,
    cutting_proxy: Start,
    host_home: Path,
    graph: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with start_device() as device, cutting_proxy(device.port, None) as proxy:
        device.trust(host_home / ".ssh/known_hosts", port=proxy.port)
        leave = DeviceSession._leave

        def cut_first(session: DeviceSession, timeout_s: float) -> None:
            proxy.cut()
            leave(session, timeout_s)

        monkeypatch.setattr(DeviceSession, "_leave", cut_first)
        output = tmp_path / "toy.edgebert"
        made = bundle_on(
            transport_of(f"pi@127.0.0.1:{proxy.port}"),
            graph,
            output,
            CompileOptions(targets=("cpu",), canary="synthetic"),
        )
    assert made.digest == read_bundle(output).digest
    assert "all is done, but what was sent to" in caplog.text


def test_bundle_on_refuses_a_target_that_the_device_lacks(pipe: LocalPipe, graph: Path, tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="tensorrt") as caught:
        bundle_on(pipe, graph, tmp_path / "toy.edgebert", CompileOptions(targets=("jetson",), canary="synthetic"))
    assert str(caught.value.hint).startswith("edgebert doctor --jetson --host local:")
    assert not (tmp_path / "toy.edgebert").exists()


@pytest.mark.parametrize("rows", [np.zeros((1, 4), np.float32), np.zeros((4, 4)), np.array([None])])
def test_rows_of_another_shape_or_type_are_refused(rows: Any) -> None:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, rows, allow_pickle=True)
    with pytest.raises(RefusedError):
        array_of("device", stream.getvalue(), (4, 4))


def test_sizes_on_measures_on_the_device(pipe: LocalPipe) -> None:
    pytest.importorskip("torch")
    from edgebert.remote.size import sizes_on
    from edgebert.train.sizing import SizeOptions

    options = SizeOptions(
        image_size=8, target="cpu", budget_ms=1000.0, shapes=("d32-l2-h2-r2",), threads=1, timed_images=4
    )
    report = sizes_on(pipe, "digits", options)
    assert report.proposed == "d32-l2-h2-r2"
    assert report.rows[0].latencies["fp32"].queries >= 100
    assert report.environment.device.transport == "local"
