"""A recording double of the module `tensorrt`, in plain Python: `tensorrt_double("10.3.0", Script())` is a module to be imported.

Real names and signatures, each version with what it has and lacks (tensorrt_jetson.md, section 2.1) and its own integers; checked
against the official bindings by `tests/tensorrt`. It behaves as the docstrings say: nothing raises on failure, results are None or
False and the reason goes to the logger; a builder without a GPU is a TypeError; unknown attributes are an AttributeError.

Engines really compute: a plan of the double holds the ONNX file, and a context runs it in ONNX Runtime when the stream of the
double of CUDA (`cudart.py`) gets to it, on the memory that it was told. A wrong address, a wrong shape, a forgotten wait or a
context that two threads share shows as a wrong answer or in `Script.faults`.
"""

from __future__ import annotations

import ctypes
import enum
import importlib
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from tests.tensorrt.cudart import CudartDouble

VERSIONS = ("10.3.0", "10.7.0", "10.13.3.9", "10.16.2.10", "11.4.1")

NULLPTR = "pybind11::init(): factory function returned nullptr"
VERSION_TAG = (
    "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (Serialization assertion stdVersionRead == "
    "kSERIALIZATION_VERSION failed.Version tag does not match. Note: Current Version: 237, Serialized Engine Version: 239)"
)
OTHER_DEVICE = "The engine plan file is generated on an incompatible device, expecting compute {here} got compute {there}, please rebuild."
OTHER_MODULE = (
    "Using an engine plan file across different models of devices is not recommended and is likely to affect performance or "
    "even cause errors."
)
NO_PROFILE = "Network has dynamic or shape inputs, but no optimization profile has been defined."
PRECISION_FLAG = "BuilderFlag::k{name} is not compatible with a strongly typed network"
NO_SCALES = "Calibration failure occurred with no scaling factors detected."
STRONG = "Strongly typed network detected"

_MAGIC = b"double of a TensorRT engine\n"


@dataclass
class Call:
    """One call of the API: `Class.method`, with everything it was given; or `Class.name=` of a property, `del Class` of an object."""

    name: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass
class Script:
    """What the double has, what goes wrong in it, and what it saw.

    Attributes:
        cudart: whose streams and memory contexts use; None where nothing is run.
        has_gpu: whether builders and runtimes can be made.
        compute, multiprocessors: of the GPU.
        dla_cores: that builders report.
        parse_errors: descriptions that the parser gives, instead of parsing.
        build_errors: typing -> what a build logs before it gives nothing.
        deserialize_errors: what loading logs before it gives nothing.
        context_errors: what making a context logs before it gives nothing.
        execute_errors: what running logs before it gives False.
        capture_fails: whether a run inside a capture gives False.
        dies: signal that ends the process.
        dies_in: `build` or `run`.
        dies_of: the typing whose engines die in a run, where not all do.
        refuses_profile: whether `add_optimization_profile` gives -1.
        calls: everything that was called, in order.
        faults: what a caller did and must not.
    """

    cudart: CudartDouble | None = None
    has_gpu: bool = True
    compute: str = "8.7"
    multiprocessors: int = 8
    dla_cores: int = 0
    parse_errors: tuple[str, ...] = ()
    build_errors: dict[str, tuple[str, ...]] = field(default_factory=dict)
    deserialize_errors: tuple[str, ...] = ()
    context_errors: tuple[str, ...] = ()
    execute_errors: tuple[str, ...] = ()
    capture_fails: bool = False
    dies: int = 0
    dies_in: str = "build"
    dies_of: str = ""
    refuses_profile: bool = False
    calls: list[Call] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def names(self) -> list[str]:
        """Return the names of the calls, in order."""
        return [call.name for call in self.calls]

    def of(self, name: str) -> list[Call]:
        """Return the calls of one name."""
        return [call for call in self.calls if call.name == name]

    def note(self, name: str, *args: Any, **kwargs: Any) -> None:
        """Write a call down."""
        self.calls.append(Call(name, args, kwargs))


class _Enum(enum.Enum):
    """As pybind11 makes them: members turn into an integer only where they are asked to."""

    def __int__(self) -> int:
        return int(self.value)


def _enum(name: str, members: dict[str, int]) -> Any:
    return _Enum(name, members)  # type: ignore[call-arg]  # the functional form, with names from a table


