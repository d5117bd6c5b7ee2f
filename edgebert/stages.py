"""The stages a recipe is made of: what each makes, what it needs, and the one function it calls."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgebert.errors import NotComparableError

_log = logging.getLogger("edgebert")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One arrow of the pipeline.

    Attributes:
        name: of the table and the command.
        makes: file or folder name below the recipe's output folder; `{name}` is the recipe's name.
        beside: the name of a second file that it makes, or empty.
        needs: stages whose outputs it reads.
        options: "module:class" of its options.
        run: calls the stage's function.
        uses_data: whether the images are an input.
    """

    name: str
    makes: str
    needs: tuple[str, ...]
    options: str
    run: Callable[[StageCall], None]
    uses_data: bool
    beside: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCall:
    """What a stage is called with; `interrupted` says that the same call was begun before and not finished."""

    data: str
    inputs: Mapping[str, Path]
    output: Path
    options: object
    interrupted: bool


def _train(call: StageCall) -> None:
    from edgebert.train import TrainOptions, checkpoint_from_data

    assert isinstance(call.options, TrainOptions)
    checkpoint_from_data(call.data, call.output, dataclasses.replace(call.options, resume=_can_resume(call)))


def _distill(call: StageCall) -> None:
    from edgebert.train import DistillOptions, checkpoint_from_teacher

    assert isinstance(call.options, DistillOptions)
    options = dataclasses.replace(call.options, resume=_can_resume(call))
    checkpoint_from_teacher(call.data, str(call.inputs["train"]), call.output, options)


def _can_resume(call: StageCall) -> bool:
    """Say whether training goes on where it was; what an interrupted run with other options left is removed."""
    from edgebert.train.state import RunFolder

    if not call.interrupted:
        RunFolder(call.output, {}).remove()
    return call.interrupted


def _export(call: StageCall) -> None:
    from edgebert.export.graph import ExportOptions, graph_from_checkpoint

    assert isinstance(call.options, ExportOptions)
    graph_from_checkpoint(call.inputs["distill"], call.output, call.options)


def _quantize(call: StageCall) -> None:
    from edgebert.calibration.quantize import QuantizeOptions, int8_graph_from_graph

    assert isinstance(call.options, QuantizeOptions)
    int8_graph_from_graph(call.inputs["export"], call.data, call.output, call.options)


def _compile(call: StageCall) -> None:
    from edgebert.export.compile import CompileOptions, bundle_from_graph

    options = call.options
    assert isinstance(options, CompileOptions)
    if options.precision == "as-given":
        if not options.takes_engine:  # whose typings are measured on them
            options = dataclasses.replace(options, data=None)  # which every stage is given that has such an option
    elif options.float_graph is None:
        options = dataclasses.replace(options, float_graph=call.inputs["export"])
    made = bundle_from_graph(call.inputs["quantize"], call.output, options)
    if made.verdict:
        _log.info("%s", made.verdict)


def _bench(call: StageCall) -> None:
    from edgebert.bench import BenchOptions, result_from_arms
    from edgebert.bundle import read_bundle

    assert isinstance(call.options, BenchOptions)
    shipped = read_bundle(call.inputs["compile"]).manifest.precision
    student = "student-int8" if shipped == "int8" else "student-shipped"  # where `compile` took FP32, by its precision
    arms = {"teacher": "train", "student-fp32": "export", student: "compile"}
    result = result_from_arms([f"{arm}={call.inputs[stage]}" for arm, stage in arms.items()], call.output, call.options)
    if not result.status.valid:
        raise NotComparableError(
            f"the measurement `{call.output}` is not valid: {'; '.join(result.status.reasons)}",
            hint=f"look at it with `edgebert report {call.output} -o report.html`, then run the recipe again",
        )


def _report(call: StageCall) -> None:
    from edgebert.bench import ReportOptions, report_from_results

    assert isinstance(call.options, ReportOptions)
    report_from_results([call.inputs["bench"]], call.output, force=call.options.force)


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage(
            name="train",
            makes="teacher",
            needs=(),
            options="edgebert.train:TrainOptions",
            run=_train,
            uses_data=True,
        ),
        Stage(
            name="distill",
            makes="student",
            needs=("train",),
            options="edgebert.train:DistillOptions",
            run=_distill,
            uses_data=True,
        ),
        Stage(
            name="export",
            makes="{name}.onnx",
            needs=("distill",),
            options="edgebert.export.graph:ExportOptions",
            run=_export,
            uses_data=True,
        ),
        Stage(
            name="quantize",
            makes="{name}.int8.onnx",
            needs=("export",),
            options="edgebert.calibration.quantize:QuantizeOptions",
            run=_quantize,
            uses_data=True,
        ),
        Stage(
            name="compile",
            makes="{name}.edgebert",
            needs=("export", "quantize"),
            options="edgebert.export.compile:CompileOptions",
            run=_compile,
            uses_data=True,
        ),
        Stage(
            name="bench",
            makes="{name}.bench.json",
            needs=("train", "export", "compile"),
            options="edgebert.bench:BenchOptions",
            run=_bench,
            uses_data=True,
            beside="{name}.bench.samples.npz",
        ),
        Stage(
            name="report",
            makes="{name}.html",
            needs=("bench",),
            options="edgebert.bench:ReportOptions",
            run=_report,
            uses_data=False,
        ),
    )
}
