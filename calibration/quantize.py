"""From a float graph to the portable INT8 graph: NNCF measures the ranges on training images, edgebert places and proves.

>>> QuantizeOptions(images=2)
Traceback (most recent call last):
...
edgebert.errors.UsageError: images `2`
expected: 16 to 100,000 calibration images
hint: leave it at 512
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import onnx
from numpy.typing import NDArray

from edgebert._files import check_file_is_free, check_not_input, read_input, staged_file
from edgebert._progress import Progress, tracked
from edgebert.calibration.emit import int8_graph
from edgebert.calibration.images import calibration_examples, check_images_are_real, spread_over_classes
from edgebert.calibration.placement import Placement, placement_of_graph
from edgebert.calibration.symmetric import symmetric_form, table_of_int8_graph
from edgebert.calibration.table import ScaleTable
from edgebert.card import ImageSet, ModelCard, Provenance, hash_of_hashes
from edgebert.data import DataOptions, Dataset, Example, align_classes, load_dataset
from edgebert.decisions import decisions
from edgebert.errors import BadDataError, EdgebertError, InputNotFoundError, UsageError
from edgebert.export.metadata import bytes_of_model, card_of_model, examples_of_model, parse_graph, with_metadata
from edgebert.export.rules import check_int8_graph, graph_precision, qdq_counts
from edgebert.extras import installed_version, require
from edgebert.metrics import exact_match, multilabel_f1
from edgebert.preprocess import Preprocessing, RgbImage, load_image, resize_image
from edgebert.runtime.runner import InputSpec, ModelSource, RunnerOptions, open_runner

if TYPE_CHECKING:
    from edgebert.calibration.finetune import FinetuneResult

_log = logging.getLogger("edgebert")

_ENGINES = ("onnxruntime", "openvino")
_VALIDATION_IMAGES = 2000  # a share of 99 % is known to ± 0.4 points then; more would only take longer
_BATCH = 32
_WORTH_A_WARNING = 0.99  # of equal decisions
_NOT_BELIEVED = 0.9  # of equal decisions between the two engines: one of them computes something else


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeOptions:
    """How to quantise.

    Attributes:
        images: calibration images, 16 to 100,000. 32 and 128 images differ by at most 0.08 points of top-1 (PTQ4ViT), NVIDIA
            asks for 500 and more.
        finetune: DATA whose training images the weights learn from to live with the rounding, usually those of the
            calibration; its validation images choose the epoch. None for no fine-tuning.
        teacher: for `finetune`: a checkpoint folder or a Hugging Face id to answer as. None: the FP32 graph.
        finetune_epochs: passes over the training images, 1 to 5.
        finetune_scales: `learned` with the weights, or `frozen` as they were measured.
        finetune_learning_rate: the highest; scales have ten times as much.
        class_map: a class name in the data -> the model's name for it.
        max_skipped: largest share of unreadable images in the data.
        force: replace an existing file.
    """

    images: int = 512
    finetune: str | None = None
    teacher: str | None = None
    finetune_epochs: int = 2
    finetune_scales: Literal["learned", "frozen"] = "learned"
    finetune_learning_rate: float = 1e-5
    class_map: Mapping[str, str] = field(default_factory=dict)
    max_skipped: float = 0.01
    force: bool = False

    def __post_init__(self) -> None:
        if not 16 <= self.images <= 100_000:
            raise UsageError(
                f"images `{self.images}`", expected="16 to 100,000 calibration images", hint="leave it at 512"
            )
        if self.teacher is not None and self.finetune is None:
            raise UsageError(
                f"teacher `{self.teacher}` without data to fine-tune on",
                expected="`--finetune DATA` beside it",
                hint=f"--finetune DATA --teacher {self.teacher}",
            )
        if not 1 <= self.finetune_epochs <= 5:
            raise UsageError(f"finetune_epochs `{self.finetune_epochs}`", expected="1 to 5", hint="leave it at 2")
        if self.finetune_scales not in ("learned", "frozen"):
            raise UsageError(f"finetune_scales `{self.finetune_scales}`", expected="learned, frozen")
        if not 1e-8 <= self.finetune_learning_rate <= 1e-2:
            raise UsageError(f"finetune_learning_rate `{self.finetune_learning_rate}`", expected="1e-8 to 0.01")


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeReport:
    """What was quantised, and what it changed on validation images.

    A decision of a multi-label model is all that it says of an image; the fields that begin with `top1` are then the shares of
    images of which exactly their labels are said.

    Attributes:
        path: the graph.
        sha256: of the file.
        size_bytes: of the file.
        calibration_images: how many training images the ranges were measured on.
        validation_images: how many images the shares below are of.
        agreement_onnxruntime: share of equal decisions of INT8 and FP32, both in ONNX Runtime.
        agreement_openvino: the same in OpenVINO.
        engines_agree: share of equal decisions of ONNX Runtime and OpenVINO, both INT8.
        max_engine_difference: largest |difference| of an INT8 logit between the two engines.
        top1_before: FP32, in ONNX Runtime.
        top1_after: INT8, in ONNX Runtime.
        top1_after_openvino: INT8, in OpenVINO.
        operators: quantised operators by type, and the number of QuantizeLinear and DequantizeLinear.
        kept_float: operators left in float, by reason: stem, attention, head.
    """

    path: Path
    sha256: str
    size_bytes: int
    calibration_images: int
    validation_images: int
    agreement_onnxruntime: float
    agreement_openvino: float
    engines_agree: float
    max_engine_difference: float
    top1_before: float
    top1_after: float
    top1_after_openvino: float
    operators: Mapping[str, int]
    kept_float: Mapping[str, int]

    def to_text(self) -> str:
        """Return one line for a terminal; the comparison was logged."""
        return f"{self.path}: {self.size_bytes:,} bytes, sha256 {self.sha256}"


def int8_graph_from_graph(
    source: Path | str, data: str | Path, output: Path, options: QuantizeOptions | None = None
) -> QuantizeReport:
    """Quantise a graph, or a checkpoint, which is exported first. The same inputs and options give the same bytes.

    Args:
        source: an FP32 `.onnx` file of edgebert's, or a checkpoint folder.
        data: DATA; its training split gives the calibration images, its validation split the comparison, its test split
            is not touched.
        output: the `.onnx` file to write.
        options: defaults where None.

    Raises:
        InputNotFoundError, BadDataError: the source or the data are not what they must be, or the images are not real.
        EdgebertError: a linear could not be quantised, or the engines disagree; nothing is written.
        CannotWriteError: the output exists without `force`, or cannot be written.
    """
    options = options or QuantizeOptions()
    check_not_input(output, source)
    check_file_is_free(output, force=options.force)
    graph = _float_graph(Path(source), data, options)
    model = parse_graph(graph)
    card = card_of_model(model, what=f"`{source}`")
    if graph_precision(model) == "int8":
        raise BadDataError(f"`{source}` is quantised already", expected="an FP32 graph or a checkpoint")
    dataset = load_dataset(data, DataOptions(max_skipped=options.max_skipped, task=card.task))
    dataset = align_classes(dataset, card.class_names, class_map=options.class_map)
    chosen = calibration_examples(dataset, options.images)
    if len(chosen) < options.images:
        _log.info("the training split has %d images, all of them calibrate", len(chosen))
    placement = placement_of_graph(model)
    if not placement.quantised:
        raise BadDataError(f"`{source}` has nothing to quantise", expected="linears between its stem and its head")
    measured = measured_graph(model, calibration_batch(chosen, card.preprocessing, dataset.name), placement)
    quantised = symmetric_form(measured, placement.quantised)
    tuned = _tuned(model, table_of_int8_graph(quantised, model), placement.quantised, card, data, dataset, options)
    if tuned is not None:
        quantised = int8_graph(tuned.model, tuned.table, placement.quantised)
    onnx.checker.check_model(quantised, full_check=True)
    check_int8_graph(quantised)
    validation = spread_over_classes(dataset.val, _VALIDATION_IMAGES)
    comparison = _compared(graph, bytes_of_model(quantised), card, validation)
    _check_engines(comparison)
    new_card = _card(card, graph, dataset, chosen, placement, comparison, tuned)
    content = bytes_of_model(with_metadata(quantised, new_card, examples_of_model(model)))
    with staged_file(output, force=options.force) as staging:
        staging.write_bytes(content)
    report = _report(output, content, quantised, placement, chosen, comparison)
    _say(report, card)
    return report


def _float_graph(source: Path, data: str | Path, options: QuantizeOptions) -> bytes:
    """Return the graph's bytes; a checkpoint is exported into a temporary folder, and compared on the same data."""
    if source.is_file():
        return read_input(source, what="the graph")
    if not source.exists():
        raise InputNotFoundError(
            f"no such file or folder: `{source}`",
            expected="an FP32 graph (.onnx) or a checkpoint folder",
            hint="edgebert export CHECKPOINT -o GRAPH.onnx",
        )
    from edgebert.export.graph import ExportOptions, graph_from_checkpoint  # imports torch, which a graph does not need

    exporting = ExportOptions(data=str(data), class_map=options.class_map, max_skipped=options.max_skipped)
    with tempfile.TemporaryDirectory(prefix="edgebert-") as folder:
        path = Path(folder) / "model.onnx"
        graph_from_checkpoint(source, path, exporting)
        return path.read_bytes()


