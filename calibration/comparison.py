"""FP32 and INT8 side by side on validation images, in both engines."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from edgebert._progress import tracked
from edgebert.calibration.guard import Judgement
from edgebert.card import ModelCard
from edgebert.data import Example
from edgebert.decisions import decisions
from edgebert.errors import BadDataError, EdgebertError
from edgebert.export.metadata import bytes_of_model
from edgebert.export.ort_form import kernel_form
from edgebert.export.rules import graph_precision
from edgebert.metrics import exact_match, multilabel_f1
from edgebert.preprocess import load_image
from edgebert.runtime.runner import InputSpec, ModelSource, Runner, RunnerOptions, open_runner

ENGINES = ("onnxruntime", "openvino")

_BATCH = 32
_TIMED_SECONDS = 4.0  # for a pair of graphs
_NOT_BELIEVED = 0.9  # of equal decisions between the two engines: one of them computes something else

Logits = NDArray[np.float32]  # (images, classes)


class Validation:
    """Validation images, their labels, and what FP32 answers in both engines.

    Args:
        model: the FP32 graph.
        card: its own.
        examples: of the validation split.

    Raises:
        BadDataError: there is no example.
    """

    def __init__(self, model: onnx.ModelProto, card: ModelCard, examples: tuple[Example, ...]) -> None:
        if not examples:
            raise BadDataError(
                "there are no validation images to compare INT8 with FP32 on", expected="a validation split"
            )
        self._card = card
        self._images = np.stack(
            [
                load_image(example.load(), card.preprocessing)
                for example in tracked(examples, what="read validation images", total=len(examples))
            ]
        )
        self.labels = np.zeros((len(examples), len(card.class_names)), np.bool_)
        for row, example in enumerate(examples):
            self.labels[row, list(example.labels)] = True
        self.before = {engine: self.logits(engine, model) for engine in ENGINES}

    def logits(self, engine: str, model: onnx.ModelProto) -> Logits:
        """Return what a graph, FP32 or INT8, answers in one engine."""
        with self._opened(engine, model) as runner:
            parts = [
                runner.infer(self._images[start : start + _BATCH]) for start in range(0, len(self._images), _BATCH)
            ]
        return np.concatenate(parts)

    def times(self, engine: str, models: Sequence[onnx.ModelProto]) -> tuple[float, ...]:
        """Return the median time of one image in each of two graphs, in milliseconds, from interleaved blocks."""
        from edgebert.bench.rounds import TIMED_IMAGES, timed_rounds

        with contextlib.ExitStack() as opened:
            runners = [opened.enter_context(self._opened(engine, model)) for model in models]
            timed = timed_rounds(
                [runner.infer for runner in runners], self._images[:TIMED_IMAGES], max_seconds=_TIMED_SECONDS
            )
        return tuple(float(np.median(np.concatenate([b for blocks in arm for b in blocks]))) / 1e6 for arm in timed)

    def _opened(self, engine: str, model: onnx.ModelProto) -> Runner:
        bare = onnx.ModelProto()
        bare.CopyFrom(model)
        del bare.metadata_props[:]
        disabled: tuple[str, ...] = ()
        if engine == "onnxruntime" and graph_precision(bare) == "int8":
            bare, disabled = kernel_form(bare)
        rule = self._card.preprocessing
        spec = InputSpec(height=rule.height, width=rule.width, classes=len(self._card.class_names))
        source = ModelSource(spec=spec, files={"model.onnx": bytes_of_model(bare)})
        return open_runner(engine, source, RunnerOptions(disabled_optimizers=disabled))

    def judged(self, engine: str, model: onnx.ModelProto) -> Judgement:
        """Return how an INT8 graph does in one engine."""
        return self.judgement(self.logits(engine, model), engine)

    def judgement(self, logits: Logits, engine: str) -> Judgement:
        """Return how answers of one engine do beside what FP32 answers there."""
        before = self.before[engine]
        return Judgement(
            drop=100 * (self.right(before) - self.right(logits)),
            agreement=100 * exact_match(self.said(before), self.said(logits)),
        )

    def right(self, logits: Logits) -> float:
        """Return the share of images that are decided as their labels say."""
        return exact_match(self.labels, self.said(logits))

    def said(self, logits: Logits) -> NDArray[np.bool_]:
        """Return bool (images, classes): what is said of each image."""
        return decisions(logits, self._card.thresholds)

    def compared(self, portable: onnx.ModelProto, openvino: onnx.ModelProto) -> Comparison:
        """Run the INT8 graph of every engine: the portable one in both, and what OpenVINO gets where that differs."""
        after = {engine: self.logits(engine, portable) for engine in ENGINES}
        shipped = after["openvino"] if openvino is portable else self.logits("openvino", openvino)
        return Comparison(validation=self, after=after, openvino=shipped, thresholds=self._card.thresholds)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """INT8 beside FP32.

    Attributes:
        validation: the images, and FP32.
        after: engine -> what the portable INT8 graph answers.
        openvino: what the graph that OpenVINO gets answers there.
        thresholds: of a multi-label model.
    """

    validation: Validation
    after: Mapping[str, Logits]
    openvino: Logits
    thresholds: tuple[float, ...]

    def agreement(self, engine: str) -> float:
        """Return the share of equal decisions of FP32 and of what ships, in one engine."""
        logits = self.openvino if engine == "openvino" else self.after[engine]
        return self.validation.judgement(logits, engine).agreement / 100

    def engines_agree(self) -> float:
        """Return the share of equal decisions of the two engines on the same INT8 graph."""
        first, second = (self.validation.said(self.after[engine]) for engine in ENGINES)
        return exact_match(first, second)

    def engine_difference(self) -> float:
        """Return the largest |difference| of a logit between the two engines on the same INT8 graph."""
        first, second = (self.after[engine] for engine in ENGINES)
        return float(np.abs(first - second).max())

    def check_engines(self) -> None:
        """Refuse a graph that means different things to the two engines.

        Raises:
            EdgebertError: fewer than 90 % of the decisions are equal.
        """
        if self.engines_agree() < _NOT_BELIEVED:
            raise EdgebertError(
                f"ONNX Runtime and OpenVINO decide alike on {self.engines_agree():.1%} of "
                f"{len(self.validation.labels)} images",
                expected=f"at least {_NOT_BELIEVED:.0%} for an INT8 graph to be believed; nothing was written",
                hint="compile the FP32 graph",
            )

    def metrics(self) -> dict[str, float]:
        """Return what the provenance keeps of FP32 and INT8 in ONNX Runtime, by name."""
        name = "exact_match" if self.thresholds else "top1"
        found = {}
        rows = (("fp32", self.validation.before["onnxruntime"]), ("int8", self.after["onnxruntime"]))
        for precision, logits in rows:
            found[f"val_{name}_{precision}"] = self.validation.right(logits)
            if self.thresholds:
                micro, macro = multilabel_f1(self.validation.labels, self.validation.said(logits))
                found[f"val_micro_f1_{precision}"], found[f"val_macro_f1_{precision}"] = micro, macro
        return {
            **found,
            "val_agreement_onnxruntime": self.agreement("onnxruntime"),
            "val_agreement_openvino": self.agreement("openvino"),
            "val_engines_agree": self.engines_agree(),
        }
