"""The search: which smoothing, which ranges and which placement suit this model, by what they do to its answers.

Candidates are compared by the mean KL divergence from FP32 on training images that nothing was calibrated on; validation and
test images take no part. Smoothing comes first, then ranges, then the finer means, then placements: each stage starts from the
best of the one before. Nothing is drawn at random: equal inputs give equal trials.

A wider placement puts more of the work into INT8 and never brings the answers nearer to FP32. The portable graph keeps stem,
attention and head in float. A target that gains by more gets it where that moves at least 2 % and 200,000 of the
multiplications, no more of the held-out images than chance explains are decided otherwise, and the divergence rises by at most a quarter or stays below what the
multiplications are worth.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from edgebert._json import JsonObject, JsonValue
from edgebert._progress import Progress
from edgebert.calibration.calibrate import Calibration, QuantizationRecipe, ScaledGraph
from edgebert.calibration.cost import share_of_macs
from edgebert.calibration.held_out import HeldOut, Score
from edgebert.calibration.placement import AttentionMode, Layout
from edgebert.calibration.ranges import ESTIMATORS, Estimator
from edgebert.calibration.smoothing import ALPHAS

_log = logging.getLogger("edgebert")

Effort = Literal["fast", "standard", "best"]

# Nats for all multiplications: one tenth of them may cost 1e-4, a divergence at which 99.8 % of Fashion-MNIST's decisions, and
# all of 512 on digits and cells, stayed the same. NNCF's defaults, which quantise everything, cost 8e-4 to 2e-2 on these.
_WORTH_NATS = 1e-3
_DEARER = 1.25
_WORTH_MACS = 0.02
# Fewer take some microseconds in float. On a student of 8-pixel digits a wider placement moved 33,000 to 134,000 of them, gained
# 2 % of 53 microseconds in OpenVINO, and answered five times farther from FP32.
_WORTH_COUNT = 200_000
_FOR_ADDED: tuple[Estimator, ...] = ("mse", "minmax", "p99.99")
_ATTENTION: tuple[AttentionMode, ...] = ("float", "qk", "full")  # each does more in INT8 than the one before
# What a backend gains by, measured (docs/quantization.md): OpenVINO a quarter of the time by the stem of a 224-pixel student and
# 4 % by attention; ONNX Runtime loses a third by the stem and gains nothing by attention. TensorRT's INT8 convolutions are the
# proven part of its INT8, its fused attention is best left in FP16 (tensorrt_jetson.md). A head is too small to gain anywhere.
_GAINS: dict[str, Callable[[Layout], bool]] = {
    "openvino": lambda layout: not layout.head,
    "tensorrt": lambda layout: layout.stem and layout.attention == "float",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One candidate and how it did.

    Attributes:
        recipe: how its scales were made.
        layout: what it quantises.
        score: against FP32, on the held-out images.
        macs_int8: share of the multiplications that it does in INT8, in [0, 1].
        stage: what was being looked for: `smoothing`, `range`, `means`, `placement` or `values`.
    """

    recipe: QuantizationRecipe
    layout: Layout
    score: Score
    macs_int8: float
    stage: str

    def to_json(self) -> JsonObject:
        """Return the fields as a JSON object."""
        layout: JsonObject = {
            "attention": self.layout.attention,
            "stem": self.layout.stem,
            "head": self.layout.head,
        }
        return {
            "stage": self.stage,
            **self.recipe.to_json(),
            **layout,
            **self.score.to_json(),
            "macs_int8": self.macs_int8,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """What the search found.

    Attributes:
        chosen: the portable candidate, which every target takes.
        wider: backend -> the candidate that it gets instead.
        trials: all of them, in the order they were made.
        images: how many held-out images compared them.
        effort: what was asked for.
    """

    chosen: Trial
    wider: Mapping[str, Trial]
    trials: tuple[Trial, ...]
    images: int
    effort: Effort

    @property
    def recipe(self) -> QuantizationRecipe:
        """The one recipe of all placements: that of the portable candidate, with the ranges of what wider ones add."""
        exceptions: dict[str, Estimator] = {}
        for trial in (*self.wider.values(), self.chosen):
            exceptions.update(trial.recipe.exceptions)
        return replace(self.chosen.recipe, exceptions=exceptions)

    def to_json(self) -> JsonObject:
        """Return what the manifest keeps; it holds no random choice, hence no seed but 0."""
        trials: list[JsonValue] = [trial.to_json() for trial in self.trials]
        return {
            "effort": self.effort,
            "held_out_images": self.images,
            "seed": 0,
            "chosen": self.chosen.to_json(),
            "wider": {backend: trial.to_json() for backend, trial in sorted(self.wider.items())},
            "trials": trials,
        }


def searched(calibration: Calibration, held_out: HeldOut, macs: Mapping[str, int], effort: Effort) -> SearchResult:
    """Search.

    Args:
        calibration: what was measured of the FP32 graph.
        held_out: other images, with what FP32 answers.
        macs: multiplications by operator (`edgebert.calibration.cost`).
        effort: `fast` tries two smoothings; `standard` every smoothing, then every range, then every placement; `best`
            every pair of smoothing and range, and a range of its own for every value.
    """
    search = _Search(calibration, held_out, macs, effort)
    search.run()
    return SearchResult(
        chosen=search.best,
        wider=search.wider,
        trials=tuple(search.trials),
        images=held_out.count,
        effort=effort,
    )


def is_as_good(wide: Score, narrow: Score, moved: float) -> bool:
    """Say whether a wider placement may take the place of a narrow one, as the top of this module has it.

    Args:
        wide: of the wider placement, on the same images as `narrow`.
        narrow: of the narrow one.
        moved: share of the multiplications that it puts into INT8 beside those of the narrow one, in [0, 1].
    """
    if wide.flips > narrow.flips + np.sqrt(narrow.flips):  # as many as before, give or take the chance in counting them
        return False
    return wide.divergence <= max(_WORTH_NATS * moved, _DEARER * narrow.divergence)


class _Search:
    def __init__(self, calibration: Calibration, held_out: HeldOut, macs: Mapping[str, int], effort: Effort) -> None:
        self._calibration = calibration
        self._held_out = held_out
        self._macs = macs
        self._effort = effort
        self.trials: list[Trial] = []
        self.wider: dict[str, Trial] = {}
        self._scaled: tuple[QuantizationRecipe, ScaledGraph] | None = None  # of the last candidate
        self._planned = self._count()
        self._progress = Progress("try", self._planned)

    def run(self) -> None:
        started = time.monotonic()
        with self._progress:
            first = self._try(QuantizationRecipe(), Layout(), "smoothing")
            self.best = first
            if self._planned > 8:
                seconds = (time.monotonic() - started) * self._planned
                _log.info("%s effort: about %d candidates, %.0f s", self._effort, self._planned, seconds)
            for recipe, stage in self._recipes():
                self._take(self._try(recipe, Layout(), stage))
            if self._effort != "fast":
                for stage in ("means", "means"):
                    for recipe in self._refinements():
                        if all(trial.recipe != recipe for trial in self.trials):
                            self._take(self._try(recipe, Layout(), stage))
                    if self._effort != "best":
                        break
            if self._effort == "best":
                self._values()
            if self._effort != "fast":
                self._placements()

    def _recipes(self) -> Iterator[tuple[QuantizationRecipe, str]]:
        """Yield what is tried of smoothing and ranges; the second stage starts from the best of the first."""
        can_smooth = bool(self._calibration.plans)
        if self._effort == "fast":
            if can_smooth:
                yield QuantizationRecipe(alpha=0.5), "smoothing"
            return
        if can_smooth:
            for alpha in ALPHAS:
                yield QuantizationRecipe(alpha=alpha), "smoothing"
        others = ESTIMATORS[1:]
        every = (None, *ALPHAS) if self._effort == "best" and can_smooth else (self.best.recipe.alpha,)
        for strength in every:
            for estimator in others:
                yield QuantizationRecipe(alpha=strength, estimator=estimator), "range"

    def _refinements(self) -> Iterator[QuantizationRecipe]:
        has_values = any(plan.kind == "value" for plan in self._calibration.plans)
        if self.best.recipe.alpha is not None and has_values and not self.best.recipe.smooth_values:
            yield replace(self.best.recipe, smooth_values=True)
        if not self.best.recipe.correct_biases:
            yield replace(self.best.recipe, correct_biases=True)

    def _values(self) -> None:
        """Give each value the range that suits it best, one after the other."""
        core = set(self._calibration.core_values())
        for value in self._calibration.values:
            if value not in core:
                continue
            for estimator in ESTIMATORS:
                if estimator == self.best.recipe.exceptions.get(value, self.best.recipe.estimator):
                    continue
                exceptions: dict[str, Estimator] = {**self.best.recipe.exceptions, value: estimator}
                self._take(self._try(replace(self.best.recipe, exceptions=exceptions), Layout(), "values"))

    def _placements(self) -> None:
        """Try wider placements, and give each target those that are worth it there, the most multiplications first."""
        placement, modes = self._calibration.placement, set(self._calibration.placement.products.values())
        reasons = set(placement.kept_float.values())
        layouts = [Layout(stem=True)] if "stem" in reasons else []
        layouts += [Layout(head=True)] if "head" in reasons else []
        layouts += [Layout(attention="qk")] if "qk" in modes else []
        layouts += [Layout(attention="full")] if modes == {"qk", "pv"} else []
        tried = [self._placed(layout) for layout in layouts]
        for backend, parts in _GAINS.items():
            chosen = self.best
            for trial in sorted(tried, key=lambda each: -each.macs_int8):
                if not parts(trial.layout) or not self._worth(trial, self.best):
                    continue
                layout = _joined(chosen.layout, trial.layout)
                exceptions = {**chosen.recipe.exceptions, **trial.recipe.exceptions}
                joined = self._known(replace(chosen.recipe, exceptions=exceptions), layout, "placement")
                if self._worth(joined, chosen) and self._worth(joined, self.best):  # a quarter once, not for every part
                    chosen = joined
            if chosen is not self.best:
                self.wider[backend] = chosen

    def _placed(self, layout: Layout) -> Trial:
        """Try a wider placement with each range for what it adds, whatever suits the core, and return the best."""
        recipe, core = self.best.recipe, set(self._calibration.core_values())
        added = [value for value in self._calibration.values_of(self._calibration.places(layout)) if value not in core]
        trials = [self._try(recipe, layout, "placement")]
        for estimator in _FOR_ADDED:
            if estimator != recipe.estimator:
                exceptions: dict[str, Estimator] = {**recipe.exceptions, **dict.fromkeys(added, estimator)}
                trials.append(self._try(replace(recipe, exceptions=exceptions), layout, "placement"))
        return min(trials, key=lambda trial: trial.score.divergence)

    def _known(self, recipe: QuantizationRecipe, layout: Layout, stage: str) -> Trial:
        """Return the trial of a candidate that was tried before, or try it."""
        known = next((each for each in self.trials if (each.recipe, each.layout) == (recipe, layout)), None)
        return known or self._try(recipe, layout, stage)

    def _worth(self, wide: Trial, narrow: Trial) -> bool:
        moved = wide.macs_int8 - narrow.macs_int8
        enough = moved >= _WORTH_MACS and moved * sum(self._macs.values()) >= _WORTH_COUNT
        return enough and is_as_good(wide.score, narrow.score, moved)

    def _take(self, trial: Trial) -> None:
        if trial.score.divergence < self.best.score.divergence:
            self.best = trial

    def _try(self, recipe: QuantizationRecipe, layout: Layout, stage: str) -> Trial:
        places = self._calibration.places(layout)
        if self._scaled is None or self._scaled[0] != recipe:
            self._scaled = recipe, self._calibration.scaled(recipe)
        score = self._held_out.score(self._scaled[1].emitted(places))
        trial = Trial(
            recipe=recipe, layout=layout, score=score, macs_int8=share_of_macs(self._macs, places), stage=stage
        )
        self.trials.append(trial)
        _log.debug("%s; %s: KL %.3g", recipe.to_text(), layout.to_text(), score.divergence)
        self._progress.advance(note=f"best KL {min(each.score.divergence for each in self.trials):.2g}")
        return trial

    def _count(self) -> int:
        """Return about how many candidates will be tried, for the progress bar."""
        smoothings = 1 + len(ALPHAS) if self._calibration.plans else 1
        if self._effort == "fast":
            return 2 if self._calibration.plans else 1
        if self._effort == "standard":
            return smoothings + len(ESTIMATORS) - 1 + 2 + 14
        return smoothings * len(ESTIMATORS) + 4 + 14 + len(self._calibration.core_values()) * (len(ESTIMATORS) - 1)


def _joined(first: Layout, second: Layout) -> Layout:
    attention = _ATTENTION[max(_ATTENTION.index(each.attention) for each in (first, second))]
    return Layout(attention=attention, stem=first.stem or second.stem, head=first.head or second.head)
