"""Options of `edgebert compile`, and which of them can be meant together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from edgebert.data import DataOptions
from edgebert.errors import UsageError
from edgebert.export.engine import TypingChoice
from edgebert.export.engine_choice import Trial
from edgebert.export.engine_form import EngineAsked
from edgebert.export.seven_bit import Weights, weight_bits_for
from edgebert.manifest import MAX_RELEASE
from edgebert.target import TARGETS, resolve_target

# What is asked of engines alone: field -> flag.
_OF_ENGINES = {
    "typing": "--typing",
    "workspace_mb": "--workspace-mb",
    "optimization_level": "--optimization-level",
    "dla_core": "--dla-core",
    "max_batch": "--max-batch",
    "timeout_s": "--timeout",
}
_MAX_TIMEOUT_S = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class CompileOptions:
    """Options of `edgebert compile`.

    Attributes:
        targets: names of `edgebert.target`, in the order in which the runtime tries their forms.
        canary: None makes canaries of the graph's example images; `synthetic` makes images; else a folder of images.
        precision: `as-given` compiles the graph that is named; `auto` measures INT8 against FP32 and takes one of them;
            `int8` and `fp32` take that one, and measure both where there are data.
        float_graph: the FP32 graph that the INT8 graph was made from; `--float` on the command line, and the recipe's own there.
        data: DATA whose validation images are measured on.
        max_drop: percentage points of accuracy that INT8 may lose on validation images.
        min_agreement: per cent of the validation images that INT8 must decide as FP32 does; 0 lets it decide any.
        max_seconds: timed on each target, at most.
        keep_both: beside an engine that ships, keep the one of the other precision in the bundle, for `edgebert bench`.
        typing: of engines: `strong` leaves every type to the graph, `weak` to TensorRT 10; `auto` builds both, measures them and keeps
            the faster one that holds accuracy.
        workspace_mb: MiB that one layer of an engine may use while it is built; a share of the free memory if not given.
        optimization_level: how long TensorRT searches for kernels, 0 to 5.
        dla_core: build engines for this DLA core, with the GPU for what it cannot do.
        max_batch: largest batch that engines take: 1 to 256; above 1 their kernels are chosen for it, and the batch may vary.
        timeout_s: seconds after which the build of one engine is ended.
        report: a page (.html) that shows what was measured, with the images that INT8 decides otherwise.
        weights: of INT8 on an x86 CPU: `auto` takes `7-bit` where 8 bits saturate (no VNNI or AMX), else `8-bit`.
        release: number of the product's bundle, from 1 on; a device refuses to go back to a lower one. 0 numbers none, and keeps
            the number of a bundle that a form is added to.
        class_map: class name in the data -> class name in the graph.
        max_skipped: largest share of unreadable images before the run stops.
        force: replace an existing bundle, whatever it was made from, and an existing report.
    """

    targets: tuple[str, ...] = ("cpu",)
    canary: str | None = None
    precision: Literal["as-given", "auto", "int8", "fp32"] = "as-given"
    float_graph: Path | None = None
    data: str | None = None
    max_drop: float = 0.5
    min_agreement: float = 99.0
    max_seconds: float = 20.0
    keep_both: bool = False
    typing: TypingChoice | None = None
    workspace_mb: int | None = None
    optimization_level: int | None = None
    dla_core: int | None = None
    max_batch: int | None = None
    timeout_s: float | None = None
    report: Path | None = None
    weights: Weights = "auto"
    release: int = 0
    class_map: Mapping[str, str] = field(default_factory=dict)
    max_skipped: float = 0.01
    force: bool = False

    def __post_init__(self) -> None:
        if not self.targets or len(set(self.targets)) < len(self.targets):
            given = ", ".join(self.targets) or "none"
            raise UsageError(f"targets: {given}", expected="at least one, each once", hint="edgebert targets")
        for name in self.targets:
            if self.weights == "7-bit":
                weight_bits_for(resolve_target(name), self.weights)
            if (target := resolve_target(name)).beside:
                raise UsageError(
                    f"`--target {name}`, which is what a bundle may hold beside `{name.removesuffix(f'-{target.beside}')}`",
                    expected=", ".join(TARGETS),
                    hint=f"--target {name.removesuffix(f'-{target.beside}')} --precision auto --keep-both",
                )
        self._check_engines()
        for value, low, high, name in (
            (self.max_drop, 0, 100, "max_drop"),
            (self.min_agreement, 0, 100, "min_agreement"),
            (self.max_seconds, 0.1, 3600, "max_seconds"),
            (self.release, 0, MAX_RELEASE, "release"),
        ):
            if not low <= value <= high:
                raise UsageError(f"{name} is `{value}`", expected=f"{low:g} to {high:g}")
        DataOptions(max_skipped=self.max_skipped)

    @property
    def takes_engine(self) -> bool:
        """Whether one of the targets takes a TensorRT engine."""
        return any(resolve_target(name).form == "engine" for name in self.targets)

    def engine_asked(self, trial: Trial | None) -> EngineAsked:
        """Return what is asked of every engine.

        Args:
            trial: the images that they are measured on.

        Raises:
            UsageError: a setting is out of its range.
        """
        given = EngineAsked(max_seconds=self.max_seconds, trial=trial)
        asked = {name: getattr(self, name) for name in _OF_ENGINES if getattr(self, name) is not None}
        return replace(given, **asked)

    def _check_engines(self) -> None:
        """Refuse what is asked of engines where there is none, or what cannot be meant."""
        given = [flag for name, flag in _OF_ENGINES.items() if getattr(self, name) is not None]
        given += ["--keep-both"] if self.keep_both else []
        if given and not self.takes_engine:
            raise UsageError(
                f"`{given[0]}`, and no target takes a TensorRT engine: {', '.join(self.targets)}",
                expected=", ".join(name for name, target in TARGETS.items() if target.form == "engine"),
                hint=f"--target jetson, or leave `{given[0]}` out",
            )
        if self.timeout_s is not None and not 1 <= self.timeout_s <= _MAX_TIMEOUT_S:
            raise UsageError(f"timeout is `{self.timeout_s}` seconds", expected=f"1 to {_MAX_TIMEOUT_S}")
        self.engine_asked(None).settings(self.typing or "auto", "int8")


def check_request(options: CompileOptions) -> None:
    """Refuse options that cannot be meant together, before anything is read.

    Raises:
        UsageError: `auto` without the FP32 graph or data; an FP32 graph, a report or a second engine where nothing is chosen.
    """
    example = "edgebert compile INT8.onnx --float FP32.onnx --data DATA --precision auto -o NAME.edgebert"
    given = {"--float FP32.onnx": options.float_graph, "--data DATA": options.data}
    if options.precision == "auto":
        missing = [flag for flag, value in given.items() if value is None]
        if missing:
            raise UsageError(
                f"`--precision auto` without `{missing[0]}`",
                expected="both graphs and validation images to measure them on",
                hint=example,
            )
    elif options.precision == "as-given" and (
        options.float_graph is not None or (options.data is not None and not options.takes_engine)
    ):
        flag = next(flag for flag, value in given.items() if value is not None)
        raise UsageError(
            f"`{flag}`, and no precision to be chosen", expected="--precision auto, int8 or fp32", hint=example
        )
    if options.report is not None and None in given.values():
        raise UsageError(
            f"`--report {options.report}`, and nothing is measured", expected="both graphs and data", hint=example
        )
    if options.keep_both and None in given.values():
        raise UsageError(
            "`--keep-both`, and there is one precision",
            expected="both graphs and data: two engines are measured",
            hint=example,
        )
