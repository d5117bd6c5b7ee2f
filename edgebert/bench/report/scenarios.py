"""What a report shows of the scenarios beside single-stream, and of cold starts: tables."""

from __future__ import annotations

from collections.abc import Iterator

from edgebert.bench.report.energy import energy_table
from edgebert.bench.report.parts import Cell, Table, arm_cell, table_of
from edgebert.bench.report.quantities import (
    NONE,
    duration_range,
    duration_text,
    milliseconds,
    percent,
    range_text,
    rate_text,
    ratio_text,
    size_text,
)
from edgebert.bench.report.summary import quantile_cell
from edgebert.bench.schema import Result, Scenario, ScenarioName, Share, Spread


def scenario_tables(result: Result) -> Iterator[Table]:
    """Yield a table for each scenario beside single-stream that was run."""
    for name, title in (
        ("multi-stream", "Multi-stream: several images to a query"),
        ("paced", "Paced: frames of a camera"),
        ("server", "Server: arrivals at random"),
        ("soak", "Soak: a long run"),
    ):
        found = [(arm, scenario) for arm in result.measured_arms for scenario in arm.scenarios if scenario.name == name]
        if found:
            headers = ("arm", *_SCENARIO_HEADERS[name], "p50, ms", "p90, ms", "p99, ms")
            rows = [
                [arm_cell(result, arm, below=_asked(scenario)), *_own_cells(scenario), *_time_cells(scenario)]
                for arm, scenario in found
            ]
            yield table_of(title, headers, rows, caption=found[0][1].params.region, wide=True)
    energy = energy_table(result)
    if energy is not None:
        yield energy
    if any(arm.startup.cold is not None for arm in result.measured_arms):
        yield _cold_table(result)


def has_scenario(result: Result, name: ScenarioName) -> bool:
    """Say whether any arm was asked in this way."""
    return any(arm.scenario(name) is not None for arm in result.measured_arms)


_SCENARIO_HEADERS: dict[str, tuple[str, ...]] = {
    "multi-stream": ("queries", "images/s"),
    "paced": ("frames", "late", "dropped", "missed, %", "issued late, p99"),
    "server": ("limit, /s", "rates tried", "answered /s", "issued late, p99"),
    "soak": ("first p50, ms", "last p50, ms", "ratio", "memory growth", "throttled"),
}


def _asked(scenario: Scenario) -> str:
    params = scenario.params
    if scenario.name == "paced" and params.fps is not None and params.deadline_ns is not None:
        return f"{params.fps:g} fps, due in {milliseconds(params.deadline_ns)} ms, policy {params.policy}"
    if scenario.name == "server" and params.bound_ns is not None:
        return f"{milliseconds(params.bound_ns)} ms for {100 * (params.bound_share or 0):g} %"
    if scenario.name == "multi-stream":
        return f"{params.samples_per_query} images a query"
    return f"{params.seconds:g} s" if params.seconds is not None else ""


def _own_cells(scenario: Scenario) -> list[Cell | str]:
    if scenario.name == "paced" and scenario.deadlines is not None:
        found = scenario.deadlines
        return [
            f"{found.frames:,}",
            f"{found.missed:,}",
            f"{found.dropped:,}",
            _share_cell(found.miss_rate),
            _lateness(scenario),
        ]
    if scenario.name == "server" and scenario.server is not None:
        limit = scenario.server
        return [
            Cell(
                text=NONE if limit.rate is None else rate_text(limit.rate),
                below="confirmed by another run" if limit.confirmed else "not confirmed",
            ),
            str(limit.probes),
            rate_text(scenario.throughput),
            _lateness(scenario),
        ]
    if scenario.name == "soak" and scenario.soak is not None:
        drift = scenario.soak
        return [
            milliseconds(drift.first_p50),
            milliseconds(drift.last_p50),
            ratio_text(drift.ratio),
            NONE if drift.rss_growth is None else _signed_size(drift.rss_growth),
            NONE if drift.throttle_events is None else f"{drift.throttle_events:,}",
        ]
    if scenario.name == "multi-stream":
        return [f"{scenario.queries:,}", rate_text(scenario.throughput)]
    return [NONE] * len(_SCENARIO_HEADERS[scenario.name])


def _time_cells(scenario: Scenario) -> list[Cell]:
    e2e = scenario.latency.e2e
    return [
        quantile_cell(e2e.p50, scenario.queries),
        quantile_cell(e2e.p90, scenario.queries),
        quantile_cell(e2e.p99, scenario.queries, bounded=True),
    ]


def _share_cell(share: Share) -> Cell:
    low, high = share.ci95
    return Cell(text=percent(share.value), below=range_text(f"{100 * low:.2f}", f"{100 * high:.2f}"))


def _lateness(scenario: Scenario) -> str:
    return NONE if scenario.lateness is None else duration_text(scenario.lateness.p99)


def _signed_size(count: int) -> str:
    return f"{'−' if count < 0 else '+'}{size_text(abs(count))}"


def _cold_table(result: Result) -> Table:
    rows: list[list[Cell | str]] = []
    for arm in result.measured_arms:
        cold = arm.startup.cold
        if cold is not None:
            spreads = (cold.process, cold.import_backend, cold.load, cold.first_infer, cold.total)
            name = arm_cell(result, arm, below=f"{len(cold.total.values)} starts; {cold.page_cache}")
            rows.append([name, *(_spread_cell(spread) for spread in spreads)])
    return table_of(
        "Cold start: fresh processes",
        ("arm", "process", "import", "load", "first answer", "in all"),
        rows,
        caption="Medians; below them the fastest and the slowest start.",
    )


def _spread_cell(spread: Spread) -> Cell:
    return Cell(
        text=duration_text(spread.median),
        below=duration_range(min(spread.values), max(spread.values)),
    )