# Name -> 10.x integer, 11.x integer or None. Only what edgebert could meet; the real enumerations have more.
_BUILDER_FLAGS: dict[str, tuple[int, int | None]] = {
    "FP16": (0, None),
    "INT8": (1, None),
    "DEBUG": (2, 2),
    "GPU_FALLBACK": (3, 3),
    "REFIT": (4, 4),
    "DISABLE_TIMING_CACHE": (5, 5),
    "TF32": (6, 6),
    "VERSION_COMPATIBLE": (13, 12),
    "EXCLUDE_LEAN_RUNTIME": (14, 13),
    "ERROR_ON_TIMING_CACHE_MISS": (16, 15),
    "BF16": (17, None),
    "STRIP_PLAN": (19, 18),
    "WEIGHT_STREAMING": (21, 20),
}
_BUILDER_FLAGS_10_13: dict[str, tuple[int, int | None]] = {"EDITABLE_TIMING_CACHE": (27, 26)}
_PRECISION_FLAGS = ("FP16", "INT8", "BF16")


def tensorrt_double(version: str, script: Script) -> ModuleType:
    """Return a module that does as TensorRT of this version."""
    release = tuple(int(part) for part in version.split("."))
    trt: Any = ModuleType("tensorrt")
    trt.__version__ = version
    _add_enums(trt, release)
    _add_callbacks(trt, release)
    _add_builder(trt, release, script)
    _add_runtime(trt, version, script)
    module: ModuleType = trt
    return module


def _add_enums(trt: Any, release: tuple[int, ...]) -> None:
    is_11 = release >= (11,)
    typed = {"STRONGLY_TYPED": 0} if is_11 else {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1}
    trt.NetworkDefinitionCreationFlag = _enum("NetworkDefinitionCreationFlag", typed)
    flags = {**_BUILDER_FLAGS, **(_BUILDER_FLAGS_10_13 if release >= (10, 13) else {})}
    numbers = {name: of_11 if is_11 else of_10 for name, (of_10, of_11) in flags.items()}
    trt.BuilderFlag = _enum("BuilderFlag", {name: number for name, number in numbers.items() if number is not None})
    pools = (
        "WORKSPACE",
        "DLA_MANAGED_SRAM",
        "DLA_LOCAL_DRAM",
        "DLA_GLOBAL_DRAM",
        "TACTIC_DRAM",
        "TACTIC_SHARED_MEMORY",
    )
    trt.MemoryPoolType = _enum("MemoryPoolType", {name: place for place, name in enumerate(pools)})
    trt.ProfilingVerbosity = _enum("ProfilingVerbosity", {"LAYER_NAMES_ONLY": 0, "NONE": 1, "DETAILED": 2})
    trt.TensorIOMode = _enum("TensorIOMode", {"NONE": 0, "INPUT": 1, "OUTPUT": 2})
    trt.DeviceType = _enum("DeviceType", {"GPU": 0, "DLA": 1})
    types: tuple[str, ...] = ("FLOAT", "HALF", "INT8", "INT32", "BOOL", "UINT8", "FP8", "BF16", "INT64", "INT4")
    types = (*types, "FP4", "E8M0") if release >= (10, 13) else types
    trt.DataType = _enum("DataType", {name: place for place, name in enumerate(types)})


def _add_callbacks(trt: Any, release: tuple[int, ...]) -> None:
    """Add the classes that a program derives its own from."""
    severities = ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")
    severity = _enum("Severity", {name: place for place, name in enumerate(severities)})

    class ILogger:
        Severity = severity

        def __init__(self) -> None:
            self._is_made = True

        def log(self, severity: Any, msg: str) -> None:
            raise RuntimeError('Tried to call pure virtual function "ILogger::log"')

    for name in severities:
        setattr(ILogger, name, severity[name])

    class IProgressMonitor:
        def __init__(self) -> None:
            self._is_made = True

        def phase_start(self, phase_name: str, parent_phase: str, num_steps: int) -> None: ...

        def step_complete(self, phase_name: str, step: int) -> bool:
            return True

        def phase_finish(self, phase_name: str) -> None: ...

    trt.ILogger, trt.IProgressMonitor = ILogger, IProgressMonitor
    if release >= (10, 13):

        class IStreamWriter:
            def __init__(self) -> None:
                self._is_made = True

            def write(self, data: Any, size: int) -> int:  # as bound; a program's own has `data` alone
                return 0

        trt.IStreamWriter = IStreamWriter