def _tuned(
    model: onnx.ModelProto,
    table: ScaleTable,
    places: tuple[str, ...],
    card: ModelCard,
    data: str | Path,
    dataset: Dataset,
    options: QuantizeOptions,
) -> FinetuneResult | None:
    """Fine-tune as the options say; None where they do not ask for it. `dataset` is what `data` names."""
    if options.finetune is None:
        return None
    for module in ("torch", "transformers", "accelerate"):
        require(module)
    from edgebert.calibration.finetune import FinetuneOptions, finetuned

    if options.finetune != str(data):
        loaded = load_dataset(options.finetune, DataOptions(max_skipped=options.max_skipped, task=card.task))
        dataset = align_classes(loaded, card.class_names, class_map=options.class_map)
    tuning = FinetuneOptions(
        epochs=options.finetune_epochs,
        learning_rate=options.finetune_learning_rate,
        scales=options.finetune_scales,
        teacher=options.teacher,
    )
    return finetuned(model, table, places, dataset, card, tuning)


def calibration_batch(chosen: tuple[Example, ...], rule: Preprocessing, name: str) -> NDArray[np.uint8]:
    """Return uint8 (images, height, width, 3), checked to be photographs of something."""
    decoded: list[RgbImage] = []
    images: list[RgbImage] = []
    for example in tracked(chosen, what="read calibration images", total=len(chosen)):
        image = example.load()
        decoded += [image] if len(decoded) < 64 else []
        images.append(resize_image(image, rule))
    check_images_are_real(decoded, name=name)
    return np.stack(images)


