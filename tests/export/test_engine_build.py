"""One engine on the raw API, over the double of TensorRT: order of calls, arguments, and what every failure says."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgebert.errors import (
    BadDataError,
    EdgebertError,
    MemoryExhaustedError,
    RefusedError,
    UnavailableError,
    UsageError,
)
from edgebert.export.engine_build import BuiltPlan, PlanRequest, build_plan, monitor_of
from edgebert.export.engine_cache import TimingCache
from tests.tensorrt.double import VERSIONS
from tests.tensorrt.jetson import ORIN_NANO, REQUEST, Jetson

TENS = tuple(version for version in VERSIONS if version.startswith("10."))
STREAMING = ("10.13.3.9", "10.16.2.10", "11.4.1")


@pytest.fixture
def jetson(monkeypatch: pytest.MonkeyPatch) -> Jetson:
    pytest.importorskip("onnx")
    return Jetson(monkeypatch, "10.3.0", None)


@pytest.fixture
def graph(toy: Any, tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(toy.graph())
    return path


@pytest.fixture
def quantised(toy: Any, tmp_path: Path) -> Path:
    """A graph with a Q and a DQ in front of its linear."""
    onnx = pytest.importorskip("onnx")
    model = onnx.load_from_string(toy.graph())
    helper, constant = onnx.helper, onnx.numpy_helper.from_array
    place = next(at for at, node in enumerate(model.graph.node) if node.op_type == "MatMul")
    model.graph.node[place].input[0] = "dequantised"
    model.graph.node.insert(
        place, helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["dequantised"], axis=1)
    )
    model.graph.node.insert(place, helper.make_node("QuantizeLinear", ["pixels", "scale", "zero"], ["q"], axis=1))
    model.graph.initializer.extend([constant(np.float32(0.05), "scale"), constant(np.int8(0), "zero")])
    path = tmp_path / "int8.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def build(
    jetson: Jetson,
    graph: Path,
    tmp_path: Path,
    *,
    cache: TimingCache | None = None,
    share: Callable[[float, str], bool] = lambda done, phase: True,
    **changes: Any,
) -> BuiltPlan:
    request: PlanRequest = replace(REQUEST, **changes)
    return build_plan(jetson.trt, graph, request, tmp_path / "engine.plan", cache, share)


@pytest.mark.parametrize("version", VERSIONS)
def test_build_goes_the_documented_way(jetson: Jetson, graph: Path, tmp_path: Path, version: str) -> None:
    jetson.update(version)
    cache = TimingCache.of(tmp_path / "cache", ORIN_NANO, version)
    build(jetson, graph, tmp_path, cache=cache)
    streams = version in STREAMING
    assert jetson.script.names() == [
        "Builder",
        "Builder.create_network",
        "OnnxParser",
        "OnnxParser.parse",
        "Builder.create_builder_config",
        "IBuilderConfig.set_memory_pool_limit",
        "IBuilderConfig.builder_optimization_level=",
        "IBuilderConfig.profiling_verbosity=",
        "IBuilderConfig.create_timing_cache",
        "IBuilderConfig.set_timing_cache",
        "IBuilderConfig.progress_monitor=",
        "Builder.create_optimization_profile",
        "IOptimizationProfile.set_shape",
        "IBuilderConfig.add_optimization_profile",
        f"Builder.build_serialized_network{'_to_stream' if streams else ''}",
        "ITimingCache.serialize",
        "del OnnxParser",  # which owns the weights, so not before the build
    ]
    assert (tmp_path / "engine.plan").read_bytes().startswith(b"double of a TensorRT engine")


@pytest.mark.parametrize(
    ("version", "typing", "flags"),
    [*((v, "strong", 2) for v in TENS), *((v, "weak", 0) for v in TENS), (VERSIONS[-1], "strong", 0)],
)
def test_network_flags_are_those_of_the_version(
    jetson: Jetson, graph: Path, tmp_path: Path, version: str, typing: Any, flags: int
) -> None:
    jetson.update(version)
    build(jetson, graph, tmp_path, typing=typing, precision="fp16")
    assert jetson.script.of("Builder.create_network")[0].args == (flags,)


@pytest.mark.parametrize(
    ("typing", "precision", "flags"),
    [
        ("weak", "int8", ("FP16", "INT8")),
        ("weak", "fp16", ("FP16",)),
        ("strong", "int8", ()),
        ("strong", "fp16", ()),
    ],
)
def test_precision_flags_are_for_weakly_typed_networks(
    jetson: Jetson, quantised: Path, tmp_path: Path, typing: Any, precision: Any, flags: tuple[str, ...]
) -> None:
    built = build(jetson, quantised, tmp_path, typing=typing, precision=precision)
    assert tuple(call.args[0] for call in jetson.script.of("IBuilderConfig.set_flag")) == built.flags == flags


@pytest.mark.parametrize("typing", ["strong", "weak"])
def test_an_fp32_engine_has_no_tf32(jetson: Jetson, graph: Path, tmp_path: Path, typing: Any) -> None:
    assert build(jetson, graph, tmp_path, typing=typing, precision="fp32").flags == ("-TF32",)
    assert jetson.script.of("IBuilderConfig.clear_flag")[0].args == ("TF32",)


def test_a_weakly_typed_network_is_refused_where_there_is_none(jetson: Jetson, graph: Path, tmp_path: Path) -> None:
    jetson.update("11.4.1")
    with pytest.raises(UsageError, match=r"`--typing weak`, and TensorRT 11\.4\.1 builds strongly typed networks only"):
        build(jetson, graph, tmp_path, typing="weak")
    assert jetson.script.calls == []


def test_int8_without_scales_is_explained(jetson: Jetson, graph: Path, tmp_path: Path) -> None:
    with pytest.raises(BadDataError, match="no scaling factors") as caught:
        build(jetson, graph, tmp_path, typing="weak", precision="int8")
    assert "edgebert quantize" in str(caught.value.hint)


def test_workspace_and_search_are_as_asked(jetson: Jetson, graph: Path, tmp_path: Path) -> None:
    build(jetson, graph, tmp_path, workspace_bytes=77 << 20, optimization_level=2)
    assert jetson.script.of("IBuilderConfig.set_memory_pool_limit")[0].args == ("WORKSPACE", 77 << 20)
    assert jetson.script.of("IBuilderConfig.builder_optimization_level=")[0].args == (2,)
    assert jetson.script.of("IBuilderConfig.profiling_verbosity=")[0].args == ("DETAILED",)


def test_profile_opens_the_batch_alone(jetson: Jetson, graph: Path, tmp_path: Path) -> None:
    built = build(jetson, graph, tmp_path, min_batch=1, opt_batch=4, max_batch=8)
    shapes = tuple((batch, 6, 8, 3) for batch in (1, 4, 8))
    assert jetson.script.of("IOptimizationProfile.set_shape")[0].args == ("image", *shapes)
    assert (built.min_batch, built.max_batch) == (1, 8)


def test_a_graph_of_one_batch_has_no_profile(jetson: Jetson, toy: Any, graph: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load_from_string(toy.graph())
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    graph.write_bytes(model.SerializeToString())
    assert build(jetson, graph, tmp_path, min_batch=2, opt_batch=2, max_batch=2).max_batch == 2
    assert jetson.script.of("Builder.create_optimization_profile") == []
    with pytest.raises(BadDataError, match="the graph's batch is 2, and 1 to 1"):
        build(jetson, graph, tmp_path)


def test_a_profile_that_tensorrt_does_not_take_is_an_error(jetson: Jetson, graph: Path, tmp_path: Path) -> None:
    jetson.script.refuses_profile = True
    with pytest.raises(EdgebertError, match="Optimization profile is not valid"):
        build(jetson, graph, tmp_path)
    with pytest.raises(BadDataError, match="Shapes must satisfy min <= opt <= max"):
        build(jetson, graph, tmp_path, min_batch=4, opt_batch=2, max_batch=8)


def test_dla_is_used_where_the_builder_reports_it(jetson: Jetson, graph: Path, tmp_path: Path) -> None:
    jetson.script.dla_cores = 2
    built = build(jetson, graph, tmp_path, dla_core=1)
    assert jetson.script.of("IBuilderConfig.default_device_type=")[0].args == ("DLA",)
    assert jetson.script.of("IBuilderConfig.DLA_core=")[0].args == (1,)
    assert built.flags == ("GPU_FALLBACK",)
    assert built.dla_cores == 2


def test_dla_is_refused_where_there_is_none(jetson: Jetson, graph: Path, tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="`--dla-core 0`, and TensorRT reports 0 DLA cores here"):
        build(jetson, graph, tmp_path, dla_core=0)
    assert "Builder.build_serialized_network" not in jetson.script.names()


# Failures


def test_a_builder_without_a_gpu_is_explained(jetson: Jetson, graph: Path, tmp_path: Path) -> None:
    jetson.script.has_gpu = False
    with pytest.raises(UnavailableError, match="factory function returned nullptr") as caught:
        build(jetson, graph, tmp_path)
    assert "driver" in str(caught.value.expected)


def test_what_the_parser_refuses_names_the_node(jetson: Jetson, graph: Path, tmp_path: Path) -> None:
    said = (
        "TensorRT only supports symmetric quantization. The zero point for the QuantizeLinear/DequantizeLinear operator"
    )
    jetson.script.parse_errors = (f"{said} must be all zeros.",)
    with pytest.raises(BadDataError, match=r"node `/block/q`, QuantizeLinear") as caught:
        build(jetson, graph, tmp_path)
    assert "zero points that are all 0" in str(caught.value.expected)


def test_what_the_parser_refuses_has_a_hint_that_compile_knows(jetson: Jetson, graph: Path, tmp_path: Path) -> None:
    graph.write_bytes(b"no graph")
    with pytest.raises(BadDataError) as caught:
        build(jetson, graph, tmp_path)
    assert str(caught.value.hint).startswith("another `--typing`")


def test_bytes_that_are_no_graph_are_bad_data(jetson: Jetson, graph: Path, tmp_path: Path) -> None:
    graph.write_bytes(b"no graph")
    with pytest.raises(BadDataError, match="Failed to parse the ONNX model"):
        build(jetson, graph, tmp_path)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_build_that_gives_nothing_says_what_the_logger_heard(
    jetson: Jetson, graph: Path, tmp_path: Path, version: str
) -> None:
    jetson.update(version)
    jetson.script.build_errors = {
        "strong": (
            "Tactic Device request: 4229MB Available: 2658MB. Device memory is insufficient to use tactic.",
            "Error Code 10: Internal Error (Could not find any implementation for node {ForeignNode[...]}.)",
            "Engine could not be created from network",
        )
    }
    with pytest.raises(MemoryExhaustedError, match="Tactic Device request: 4229MB") as caught:
        build(jetson, graph, tmp_path)
    assert "--workspace-mb" in str(caught.value.hint)


@pytest.mark.parametrize("version", ["10.3.0", "11.4.1"])
def test_a_full_disk_is_an_error_and_not_a_crash(jetson: Jetson, graph: Path, tmp_path: Path, version: str) -> None:
    jetson.update(version)
    with pytest.raises(OSError, match="No space left"):
        build_plan(jetson.trt, graph, REQUEST, Path("/dev/full"), None, lambda done, phase: True)


def test_warnings_are_notes_of_what_was_built(jetson: Jetson, graph: Path, tmp_path: Path) -> None:
    plain = jetson.trt.OnnxParser

    def warning(network: Any, logger: Any) -> Any:
        for _ in range(2):
            logger.log(jetson.trt.ILogger.Severity.WARNING, "an INT64 weight was cast")
        return plain(network, logger)

    jetson.trt.OnnxParser = warning  # type: ignore[attr-defined]  # a module of no type
    assert build(jetson, graph, tmp_path).notes == ("an INT64 weight was cast",)


# Progress


def test_progress_grows_to_the_whole(
    jetson: Jetson, graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgebert.export.engine_build._KEEP_GOING", 0.0)
    seen: list[tuple[float, str]] = []
    build(jetson, graph, tmp_path, share=lambda done, phase: not seen.append((done, phase)))  # type: ignore[func-returns-value]
    shares = [done for done, _ in seen]
    assert shares == sorted(shares)
    assert shares[:2] == [0.1, 0.2]
    assert shares[-1] == 1.0
    assert {phase for _, phase in seen} == {"Reading Network", "Timing Tactics", "Building Engine"}


def test_a_build_that_nobody_waits_for_is_cancelled(
    jetson: Jetson, graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgebert.export.engine_build._KEEP_GOING", 0.0)
    with pytest.raises(EdgebertError, match="the build was cancelled"):
        build(jetson, graph, tmp_path, share=lambda done, phase: False)


def test_monitor_takes_steps_of_phases_it_never_saw(jetson: Jetson) -> None:
    monitor = monitor_of(jetson.trt, lambda done, phase: True)
    assert monitor.step_complete("unheard of", 3)
    monitor.phase_finish("unheard of")
    monitor.phase_start("its own parent", "its own parent", 2)
    assert monitor.step_complete("its own parent", 0)


# The timing cache


def test_times_are_kept_and_used_again(jetson: Jetson, graph: Path, tmp_path: Path) -> None:
    cache = TimingCache.of(tmp_path / "cache", ORIN_NANO, "10.3.0")
    assert build(jetson, graph, tmp_path, cache=cache).timing_cache == "new"
    stored = cache.read()
    assert stored == b"times;10.3.0 8.7 8;1"
    assert build(jetson, graph, tmp_path, cache=cache).timing_cache == "reused"
    assert jetson.script.of("IBuilderConfig.create_timing_cache")[-1].args == (stored,)
    assert jetson.script.of("IBuilderConfig.set_timing_cache")[-1].args == ("10.3.0 8.7 8", False)


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        (b"rubbish", "Timing cache deserialization failed"),
        (b"times;10.3.0 8.7 16;4", "Timing cache was made on another CUDA device"),
    ],
)
def test_times_that_tensorrt_refuses_are_measured_anew(
    jetson: Jetson, graph: Path, tmp_path: Path, stored: bytes, said: str
) -> None:
    cache = TimingCache.of(tmp_path / "cache", ORIN_NANO, "10.3.0")
    cache.write(stored)
    assert said in build(jetson, graph, tmp_path, cache=cache).timing_cache
    assert cache.read() == b"times;10.3.0 8.7 8;1"


def test_an_engine_is_kept_where_its_times_cannot_be(
    jetson: Jetson, graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cache"
    cache = TimingCache.of(folder, ORIN_NANO, "10.3.0")
    folder.rmdir()
    built = build(jetson, graph, tmp_path, cache=cache)
    assert built.notes == ("edgebert could not write the timing cache: No such file or directory",)
    assert (tmp_path / "engine.plan").stat().st_size > 0


def test_no_times_are_kept_where_none_are_wanted(jetson: Jetson, graph: Path, tmp_path: Path) -> None:
    assert build(jetson, graph, tmp_path).timing_cache == "off"
    assert "IBuilderConfig.set_timing_cache" not in jetson.script.names()


def test_a_cache_that_others_may_write_is_refused_before_the_build(jetson: Jetson, graph: Path, tmp_path: Path) -> None:
    cache = TimingCache.of(tmp_path / "cache", ORIN_NANO, "10.3.0")
    cache.write(b"times;10.3.0 8.7 8;1")
    cache.path.chmod(0o666)
    with pytest.raises(RefusedError, match="can be written by others"):
        build(jetson, graph, tmp_path, cache=cache)
    assert "Builder.build_serialized_network" not in jetson.script.names()


def test_logger_says_nothing_by_itself(
    jetson: Jetson, graph: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        build(jetson, graph, tmp_path)
    assert capfd.readouterr() == ("", "")