def _is_made(item: Any) -> None:
    """Refuse an object of a derived class that left the constructor of its base out, as the bindings do."""
    if not getattr(item, "_is_made", False):
        raise TypeError(f"{type(item).__name__}.__init__() must be called when overriding __init__")


def _say(trt: Any, logger: Any, severity: str, text: str) -> None:
    logger.log(trt.ILogger.Severity[severity], text)


class _Dims(Sequence[int]):
    """A shape that is neither a tuple nor a list."""

    def __init__(self, shape: Sequence[int]) -> None:
        self._shape = tuple(shape)

    def __len__(self) -> int:
        return len(self._shape)

    def __getitem__(self, place: Any) -> Any:
        return self._shape[place]


class _HostMemory(bytearray):
    """Bytes of TensorRT's; a buffer, with a size of its own name."""

    @property
    def nbytes(self) -> int:
        return len(self)


def _add_builder(trt: Any, release: tuple[int, ...], script: Script) -> None:
    is_11 = release >= (11,)

    class ITensor:
        __slots__ = ("dtype", "name", "shape")

        def __init__(self, name: str, shape: Sequence[int], dtype: Any) -> None:
            self.name, self.shape, self.dtype = name, _Dims(shape), dtype

    class INetworkDefinition:
        __slots__ = ("_content", "_inputs", "_logger", "_outputs", "_strong")

        def __init__(self, logger: Any, strong: bool) -> None:
            self._logger, self._strong, self._content = logger, strong, b""
            self._inputs: list[ITensor] = []
            self._outputs: list[ITensor] = []

        @property
        def num_inputs(self) -> int:
            return len(self._inputs)

        @property
        def num_outputs(self) -> int:
            return len(self._outputs)

        def get_input(self, index: int) -> ITensor:
            return self._inputs[index]

        def get_output(self, index: int) -> ITensor:
            return self._outputs[index]

    class IOptimizationProfile:
        __slots__ = ("_shapes",)

        def __init__(self) -> None:
            self._shapes: dict[str, tuple[tuple[int, ...], ...]] = {}

        def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
            script.note("IOptimizationProfile.set_shape", input, min, opt, max)
            shapes = tuple(tuple(shape) for shape in (min, opt, max))
            if not all(a <= b <= c for a, b, c in zip(*shapes, strict=True)):
                raise ValueError(f"Shapes must satisfy min <= opt <= max, not {shapes}")
            self._shapes[input] = shapes

    class ITimingCache:
        __slots__ = ("_entries", "_made_on")

        def __init__(self, made_on: str, entries: int) -> None:
            self._made_on, self._entries = made_on, entries

        def serialize(self) -> _HostMemory:
            script.note("ITimingCache.serialize")
            return _HostMemory(f"times;{self._made_on};{self._entries}".encode())

        def combine(self, input_cache: ITimingCache, ignore_mismatch: bool) -> bool:
            self._entries += input_cache._entries
            return True

    here = f"{trt.__version__} {script.compute} {script.multiprocessors}"

    class IBuilderConfig:
        __slots__ = ("_cache", "_flags", "_logger", "_pools", "_profiles", "_values")

        def __init__(self, logger: Any) -> None:
            self._logger = logger
            self._flags = {"TF32"}
            self._pools: dict[str, int] = {}
            self._profiles: list[Any] = []
            self._cache: ITimingCache | None = None
            self._values: dict[str, Any] = {}

        def set_flag(self, flag: Any) -> None:
            script.note("IBuilderConfig.set_flag", flag.name)
            self._flags.add(trt.BuilderFlag(flag.value).name)

        def clear_flag(self, flag: Any) -> None:
            script.note("IBuilderConfig.clear_flag", flag.name)
            self._flags.discard(flag.name)

        def get_flag(self, flag: Any) -> bool:
            return flag.name in self._flags

        def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
            if type(pool_size) is not int:
                raise TypeError("set_memory_pool_limit(): incompatible function arguments.")
            script.note("IBuilderConfig.set_memory_pool_limit", pool.name, pool_size)
            self._pools[pool.name] = pool_size

        def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
            script.note("IBuilderConfig.add_optimization_profile")
            if script.refuses_profile or not profile._shapes:
                _say(trt, self._logger, "ERROR", "Optimization profile is not valid.")
                return -1
            self._profiles.append(profile)
            return len(self._profiles) - 1

        def create_timing_cache(self, serialized_timing_cache: Any) -> ITimingCache | None:
            content = bytes(serialized_timing_cache)
            script.note("IBuilderConfig.create_timing_cache", content)
            if not content:
                return ITimingCache(here, 0)
            parts = content.decode("latin-1").split(";")
            if len(parts) != 3 or parts[0] != "times":
                _say(trt, self._logger, "ERROR", "Timing cache deserialization failed.")
                return None
            return ITimingCache(parts[1], int(parts[2]))

        def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
            script.note("IBuilderConfig.set_timing_cache", cache._made_on, ignore_mismatch)
            if cache._made_on != here and not ignore_mismatch:
                _say(trt, self._logger, "ERROR", "Timing cache was made on another CUDA device.")
                return False
            self._cache = cache
            return True

    defaults = {
        "builder_optimization_level": 3,
        "profiling_verbosity": trt.ProfilingVerbosity.LAYER_NAMES_ONLY,
        "progress_monitor": None,
        "DLA_core": -1,
        "default_device_type": trt.DeviceType.GPU,
    }
    for name, default in defaults.items():
        setattr(IBuilderConfig, name, _recorded_property(script, name, default))

    class Builder:
        __slots__ = ("_logger",)

        def __init__(self, logger: Any) -> None:
            _is_made(logger)
            script.note("Builder", logger)
            if not script.has_gpu:
                raise TypeError(NULLPTR)
            self._logger = logger

        @property
        def num_DLA_cores(self) -> int:
            return script.dla_cores

        def create_network(self, flags: int = 0) -> INetworkDefinition | None:
            script.note("Builder.create_network", flags)
            bit = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
            strong = is_11 or bool(flags & bit)
            if strong:
                _say(trt, self._logger, "INFO", STRONG)
            return INetworkDefinition(self._logger, strong)

        def create_builder_config(self) -> IBuilderConfig:
            script.note("Builder.create_builder_config")
            return IBuilderConfig(self._logger)

        def create_optimization_profile(self) -> IOptimizationProfile:
            script.note("Builder.create_optimization_profile")
            return IOptimizationProfile()

        def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> _HostMemory | None:
            script.note("Builder.build_serialized_network")
            plan = self._plan(network, config)
            return None if plan is None else _HostMemory(plan)

        def _plan(self, network: INetworkDefinition, config: Any) -> bytes | None:
            if script.dies and script.dies_in == "build":
                os.kill(os.getpid(), script.dies)
            typing = "strong" if network._strong else "weak"
            errors = [*script.build_errors.get(typing, ()), *_build_errors(trt, network, config)]
            if not errors and not _search(trt, config.progress_monitor):
                errors = ["Error Code 10: Internal Error (the build was cancelled)"]
            if errors:
                for text in errors:
                    _say(trt, self._logger, "ERROR", text)
                return None
            if config._cache is not None:
                config._cache._entries += 1
            return _serialized(trt, network, config, script)

    trt.Builder, trt.IBuilderConfig, trt.INetworkDefinition, trt.ITensor = (
        Builder,
        IBuilderConfig,
        INetworkDefinition,
        ITensor,
    )
    trt.IOptimizationProfile, trt.ITimingCache, trt.IHostMemory, trt.Dims = (
        IOptimizationProfile,
        ITimingCache,
        _HostMemory,
        _Dims,
    )
    if release >= (10, 13):

        def build_serialized_network_to_stream(self: Any, network: Any, config: Any, writer: Any) -> bool:
            _is_made(writer)
            script.note("Builder.build_serialized_network_to_stream")
            plan = self._plan(network, config)
            if plan is None:
                return False
            half = len(plan) // 2
            return all(writer.write(part) == len(part) for part in (plan[:half], plan[half:]))

        Builder.build_serialized_network_to_stream = build_serialized_network_to_stream  # type: ignore[attr-defined]
    _add_parser(trt, script)