def measured_graph(model: onnx.ModelProto, images: NDArray[np.uint8], placement: Placement) -> onnx.ModelProto:
    """Let NNCF measure ranges, choose scales and correct biases: int8 weights per channel, activations per tensor.

    One image at a time (a batch would mix statistics over tokens), PERFORMANCE preset (MIXED leaves zero points), no
    smoothing (compression.md, section 7: it raised the error, and in OpenVINO ten times more than in ONNX Runtime).

    Args:
        model: an FP32 graph of edgebert's.
        images: uint8 (images, height, width, 3), the calibration images.
        placement: which operators to leave alone.

    Returns:
        What NNCF wrote, still to be brought into the symmetric form (`edgebert.calibration.symmetric`).
    """
    require("nncf")
    import nncf
    from nncf.quantization.advanced_parameters import (
        AdvancedQuantizationParameters,
        AdvancedSmoothQuantParameters,
        QuantizationParameters,
    )

    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.metadata_props[:]
    with _quiet_nncf(), Progress("calibrate", len(images)) as progress:

        def feed(image: NDArray[np.uint8]) -> dict[str, NDArray[np.uint8]]:
            progress.advance()
            return {"image": image[np.newaxis]}  # (1, height, width, 3)

        quantised: onnx.ModelProto = nncf.quantize(
            bare,
            nncf.Dataset(list(images), feed),
            preset=nncf.QuantizationPreset.PERFORMANCE,
            subset_size=len(images),
            model_type=nncf.ModelType.TRANSFORMER,  # nothing but Conv, Gemm and MatMul, in convolutional networks too
            ignored_scope=nncf.IgnoredScope(names=sorted(placement.kept_float)),
            advanced_parameters=AdvancedQuantizationParameters(
                batchwise_statistics=False,
                activations_quantization_params=QuantizationParameters(per_channel=False),
                smooth_quant_alphas=AdvancedSmoothQuantParameters(convolution=-1, matmul=-1),
            ),
        )
    return quantised


