"""7-bit weights: what they are, who gets them, and that they are right where 8 bits saturate."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgebert.errors import UsageError
from edgebert.export import seven_bit
from edgebert.export.metadata import bytes_of_model, parse_graph
from edgebert.export.ort_form import ort_form_from_graph
from edgebert.export.rules import check_int8_graph
from edgebert.export.seven_bit import seven_bit_weights, weight_bits_for
from edgebert.export.topology import Topology
from edgebert.runtime.instructions import Int8Instructions, int8_instructions
from edgebert.target import resolve_target


def _weights(model: onnx.ModelProto) -> list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """Return steps and scales of every stored weight, in graph order."""
    topology = Topology(model)
    found = []
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and topology.constant(node.input[0]) is not None:
            steps, scales = topology.array(node.input[0]), topology.array(node.input[1])
            assert steps is not None
            assert scales is not None
            found.append((steps, scales))
    return found


def _linear(
    steps: np.ndarray[Any, np.dtype[np.int8]], scales: np.ndarray[Any, np.dtype[np.float32]]
) -> onnx.ModelProto:
    """Return image -> int8 -> MatMul, whose answers are integers times the scales: uint8 (batch, 8, 8, 3) in."""
    values = {
        "half": np.float32(255 / 127),
        "flat": np.array([-1, len(steps)], np.int64),
        "one": np.float32(1),
        "zero": np.int8(0),
        "steps": steps,
        "scales": scales,
        "zeros": np.zeros(scales.shape, np.int8),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["float", "half"], ["pixels"]),
        helper.make_node("Reshape", ["pixels", "flat"], ["row"]),
        helper.make_node("QuantizeLinear", ["row", "one", "zero"], ["row.int8"], axis=0),
        helper.make_node("DequantizeLinear", ["row.int8", "one", "zero"], ["row.float"], axis=0),
        helper.make_node("DequantizeLinear", ["steps", "scales", "zeros"], ["weight"], axis=1),
        helper.make_node("MatMul", ["row.float", "weight"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 8, 8, 3])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", steps.shape[1]])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_seven_bit_weights_stay_a_portable_graph(int8_graph: bytes) -> None:
    check_int8_graph(seven_bit_weights(parse_graph(int8_graph)))


def test_seven_bit_weights_fit_and_mean_the_same_within_half_a_step(int8_graph: bytes) -> None:
    before, after = _weights(parse_graph(int8_graph)), _weights(seven_bit_weights(parse_graph(int8_graph)))
    assert len(before) == len(after) > 0
    for (old, old_scale), (new, new_scale) in zip(before, after, strict=True):
        assert int(np.abs(new.astype(int)).max()) == 63
        difference = np.abs(old * old_scale - new * new_scale)  # (inputs, outputs), scales by output
        assert (difference <= 0.5001 * new_scale).all()


def test_seven_bit_weights_change_nothing_the_second_time(int8_graph: bytes) -> None:
    once = seven_bit_weights(parse_graph(int8_graph))
    for (first, first_scale), (second, second_scale) in zip(
        _weights(once), _weights(seven_bit_weights(once)), strict=True
    ):
        np.testing.assert_array_equal(first, second)
        np.testing.assert_array_equal(first_scale, second_scale)


def test_seven_bit_weights_keep_a_channel_that_fits_already() -> None:
    steps = np.array([[127, 60], [-64, -63]], np.int8)
    ((new, scales),) = _weights(seven_bit_weights(_linear(steps, np.array([2.0, 3.0], np.float32))))
    np.testing.assert_array_equal(new, np.array([[63, 60], [-32, -63]]))
    np.testing.assert_allclose(scales, [2 * 127 / 63, 3.0])


def test_seven_bit_weights_take_one_scale_for_all_channels() -> None:
    steps = np.array([[127, 60], [-64, -63]], np.int8)
    ((new, scale),) = _weights(seven_bit_weights(_linear(steps, np.array(2.0, np.float32))))
    np.testing.assert_array_equal(new, np.array([[63, 30], [-32, -31]]))
    assert float(scale) == pytest.approx(2 * 127 / 63)


def test_seven_bit_weights_do_not_touch_the_graph_they_are_made_of(int8_graph: bytes) -> None:
    model = parse_graph(int8_graph)
    seven_bit_weights(model)
    assert model == parse_graph(int8_graph)


def test_seven_bit_graph_has_a_form_for_onnx_runtime(int8_graph: bytes) -> None:
    """`ort_form_from_graph` compares with the graph it is given, which has 7-bit weights as well."""
    form = ort_form_from_graph(bytes_of_model(seven_bit_weights(parse_graph(int8_graph))), machine="x86_64")
    assert any("of the portable graph" in note or "bit-equal" in note for note in form.notes)


@pytest.mark.parametrize(("exact", "bits"), [(True, 8), (None, 8), (False, 7)])
def test_weight_bits_for_follow_the_cpu(exact: bool | None, bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seven_bit, "int8_instructions", lambda _: Int8Instructions(name="x", exact=exact))
    assert weight_bits_for(resolve_target("intel-cpu"), "auto") == bits


@pytest.mark.parametrize("target", ["intel-gpu", "intel-npu", "jetson"])
def test_weight_bits_for_a_gpu_are_eight(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seven_bit, "int8_instructions", lambda _: Int8Instructions(name="avx2", exact=False))
    assert weight_bits_for(resolve_target(target), "auto") == 8
    with pytest.raises(UsageError, match=f"`--weights 7-bit` for `{target}`"):
        weight_bits_for(resolve_target(target), "7-bit")


def test_weight_bits_for_are_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seven_bit, "int8_instructions", lambda _: Int8Instructions(name="avx2", exact=False))
    assert weight_bits_for(resolve_target("cpu"), "8-bit") == 8
    assert weight_bits_for(resolve_target("cpu"), "7-bit") == 7


_ANSWER = """
import json, sys
from pathlib import Path
import numpy as np
from edgebert.runtime.runner import InputSpec, ModelSource, open_runner
source = ModelSource(spec=InputSpec(height=8, width=8, classes=16), files={"model.onnx": Path(sys.argv[1]).read_bytes()})
with open_runner("openvino", source) as runner:
    print(json.dumps(runner.infer(np.load(sys.argv[2])).tolist()))
