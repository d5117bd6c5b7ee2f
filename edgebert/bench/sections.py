"""What the page shows of one result: texts and numbers, ready to be put into the template."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from edgebert._console import printable
from edgebert.bench.figures import PALETTE, figures_of, timeline_figure
from edgebert.bench.record import shell_text
from edgebert.bench.samples import Samples
from edgebert.bench.schema import Arm, MultiLabelAccuracy, Result
from edgebert.bench.table import (
    agreement_gap,
    count_text,
    factor_text,
    map_text,
    milliseconds,
    percent,
    size_text,
    speedup_of,
)
from edgebert.bench.verdict import headline, sentences

MAX_MATRIX_CLASSES = 20  # more do not fit a page; then the most frequent confusions are listed
_MAX_LISTED = 30
_NONE = "–"


@dataclass(frozen=True, slots=True, kw_only=True)
class Badge:
    """A short word on the state of a run; its tone is good, bad or plain."""

    text: str
    tone: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """A number of the table, with its interval below it, or a remark, which may take several lines."""

    text: str
    below: str = ""
    remark: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmRow:
    """An arm in the table."""

    name: str
    colour: int
    below: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixCell:
    """A count of a confusion matrix, and the share of its row in per cent."""

    count: int
    share: int
    right: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Confusions:
    """Where an arm goes wrong: the matrix, or for many classes the most frequent pairs (true, decided, images)."""

    arm: str
    colour: int
    errors: int
    total: int
    matrix: tuple[tuple[str, tuple[MatrixCell, ...]], ...]
    pairs: tuple[tuple[str, str, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A drawing with its title and what to know about it."""

    title: str
    caption: str
    svg: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """A titled list of names and values."""

    title: str
    entries: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One result."""

    name: str
    headline: str
    sentences: tuple[str, ...]
    badges: tuple[Badge, ...]
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    headers: tuple[str, ...]
    arms: tuple[ArmRow, ...]
    figures: tuple[Figure, ...]
    timeline: Figure
    confusions: tuple[Confusions, ...]
    class_names: tuple[str, ...]
    per_class: tuple[tuple[str, int, tuple[str, ...]], ...]
    environment: tuple[Facts, ...]
    method: tuple[str, ...]
    command: str
    excluded: tuple[tuple[str, str], ...]
    not_measured: tuple[tuple[str, str], ...]


_SINGLE = ("top-1, %",)
_SEVERAL = ("micro-F1, %", "macro-F1, %", "mAP, %", "exact match, %")
_TIMES = ("p50, ms", "p90, ms", "p99, ms", "images/s", "speed-up")


def section_of(name: str, result: Result, samples: Samples, *, part: str) -> Section:
    """Return what the page shows of a result.

    Args:
        name: of the file.
        result: checked.
        samples: its raw samples.
        part: begins every id of its figures.
    """
    figures = tuple(
        Figure(title=title, caption=caption, svg=svg) for title, caption, svg in figures_of(result, samples, part)
    )
    timeline = Figure(
        title="Every query in time order",
        caption=f"{len(samples['arm']):,} queries, thinned out so that the fastest and slowest of each stretch stay.",
        svg=timeline_figure(result, samples, part),
    )
    return Section(
        name=printable(name),
        headline=printable(headline(result)),
        sentences=tuple(printable(sentence) for sentence in sentences(result)),
        badges=tuple(_badges(result)),
        reasons=tuple(_plain(reason) for reason in result.status.reasons),
        warnings=tuple(_plain(warning) for warning in result.status.warnings),
        headers=(
            "parameters",
            "size",
            *(_SINGLE if result.dataset.task == "single-label" else _SEVERAL),
            "agreement, %",
            *_TIMES,
        ),
        arms=tuple(_arm_row(result, arm, index) for index, arm in enumerate(result.arms)),
        figures=figures,
        timeline=timeline,
        confusions=tuple(
            _confusions(result, arm, index)
            for index, arm in enumerate(result.arms)
            if arm.accuracy.multi_label is None  # among any number of labels there is no one that another is taken for
        ),
        class_names=tuple(printable(name) for name in result.dataset.class_names),
        per_class=tuple(_class_rows(result)),
        environment=tuple(_environment(result)),
        method=tuple(printable(sentence) for sentence in _method(result)),
        command=printable(shell_text(result.command)),
        excluded=tuple(
            (printable(entry.id), printable(", ".join(entry.seen_by)))
            for entry in result.dataset.excluded[:_MAX_LISTED]
        ),
        not_measured=tuple(
            (printable(path), printable(reason)) for path, reason in sorted(result.not_measured.items())
        ),
    )


def _plain(text: str) -> str:
    """Return a message without the backticks that only a terminal needs."""
    return printable(text.replace("`", ""))


def _badges(result: Result) -> Iterable[Badge]:
    status = result.status
    yield Badge(text="valid", tone="good") if status.valid else Badge(text="not valid", tone="bad")
    yield Badge(text="steady", tone="good") if status.converged else Badge(text="not steady", tone="bad")
    if status.throttled is not None:
        yield Badge(text="throttled", tone="bad") if status.throttled else Badge(text="not throttled", tone="good")
    if status.virtualised:
        yield Badge(text="virtual machine", tone="plain")
    if status.partial:
        yield Badge(text="partial", tone="bad")
    yield Badge(text="one launch, within-run", tone="plain")


def _arm_row(result: Result, arm: Arm, index: int) -> ArmRow:
    scenario, accuracy = arm.scenarios[0], arm.accuracy
    e2e, top1, agreement = scenario.latency.e2e, accuracy.top1, accuracy.agreement
    comparison = next((entry for entry in result.comparisons if entry.b == arm.id), None)
    interval = comparison.ci95 if comparison else None
    cells = (
        Cell(text=count_text(arm.artifact.parameters)),
        Cell(text=size_text(arm.artifact.bytes), below=arm.artifact.precision),
        *_several_cells(accuracy.multi_label),
        Cell(text=percent(top1.value), below=_range(100 * top1.ci95[0], 100 * top1.ci95[1], 1)),
        Cell(
            text=percent(agreement.share.value) if agreement else agreement_gap(result, arm),
            remark=f"with {agreement.reference}" if agreement else "",
        ),
        *(
            Cell(text=_NONE, remark=f"needs {quantile.needs}, has {scenario.queries}")
            if quantile.value is None
            else Cell(text=milliseconds(quantile.value), below=_time_range(quantile.ci95, quantile.upper95))
            for quantile in (e2e.p50, e2e.p90, e2e.p99)
        ),
        Cell(text=f"{scenario.throughput:,.0f}" if scenario.throughput >= 9.5 else f"{scenario.throughput:.2g}"),
        Cell(
            text=speedup_of(result, arm),
            below=f"{factor_text(1 / interval[1])} – {factor_text(1 / interval[0])}" if interval else "",
        ),
    )
    return ArmRow(
        name=printable(arm.id),
        colour=index % PALETTE,
        below=printable(f"{arm.artifact.name} on {arm.backend}, target {arm.target}"),
        cells=tuple(
            Cell(text=printable(cell.text), below=printable(cell.below), remark=printable(cell.remark))
            for cell in cells
        ),
    )


def _several_cells(several: MultiLabelAccuracy | None) -> tuple[Cell, ...]:
    """Return what stands before the share of right decisions."""
    if several is None:
        return ()
    return (
        Cell(text=percent(several.micro_f1)),
        Cell(text=percent(several.macro_f1)),
        Cell(text=map_text(several)),
    )


def _confusions(result: Result, arm: Arm, index: int) -> Confusions:
    names = [printable(name) for name in result.dataset.class_names]
    confusion = arm.accuracy.confusion
    wrong = sorted(
        (
            (count, names[true], names[decided])
            for true, row in enumerate(confusion)
            for decided, count in enumerate(row)
            if count and true != decided
        ),
        key=lambda entry: (-entry[0], entry[1:]),
    )
    matrix: list[tuple[str, tuple[MatrixCell, ...]]] = []
    if len(names) <= MAX_MATRIX_CLASSES:
        for true, row in enumerate(confusion):
            total = max(1, sum(row))
            cells = (
                MatrixCell(count=count, share=round(100 * count / total), right=true == decided)
                for decided, count in enumerate(row)
            )
            matrix.append((names[true], tuple(cells)))
    return Confusions(
        arm=printable(arm.id),
        colour=index % PALETTE,
        errors=sum(count for count, _, _ in wrong),
        total=sum(sum(row) for row in confusion),
        matrix=tuple(matrix),
        pairs=() if matrix else tuple((true, decided, count) for count, true, decided in wrong[:_MAX_LISTED]),
    )


def _class_rows(result: Result) -> Iterable[tuple[str, int, tuple[str, ...]]]:
    """Yield name, images, and for each arm F1, precision and recall; of many classes those with the lowest F1."""
    rows = []
    for index, name in enumerate(result.dataset.class_names):
        found = [arm.accuracy.per_class[index] for arm in result.arms]
        numbers = tuple(
            text for row in found for text in (percent(row.f1), percent(row.precision), percent(row.recall))
        )
        rows.append((min(row.f1 for row in found), (printable(name), result.dataset.per_class[index], numbers)))
    if len(rows) > _MAX_LISTED:
        rows = sorted(rows, key=lambda entry: entry[0])[:_MAX_LISTED]
    return [row for _, row in rows]


def _environment(result: Result) -> Iterable[Facts]:
    device, cpu, system, power = result.device, result.device.cpu, result.os, result.power_state
    reasons = result.not_measured

    def known(value: object, path: str) -> str:
        return f"not known: {reasons.get(path, 'not read')}" if value in (None, "", ()) else str(value)

    computer = (
        ("processor", known(cpu.model, "device.cpu.model")),
        ("cores", f"{known(cpu.cores, 'device.cpu.cores')}, {cpu.threads} threads, {cpu.usable_threads} usable"),
        ("instructions", " ".join(cpu.flags) or "none known"),
        ("caches", ", ".join(f"{name} {size}" for name, size in cpu.caches.items()) or "not known"),
        ("memory", size_text(device.memory_bytes) if device.memory_bytes else "not known"),
        ("governor", known(", ".join(power.governor), "power_state.governor")),
        ("turbo", known(power.turbo, "power_state.turbo")),
        ("hypervisor", system.hypervisor or "none announced"),
    )
    around = result.interference
    inside = (
        ("system", f"{system.distro or system.system}, {system.kernel}, {device.arch}"),
        ("container", system.container or "none announced"),
        ("control group", f"processors {system.cgroup.cpuset or 'all'}, quota {system.cgroup.cpu_max or 'none'}"),
        ("load before, after", f"{_load(around.load_before)}; {_load(around.load_after)}"),
        (
            "other programs",
            "not known" if around.other_busy_ratio is None else f"{around.other_busy_ratio:.0%} of the processors",
        ),
        ("stolen time", "not known" if around.steal_ratio is None else f"{around.steal_ratio:.1%}"),
        *((name, value) for name, value in result.env.items()),
    )
    yield _facts("Computer", computer)
    yield _facts("Around it", inside)
    yield _facts("Software", (("edgebert", result.edgebert), *result.software.items()))
    for arm in result.arms:
        yield _facts(arm.id, _arm_facts(arm))


def _arm_facts(arm: Arm) -> tuple[tuple[str, str], ...]:
    memory, scenario, artifact = arm.memory, arm.scenarios[0], arm.artifact
    return (
        ("artefact", f"{artifact.name}, {artifact.kind}, SHA-256 {artifact.sha256[:16]}…"),
        ("on disk", f"{size_text(artifact.bytes)} executed, {size_text(artifact.bytes_on_disk)} in all"),
        ("precision", artifact.precision + (f", by {artifact.quantiser}" if artifact.quantiser else "")),
        ("backend", ", ".join(f"{name} {value}" for name, value in arm.effective.items())),
        ("input", f"{arm.pipeline.input}; {arm.pipeline.pre}"),
        ("load", f"{milliseconds(arm.startup.load_ns)} ms, after {milliseconds(arm.startup.import_ns)} ms to import"),
        ("memory", f"{_bytes(memory.rss_after_load)} after loading, {_bytes(memory.peak)} at the peak"),
        ("macro-F1", percent(arm.accuracy.macro_f1)),
        ("processor time", f"{1e3 * scenario.cpu_seconds_per_query:.3g} ms per image, over all threads"),
        (
            "slow queries",
            f"{scenario.outliers.mild} mild, {scenario.outliers.severe} severe by Tukey's fences; none removed",
        ),
        (
            "checks",
            f"{arm.consistency.timed_checked:,} timed decisions compared: {arm.consistency.mismatch} differ",
        ),
    )


def _method(result: Result) -> Iterable[str]:
    data, scenario = result.dataset, result.arms[0].scenarios[0]
    threads = result.arms[0].options.get("threads", "?")
    yield (
        f"Each arm ran in a process of its own with one runtime and {threads} threads. The same loaded model classified "
        f"all {data.n} test images of {data.name}, then was timed; every timed decision was compared with that pass."
    )
    yield (
        "One query was in flight at a time: preprocessing from a decoded RGB image in memory, inference until the logits "
        "are readable, and the decision, stamped by a monotonic clock in nanoseconds. "
        f"{data.timed} different test images went round in a seeded order, the same for every arm."
    )
    yield (
        "After a warm-up, blocks of about 0.2 s alternated between the arms in a random order and its mirror image; the "
        f"first tenth of each block is not counted. {result.arms[0].id}: {scenario.blocks} blocks, {scenario.queries:,} counted queries."
    )
    yield (
        "Percentiles are nearest ranks of all counted queries. Intervals of p50 and p90 are bootstrapped over blocks; the "
        "figure below p99 is an upper bound at 95 % confidence. Speed-ups compare interleaved blocks. All hold for this one "
        "launch; another launch may differ by more."
    )
    yield f"Seeds: {result.seeds.inputs} for images, blocks and bootstrap. Measured {result.created}, run {result.run_id}."


def _facts(title: str, entries: Sequence[tuple[str, str]]) -> Facts:
    return Facts(title=printable(title), entries=tuple((printable(name), printable(value)) for name, value in entries))


def _range(low: float, high: float, digits: int) -> str:
    return f"{low:.{digits}f} – {high:.{digits}f}"


def _time_range(interval: tuple[int, int] | None, upper: int | None) -> str:
    if interval is not None:
        return f"{milliseconds(interval[0])} – {milliseconds(interval[1])}"
    return "" if upper is None else f"≤ {milliseconds(upper)}"


def _load(averages: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in averages) or "not known"


def _bytes(count: int | None) -> str:
    return "not known" if count is None else size_text(count)
