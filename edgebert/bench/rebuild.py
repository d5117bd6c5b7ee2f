"""Every statistic of a result from its raw samples: `bench` builds a result with it, and `validate` builds it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgebert.bench.accuracy import Reference, accuracy_from_samples
from edgebert.bench.analysis import scenario_from_samples
from edgebert.bench.audit.honesty import consistency_from_samples
from edgebert.bench.comparisons import comparisons_from_samples
from edgebert.bench.energy import ENERGY_SCENARIOS, energy_of
from edgebert.bench.environment.telemetry import telemetry_of_columns, throttled_blocks
from edgebert.bench.samples import Samples
from edgebert.bench.scenarios.analysis import scenario_record
from edgebert.bench.schema import (
    Accuracy,
    Arm,
    Consistency,
    Result,
    Scenario,
    ScenarioName,
    ScenarioParams,
    WarmupRecord,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Declared:
    """What the statistics of an arm take beside the samples; all of it stands in the result.

    Attributes:
        class_names: of the data set.
        reference: the arm that agreement refers to.
        temperature: that the arm divides its logits by.
        known: name and thumbnail of flipped images.
        flipped: how many of them are kept.
        seed: of the bootstrap.
        looks: at the intervals.
        warmup: how the warm-ups ended.
        first_error: of the first query that failed.
        input_sensitivity: as measured.
        scenarios: parameters of the scenarios that were run beside single-stream.
    """

    class_names: Sequence[str]
    reference: Reference | None
    temperature: float
    known: Mapping[int, tuple[str, str | None]]
    flipped: int
    seed: int
    looks: int
    warmup: WarmupRecord
    first_error: str | None
    input_sensitivity: float | None
    scenarios: Mapping[ScenarioName, ScenarioParams]


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """What is computed from the samples of one arm."""

    accuracy: Accuracy
    consistency: Consistency
    scenarios: tuple[Scenario, ...]


def statistics_of_arm(samples: Samples, arm: int, declared: Declared) -> Statistics:
    """Return all that is computed from the samples of one arm."""
    single = scenario_from_samples(
        samples,
        arm,
        warmup=declared.warmup,
        looks=declared.looks,
        throttled_blocks=throttled_of(samples, arm),
        seed=declared.seed,
    )
    others = tuple(
        _with_energy(
            scenario_record(
                samples,
                arm,
                name,
                params,
                warmup=declared.warmup,
                seed=declared.seed,
                throttled_blocks=throttled_of(samples, arm, name),
                throttle_events=throttle_events_of(samples, arm, name),
            ),
            samples,
            arm,
        )
        for name, params in declared.scenarios.items()
        if len(samples.queries_of(arm, name)["arm"])
    )
    return Statistics(
        accuracy=accuracy_from_samples(
            samples,
            arm,
            declared.class_names,
            reference=declared.reference,
            temperature=declared.temperature,
            known=declared.known,
            flipped=declared.flipped if declared.known else 0,
            seed=declared.seed,
        ),
        consistency=consistency_from_samples(
            samples, arm, first_error=declared.first_error, input_sensitivity=declared.input_sensitivity
        ),
        scenarios=(single, *others),
    )


def _with_energy(scenario: Scenario, samples: Samples, arm: int) -> Scenario:
    """Return the scenario with the energy of its images, where it is one that measures it and the rails could be read."""
    found = energy_of(samples, arm, scenario.name) if scenario.name in ENERGY_SCENARIOS else ""
    return scenario if isinstance(found, str) else replace(scenario, energy=found)


def throttled_of(samples: Samples, arm: int, name: ScenarioName = "single-stream") -> int | None:
    """Return how many blocks of an arm were throttled in a scenario; None where no sensor could tell."""
    telemetry = telemetry_of_columns(samples)
    if telemetry is None or not telemetry.sees_throttling:
        return None
    blocks = samples.blocks_of(arm, name)
    starts = blocks["block_start_ns"]
    return int(np.count_nonzero(throttled_blocks(telemetry, starts, starts + blocks["block_wall_ns"])))


def throttle_events_of(samples: Samples, arm: int, name: ScenarioName) -> int | None:
    """Return how often the processor was throttled while an arm was in a scenario; None where that is not counted."""
    telemetry, blocks = telemetry_of_columns(samples), samples.blocks_of(arm, name)
    counter = None if telemetry is None else telemetry.columns.get("throttle_events")
    if telemetry is None or counter is None:
        return None
    start = int(blocks["block_start_ns"].min())
    end = int((blocks["block_start_ns"] + blocks["block_wall_ns"]).max())
    seen = counter[(telemetry.t_ns >= start) & (telemetry.t_ns <= end) & (counter >= 0)]
    return int(seen[-1] - seen[0]) if seen.size else None


def recomputed(result: Result, samples: Samples) -> Result:
    """Return the result with every statistic built again from the samples; what was declared or observed stays.

    Args:
        result: as read.
        samples: those beside it.
    """
    if not result.arms or result.dataset is None:
        return result
    arms = tuple(_rebuilt(result, index, arm, samples) for index, arm in enumerate(result.arms))
    margin = result.comparisons[0].margin if result.comparisons else 0.0
    comparisons = comparisons_from_samples(
        samples,
        [arm.id for arm in result.arms],
        [arm.role for arm in result.arms],
        margin=margin,
        seed=result.seeds.bootstrap,
    )
    return replace(result, arms=arms, comparisons=comparisons)


def _rebuilt(result: Result, index: int, arm: Arm, samples: Samples) -> Arm:
    names = [other.id for other in result.arms]
    agreement = arm.accuracy.agreement
    reference = None if agreement is None else Reference(names.index(agreement.reference), agreement.reference)
    assert result.dataset is not None
    statistics = statistics_of_arm(
        samples,
        index,
        Declared(
            class_names=result.dataset.class_names,
            reference=reference,
            temperature=arm.temperature,
            known={entry.sample: (entry.id, entry.thumbnail) for entry in arm.accuracy.flipped},
            flipped=len(arm.accuracy.flipped),
            seed=result.seeds.bootstrap,
            looks=arm.scenarios[0].looks,
            warmup=arm.scenarios[0].warmup,
            first_error=arm.consistency.first_error,
            input_sensitivity=arm.consistency.input_sensitivity,
            scenarios={scenario.name: scenario.params for scenario in arm.scenarios[1:]},
        ),
    )
    return replace(
        arm, accuracy=statistics.accuracy, consistency=statistics.consistency, scenarios=statistics.scenarios
    )