def _recorded_property(script: Script, name: str, default: Any) -> property:
    def read(config: Any) -> Any:
        return config._values.get(name, default)

    def write(config: Any, value: Any) -> None:
        script.note(f"IBuilderConfig.{name}=", getattr(value, "name", value))
        if name == "progress_monitor":
            _is_made(value)
        config._values[name] = value

    return property(read, write)


def _add_parser(trt: Any, script: Script) -> None:
    class ParserError:
        __slots__ = ("_desc", "_node", "_operator")

        def __init__(self, desc: str, node: str = "", operator: str = "") -> None:
            self._desc, self._node, self._operator = desc, node, operator

        def desc(self) -> str:
            return self._desc

        def node_name(self) -> str:
            return self._node

        def node_operator(self) -> str:
            return self._operator

    class OnnxParser:
        __slots__ = ("_errors", "_network")

        def __init__(self, network: Any, logger: Any) -> None:
            _is_made(logger)
            script.note("OnnxParser", logger)
            self._network = network
            self._errors: list[ParserError] = []

        def parse(self, model: Any, path: str | None = None) -> bool:
            content = bytes(model)
            script.note("OnnxParser.parse", len(content), path)
            if script.parse_errors:
                self._errors = [ParserError(desc, "/block/q", "QuantizeLinear") for desc in script.parse_errors]
                return False
            interface = _interface(content)
            if interface is None:
                self._errors = [ParserError("Failed to parse the ONNX model.")]
                return False
            self._network._content = content
            for tensors, entries in zip((self._network._inputs, self._network._outputs), interface, strict=True):
                tensors += [trt.ITensor(name, shape, trt.DataType[kind]) for name, shape, kind in entries]
            return True

        @property
        def num_errors(self) -> int:
            return len(self._errors)

        def get_error(self, index: int) -> ParserError:
            return self._errors[index]

        def __del__(self) -> None:
            script.note("del OnnxParser")

    trt.OnnxParser, trt.ParserError = OnnxParser, ParserError


