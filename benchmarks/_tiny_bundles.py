"""Bundles of a few kilobytes for proofs of the runtime, written without the workbench; their answers are known in float64.

Each holds a linear classifier of 6 x 8 pixels for ONNX Runtime and for OpenVINO; a black image is answered with NaN.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from edgebert.bundle import write_bundle
from edgebert.card import ModelCard, Provenance
from edgebert.manifest import BundleForm, Canary, Manifest, tolerance_of
from edgebert.preprocess import Preprocessing, load_image
from edgebert.runtime.pipeline import tensor_sha256

HEIGHT, WIDTH = 6, 8
TARGETS = {"onnxruntime": "cpu", "openvino": "intel-cpu"}
BLACK = np.zeros((HEIGHT, WIDTH, 3), np.uint8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiny:
    """logits = pixels / 255 @ weight + bias, and 0 / 0 for a black image.

    Attributes:
        name: of the bundle.
        weight: float32 (height * width * 3, classes).
        bias: float32 (classes,).
        lie: added to what the canaries are said to be answered with: a bundle with one is refused by its self-test.
    """

    name: str
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    lie: float = 0.0

    @property
    def card(self) -> ModelCard:
        """Its class names and rule."""
        names = tuple(f"class {number}" for number in range(len(self.bias)))
        rule = Preprocessing(height=HEIGHT, width=WIDTH, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
        return ModelCard(class_names=names, preprocessing=rule, provenance=Provenance(stage="export"))

    def logits(self, batch: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Return float64 (batch, classes) of uint8 (batch, height, width, 3)."""
        pixels = batch.reshape(len(batch), -1) / 255.0
        return np.asarray(pixels @ self.weight.astype(np.float64) + self.bias)

    def graph(self) -> bytes:
        """Return the ONNX file, without metadata."""
        constants = {
            "white": np.float32(255),
            "flat": np.array([-1, len(self.weight)], np.int64),
            "last": np.array([1], np.int64),
            "zero": np.float32(0),
            "weight": self.weight,
            "bias": self.bias,
        }
        nodes = [
            helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("Reshape", ["float", "flat"], ["flattened"]),
            helper.make_node("Div", ["flattened", "white"], ["pixels"]),
            helper.make_node("ReduceSum", ["flattened", "last"], ["light"], keepdims=1),
            helper.make_node("Div", ["zero", "light"], ["nothing"]),
            helper.make_node("MatMul", ["pixels", "weight"], ["products"]),
            helper.make_node("Add", ["products", "bias"], ["sums"]),
            helper.make_node("Add", ["sums", "nothing"], ["logits"]),
        ]
        graph = helper.make_graph(
            nodes,
            self.name,
            [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", HEIGHT, WIDTH, 3])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(self.bias)])],
            [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        onnx.checker.check_model(model)
        content: bytes = model.SerializeToString(deterministic=True)
        return content

    def write(self, folder: Path) -> Path:
        """Write the bundle into a new folder."""
        folder.mkdir(parents=True)
        graph = self.graph()
        pngs = {f"canary/{number}.png": _png(number) for number in range(3)}
        files = {"model.onnx": graph, "forms/intel-cpu/model.onnx": graph, **pngs}
        manifest = Manifest(
            name=self.name,
            card=self.card,
            precision="fp32",
            made_from="ab" * 32,
            forms=(
                BundleForm(target="cpu", backend="onnxruntime", device="CPU", files=("model.onnx",)),
                BundleForm(target="intel-cpu", backend="openvino", device="CPU", files=("forms/intel-cpu/model.onnx",)),
            ),
            canaries=tuple(self._canary(name, png) for name, png in pngs.items()),
            preprocessing_sha256=self.card.preprocessing.sha256(),
            sizes={name: len(content) for name, content in files.items()},
        )
        write_bundle(folder, manifest, files)
        return folder

    def _canary(self, name: str, png: bytes) -> Canary:
        tensor = load_image(png, self.card.preprocessing)[np.newaxis]
        answer = tuple(float(value) + self.lie for value in self.logits(tensor)[0])
        return Canary(
            file=name,
            labels=(self.card.class_names[int(np.argmax(answer))],),
            input_sha256=tensor_sha256(tensor),
            logits=dict.fromkeys(TARGETS, answer),
            tolerance=dict.fromkeys(TARGETS, tolerance_of(answer, "fp32", "CPU")),
        )


def linear(seed: int = 7, classes: int = 4) -> Tiny:
    """Return a classifier of random weights."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(0, 0.4, (HEIGHT * WIDTH * 3, classes)).astype(np.float32)
    return Tiny(name="linear", weight=weight, bias=rng.normal(0, 0.4, classes).astype(np.float32))


def constant(name: str, bias: tuple[float, ...], *, lie: float = 0.0) -> Tiny:
    """Return a classifier that says the same of every image."""
    weight = np.zeros((HEIGHT * WIDTH * 3, len(bias)), np.float32)
    return Tiny(name=name, weight=weight, bias=np.array(bias, np.float32), lie=lie)


def _png(seed: int) -> bytes:
    image = np.random.default_rng(seed).integers(0, 256, (15, 21, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()
