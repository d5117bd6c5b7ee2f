"""One TensorRT engine from one ONNX file, on the raw API; runs on the device, in the child process of `edgebert.export.engine_child`.

The order is the same for TensorRT 10.3 to 11.4 (tensorrt_jetson.md, 2.3): logger, builder, network, parser, parse, config, limits,
flags, timing cache, monitor, profile, build. Nothing there raises on failure, so every result is looked at, and what the logger and
the parser said is in the error. What TensorRT calls back (logger, monitor, writer) never raises: C++ could not catch it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import IO, TYPE_CHECKING, Any, NoReturn

from edgebert._json import Fields, JsonObject
from edgebert.errors import BadDataError, CannotWriteError, UnavailableError, UsageError
from edgebert.export.engine_cache import TimingCache
from edgebert.runtime.engine_manifest import EnginePrecision
from edgebert.runtime.tensorrt_api import Log, Typing, logger_of, network_flags, new_builder, recorded
from edgebert.runtime.tensorrt_errors import error_from_texts

if TYPE_CHECKING:
    import tensorrt  # type: ignore[import-not-found, unused-ignore]  # the bindings have no types; tests/tensorrt makes some

Share = Callable[[float, str], bool]  # done so far in [0, 1], name of the phase -> whether to go on

MAX_OPTIMIZATION_LEVEL = 5
_FAILED = "the engine could not be built"
_KEEP_GOING = 0.2  # seconds between two looks at the progress


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """How one engine is built.

    Attributes:
        typing: `strong`: the graph alone decides about precision; `weak`: TensorRT chooses within `precision`.
        precision: of the fastest kernels. Of a strongly typed network it only says what the graph holds.
        workspace_bytes: most that one layer may use beside its tensors.
        optimization_level: 0 to 5; more is a longer search.
        dla_core: build for this DLA core, with the GPU for what it cannot do; None for the GPU alone.
        min_batch, opt_batch, max_batch: of the one profile.
    """

    typing: Typing
    precision: EnginePrecision
    workspace_bytes: int
    optimization_level: int
    dla_core: int | None
    min_batch: int
    opt_batch: int
    max_batch: int

    def to_json(self) -> JsonObject:
        """Return the fields as a JSON object."""
        return asdict(self)

    @classmethod
    def from_fields(cls, given: Fields) -> PlanRequest:
        """Read what `to_json` wrote in the parent process."""
        values: dict[str, Any] = {each.name: given.value.get(each.name) for each in fields(cls)}
        return cls(**values)


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltPlan:
    """What a build did, besides the file.

    Attributes:
        flags: names of the builder's flags that were set; `-NAME` of one that was cleared.
        min_batch, max_batch: that the engine takes.
        seconds: of TensorRT's own search.
        timing_cache: `new`, `reused`, `off`, or why the stored one was not taken.
        dla_cores: that the builder reports.
        notes: warnings of TensorRT's, the first few.
    """

    flags: tuple[str, ...]
    min_batch: int
    max_batch: int
    seconds: float
    timing_cache: str
    dla_cores: int
    notes: tuple[str, ...] = ()


def build_plan(
    trt: ModuleType, graph: Path, request: PlanRequest, plan: Path, cache: TimingCache | None, share: Share
) -> BuiltPlan:
    """Build an engine and write it to `plan`, which holds nothing complete on any error.

    Args:
        trt: TensorRT, as `load_tensorrt` gives it.
        graph: the ONNX file.
        request: how.
        plan: the file to write.
        cache: times of kernels measured before, of this device and this TensorRT; None for none.
        share: told of the progress.

    Raises:
        UnavailableError: no driver or no GPU, or fewer DLA cores than asked for.
        UsageError: a weakly typed network of a TensorRT that builds none.
        BadDataError: the parser refuses the graph, or it has other inputs than edgebert's.
        MemoryExhaustedError: TensorRT says that memory ran out.
        EdgebertError: anything else that TensorRT refuses, in its own words.
    """
    logger = logger_of(trt)
    flags_of_network = network_flags(trt, request.typing)
    with recorded(logger) as log:
        builder = new_builder(trt, logger)
        network: tensorrt.INetworkDefinition | None = builder.create_network(flags_of_network)
        if network is None:
            _fail(log)
        # The parser owns the weights that the network refers to, so it lives until the end; the file's bytes do not.
        parser = parsed(trt, network, logger, graph, log)
        config = builder.create_builder_config()
        if config is None:
            _fail(log)
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace_bytes)
        config.builder_optimization_level = request.optimization_level
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        flags = (*_precision_flags(trt, config, request), *_dla_flags(trt, builder, config, request))
        timing, state = _timing_cache(config, cache, log)
        monitor = monitor_of(trt, share)
        config.progress_monitor = monitor
        batches = _profile(builder, network, config, request, log)
        started = time.monotonic()
        _write_plan(trt, builder, network, config, plan, log)
        seconds = time.monotonic() - started
        warnings = [line.text for line in log.lines if line.severity == "WARNING"]
        warnings += _kept_times(cache, timing)
        del parser, monitor  # not before: TensorRT refers to both without holding them
        return BuiltPlan(
            flags=flags,
            min_batch=batches[0],
            max_batch=batches[1],
            seconds=seconds,
            timing_cache=state,
            dla_cores=builder.num_DLA_cores,
            notes=tuple(dict.fromkeys(warnings))[:5],
        )


def monitor_of(trt: ModuleType, share: Share) -> tensorrt.IProgressMonitor:
    """Return a monitor that tells `share` how much of the nested phases is done; it stops the build when that says so."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined, unused-ignore]  # its base is not known before
        """Adds up phases; TensorRT may call it from several threads."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._phases = _Phases(share)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._phases.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return self._phases.step(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            self._phases.finish(phase_name)

    return Monitor()


class _Phases:
    """The running phases of a build, and how much of the whole they make."""

    def __init__(self, share: Share) -> None:
        self._share = share
        self._lock = threading.Lock()
        self._running: dict[str, tuple[str | None, int, int]] = {}  # name -> parent, steps, done
        self._most = 0.0
        self._looked = 0.0
        self._goes_on = True

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """Note a phase that begins."""
        with self._lock:
            self._running[name] = (parent, max(steps, 1), 0)

    def step(self, name: str, step: int) -> bool:
        """Note a step that is done; say whether the build goes on."""
        with self._lock:
            if name in self._running:
                parent, steps, _ = self._running[name]
                self._running[name] = (parent, steps, min(step + 1, steps))
            self._most = max(self._most, self._done())
            now = time.monotonic()
            if now - self._looked >= _KEEP_GOING:
                self._looked = now
                self._goes_on = self._share(self._most, name)
            return self._goes_on

    def finish(self, name: str) -> None:
        """Note a phase that has ended."""
        with self._lock:
            self._running.pop(name, None)

    def _done(self) -> float:
        roots = [name for name, (parent, _, _) in self._running.items() if parent not in self._running]
        return max((self._part(name, 0) for name in roots), default=0.0)

    def _part(self, name: str, depth: int) -> float:
        _, steps, done = self._running[name]
        inside = [child for child, (parent, _, _) in self._running.items() if parent == name and child != name]
        current = max((self._part(child, depth + 1) for child in inside), default=0.0) if depth < 16 else 0.0
        return min(1.0, (done + current) / steps)


def parsed(
    trt: ModuleType, network: tensorrt.INetworkDefinition, logger: Any, graph: Path, log: Log
) -> tensorrt.OnnxParser:
    """Parse a graph into a network and return the parser, which owns weights that the network refers to.

    Raises:
        BadDataError: the parser refuses the graph, in its own words.
    """
    parser: tensorrt.OnnxParser = trt.OnnxParser(network, logger)
    if parser.parse(graph.read_bytes()):
        return parser
    said = []
    for place in range(parser.num_errors):
        error = parser.get_error(place)
        node = f" (node `{error.node_name()}`, {error.node_operator()})" if error.node_name() else ""
        said.append(f"{error.desc()}{node}")
    found = error_from_texts(said or log.errors(), doing="TensorRT's parser refuses the graph")
    raise BadDataError(
        found.what,
        expected=found.expected or "operators and types that this TensorRT imports",
        hint=found.hint
        or "another `--typing`; or export and quantize the graph again with this edgebert, which keeps to the parser's rules",
    )


def _precision_flags(trt: ModuleType, config: tensorrt.IBuilderConfig, request: PlanRequest) -> tuple[str, ...]:
    """Set what a weakly typed network may use; a strongly typed one takes no such flag. An FP32 engine is one without TF32."""
    if request.precision == "fp32":
        config.clear_flag(trt.BuilderFlag.TF32)
        return ("-TF32",)
    if request.typing == "strong":
        return ()
    fp16, int8 = getattr(trt.BuilderFlag, "FP16", None), getattr(trt.BuilderFlag, "INT8", None)
    if fp16 is None or int8 is None:  # 11, which `network_flags` has refused already
        raise UsageError("this TensorRT has no precision flags", expected="a strongly typed network")
    config.set_flag(fp16)
    if request.precision == "fp16":
        return ("FP16",)
    config.set_flag(int8)  # without a calibrator: the scales are the graph's Q and DQ
    return ("FP16", "INT8")


def _dla_flags(
    trt: ModuleType, builder: tensorrt.Builder, config: tensorrt.IBuilderConfig, request: PlanRequest
) -> tuple[str, ...]:
    """Let a DLA core do what it can, where one was asked for and the builder reports it."""
    if request.dla_core is None:
        return ()
    if request.dla_core >= builder.num_DLA_cores:
        raise UnavailableError(
            f"`--dla-core {request.dla_core}`, and TensorRT reports {builder.num_DLA_cores} DLA cores here",
            expected="an Orin NX or AGX with TensorRT 10.3, or an AGX Orin with 11.4.1; there is none on Orin Nano and Thor",
            hint="leave `--dla-core` out",
        )
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = request.dla_core
    config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
    return ("GPU_FALLBACK",)


def _timing_cache(
    config: tensorrt.IBuilderConfig, cache: TimingCache | None, log: Log
) -> tuple[tensorrt.ITimingCache | None, str]:
    """Attach the stored times, or an empty cache where they cannot be used; return it and what became of them."""
    if cache is None:
        return None, "off"
    stored = cache.read()
    if stored:
        timing = config.create_timing_cache(stored)
        if timing is not None and config.set_timing_cache(timing, False):
            return timing, "reused"
    said = " ".join(log.errors()[-1:])
    timing = config.create_timing_cache(b"")
    if timing is None or not config.set_timing_cache(timing, False):
        _fail(log)
    if not stored:
        return timing, "new"
    log.lines.clear()  # the refusal is no fault of the build that follows
    return timing, f"new: the stored one was refused ({said or 'no reason given'})"


def _kept_times(cache: TimingCache | None, timing: tensorrt.ITimingCache | None) -> list[str]:
    """Store what was measured; an engine that is built is not given up for a cache that cannot be written."""
    if cache is None or timing is None:
        return []
    serialized = timing.serialize()
    if serialized is None:
        return ["TensorRT gave no timing cache"]
    try:
        cache.write(bytes(serialized))
    except CannotWriteError as error:
        cause = error.__cause__  # without the path: notes go into the bundle, which others read
        return [
            f"edgebert could not write the timing cache: {cause.strerror if isinstance(cause, OSError) else 'refused'}"
        ]
    return []


def _profile(
    builder: tensorrt.Builder,
    network: tensorrt.INetworkDefinition,
    config: tensorrt.IBuilderConfig,
    request: PlanRequest,
    log: Log,
) -> tuple[int, int]:
    """Add the one profile where the batch is open, and return the smallest and the largest batch."""
    if network.num_inputs != 1:
        raise BadDataError(f"the graph has {network.num_inputs} inputs", expected="one, `image`")
    image = network.get_input(0)
    shape = tuple(image.shape)
    if -1 not in shape:
        if (request.min_batch, request.max_batch) != (shape[0], shape[0]):
            raise BadDataError(
                f"the graph's batch is {shape[0]}, and {request.min_batch} to {request.max_batch} was asked for",
                expected="a graph with an open batch, as edgebert exports it",
            )
        return shape[0], shape[0]
    if -1 in shape[1:]:
        raise BadDataError(
            f"the graph's input has shape {shape}", expected="(batch, height, width, 3), only batch open"
        )
    profile = builder.create_optimization_profile()
    smallest, best, largest = ((n, *shape[1:]) for n in (request.min_batch, request.opt_batch, request.max_batch))
    try:
        profile.set_shape(image.name, smallest, best, largest)
    except (ValueError, RuntimeError) as error:  # the one call that raises: the second one in newer bindings
        raise BadDataError(
            f"TensorRT takes no batches of {request.min_batch} to {request.max_batch}: {error}"
        ) from error
    if config.add_optimization_profile(profile) < 0:
        raise error_from_texts(log.errors(), doing="TensorRT takes no profile of these batches")
    return request.min_batch, request.max_batch


def _write_plan(
    trt: ModuleType,
    builder: tensorrt.Builder,
    network: tensorrt.INetworkDefinition,
    config: tensorrt.IBuilderConfig,
    plan: Path,
    log: Log,
) -> None:
    """Build, and write the engine as it comes where TensorRT can (10.13 and newer): that saves a copy of it in memory."""
    with plan.open("wb") as stream:
        if hasattr(builder, "build_serialized_network_to_stream"):
            writer = _writer_of(trt, stream)
            built = builder.build_serialized_network_to_stream(network, config, writer)
            if writer.error is not None:
                raise writer.error
            if not built or writer.written == 0:
                _fail(log)
            return
        serialized = builder.build_serialized_network(network, config)
        if serialized is None:
            _fail(log)
        stream.write(serialized)


def _writer_of(trt: ModuleType, stream: IO[bytes]) -> Any:
    """Return a writer into an open file, which keeps an error instead of raising it; only where `IStreamWriter` exists."""

    class Writer(trt.IStreamWriter):  # type: ignore[misc, name-defined, unused-ignore]  # its base is not known before
        """Writes what TensorRT hands over."""

        def __init__(self) -> None:
            trt.IStreamWriter.__init__(self)
            self.error: OSError | None = None
            self.written = 0

        def write(self, data: bytes) -> int:
            try:
                stream.write(data)
            except OSError as error:
                self.error = error
                return 0
            self.written += len(data)
            return len(data)

    return Writer()


def _fail(log: Log) -> NoReturn:
    raise error_from_texts(log.errors(), doing=_FAILED)
