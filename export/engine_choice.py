"""From the graphs of both typings to the one engine that ships: built, opened and measured where it is to run.

    with tempfile.TemporaryDirectory() as folder:
        chosen = chosen_engine({"weak": weak, "strong": strong}, settings, trial, Path(folder))

What was built is opened by the runner that will serve it, first in a process of its own, which a crash would end alone; it answers every
image of a trial, and is timed in interleaved blocks. An engine that cannot be built, opened or run is told of and left out, as long as
another one is there.

Imports numpy and the standard library only, and runs from the device wheel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgebert._progress import Progress
from edgebert.bench.rounds import TIMED_IMAGES, IntArray, answers_of, timed_rounds
from edgebert.bench.statistics.formulas import percentile
from edgebert.decisions import decisions
from edgebert.errors import EdgebertError
from edgebert.export.engine import (
    EngineCandidate,
    EngineOptions,
    EngineReport,
    MeasuredEngine,
    TypingChoice,
    build_engine,
    engine_files,
    faster_engine,
    none_left,
)
from edgebert.export.engine_process import ProgressFactory, run_once
from edgebert.metrics import exact_match
from edgebert.runtime.engine_manifest import EnginePrecision
from edgebert.runtime.runner import InputSpec, ModelSource, Runner, RunnerOptions, open_runner
from edgebert.runtime.tensorrt_api import Typing

_BACKEND, _DEVICE = "tensorrt", "GPU"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSettings:
    """What `compile` asks of an engine; see `edgebert.export.engine.EngineOptions` for each.

    Attributes:
        precision: `int8` of a graph with Q and DQ, `fp16` of a float one.
        typing: `strong`, `weak`, or `auto` for both.
        workspace_mb: most that one layer may use beside its tensors, in MiB; 0 for a share of the free memory.
        optimization_level: TensorRT's, 0 to 5.
        dla_core: build for this DLA core; None for the GPU.
        max_batch: largest batch that an engine takes, from 1 on; kernels are chosen for it where it is more than 1.
        timeout_s: of one build.
        max_seconds: timed, at most, where there are images to time.
        keeps_times: whether the times of kernels stay in the user's own folder for the next build.
    """

    precision: EnginePrecision
    typing: TypingChoice = "auto"
    workspace_mb: int = 0
    optimization_level: int = 3
    dla_core: int | None = None
    max_batch: int = 1
    timeout_s: float = 7200.0
    max_seconds: float = 20.0
    keeps_times: bool = True

    def __post_init__(self) -> None:
        self.options(Path())  # which refuses what cannot be meant

    def options(self, folder: Path) -> EngineOptions:
        """Return the same with a folder to build in; times that are not kept lie there, too.

        Raises:
            UsageError: a setting is out of its range.
        """
        return EngineOptions(
            folder=folder / "engines",
            typing=self.typing,
            precision=self.precision,
            workspace_mb=self.workspace_mb,
            optimization_level=self.optimization_level,
            dla_core=self.dla_core,
            max_batch=self.max_batch,
            timing_cache="private" if self.keeps_times else folder / "times",
            timeout_s=self.timeout_s,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """The images that engines are measured on, and what is right.

    Attributes:
        spec: what an engine takes and gives.
        tensors: uint8 (images, height, width, 3), at least one.
        expected: bool (images, classes): the classes that are right, or that the portable graph says.
        thresholds: of a multi-label model, as its card has them.
        floor: least share of images, in [0, 1], that an engine must decide so.
        max_drop: share, in [0, 1], by which it may lie below the best of those that were built.
    """

    spec: InputSpec
    tensors: NDArray[np.uint8]
    expected: NDArray[np.bool_]
    thresholds: tuple[float, ...] = ()
    floor: float = 0.0
    max_drop: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TriedEngine:
    """What became of one typing.

    Attributes:
        typing: `strong` or `weak`.
        failure: the whole message, empty where there is an engine that runs.
        accuracy: share of the trial's images that it decides as expected, in [0, 1].
        latency_ms: median of the runner's time for one image.
        queries: how many times that is of.
        seconds: that TensorRT searched.
        resident_mib: the most that the builder process held; None where none ran to its end.
        least_available_mib: the least that was free on the device meanwhile; likewise.
        timing_cache: `new`, `reused`, `off`, or why the stored one was not taken.
        builder_flags: of TensorRT's builder.
        notes: TensorRT's warnings, the first few.
    """

    typing: Typing
    failure: str = ""
    accuracy: float | None = None
    latency_ms: float | None = None
    queries: int = 0
    seconds: float = 0.0
    resident_mib: int | None = None
    least_available_mib: int | None = None
    timing_cache: str = "off"
    builder_flags: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineAccount:
    """What is told of a build, its files apart.

    Attributes:
        typing: of the engine that ships.
        reason: why, in one sentence with the figures.
        tried: every typing that was asked for, in the order in which they were built.
    """

    typing: Typing
    reason: str
    tried: tuple[TriedEngine, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenEngine:
    """The engine that ships.

    Attributes:
        files: `engine.plan` and `engine.json`.
        account: how it came about.
    """

    files: Mapping[str, bytes] = field(repr=False)
    account: EngineAccount


def chosen_engine(
    graphs: Mapping[Typing, bytes],
    settings: EngineSettings,
    trial: Trial,
    folder: Path,
    *,
    progress: ProgressFactory = Progress,
    quiet: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> ChosenEngine:
    """Build what was asked for on this device, measure it, and return the fastest engine that holds accuracy.

    Args:
        graphs: an ONNX file for each typing that was asked for.
        settings: how.
        trial: what engines are measured on.
        folder: to build in; the user's own.
        progress: shows how far each build is.
        quiet: entered around what is timed.

    Raises:
        UsageError: there is no graph for a typing that was asked for, or this TensorRT does not build it.
        EdgebertError: none could be built, opened and run, or none holds accuracy; of the kind of the first failure.
        LockedError: another process builds into the same folder.
    """
    report = build_engine(graphs, settings.options(folder), progress=progress)
    with ExitStack() as stack:
        runners, accuracies, report = _asked(report, trial, stack)
        times = timed_rounds(
            [runner.infer for runner in runners.values()],
            trial.tensors[:TIMED_IMAGES],
            max_seconds=settings.max_seconds,
            quiet=quiet,
        )
    flat: dict[Typing, IntArray] = {
        typing: np.concatenate([block for round_ in arm for block in round_])
        for typing, arm in zip(runners, times, strict=True)
    }
    measured = [
        MeasuredEngine(typing=typing, accuracy=accuracies[typing], latency_ms=percentile(taken, 0.5) / 1e6)
        for typing, taken in flat.items()
    ]
    best = max(each.accuracy for each in measured)
    choice = faster_engine(report, measured, floor=max(0.0, trial.floor, best - trial.max_drop))
    kept = next(candidate for candidate in report.built if candidate.typing == choice.typing)
    worth = {each.typing: each for each in measured}
    tried = tuple(
        _tried(candidate, worth.get(candidate.typing), len(flat.get(candidate.typing, ())))
        for candidate in report.candidates
    )
    return ChosenEngine(
        files=engine_files(kept),
        account=EngineAccount(typing=choice.typing, reason=choice.reason, tried=tried),
    )


def _asked(
    report: EngineReport, trial: Trial, stack: ExitStack
) -> tuple[dict[Typing, Runner], dict[Typing, float], EngineReport]:
    """Open what was built and ask it of every image; what fails at that is told as a failure, and at least one is left.

    The second part is the share of images that each engine decides as expected. One that answers no finite number has failed,
    however fast it is.
    """
    runners: dict[Typing, Runner] = {}
    accuracies: dict[Typing, float] = {}
    candidates: list[EngineCandidate] = []
    for candidate in report.candidates:
        if candidate.manifest is not None:
            source = ModelSource(spec=trial.spec, files=engine_files(candidate))
            try:
                assert candidate.folder is not None, "it has a manifest, so it has a folder"
                run_once(candidate.folder, trial.spec)
                runner = open_runner(_BACKEND, source, RunnerOptions(device=_DEVICE))
                stack.callback(runner.close)
                logits = answers_of(runner, trial.tensors)
                _check_finite(logits)
            except EdgebertError as error:
                candidates.append(replace(candidate, manifest=None, folder=None, failure=str(error), error=error))
                continue
            accuracies[candidate.typing] = float(exact_match(trial.expected, decisions(logits, trial.thresholds)))
            runners[candidate.typing] = runner
        candidates.append(candidate)
    if not runners:
        raise none_left(candidates)
    return runners, accuracies, EngineReport(candidates=tuple(candidates))


def _check_finite(logits: NDArray[np.float32]) -> None:
    wrong = len(logits) - int(np.isfinite(logits).all(axis=1).sum())
    if wrong:
        raise EdgebertError(
            f"the engine answers {wrong} of {len(logits)} images with numbers that are not finite",
            expected="finite logits of every image: FP16 holds nothing beyond 65504",
            hint="another `--typing`, or a graph of smaller values",
        )


def _tried(candidate: EngineCandidate, measured: MeasuredEngine | None, queries: int) -> TriedEngine:
    peak = candidate.peak
    return TriedEngine(
        typing=candidate.typing,
        failure=candidate.failure,
        accuracy=None if measured is None else measured.accuracy,
        latency_ms=None if measured is None else measured.latency_ms,
        queries=queries,
        seconds=candidate.seconds,
        resident_mib=None if peak is None else peak.resident_mib,
        least_available_mib=None if peak is None else peak.least_available_mib,
        timing_cache=candidate.timing_cache,
        builder_flags=candidate.builder_flags,
        notes=candidate.notes,
    )


def noise_trial(spec: InputSpec, images: int = 16) -> Trial:
    """Return a trial that tells time alone: noise, on which every answer is as good as another."""
    shape = (images, spec.height, spec.width, 3)
    return Trial(
        spec=spec,
        tensors=np.random.default_rng(0).integers(0, 256, shape, np.uint8),
        expected=np.zeros((images, spec.classes), np.bool_),
        max_drop=1.0,
    )


def expected_of(labels: Sequence[Sequence[str]], class_names: Sequence[str]) -> NDArray[np.bool_]:
    """Return bool (images, classes) of the class names that are right for each image."""
    return np.array([[name in said for name in class_names] for said in labels], np.bool_)
