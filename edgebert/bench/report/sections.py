"""What the page shows of one result: texts, tables and figures, ready to be put into the template."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from edgebert.bench.report.accuracy import (
    Confusions,
    Gallery,
    calibration_table,
    class_rows,
    confusions_of,
    galleries_of,
)
from edgebert.bench.report.environment import environment_of, everything_of, preflight_table
from edgebert.bench.report.figures_comparison import accuracy_latency_figure, forest_figure, ratios_of
from edgebert.bench.report.figures_latency import (
    cold_figure,
    density_figure,
    percentile_figure,
    soak_figure,
    stage_figure,
)
from edgebert.bench.report.figures_scenarios import latency_throughput_figure, offline_figure, server_figure
from edgebert.bench.report.figures_timeline import STRIPS, read_strips, strips_of, timeline_figure
from edgebert.bench.report.latency import comparison_table, outlier_table, stage_table
from edgebert.bench.report.method import check_table, command_of, cost_table, files_table, method_of
from edgebert.bench.report.parts import (
    MAX_LISTED,
    Badge,
    Cell,
    Facts,
    Figure,
    Table,
    arm_cell,
    plain,
    safe,
)
from edgebert.bench.report.scenarios import has_scenario, scenario_tables
from edgebert.bench.report.summary import summary_table
from edgebert.bench.report.words import headline, measure_of, noise_sentence, scenario_sentences, sentences
from edgebert.bench.samples import Samples
from edgebert.bench.schema import Result


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One result. What a result without arms cannot have is empty, and `summary` None."""

    part: str
    name: str
    headline: str
    sentences: tuple[str, ...]
    badges: tuple[Badge, ...]
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    summary: Table | None
    comparison: tuple[Figure, ...]
    comparisons: Table | None
    figures: tuple[Figure, ...]
    latency: tuple[Table, ...]
    scenario_sentences: tuple[str, ...]
    scenario_figures: tuple[Figure, ...]
    scenario_tables: tuple[Table, ...]
    accuracy: Table | None
    confusions: tuple[Confusions, ...]
    class_names: tuple[str, ...]
    per_class: tuple[tuple[str, int, tuple[str, ...]], ...]
    arms: tuple[Cell, ...]
    galleries: tuple[Gallery, ...]
    method: tuple[str, ...]
    command: str
    excluded: tuple[tuple[str, str], ...]
    checks: tuple[Table, ...]
    files: Table
    preflight: Table | None
    environment: tuple[Facts, ...]
    everything: Table
    not_measured: tuple[tuple[str, str], ...]


def section_of(name: str, result: Result, samples: Samples, *, part: str) -> Section:
    """Return what the page shows of a result.

    Args:
        name: of the file.
        result: checked.
        samples: its raw samples; not looked at where the result has no arms.
        part: begins every id of its figures.
    """
    measured = bool(result.arms) and result.dataset is not None
    class_names = tuple(plain(name) for name in result.dataset.class_names) if result.dataset is not None else ()
    excluded = result.dataset.excluded[:MAX_LISTED] if result.dataset is not None else ()
    return Section(
        part=part,
        name=plain(name),
        headline=plain(headline(result)),
        sentences=tuple(plain(sentence) for sentence in _findings(result)),
        badges=tuple(_badges(result)),
        reasons=tuple(plain(reason) for reason in result.status.reasons),
        warnings=tuple(plain(warning) for warning in result.status.warnings),
        summary=summary_table(result) if measured else None,
        comparison=tuple(_comparison_figures(result, part)) if measured else (),
        comparisons=comparison_table(result) if result.comparisons else None,
        figures=tuple(_latency_figures(result, samples, part)) if measured else (),
        latency=(stage_table(result), outlier_table(result)) if measured else (),
        scenario_sentences=tuple(plain(sentence) for sentence in scenario_sentences(result)),
        scenario_figures=tuple(_scenario_figures(result, samples, part)) if measured else (),
        scenario_tables=tuple(scenario_tables(result)),
        accuracy=calibration_table(result) if measured else None,
        confusions=tuple(confusions_of(result, class_names)),
        class_names=class_names,
        per_class=tuple(class_rows(result)) if measured else (),
        arms=tuple(safe(arm_cell(result, arm)) for arm in result.measured_arms),
        galleries=tuple(galleries_of(result)),
        method=tuple(plain(sentence) for sentence in method_of(result)) if measured else (),
        command=plain(command_of(result)),
        excluded=tuple((plain(entry.id), plain(", ".join(entry.seen_by))) for entry in excluded),
        checks=(check_table(result), cost_table(result)) if measured else (),
        files=files_table(result),
        preflight=preflight_table(result),
        environment=tuple(environment_of(result)),
        everything=everything_of(result),
        not_measured=tuple((plain(path), plain(reason)) for path, reason in sorted(result.not_measured.items())),
    )


