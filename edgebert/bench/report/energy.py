"""What a report shows of energy: of an image above idle, what the power is of, and how it was measured."""

from __future__ import annotations

from edgebert.bench.report.parts import Cell, Table, arm_cell, table_of
from edgebert.bench.report.quantities import NONE, range_text
from edgebert.bench.schema import Energy, Result

_SIGNIFICANT = 3

CAPTION = (
    "Above idle: the trapezoid over the samples of the power in each window, less idle power times its time, for each image that was "
    "answered in it; the first second of a window is left out. Idle: mean of the times before and after the run in which nothing ran. "
    "The interval is over windows (95 %, Student's) and does not hold the error that all share: the sensor's own, and what is not "
    "behind the rails."
)


def energy_table(result: Result) -> Table | None:
    """Return a row for each arm and scenario whose energy was measured; None where none was."""
    found = [
        (arm, scenario.name, scenario.energy)
        for arm in result.measured_arms
        for scenario in arm.scenarios
        if scenario.energy is not None
    ]
    if not found:
        return None
    intervals = {} if result.device.jetson is None else result.device.jetson.update_interval_ms
    told = ", ".join(f"{chip} {ms} ms" for chip, ms in intervals.items()) or "not told by the driver"
    return table_of(
        "Energy of an image",
        ("arm", "above idle, mJ", "in all, mJ", "power, W", "idle, W", "images", "power of"),
        [
            (
                arm_cell(result, arm, below=name),
                Cell(text=_text(1e3 * energy.above_idle_j_per_image), below=_interval(energy)),
                _text(1e3 * energy.gross_j_per_image),
                _text(energy.mean_w),
                Cell(text=_text(energy.idle_w), below=_idle(energy)),
                Cell(text=f"{energy.images:,}", below=f"{energy.windows} windows, {energy.seconds:.0f} s"),
                Cell(text=" + ".join(energy.rails), below=energy.scope, remark=_sampling(energy)),
            )
            for arm, name, energy in found
        ],
        caption=f"{CAPTION} Time over which the sensors average: {told}.",
        wide=True,
    )


def _text(value: float) -> str:
    return f"{value:.{_SIGNIFICANT}g}"


def _interval(energy: Energy) -> str:
    if energy.above_idle_ci95 is None:
        return f"no interval of {energy.windows} windows"
    low, high = energy.above_idle_ci95
    return range_text(_text(1e3 * low), _text(1e3 * high))


def _idle(energy: Energy) -> str:
    after = NONE if energy.idle_after_w is None else _text(energy.idle_after_w)
    return f"before {_text(energy.idle_before_w)}, after {after}"


def _sampling(energy: Energy) -> str:
    changes = (
        "never changed" if energy.change_interval_ms is None else f"new values each {energy.change_interval_ms:.0f} ms"
    )
    return f"a sample each {energy.sample_interval_ms:.0f} ms, {changes}, {energy.coverage:.0%} of them there"
