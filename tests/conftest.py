"""Tiny artefacts that tests of several rooms share: a linear classifier as a graph, and a bundle of it."""

from __future__ import annotations

import importlib.util
import io
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from edgebert.bench.device_lock import LOCK_VARIABLE
from edgebert.bundle import write_bundle
from edgebert.card import ModelCard, Provenance
from edgebert.extras import switch_off_telemetry
from edgebert.manifest import BundleForm, Canary, Manifest, tolerance_of
from edgebert.preprocess import Preprocessing, load_image
from edgebert.runtime.pipeline import tensor_sha256
from edgebert.runtime.runner import InputSpec


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option of `tests/audit/plugin.py`."""
    parser.addoption("--audit-json", help="write what the audit hook counted into this file")


def pytest_configure(config: pytest.Config) -> None:
    """Install the audit hook (`tests/audit/hook.py`), as early as a conftest can."""
    exceptions, hook, plugin = (_audit_module(name) for name in ("exceptions", "hook", "plugin"))
    config.pluginmanager.register(plugin.AuditPlugin(hook, exceptions, config), "edgebert-audit")
    switch_off_telemetry()  # a test module that imports OpenVINO itself would report to Google Analytics at collection


def _audit_module(name: str) -> ModuleType:
    path = Path(__file__).with_name("audit") / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"edgebert_test_audit_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Toy:
    """A linear classifier: logits = normalised pixels @ weight + bias; as a graph, and in numpy."""

    card: ModelCard
    weight: NDArray[np.float32]  # (height * width * 3, classes)
    bias: NDArray[np.float32]  # (classes,)

    @property
    def spec(self) -> InputSpec:
        rule = self.card.preprocessing
        return InputSpec(height=rule.height, width=rule.width, classes=len(self.card.class_names))

    def logits(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return float32 (batch, classes) of uint8 (batch, height, width, 3), computed in float64."""
        rule = self.card.preprocessing
        pixels = (batch / 255.0 - np.array(rule.mean)) / np.array(rule.std)
        products: NDArray[np.float64] = pixels.reshape(len(batch), -1) @ self.weight.astype(np.float64)
        return (products + self.bias).astype(np.float32)

    def graph(self) -> bytes:
        """Return the ONNX file, without metadata."""
        onnx = pytest.importorskip("onnx")
        helper, constant = onnx.helper, onnx.numpy_helper.from_array
        rule, spec = self.card.preprocessing, self.spec
        nodes = [
            helper.make_node("Cast", ["image"], ["float"], to=onnx.TensorProto.FLOAT),
            helper.make_node("Div", ["float", "white"], ["unit"]),
            helper.make_node("Sub", ["unit", "mean"], ["centred"]),
            helper.make_node("Div", ["centred", "std"], ["scaled"]),
            helper.make_node("Reshape", ["scaled", "flat"], ["pixels"]),
            helper.make_node("MatMul", ["pixels", "weight"], ["products"]),
            helper.make_node("Add", ["products", "bias"], ["logits"]),
        ]
        constants = {
            "white": np.float32(255),
            "mean": np.array(rule.mean, np.float32),
            "std": np.array(rule.std, np.float32),
            "flat": np.array([-1, len(self.weight)], np.int64),
            "weight": self.weight,
            "bias": self.bias,
        }
        graph = helper.make_graph(
            nodes,
            "toy",
            [helper.make_tensor_value_info("image", onnx.TensorProto.UINT8, ["batch", spec.height, spec.width, 3])],
            [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", spec.classes])],
            [constant(np.asarray(value), name) for name, value in constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        content: bytes = model.SerializeToString(deterministic=True)
        return content

    def images(self, count: int, seed: int = 0) -> NDArray[np.uint8]:
        """Return uint8 (count, height, width, 3) of noise, an input of the graph."""
        shape = (count, self.spec.height, self.spec.width, 3)
        return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.fixture(scope="session", autouse=True)
def own_device_lock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Give the measurements of this test run a lock of their own, so that test runs side by side do not meet."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(LOCK_VARIABLE, str(tmp_path_factory.mktemp("lock") / "bench.lock"))
        yield


@pytest.fixture(scope="session")
def toy() -> Toy:
    """A classifier of 6 x 8 pixels into four classes."""
    rng = np.random.default_rng(7)
    rule = Preprocessing(height=6, width=8, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    card = ModelCard(
        class_names=("bolt", "gear", "nut", "washer"), preprocessing=rule, provenance=Provenance(stage="export")
    )
    return Toy(
        card=card,
        weight=rng.normal(0, 0.2, (6 * 8 * 3, 4)).astype(np.float32),
        bias=rng.normal(0, 0.2, 4).astype(np.float32),
    )


@pytest.fixture(scope="session")
def make_toy_bundle(toy: Toy) -> Callable[..., Path]:
    """Return a function that writes a whole bundle of the toy, or of another, into a new folder, without the workbench."""
    pngs = {f"canary/{number}.png": _png(image) for number, image in enumerate(_photographs(4))}
    toys_graph = toy.graph()

    def write(folder: Path, of: Toy = toy) -> Path:
        graph = toys_graph if of is toy else of.graph()
        folder.mkdir(parents=True)
        files = {"model.onnx": graph, "forms/intel-cpu/model.onnx": graph, **pngs}
        manifest = Manifest(
            name="toy",
            card=of.card,
            precision="fp32",
            made_from="ab" * 32,
            forms=(
                BundleForm(target="cpu", backend="onnxruntime", device="CPU", files=("model.onnx",)),
                BundleForm(target="intel-cpu", backend="openvino", device="CPU", files=("forms/intel-cpu/model.onnx",)),
            ),
            canaries=tuple(_canary(of, name, png) for name, png in pngs.items()),
            preprocessing_sha256=of.card.preprocessing.sha256(),
            sizes={name: len(content) for name, content in files.items()},
        )
        write_bundle(folder, manifest, files)
        return folder

    return write


def _canary(toy: Toy, name: str, png: bytes) -> Canary:
    tensor = load_image(png, toy.card.preprocessing)[np.newaxis]
    answer = tuple(float(value) for value in toy.logits(tensor)[0])
    return Canary(
        file=name,
        labels=(toy.card.class_names[int(np.argmax(answer))],),
        input_sha256=tensor_sha256(tensor),
        logits=dict.fromkeys(("onnxruntime", "openvino"), answer),
        tolerance=dict.fromkeys(("onnxruntime", "openvino"), tolerance_of(answer, "fp32", "CPU")),
    )


def _photographs(count: int) -> NDArray[np.uint8]:
    """Return uint8 (count, 15, 21, 3), larger than the toy's input, so that the resize rule matters."""
    return np.random.default_rng(3).integers(0, 256, (count, 15, 21, 3), np.uint8)


def _png(image: NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()