_Port = tuple[str, tuple[int, ...], str]


def _interface(content: bytes) -> tuple[list[_Port], list[_Port]] | None:
    """Return name, shape and type of an ONNX file's inputs and outputs; None where it is none."""
    import onnx

    decode_error: type[Exception] = importlib.import_module("google.protobuf.message").DecodeError  # it has no types
    try:
        graph = onnx.load_from_string(content).graph
    except decode_error:
        return None
    if not graph.input:
        return None
    names = {onnx.TensorProto.UINT8: "UINT8", onnx.TensorProto.FLOAT: "FLOAT", onnx.TensorProto.FLOAT16: "HALF"}

    def port(value: Any) -> _Port:
        kind = value.type.tensor_type
        shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in kind.shape.dim)
        return value.name, shape, names[kind.elem_type]

    return [port(value) for value in graph.input], [port(value) for value in graph.output]


def _build_errors(trt: Any, network: Any, config: Any) -> Iterator[str]:
    """Yield what a build would refuse."""
    if "WORKSPACE" not in config._pools:
        yield "the workspace was left at all of the device's memory"  # no text of TensorRT's: a fault of the caller's
    if network._strong:
        yield from (PRECISION_FLAG.format(name=name) for name in _PRECISION_FLAGS if name in config._flags)
    elif "INT8" in config._flags and b"DequantizeLinear" not in network._content:
        yield NO_SCALES
    dynamic = any(-1 in tuple(tensor.shape) for tensor in network._inputs)
    if dynamic and not config._profiles:
        yield NO_PROFILE
    if config.default_device_type is trt.DeviceType.DLA and "GPU_FALLBACK" not in config._flags:
        yield "DLA cannot run this layer"


def _search(trt: Any, monitor: Any) -> bool:
    """Go through the phases of a build; False where the monitor stops it."""
    if monitor is None:
        return True
    monitor.phase_start("Building Engine", None, 2)
    goes_on = True
    for step, phase in enumerate(("Reading Network", "Timing Tactics")):
        monitor.phase_start(phase, "Building Engine", 5)
        for inner in range(5):
            goes_on = goes_on and monitor.step_complete(phase, inner)
        monitor.phase_finish(phase)
        goes_on = goes_on and monitor.step_complete("Building Engine", step)
    monitor.phase_finish("Building Engine")
    return goes_on