"""


@pytest.mark.parametrize("limit", ["AVX2", "AVX512_CORE"])
@pytest.mark.parametrize("bits", [8, 7])
def test_only_eight_bits_are_grossly_wrong_on_a_cpu_without_vnni(bits: int, limit: str, tmp_path: Path) -> None:
    """Large weights and bright pixels, in OpenVINO on a CPU that is made to have no VNNI, against exact sums."""
    here = int8_instructions("openvino", limit="")
    if here.exact is None or here.name.startswith(("asimd", "i8mm")):
        pytest.skip("no x86 CPU of known instructions: oneDNN's limit emulates nothing here")
    rng = np.random.default_rng(0)
    steps = (rng.integers(96, 128, (192, 16)) * np.where(np.arange(16) % 2, 1, -1)).astype(np.int8)
    model = _linear(steps, np.full(16, 0.01, np.float32))
    model = model if bits == 8 else seven_bit_weights(model)
    images = rng.integers(230, 256, (4, 8, 8, 3)).astype(np.uint8)
    ((steps, scales),) = _weights(model)
    pixels = np.clip(np.rint(images.reshape(4, -1) / np.float32(255 / 127)), -127, 127)
    exact = pixels @ steps.astype(np.float64) * scales
    graph, batch = tmp_path / "model.onnx", tmp_path / "images.npy"
    graph.write_bytes(bytes_of_model(model))
    np.save(batch, images)
    ran = subprocess.run(
        [sys.executable, "-c", _ANSWER, str(graph), str(batch)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": limit},
    )
    error = np.abs(np.array(json.loads(ran.stdout)) - exact).max() / np.abs(exact).max()
    assert (error > 0.5) if bits == 8 else (error < 1e-5)
