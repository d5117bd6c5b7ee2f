"""From a checkpoint to a graph: one ONNX file with the normalisation inside, checked against PyTorch on real images.

>>> ExportOptions(opset=12)
Traceback (most recent call last):
...
edgebert.errors.UsageError: opset `12`
expected: 19 or 20
hint: leave it at 20, which every supported target reads
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from edgebert._files import check_file_is_free, check_not_input, staged_file
from edgebert._progress import tracked
from edgebert.card import ModelCard, Provenance
from edgebert.data import DataOptions, align_classes, load_dataset
from edgebert.decisions import decisions
from edgebert.errors import EdgebertError, UsageError
from edgebert.export.metadata import INPUT_NAME, OUTPUT_NAME, bytes_of_model, with_metadata
from edgebert.extras import installed_version, require
from edgebert.models.checkpoint import Checkpoint, load_checkpoint, parameter_count
from edgebert.models.fusion import refuse_fusion
from edgebert.models.pixels import PixelClassifier
from edgebert.preprocess import load_image
from edgebert.runtime.runner import InputSpec, ModelSource, RunnerOptions, open_runner

_log = logging.getLogger("edgebert")

OPSETS = (19, 20)  # FP16 scales for TensorRT need 19, one Gelu operator needs 20; TensorRT 10.3 reads no newer
_PARITY_IMAGES = 256  # of the validation split: decisions there catch what a handful of examples would not
_BATCHES = (1, 2, 16)  # sizes of the first two batches, and of all others
# What the exporter would call a failure of its own; torch's exceptions have no common root but Exception's.
_EXPORT_ERRORS = (
    torch.onnx.OnnxExporterError,
    torch.onnx.errors.UnsupportedOperatorError,
    RuntimeError,
    ValueError,
    TypeError,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """How to export.

    Attributes:
        opset: of the ONNX operators, 19 or 20.
        data: DATA whose validation images join the comparison with PyTorch; needed where the checkpoint carries no examples.
        class_map: a class name in the data -> the model's name for it.
        max_skipped: largest share of unreadable images in the data.
        revision: of the model, where it comes from the hub.
        max_logit_difference: the largest difference allowed between a logit in PyTorch and in ONNX Runtime, in units of the
            largest |logit| (of 1 where that is smaller). Two float32 implementations were measured to differ by 1e-7 to
            1e-5; a wrong operator differs by 1e-2 and more.
        max_flips: how many images may be given another class, or, of a multi-label model, other labels.
        force: replace an existing file.
    """

    opset: int = 20
    data: str | None = None
    class_map: Mapping[str, str] = field(default_factory=dict)
    max_skipped: float = 0.01
    revision: str | None = None
    max_logit_difference: float = 1e-3
    max_flips: int = 0
    force: bool = False

    def __post_init__(self) -> None:
        if self.opset not in OPSETS:
            raise UsageError(
                f"opset `{self.opset}`", expected="19 or 20", hint="leave it at 20, which every supported target reads"
            )
        if not 0 < self.max_logit_difference < 1:
            raise UsageError(f"max_logit_difference `{self.max_logit_difference}`", expected="above 0 and below 1")
        if self.max_flips < 0:
            raise UsageError(f"max_flips `{self.max_flips}`", expected="0 or more images")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """What was exported, and how it compares with PyTorch.

    Attributes:
        path: the graph.
        sha256: of the file.
        size_bytes: of the file.
        parameters: the number of weights of the model.
        images: how many real images were compared.
        max_logit_difference: the largest |difference| of a logit, in units of the logits.
        logit_scale: the largest |logit| in PyTorch.
        flips: how many images were given another class, or other labels.
    """

    path: Path
    sha256: str
    size_bytes: int
    parameters: int
    images: int
    max_logit_difference: float
    logit_scale: float
    flips: int

    def to_text(self) -> str:
        """Return one line for a terminal; the comparison was logged."""
        return f"{self.path}: {self.parameters:,} parameters, {self.size_bytes:,} bytes, sha256 {self.sha256}"


def graph_from_checkpoint(checkpoint: Path | str, output: Path, options: ExportOptions | None = None) -> ExportReport:
    """Export a checkpoint as an FP32 graph. The same checkpoint and opset give the same bytes.

    Args:
        checkpoint: a folder, or a hub id.
        output: the `.onnx` file to write.
        options: defaults where None.

    Raises:
        InputNotFoundError, BadDataError, RefusedError: the checkpoint or the data are not what they must be.
        UsageError: no real image to compare on.
        EdgebertError: PyTorch cannot export the model, or the graph answers differently; nothing is written.
        CannotWriteError: the output exists without `force`, or cannot be written.
    """
    options = options or ExportOptions()
    check_not_input(output, checkpoint)
    check_file_is_free(output, force=options.force)
    loaded = load_checkpoint(checkpoint, revision=options.revision)
    refuse_fusion(loaded)
    images = _comparison_images(loaded, options)
    model = with_metadata(_exported(loaded, options), _card(loaded, options), loaded.examples)
    onnx.checker.check_model(model, full_check=True)
    content = bytes_of_model(model)
    report = _compared(loaded, content, images, output)
    _log.info(
        "%d images in PyTorch and ONNX Runtime: logits differ by at most %.2g (largest %.3g), %d decisions differ",
        report.images,
        report.max_logit_difference,
        report.logit_scale,
        report.flips,
    )
    _check_parity(report, options, loaded.card)
    with staged_file(output, force=options.force) as staging:
        staging.write_bytes(content)
    return report


def _comparison_images(checkpoint: Checkpoint, options: ExportOptions) -> NDArray[np.uint8]:
    """Return uint8 (images, height, width, 3): the checkpoint's examples and validation images of the data."""
    rule = checkpoint.card.preprocessing
    images = [load_image(example.png, rule) for example in checkpoint.examples]
    if options.data is not None:
        dataset = load_dataset(options.data, DataOptions(max_skipped=options.max_skipped, task=checkpoint.card.task))
        dataset = align_classes(dataset, checkpoint.card.class_names, class_map=options.class_map)
        chosen = sorted(dataset.val, key=lambda example: example.pixel_sha256)[:_PARITY_IMAGES]
        images += [load_image(example.load(), rule) for example in tracked(chosen, what="read", total=len(chosen))]
    if not images:
        raise UsageError(
            "there is no real image to compare the graph with PyTorch on: the checkpoint carries no examples",
            expected="example images in the checkpoint, or `--data`",
            hint="edgebert export CHECKPOINT --data DATA -o GRAPH.onnx",
        )
    return np.stack(images)


