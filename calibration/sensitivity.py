"""What each layer costs by itself: only that one in INT8, compared with FP32 on held-out training images."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from edgebert._json import JsonObject
from edgebert._progress import tracked
from edgebert.calibration.calibrate import Calibration, ScaledGraph
from edgebert.calibration.held_out import HeldOut, Score
from edgebert.export.metadata import bytes_of_model
from edgebert.export.topology import Topology
from edgebert.extras import require

_PROFILED_RUNS = 50
_FUSED_BEHIND_CONV = ("Clip", "HardSigmoid", "LeakyRelu", "Relu", "Sigmoid", "Tanh")
_KEEPS_NAMES = ("MatMulAddFusion",)  # a Gemm that it makes has another name


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSensitivity:
    """One operator that may be quantised.

    Attributes:
        name: of the node.
        operator: Conv, Gemm or MatMul.
        part: `core`, `stem`, `head` or `attention`.
        score: of the graph in which it alone is quantised.
        macs_share: of all multiplications, in [0, 1].
        latency_share: of the time that ONNX Runtime spends in the FP32 graph's operators, one image and one thread, in [0, 1];
            None where its optimiser left no operator of that name.
        weight_min: smallest weight after smoothing; None for a product of activations.
        weight_max: largest one.
        input_range: largest magnitude that its input scale stores (127 steps).
    """

    name: str
    operator: str
    part: str
    score: Score
    macs_share: float
    latency_share: float | None
    weight_min: float | None
    weight_max: float | None
    input_range: float

    def to_json(self) -> JsonObject:
        """Return the fields as a JSON object."""
        return {
            "name": self.name,
            "operator": self.operator,
            "part": self.part,
            **self.score.to_json(),
            "macs_share": self.macs_share,
            "latency_share": self.latency_share,
            "weight_min": self.weight_min,
            "weight_max": self.weight_max,
            "input_range": self.input_range,
        }


def sensitivities(
    calibration: Calibration, scaled: ScaledGraph, held_out: HeldOut, macs: Mapping[str, int], places: Sequence[str]
) -> tuple[LayerSensitivity, ...]:
    """Quantise each operator alone.

    Args:
        calibration: says which part an operator belongs to.
        scaled: the graph and its scales.
        held_out: what it is compared on.
        macs: multiplications by operator.
        places: the operators, as a rule all that any layout quantises.

    Returns:
        In graph order.
    """
    topology = Topology(scaled.model)
    nodes = {node.name: node for node in scaled.model.graph.node}
    total = max(1, sum(macs.values()))
    shares = latency_shares(scaled.model)
    kept_float = calibration.placement.kept_float
    found = []
    ordered = [name for name in nodes if name in set(places)]
    for name in tracked(ordered, what="try layers alone", total=len(ordered)):
        node = nodes[name]
        weight = topology.array(node.input[1])
        found.append(
            LayerSensitivity(
                name=name,
                operator=node.op_type,
                part=kept_float.get(name, "core"),
                score=held_out.score(scaled.emitted((name,))),
                macs_share=macs.get(name, 0) / total,
                latency_share=shares.get(name),
                weight_min=None if weight is None else float(weight.min()),
                weight_max=None if weight is None else float(weight.max()),
                input_range=127 * scaled.table.activations[node.input[0]],
            )
        )
    return tuple(found)


def latency_shares(model: onnx.ModelProto) -> dict[str, float]:
    """Return by node name the share of the operators' time in ONNX Runtime: FP32, one image, one thread, 50 runs.

    The image is black: the time of these operators does not depend on what is in it.
    """
    require("onnxruntime")
    import onnxruntime

    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.metadata_props[:]
    sides = [side.dim_value for side in model.graph.input[0].type.tensor_type.shape.dim][1:]
    with tempfile.TemporaryDirectory(prefix="edgebert-") as folder:
        settings = onnxruntime.SessionOptions()
        settings.enable_profiling = True
        settings.profile_file_prefix = str(Path(folder) / "profile")
        settings.intra_op_num_threads = 1
        settings.log_severity_level = 3
        session = onnxruntime.InferenceSession(
            bytes_of_model(bare), settings, providers=["CPUExecutionProvider"], disabled_optimizers=[*_KEEPS_NAMES]
        )
        for _ in range(_PROFILED_RUNS):
            session.run(None, {"image": np.zeros((1, *sides), np.uint8)})
        events = json.loads(Path(session.end_profiling()).read_text())
    durations: dict[str, list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            durations[event["name"].removesuffix("_kernel_time")].append(event["dur"])
    # Whole microseconds: averages of many runs, without the tenth in which something else took the processor.
    times = {name: float(np.mean(sorted(each)[: max(1, len(each) * 9 // 10)])) for name, each in durations.items()}
    total, topology = sum(times.values()), Topology(model)
    shares: dict[str, float] = defaultdict(float)
    for name, spent in times.items():
        shares[_own_name(name, topology)] += spent / total if total else 0.0
    return dict(shares)


def _own_name(name: str, topology: Topology) -> str:
    """Return the graph's name of what ONNX Runtime fused: `node/…Fusion/`, or `value_nchwc` for a Conv and its activation."""
    value = name.removesuffix("_nchwc")
    node = topology.producers.get(value) if value != name else None
    while node is not None and node.op_type in _FUSED_BEHIND_CONV:
        node = topology.producers.get(node.input[0])
    return node.name if node is not None else name.partition("/")[0]
