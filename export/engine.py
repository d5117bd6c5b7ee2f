"""From a graph to TensorRT engines, on the device itself.

    report = build_engine({"strong": strong, "weak": weak}, EngineOptions(folder=Path("engines")))
    choice = faster_engine(report, measured, floor=0.91)

`strong` builds a strongly typed network, whose graph decides about every precision; `weak` lets TensorRT 10.x choose among FP16 and
INT8 for each layer, the form proven on Orin with 10.3. `auto` builds both and survives the failure of either; what each is worth is
measured by whoever asked, and `faster_engine` keeps the faster one that holds accuracy.

Imports numpy and the standard library only, and runs from the device wheel. TensorRT is loaded by the child process alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from edgebert import __version__
from edgebert._files import Output, claimed, sha256_of_file, staged_together
from edgebert._json import Fields, JsonObject
from edgebert._progress import Progress
from edgebert.errors import CannotWriteError, EdgebertError, RefusedError, UsageError
from edgebert.export.engine_build import MAX_OPTIMIZATION_LEVEL, PlanRequest
from edgebert.export.engine_cache import check_private, default_folder
from edgebert.export.engine_process import MemoryPeak, ProgressFactory, available_bytes, run_build, total_bytes
from edgebert.fingerprint import Fingerprint, computer_facts, misfits
from edgebert.runtime.engine_manifest import ENGINE_FILE, PLAN_FILE, EngineManifest, EnginePrecision, differences
from edgebert.runtime.tensorrt_api import Typing

TypingChoice = Literal["strong", "weak", "auto"]

_MIB = 1 << 20
MAX_ENGINE_BATCH = 256  # each thread that asks an engine holds pinned memory for as many images: 37 MiB at 224 x 224
# On a Jetson the workspace is taken from the computer's own memory (tensorrt_jetson.md, section 9). Above 8 GB the same share, and
# no more than what any layer of a small classifier could use.
_SMALL_TOTAL_BYTES = 8 << 30
_MOST_WORKSPACE_BYTES = {True: 1 << 30, False: 4 << 30}
_WORKSPACE_SHARE = 4
# The proven form first, so that it is there where the other fails for lack of memory.
_TYPINGS: dict[TypingChoice, tuple[Typing, ...]] = {
    "strong": ("strong",),
    "weak": ("weak",),
    "auto": ("weak", "strong"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """How engines are built.

    Attributes:
        folder: where they go: `TYPING/engine.plan` and `TYPING/engine.json`.
        typing: `strong`, `weak`, or `auto` for both.
        precision: `int8` of a graph with Q and DQ, `fp16` or `fp32` of a float one.
        workspace_mb: most that one layer may use beside its tensors, in MiB; 0 for a quarter of the free memory, at most 1 GiB on a
            device with 8 GB or less and 4 GiB on others.
        optimization_level: TensorRT's, 0 to 5.
        dla_core: build for this DLA core; None for the GPU.
        min_batch: smallest batch of the profile.
        opt_batch: the batch that kernels are chosen for; 0 for the largest.
        max_batch: largest batch; the same as the smallest makes an engine whose work is launched as one CUDA graph.
        timing_cache: `private` for the user's own folder, `off`, or a folder.
        timeout_s: of one build.
    """

    folder: Path
    typing: TypingChoice = "auto"
    precision: EnginePrecision = "int8"
    workspace_mb: int = 0
    optimization_level: int = 3
    dla_core: int | None = None
    min_batch: int = 1
    opt_batch: int = 0
    max_batch: int = 1
    timing_cache: Path | Literal["private", "off"] = "private"
    timeout_s: float = 7200.0

    def __post_init__(self) -> None:
        if self.typing not in _TYPINGS:
            raise UsageError(f"typing `{self.typing}`", expected=", ".join(_TYPINGS))
        if not 0 <= self.optimization_level <= MAX_OPTIMIZATION_LEVEL:
            raise UsageError(
                f"optimization level `{self.optimization_level}`", expected=f"0 to {MAX_OPTIMIZATION_LEVEL}"
            )
        if self.workspace_mb < 0:
            raise UsageError(
                f"workspace of `{self.workspace_mb}` MiB", expected="more than 0, or 0 for a share of memory"
            )
        if not 1 <= self.min_batch <= (self.opt_batch or self.max_batch) <= self.max_batch:
            raise UsageError(
                f"batches of `{self.min_batch}`, `{self.opt_batch}`, `{self.max_batch}`",
                expected="1 or more, the smallest first",
            )
        if self.max_batch > MAX_ENGINE_BATCH:
            raise UsageError(f"batches of up to `{self.max_batch}`", expected=f"at most {MAX_ENGINE_BATCH}")
        if self.dla_core is not None and self.dla_core < 0:
            raise UsageError(f"DLA core `{self.dla_core}`", expected="0 or more")

    def flags(self, typing: Typing) -> tuple[str, ...]:
        """Return what an engine of this typing depends on besides graph and device, as its manifest names it."""
        return (
            f"typing={typing}",
            f"precision={self.precision}",
            f"workspace_mb={self.workspace_mb or 'auto'}",
            f"optimization_level={self.optimization_level}",
            f"dla_core={'none' if self.dla_core is None else self.dla_core}",
            f"batch={self.min_batch},{self.opt_batch or self.max_batch},{self.max_batch}",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCandidate:
    """One engine that was asked for: where it is, or why it is not.

    Attributes:
        typing: `strong` or `weak`.
        folder: with `engine.plan` and `engine.json`; None where it could not be built.
        manifest: its content; None where it could not be built.
        failure: the whole message, empty where there is an engine.
        error: what that is the message of.
        is_reused: whether it was there before, of the same graph, flags and computer.
        seconds: that TensorRT searched.
        peak: memory of the builder process; None where none ran to its end.
        timing_cache: `new`, `reused`, `off`, or why the stored one was not taken.
        builder_flags: of TensorRT's builder.
        notes: TensorRT's warnings, the first few.
    """

    typing: Typing
    folder: Path | None = None
    manifest: EngineManifest | None = None
    failure: str = ""
    error: EdgebertError | None = field(default=None, repr=False, compare=False)
    is_reused: bool = False
    seconds: float = 0.0
    peak: MemoryPeak | None = None
    timing_cache: str = "off"
    builder_flags: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def to_json(self) -> JsonObject:
        """Return the fields as a JSON object."""
        return {
            "typing": self.typing,
            "label": None if self.manifest is None else self.manifest.label,
            "folder": None if self.folder is None else str(self.folder),
            "manifest": None if self.manifest is None else self.manifest.to_json(),
            "failure": self.failure,
            "is_reused": self.is_reused,
            "seconds": self.seconds,
            "peak_resident_mib": None if self.peak is None else self.peak.resident_mib,
            "least_available_mib": None if self.peak is None else self.peak.least_available_mib,
            "timing_cache": self.timing_cache,
            "builder_flags": list(self.builder_flags),
            "notes": list(self.notes),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineReport:
    """What `build_engine` made.

    Attributes:
        candidates: in the order in which they were built, failures among them; at least one engine is there.
    """

    candidates: tuple[EngineCandidate, ...]

    @property
    def built(self) -> tuple[EngineCandidate, ...]:
        """Those that are there."""
        return tuple(candidate for candidate in self.candidates if candidate.manifest is not None)

    def to_json(self) -> JsonObject:
        """Return the fields as a JSON object."""
        return {"candidates": [candidate.to_json() for candidate in self.candidates]}


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredEngine:
    """What one engine is worth, measured by whoever asked for it on the device.

    Attributes:
        typing: which candidate.
        accuracy: on validation images, in [0, 1].
        latency_ms: of one image.
    """

    typing: Typing
    accuracy: float
    latency_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineChoice:
    """The engine that ships, and why.

    Attributes:
        typing: which candidate.
        reason: one sentence with the figures.
    """

    typing: Typing
    reason: str


def build_engine(
    graphs: bytes | Mapping[Typing, bytes], options: EngineOptions, *, progress: ProgressFactory = Progress
) -> EngineReport:
    """Build the engines that were asked for on this device, each in a process of its own.

    Args:
        graphs: the ONNX file, or one for each typing.
        options: how.
        progress: shows how far each build is; a bar on stderr by default.

    Returns:
        Every candidate, with the reason where it failed.

    Raises:
        UsageError: there is no graph for a typing that was asked for.
        EdgebertError: none could be built; of the kind of the first failure, with every reason.
        LockedError: another process builds into the same folder.
    """
    typings = _TYPINGS[options.typing]
    given: Mapping[Typing, bytes] = dict.fromkeys(typings, graphs) if isinstance(graphs, bytes) else graphs
    missing = next((typing for typing in typings if typing not in given), None)
    if missing is not None:
        raise UsageError(f"no graph for a {missing}ly typed network", expected=", ".join(given) or "a graph")
    candidates = []
    for typing in typings:
        try:
            candidates.append(_candidate(given[typing], typing, options, progress))
        except EdgebertError as error:
            candidates.append(EngineCandidate(typing=typing, failure=str(error), error=error))
    if not any(candidate.manifest for candidate in candidates):
        raise none_left(candidates)
    return EngineReport(candidates=tuple(candidates))


def none_left(candidates: Sequence[EngineCandidate]) -> EdgebertError:
    """Return the error to raise where no typing has become an engine: the first one, or one of its kind that has every reason.

    Args:
        candidates: all of them, each with its error.
    """
    errors = [(each.typing, each.error) for each in candidates if each.error is not None]
    first = errors[0][1]
    if len({str(error) for _, error in errors}) == 1:
        return first
    whats = "; ".join(f"{typing}: {error.what}" for typing, error in errors)
    return type(first)(f"no engine could be built and run: {whats}", expected=first.expected, hint=first.hint)


def engine_files(candidate: EngineCandidate) -> dict[str, bytes]:
    """Return what a bundle holds of an engine, `engine.plan` and `engine.json`, as the runner takes it.

    Raises:
        RefusedError: the engine's file is no longer what was built.
    """
    assert candidate.folder is not None, "a candidate that failed has no files"
    assert candidate.manifest is not None
    plan = (candidate.folder / PLAN_FILE).read_bytes()
    if hashlib.sha256(plan).hexdigest() != candidate.manifest.plan_sha256:
        raise RefusedError(f"`{candidate.folder / PLAN_FILE}` was changed since it was built")
    return {PLAN_FILE: plan, ENGINE_FILE: candidate.manifest.to_bytes()}


def faster_engine(report: EngineReport, measured: Sequence[MeasuredEngine], *, floor: float) -> EngineChoice:
    """Return the fastest engine that holds accuracy; of equally fast ones the more accurate, and then the one built first.

    Args:
        report: of the build.
        measured: what every engine of it is worth.
        floor: the least accuracy that holds, in [0, 1].

    Raises:
        UsageError: an engine was not measured.
        EdgebertError: none holds accuracy.
    """
    worth = {entry.typing: entry for entry in measured}
    unmeasured = [candidate.typing for candidate in report.built if candidate.typing not in worth]
    if unmeasured:
        raise UsageError(
            f"the {unmeasured[0]}ly typed engine was not measured", expected="figures of every engine built"
        )
    there = [worth[candidate.typing] for candidate in report.built]
    holding = [entry for entry in there if entry.accuracy >= floor]
    figures = "; ".join(f"{entry.typing}: {entry.accuracy:.2%}, {entry.latency_ms:.3f} ms" for entry in there)
    failed = "".join(f"; {each.typing} failed" for each in report.candidates if each.manifest is None)
    if not holding:
        raise EdgebertError(
            f"no engine holds an accuracy of {floor:.2%} ({figures}{failed})",
            expected="one engine at or above it",
            hint="compile the FP32 graph, which makes an FP16 engine: edgebert compile FP32.onnx --target jetson -o NAME.edgebert; "
            "or quantize with more images",
        )
    best = min(holding, key=lambda entry: (entry.latency_ms, -entry.accuracy))
    why = "the only one that holds accuracy" if len(holding) == 1 else "the faster of those that hold accuracy"
    return EngineChoice(typing=best.typing, reason=f"{best.typing} is {why}, at least {floor:.2%} ({figures}{failed})")


def workspace_bytes(options: EngineOptions, root: Path = Path("/")) -> int:
    """Return the limit of TensorRT's workspace: as asked for, or a share of what is free now.

    >>> workspace_bytes(EngineOptions(folder=Path("engines"), workspace_mb=256)) == 256 << 20
    True
    """
    if options.workspace_mb:
        return options.workspace_mb * _MIB
    available, total = available_bytes(root), total_bytes(root)
    if available is None or total is None:
        return _MOST_WORKSPACE_BYTES[True]
    return min(_MOST_WORKSPACE_BYTES[total <= _SMALL_TOTAL_BYTES], available // _WORKSPACE_SHARE)


def _candidate(graph: bytes, typing: Typing, options: EngineOptions, progress: ProgressFactory) -> EngineCandidate:
    folder = options.folder / typing
    outputs = (folder / PLAN_FILE, folder / ENGINE_FILE)
    with claimed(*outputs):
        kept = _kept(folder, graph, typing, options)
        if kept is not None:
            return EngineCandidate(typing=typing, folder=folder, manifest=kept, is_reused=True)
        with (
            _as_file(graph) as file,
            staged_together(*(Output(path=path, force=True) for path in outputs)) as (plan, engine),
        ):
            answer, peak = run_build(
                _request(typing, options),
                file,
                plan,
                _cache(options),
                what=f"build {typing}",
                timeout_s=options.timeout_s,
                progress=progress,
            )
            manifest = _manifest(graph, plan, typing, options, answer)
            engine.write_bytes(manifest.to_bytes())
    return EngineCandidate(
        typing=typing,
        folder=folder,
        manifest=manifest,
        seconds=answer.number("seconds"),
        peak=peak,
        timing_cache=answer.text("timing_cache"),
        builder_flags=answer.texts("flags"),
        notes=answer.texts("notes"),
    )


@contextlib.contextmanager
def _as_file(graph: bytes) -> Iterator[Path]:
    """Yield a temporary file with a graph, for the builder's process.

    Raises:
        CannotWriteError: there is no room for it.
    """
    with contextlib.ExitStack() as stack:
        try:
            made = tempfile.TemporaryDirectory(prefix="edgebert-engine-", ignore_cleanup_errors=True)
            file = Path(stack.enter_context(made)) / "model.onnx"
            file.write_bytes(graph)
        except OSError as error:
            raise CannotWriteError(
                f"cannot write the graph to a temporary file: {error.strerror or error}",
                expected=f"{len(graph):,} bytes free in TMPDIR or /tmp",
                hint="free space there, or set TMPDIR to a folder with more",
            ) from error
        yield file


def _request(typing: Typing, options: EngineOptions) -> PlanRequest:
    return PlanRequest(
        typing=typing,
        precision=options.precision,
        workspace_bytes=workspace_bytes(options),
        optimization_level=options.optimization_level,
        dla_core=options.dla_core,
        min_batch=options.min_batch,
        opt_batch=options.opt_batch or options.max_batch,
        max_batch=options.max_batch,
    )


def _cache(options: EngineOptions) -> Path | None:
    if options.timing_cache == "off":
        return None
    if options.timing_cache != "private":
        return Path(options.timing_cache)
    try:
        return default_folder()
    except RuntimeError:  # a user without a home
        return None


def _manifest(graph: bytes, plan: Path, typing: Typing, options: EngineOptions, answer: Fields) -> EngineManifest:
    return EngineManifest(
        plan_sha256=sha256_of_file(plan),
        plan_bytes=plan.stat().st_size,
        graph_sha256=hashlib.sha256(graph).hexdigest(),
        typing=typing,
        precision=options.precision,
        flags=options.flags(typing),
        min_batch=answer.integer("min_batch"),
        max_batch=answer.integer("max_batch"),
        fingerprint=Fingerprint.from_fields(answer.fields("fingerprint")),
        versions={"tensorrt": answer.text("tensorrt"), "edgebert": __version__},
    )


def _kept(folder: Path, graph: bytes, typing: Typing, options: EngineOptions) -> EngineManifest | None:
    """Return the manifest of an engine that is there and is what would be built now, or None.

    It must be the user's own: who could write there could put native code in its place.
    """
    plan, engine = folder / PLAN_FILE, folder / ENGINE_FILE
    try:
        for path in (folder, plan, engine):
            check_private(path)
        manifest = EngineManifest.from_bytes(engine.read_bytes())
        if sha256_of_file(plan) != manifest.plan_sha256:
            return None
    except (OSError, EdgebertError):
        return None  # what is broken or foreign is built anew
    asked = hashlib.sha256(graph).hexdigest()
    if differences(manifest, graph_sha256=asked, flags=options.flags(typing)):
        return None
    return None if misfits(manifest.fingerprint, computer_facts("tensorrt", with_gpu=True)) else manifest