def _exported(checkpoint: Checkpoint, options: ExportOptions) -> onnx.ModelProto:
    """Export through `torch.export`, without whatever the exporter wrote about this computer."""
    require("onnxscript")
    rule = checkpoint.card.preprocessing
    classifier = PixelClassifier(checkpoint.model, rule).eval()
    example = torch.zeros(2, rule.height, rule.width, 3, dtype=torch.uint8)  # a batch of 1 would be taken as a constant
    try:
        with _quiet_exporter(), torch.inference_mode(False), torch.no_grad():
            program = torch.onnx.export(
                classifier,
                (example,),
                dynamo=True,
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
                dynamic_shapes={"image": {0: torch.export.Dim("batch", min=1)}},
                opset_version=options.opset,
                external_data=False,
                verbose=False,
            )
    except _EXPORT_ERRORS as error:
        raise EdgebertError(
            f"PyTorch cannot export this `{type(checkpoint.model).__name__}` with a free batch size: {_first_line(error)}",
            expected="a model whose graph does not depend on its input's values",
            hint="distill it into a student, which exports: edgebert distill DATA --teacher CHECKPOINT --student tiny",
        ) from error
    assert program is not None  # only the old exporter returns nothing
    model: onnx.ModelProto = program.model_proto
    _forget_origin(model)
    _check_operators(model, checkpoint.model, options)
    return model


def _forget_origin(model: onnx.ModelProto) -> None:
    """Drop stack traces, module paths and notes: they name files of this computer and the order of earlier work."""
    graph = model.graph
    model.doc_string = graph.doc_string = ""
    for described in (*graph.node, *graph.input, *graph.output, *graph.initializer, *graph.value_info):
        described.doc_string = ""
        del described.metadata_props[:]
    del graph.metadata_props[:]
    del graph.value_info[:]  # inferred again where it is wanted