@contextlib.contextmanager
def _quiet_nncf() -> Iterator[None]:
    """Keep NNCF's progress bars off stdout, where data goes, and its notes off stderr."""
    logger = logging.getLogger("nncf")
    level = logger.level
    logger.setLevel(logging.ERROR)  # nncf.set_log_level would change handlers that belong to others
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Comparison:
    """Logits on the validation images, float32 (images, classes), by engine, and the labels, bool (images, classes)."""

    labels: NDArray[np.bool_]
    thresholds: tuple[float, ...]
    before: Mapping[str, NDArray[np.float32]]
    after: Mapping[str, NDArray[np.float32]]

    def agreement(self, engine: str) -> float:
        return exact_match(self._said(self.before[engine]), self._said(self.after[engine]))

    def engines_agree(self) -> float:
        first, second = (self._said(self.after[engine]) for engine in _ENGINES)
        return exact_match(first, second)

    def engine_difference(self) -> float:
        first, second = (self.after[engine] for engine in _ENGINES)
        return float(np.abs(first - second).max())

    def right(self, logits: NDArray[np.float32]) -> float:
        return exact_match(self.labels, self._said(logits))

    def metrics(self) -> dict[str, float]:
        """Return what the provenance keeps of FP32 and INT8 in ONNX Runtime, by name."""
        name = "exact_match" if self.thresholds else "top1"
        found = {}
        for precision, logits in (("fp32", self.before["onnxruntime"]), ("int8", self.after["onnxruntime"])):
            found[f"val_{name}_{precision}"] = self.right(logits)
            if self.thresholds:
                micro, macro = multilabel_f1(self.labels, self._said(logits))
                found[f"val_micro_f1_{precision}"], found[f"val_macro_f1_{precision}"] = micro, macro
        return found

    def _said(self, logits: NDArray[np.float32]) -> NDArray[np.bool_]:
        return decisions(logits, self.thresholds)


def _compared(before: bytes, after: bytes, card: ModelCard, examples: tuple[Example, ...]) -> _Comparison:
    """Run FP32 and INT8 in both engines on validation images."""
    if not examples:
        raise BadDataError("there are no validation images to compare INT8 with FP32 on", expected="a validation split")
    images = np.stack(
        [
            load_image(example.load(), card.preprocessing)
            for example in tracked(examples, what="read validation images", total=len(examples))
        ]
    )
    labels = np.zeros((len(examples), len(card.class_names)), np.bool_)
    for row, example in enumerate(examples):
        labels[row, list(example.labels)] = True
    return _Comparison(
        labels=labels,
        thresholds=card.thresholds,
        before={engine: _logits(engine, before, card, images) for engine in _ENGINES},
        after={engine: _logits(engine, after, card, images) for engine in _ENGINES},
    )


