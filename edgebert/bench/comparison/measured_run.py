"""One result as `compare` looks at it: verdicts are made from the raw samples, whatever stands in the file.

What is taken from the file are its facts: names and hashes, seeds, the pipeline, and the status, which the samples may only
make worse. `edgebert validate` checks the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edgebert.bench.comparison.launch_times import MetricName, launch_times, mean_of_launches, schema_metric
from edgebert.bench.comparison.validation import invalid_reasons
from edgebert.bench.comparisons import comparison_of, contrast_of
from edgebert.bench.paired_accuracy import twin_from_samples
from edgebert.bench.result import read_result, read_result_samples
from edgebert.bench.samples import Samples
from edgebert.bench.schema import Comparison, NoiseFloor, Result
from edgebert.bench.statistics.formulas import CONFIDENCE, holm
from edgebert.bench.statistics.launches import (
    LaunchContrast,
    contrast_p_value,
    pooled_contrast,
    simultaneous_confidence,
)

DEFAULT_MARGIN = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredRun:
    """A result with its samples.

    Attributes:
        name: what the file is called in messages.
        result: as read, not valid where the samples say so.
        samples: beside it.
    """

    name: str
    result: Result
    samples: Samples

    @classmethod
    def read(cls, path: Path, *, name: str) -> MeasuredRun:
        """Read a result and its samples.

        Raises:
            InputNotFoundError, BadDataError, RefusedError: as `read_result`.
        """
        result = read_result(path)
        if not result.arms:
            return cls(name=name, result=result, samples=Samples({}))
        samples = read_result_samples(path, result)
        reasons = invalid_reasons(result, samples, what=f"`{name}`")
        if reasons and result.status.valid:
            result = replace(result, status=replace(result.status, valid=False, reasons=tuple(reasons)))
        return cls(name=name, result=result, samples=samples)

    @property
    def names(self) -> list[str]:
        """Names of the arms that were asked for."""
        return [arm.id for arm in self.result.measured_arms]

    @property
    def margin(self) -> float:
        """Return the margin that the run was judged by."""
        return self.result.comparisons[0].margin if self.result.comparisons else DEFAULT_MARGIN

    def index(self, arm: str) -> int:
        """Return the number of an arm in the samples."""
        return next(at for at, entry in enumerate(self.result.arms) if entry.id == arm)

    def noise_floor(self, metric: MetricName) -> NoiseFloor | None:
        """Return what the baseline differs from itself by; None where the run has no A/A control, or cannot say."""
        control = next((arm.id for arm in self.result.arms if arm.role == "aa"), None)
        baseline = next(arm.id for arm in self.result.arms if arm.role == "baseline")
        if control is None:
            return None
        found = self._contrast(baseline, control, metric, confidence=CONFIDENCE)
        return None if found is None else NoiseFloor(ratio=found.ratio, ci95=found.ci95)

    def comparisons(
        self, baseline: str | None, arm: str | None, metrics: Sequence[MetricName], margin: float | None
    ) -> list[Comparison]:
        """Return how arms of this run compare with a baseline, paired; a metric that cannot be stated is left out.

        Args:
            baseline: name of the arm they are held against; None for that of the run.
            arm: name of the only one to compare; None for all.
            metrics: what to compare by.
            margin: relative difference that matters; None for that of the run.
        """
        own = next(entry.id for entry in self.result.arms if entry.role == "baseline")
        against = own if baseline is None else baseline
        candidates = [name for name in self.names if name != against]
        confidence = simultaneous_confidence(max(1, len(candidates)))
        found = []
        for metric in metrics:
            contrasts = {
                name: contrast
                for name in candidates
                if (contrast := self._contrast(against, name, metric, confidence=confidence)) is not None
            }
            p_values = {
                name: value for name, entry in contrasts.items() if (value := contrast_p_value(entry)) is not None
            }
            adjusted = dict(zip(p_values, holm(list(p_values.values())), strict=True))
            floor = self.noise_floor(metric)
            for name, contrast in contrasts.items():
                if arm in (None, name):
                    twin = twin_from_samples(self.samples, self.index(against), self.samples, self.index(name))
                    assert twin is not None  # the arms of one run are judged on the same images
                    found.append(
                        comparison_of(
                            contrast,
                            (against, name),
                            schema_metric(metric),
                            margin=self.margin if margin is None else margin,
                            control=floor,
                            accuracy=twin,
                            p_holm=adjusted.get(name),
                        )
                    )
        return found

    def _contrast(self, a: str, b: str, metric: MetricName, *, confidence: float) -> LaunchContrast | None:
        seed = self.result.seeds.bootstrap
        if metric != "throughput":
            return contrast_of(
                self.samples, self.index(a), self.index(b), schema_metric(metric), confidence=confidence, seed=seed
            )
        times = [launch_times(self.samples, self.index(name), metric) for name in (a, b)]
        means = [mean_of_launches(entry) for entry in times if entry is not None]
        return pooled_contrast(means[0], means[1], confidence=confidence)