def _serialized(trt: Any, network: Any, config: Any, script: Script) -> bytes:
    image, logits = network._inputs[0], network._outputs[0]
    profile = config._profiles[0]._shapes[image.name] if config._profiles else None
    header = {
        "tensorrt": trt.__version__,
        "compute": script.compute,
        "multiprocessors": script.multiprocessors,
        "image": [image.name, tuple(image.shape), image.dtype.name],
        "logits": [logits.name, tuple(logits.shape), logits.dtype.name],
        "profile": profile,
        "typing": "strong" if network._strong else "weak",
    }
    content: bytes = network._content
    return _MAGIC + json.dumps(header).encode() + b"\n" + content


def _add_runtime(trt: Any, version: str, script: Script) -> None:
    class Runtime:
        __slots__ = ("_logger", "engine_host_code_allowed")

        def __init__(self, logger: Any) -> None:
            _is_made(logger)
            script.note("Runtime", logger)
            if not script.has_gpu:
                raise TypeError(NULLPTR)
            self._logger = logger
            self.engine_host_code_allowed = False

        def deserialize_cuda_engine(self, serialized_engine: Any) -> Any:
            script.note("Runtime.deserialize_cuda_engine", len(serialized_engine))
            if self.engine_host_code_allowed:
                script.faults.append("host code of engines was allowed")
            content = bytes(serialized_engine)
            errors = list(script.deserialize_errors)
            if not errors and not content.startswith(_MAGIC):
                errors = ["IRuntime::deserializeCudaEngine: Error Code 1: Serialization (Magic tag does not match)"]
            header: dict[str, Any] = {}
            if not errors:
                line, _, graph = content[len(_MAGIC) :].partition(b"\n")
                header = json.loads(line)
                if header["tensorrt"] != version:
                    errors = [VERSION_TAG]
                elif header["compute"] != script.compute:
                    errors = [OTHER_DEVICE.format(here=script.compute, there=header["compute"])]
            if errors:
                for text in errors:
                    _say(trt, self._logger, "ERROR", text)
                return None
            if header["multiprocessors"] != script.multiprocessors:
                _say(trt, self._logger, "WARNING", OTHER_MODULE)
            return ICudaEngine(self, header, graph)

        def __del__(self) -> None:
            script.note("del Runtime")

    class ICudaEngine:
        __slots__ = ("_header", "_logger", "_ports", "_run", "_runtime")

        def __init__(self, runtime: Runtime, header: dict[str, Any], graph: bytes) -> None:
            self._runtime, self._logger, self._header = runtime, runtime._logger, header
            self._ports: dict[str, Any] = {port[0]: port for port in (header["image"], header["logits"])}
            self._run = _computing(graph, header["image"][0])

        @property
        def num_io_tensors(self) -> int:
            return len(self._ports)

        def get_tensor_name(self, index: int) -> str:
            return list(self._ports)[index]

        def get_tensor_mode(self, name: str) -> Any:
            return trt.TensorIOMode.INPUT if name == self._header["image"][0] else trt.TensorIOMode.OUTPUT

        def get_tensor_dtype(self, name: str) -> Any:
            return trt.DataType[self._ports[name][2]]

        def get_tensor_shape(self, name: str) -> _Dims:
            return _Dims(self._ports[name][1])

        def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[_Dims]:
            return [_Dims(shape) for shape in self._header["profile"]]

        def create_execution_context(self) -> Any:
            script.note("ICudaEngine.create_execution_context")
            for text in script.context_errors:
                _say(trt, self._logger, "ERROR", text)
            return None if script.context_errors else IExecutionContext(self)

        def __del__(self) -> None:
            script.note("del ICudaEngine")

    class IExecutionContext:
        __slots__ = ("_addresses", "_captured", "_engine", "_queued_by", "_shape", "_warm")

        def __init__(self, engine: ICudaEngine) -> None:
            self._engine = engine
            self._addresses: dict[str, int] = {}
            declared = tuple(engine._header["image"][1])
            self._shape: tuple[int, ...] | None = None if -1 in declared else declared
            self._warm = self._captured = False
            self._queued_by = [0]  # a thread whose work waits, 0 for none

        def set_input_shape(self, name: str, shape: Any) -> bool:
            script.note("IExecutionContext.set_input_shape", name, tuple(shape))
            self._change()
            header = self._engine._header
            low, _, high = header["profile"] or (header["image"][1],) * 3
            if not all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True)):
                _say(trt, self._engine._logger, "ERROR", "Supplied runtime dimension is outside of the profile.")
                return False
            self._shape = tuple(shape)
            return True

        def set_tensor_address(self, name: str, memory: int) -> bool:
            script.note("IExecutionContext.set_tensor_address", name, memory)
            self._change()
            if type(memory) is not int:
                raise TypeError("set_tensor_address(): incompatible function arguments.")
            if name not in self._engine._ports:
                return False
            self._addresses[name] = memory
            return True

        def get_tensor_shape(self, name: str) -> _Dims:
            shape = self._engine._ports[name][1]
            return _Dims((-1 if self._shape is None else self._shape[0], *shape[1:]))

        def infer_shapes(self) -> list[str]:
            return [] if self._shape is not None else [self._engine._header["image"][0]]

        def execute_async_v3(self, stream_handle: int) -> bool:
            if (
                script.dies
                and script.dies_in == "run"
                and self._engine._header["typing"] in (script.dies_of or "weak strong")
            ):
                os.kill(os.getpid(), script.dies)
            cudart = script.cudart
            assert cudart is not None
            capturing = cudart.is_capturing(stream_handle)
            script.note("IExecutionContext.execute_async_v3", capturing)
            errors = list(script.execute_errors)
            if capturing and (script.capture_fails or not self._warm):
                errors.append("operation not permitted when stream is capturing")
            image, logits = (self._engine._header[key] for key in ("image", "logits"))
            if self._shape is None or {image[0], logits[0]} != set(self._addresses):
                errors.append("an input shape or a tensor address was not set")
            if errors:
                for text in errors:
                    _say(trt, self._engine._logger, "ERROR", text)
                return False
            if self._queued_by[0] not in (0, threading.get_ident()):
                script.faults.append("two threads use one context")
            self._queued_by[0] = 0 if capturing else threading.get_ident()
            assert self._shape is not None
            shape = self._shape
            sizes = int(np.prod(shape)), 4 * shape[0] * logits[1][1]
            source, target = (
                cudart.host_address(self._addresses[port[0]], size)
                for port, size in zip((image, logits), sizes, strict=True)
            )
            if source is None or target is None:
                script.faults.append("a tensor lies where no kernel can reach it, or not all of it")
                return False
            self._warm, self._captured = True, self._captured or capturing
            cudart.launch(stream_handle, self._kernel(source, target, shape))
            return True

        def _kernel(self, source: int, target: int, shape: tuple[int, ...]) -> Callable[[], None]:
            run, queued_by = (
                self._engine._run,
                self._queued_by,
            )  # not the context itself, which would live as long as the work

            def work() -> None:
                pixels = np.frombuffer(ctypes.string_at(source, int(np.prod(shape))), np.uint8).reshape(shape)
                answer = run(pixels).tobytes()
                ctypes.memmove(target, answer, len(answer))
                queued_by[0] = 0

            return work

        def _change(self) -> None:
            if self._captured:
                script.faults.append("a context was changed after its work was captured")

        def __del__(self) -> None:
            script.note("del IExecutionContext")

    trt.Runtime, trt.ICudaEngine, trt.IExecutionContext = Runtime, ICudaEngine, IExecutionContext


def _computing(graph: bytes, image: str) -> Callable[[Any], Any]:
    """Return the function of an ONNX file: uint8 (batch, height, width, 3) -> float32 (batch, classes)."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph, settings, providers=["CPUExecutionProvider"])
    return lambda pixels: session.run(None, {image: pixels})[0]


def script_from_environment() -> Script:
    """Return the script of a child process: `EDGEBERT_TEST_TENSORRT` holds its fields as JSON, `cudart` as the library's path."""
    given = json.loads(os.environ.get("EDGEBERT_TEST_TENSORRT", "{}"))
    dies = given.pop("dies", "")
    given.pop("version", None)
    library = given.pop("cudart", "") or os.environ.get("EDGEBERT_TEST_CUDART")
    cudart = CudartDouble(Path(library)) if library else None
    return Script(dies=getattr(signal, dies) if dies else 0, cudart=cudart, **given)