def _logits(engine: str, graph: bytes, card: ModelCard, images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return float32 (images, classes)."""
    spec = InputSpec(height=card.preprocessing.height, width=card.preprocessing.width, classes=len(card.class_names))
    with open_runner(engine, ModelSource(spec=spec, files={"model.onnx": graph}), RunnerOptions()) as runner:
        parts = [runner.infer(images[start : start + _BATCH]) for start in range(0, len(images), _BATCH)]
    return np.concatenate(parts)


def _check_engines(comparison: _Comparison) -> None:
    if comparison.engines_agree() < _NOT_BELIEVED:
        raise EdgebertError(
            f"ONNX Runtime and OpenVINO decide alike on {comparison.engines_agree():.1%} of {len(comparison.labels)} images",
            expected=f"at least {_NOT_BELIEVED:.0%} for an INT8 graph to be believed; nothing was written",
            hint="compile the FP32 graph",
        )


def _card(
    card: ModelCard,
    graph: bytes,
    dataset: Dataset,
    chosen: tuple[Example, ...],
    placement: Placement,
    comparison: _Comparison,
    tuned: FinetuneResult | None,
) -> ModelCard:
    hashes = [example.pixel_sha256 for example in chosen]
    packages = ("nncf", "onnx", "onnxruntime", "openvino", *(() if tuned is None else ("torch",)))
    return replace(
        card,
        provenance=Provenance(
            stage="quantize",
            made_from={
                "graph": hashlib.sha256(graph).hexdigest(),
                "data": dataset.sha256(),
                "calibration": hash_of_hashes(hashes),
                **({} if tuned is None else tuned.made_from),
            },
            options={
                "images": len(chosen),
                "preset": "performance",
                "smoothing": "off",
                "bias_correction": "fast",
                "kept_float": dict(sorted(Counter(placement.kept_float.values()).items())),
                **({} if tuned is None else {"finetune": tuned.provenance()}),
            },
            versions={package: installed_version(package) or "unknown" for package in packages},
            metrics={
                **comparison.metrics(),
                "val_agreement_onnxruntime": comparison.agreement("onnxruntime"),
                "val_agreement_openvino": comparison.agreement("openvino"),
                "val_engines_agree": comparison.engines_agree(),
            },
            parameters=card.provenance.parameters,
            source=card.provenance,
        ),
        seen=card.seen | ImageSet.from_hashes(hashes) | (ImageSet() if tuned is None else tuned.seen),
    )


def _report(
    output: Path,
    content: bytes,
    model: onnx.ModelProto,
    placement: Placement,
    chosen: tuple[Example, ...],
    comparison: _Comparison,
) -> QuantizeReport:
    return QuantizeReport(
        path=output,
        sha256=hashlib.sha256(content).hexdigest(),
        size_bytes=len(content),
        calibration_images=len(chosen),
        validation_images=len(comparison.labels),
        agreement_onnxruntime=comparison.agreement("onnxruntime"),
        agreement_openvino=comparison.agreement("openvino"),
        engines_agree=comparison.engines_agree(),
        max_engine_difference=comparison.engine_difference(),
        top1_before=comparison.right(comparison.before["onnxruntime"]),
        top1_after=comparison.right(comparison.after["onnxruntime"]),
        top1_after_openvino=comparison.right(comparison.after["openvino"]),
        operators=qdq_counts(model),
        kept_float=dict(sorted(Counter(placement.kept_float.values()).items())),
    )


def _say(report: QuantizeReport, card: ModelCard) -> None:
    operators = ", ".join(f"{count} {name}" for name, count in report.operators.items())
    kept = ", ".join(f"{count} {reason}" for reason, count in report.kept_float.items())
    _log.info("calibrated on %d training images; int8: %s; in float: %s", report.calibration_images, operators, kept)
    _log.info(
        "on %d validation images INT8 decides as FP32: %.2f %% in ONNX Runtime, %.2f %% in OpenVINO; the two alike: %.2f %%",
        report.validation_images,
        100 * report.agreement_onnxruntime,
        100 * report.agreement_openvino,
        100 * report.engines_agree,
    )
    what = "top-1" if card.task == "single-label" else "exact match"
    _log.info("%s on them: %.2f %% before, %.2f %% after", what, 100 * report.top1_before, 100 * report.top1_after)
    lowest = min(report.agreement_onnxruntime, report.agreement_openvino, report.engines_agree)
    if lowest < _WORTH_A_WARNING:
        _log.warning("only %.2f %% of the decisions are equal, less than 99 %%", 100 * lowest)