def _check_operators(model: onnx.ModelProto, source: torch.nn.Module, options: ExportOptions) -> None:
    """Warn where a layer norm, a GELU or a batch norm did not become one operator or none.

    A layer norm in pieces overflows in FP16 (tensorrt_jetson.md, fact 5: 19 % instead of 85 % top-1).
    """
    found = [node.op_type for node in model.graph.node]
    expected = sum(isinstance(module, torch.nn.LayerNorm) for module in source.modules())
    if found.count("LayerNormalization") < expected and "Pow" in found:
        _log.warning(
            "%d of %d layer norms became one operator: a TensorRT engine in FP16 may lose accuracy",
            found.count("LayerNormalization"),
            expected,
        )
    if options.opset >= 20 and "Erf" in found:
        _log.warning("%d GELU were exported in pieces: engines may not fuse them", found.count("Erf"))
    if "BatchNormalization" in found:
        _log.warning("%d batch norms were not folded into a convolution", found.count("BatchNormalization"))


def _card(checkpoint: Checkpoint, options: ExportOptions) -> ModelCard:
    """Return the graph's card. What was measured here is not in it: it may differ between computers, the graph must not."""
    packages = ("torch", "transformers", "onnx", "onnxscript")
    return replace(
        checkpoint.card,
        provenance=Provenance(
            stage="export",
            made_from={"checkpoint": checkpoint.sha256},
            options={"opset": options.opset, "attention": "eager"},
            versions={package: installed_version(package) or "unknown" for package in packages},
            parameters=parameter_count(checkpoint.model),
            source=checkpoint.card.provenance,
        ),
    )


def _compared(checkpoint: Checkpoint, content: bytes, images: NDArray[np.uint8], output: Path) -> ExportReport:
    """Run the same images in PyTorch and in ONNX Runtime, in batches of 1, 2 and 16."""
    card = checkpoint.card
    spec = InputSpec(height=card.preprocessing.height, width=card.preprocessing.width, classes=len(card.class_names))
    classifier = PixelClassifier(checkpoint.model, card.preprocessing).eval()
    difference, scale, flips = 0.0, 0.0, 0
    with open_runner("onnxruntime", ModelSource(spec=spec, files={"model.onnx": content}), RunnerOptions()) as runner:
        for batch in _batches(images):
            with torch.inference_mode():
                ours = classifier(torch.from_numpy(batch)).numpy()  # (batch, classes)
            theirs = runner.infer(batch)
            # np.maximum and not max: a NaN must stay one.
            difference = float(np.maximum(difference, np.abs(ours - theirs).max()))
            scale = float(np.maximum(scale, np.abs(ours).max()))
            differ = decisions(ours, card.thresholds) != decisions(theirs, card.thresholds)  # (batch, classes)
            flips += int(differ.any(axis=1).sum())
    return ExportReport(
        path=output,
        sha256=hashlib.sha256(content).hexdigest(),
        size_bytes=len(content),
        parameters=parameter_count(checkpoint.model),
        images=len(images),
        max_logit_difference=difference,
        logit_scale=scale,
        flips=flips,
    )


def _batches(images: NDArray[np.uint8]) -> Iterator[NDArray[np.uint8]]:
    start = 0
    for size in (*_BATCHES[:2], *[_BATCHES[2]] * len(images)):
        if start >= len(images):
            return
        yield images[start : start + size]
        start += size


def _check_parity(report: ExportReport, options: ExportOptions, card: ModelCard) -> None:
    """Refuse a graph that answers differently; NaN fails too."""
    allowed = options.max_logit_difference * max(1.0, report.logit_scale)
    if not math.isfinite(report.logit_scale):
        raise EdgebertError(
            f"the model answers with {report.logit_scale} in PyTorch itself",
            expected="finite logits; nothing was written",
            hint="train it again with a lower learning rate",
        )
    if not report.max_logit_difference <= allowed:
        raise EdgebertError(
            f"the graph's logits differ from PyTorch's by {report.max_logit_difference:.3g} on {report.images} images",
            expected=f"at most {allowed:.3g}; nothing was written",
            hint="if that is precise enough for you: `--max-logit-difference`",
        )
    if report.flips > options.max_flips:
        raise EdgebertError(
            f"the graph gives {report.flips} of {report.images} images "
            f"{'another class' if card.task == 'single-label' else 'other labels'} than PyTorch",
            expected=f"at most {options.max_flips}; nothing was written",
            hint="if that is precise enough for you: `--max-flips`",
        )


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep the exporter off stdout, and its notes about torch's own inside (and a missing torchvision) off stderr."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _first_line(error: BaseException) -> str:
    """Return the most telling line: the exporter wraps the cause in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__