def _findings(result: Result) -> Iterator[str]:
    yield from sentences(result)
    if len(result.measured_arms) > 1 and result.status.valid:
        yield noise_sentence(result)


def _badges(result: Result) -> Iterator[Badge]:
    status = result.status
    yield Badge(text="valid", tone="good") if status.valid else Badge(text="not valid", tone="bad")
    yield Badge(text="converged", tone="good") if status.converged else Badge(text="not converged", tone="bad")
    if status.throttled is not None:
        yield Badge(text="throttled", tone="bad") if status.throttled else Badge(text="not throttled", tone="good")
    else:
        yield Badge(text="throttling not readable", tone="")
    if status.virtualised is not None:
        yield Badge(text="virtual machine" if status.virtualised else "not virtualised", tone="")
    if status.partial:
        yield Badge(text="partial", tone="bad")
    yield Badge(text=f"rigor: {result.rigor}", tone="")
    if result.arms:
        launches = result.arms[0].scenarios[0].launches
        yield Badge(text=f"{launches} launch{'es' if launches != 1 else ''}", tone="")


def _comparison_figures(result: Result, part: str) -> Iterator[Figure]:
    if ratios_of(result):
        yield Figure(
            title="Ratios of times to the baseline",
            caption="Bars: intervals, simultaneous over the arms. Grey: the margin. Between broken lines: what the "
            "baseline differs from itself by (A/A). A difference is claimed only where a bar lies beyond both.",
            svg=forest_figure(result, part),
            wide=True,
        )


def _latency_figures(result: Result, samples: Samples, part: str) -> Iterator[Figure]:
    yield Figure(
        title="Latency by percentile",
        caption="Each step to the right is ten times rarer. Every query counts; no outlier was removed.",
        svg=percentile_figure(result, samples, part),
    )
    yield Figure(
        title="How often each latency occurs",
        caption="Histogram over equal logarithmic steps; above 1 % the height is logarithmic, so that rare ones are seen.",
        svg=density_figure(result, samples, part),
    )
    yield Figure(
        title="Where the time goes",
        caption="Means; the stages of a query add up to its end-to-end time. Gap: time of a block that belongs to no query.",
        svg=stage_figure(result, part),
    )
    yield Figure(
        title="Accuracy against latency",
        caption=f"Better is up and to the left. Bars: 95 % intervals, Wilson's for {measure_of(result)}, over launches and blocks "
        "for p50. Pale: another arm's values are at least as good in both.",
        svg=accuracy_latency_figure(result, part),
    )
    yield Figure(
        title="Every query in time order",
        caption=_timeline_caption(result, samples),
        svg=timeline_figure(result, samples, part),
        wide=True,
    )


def _timeline_caption(result: Result, samples: Samples) -> str:
    queries = int((samples["scenario"] == 0).sum())
    what = f"{queries:,} queries of all launches, in bars from the fastest to the slowest of each stretch"
    parts = [f"{what}; broken lines: a new launch begins."]
    read, shown = read_strips(samples), strips_of(samples)
    still = [strip.name for strip in read if strip not in shown]
    if still:
        parts.append(f"Never moved: {', '.join(still)}.")
    absent = [
        f"{strip.name} ({result.not_measured.get(f'telemetry.{strip.column}', 'no reason recorded')})"
        for strip in STRIPS
        if strip.missed and strip not in read
    ]
    if absent:
        parts.append(f"Not read: {'; '.join(absent)}.")
    return plain(" ".join(parts))


def _scenario_figures(result: Result, samples: Samples, part: str) -> Iterator[Figure]:
    if has_scenario(result, "offline"):
        yield Figure(
            title="Offline: images per second",
            caption="Every point of the sweep; bars: 95 % intervals over windows and launches.",
            svg=offline_figure(result, part),
        )
        yield Figure(
            title="What throughput costs in latency",
            caption="The same points; the line joins those that no faster point beats.",
            svg=latency_throughput_figure(result, part),
        )
    if has_scenario(result, "server"):
        yield Figure(
            title="Server: share of queries inside the bound",
            caption="Poisson arrivals; bars: 95 % intervals (Wilson).",
            svg=server_figure(result, part),
        )
    if any(arm.startup.cold is not None for arm in result.measured_arms):
        yield Figure(
            title="Cold start",
            caption="From the start of a fresh process to its first answer; medians of each step.",
            svg=cold_figure(result, part),
        )
    if has_scenario(result, "soak"):
        yield Figure(
            title="Soak: does it become slower?",
            caption="p50 of stretches of equal length; dotted: p99.",
            svg=soak_figure(result, samples, part),
            wide=True,
        )
