"""What a report shows of where it was measured: everything that is known, what differs from the first result, and warnings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from edgebert.bench.environment.difference import differences, surroundings, text_of
from edgebert.bench.environment.jetson.rails import scope_of
from edgebert.bench.report.parts import Cell, Facts, Table, Tone, facts_of, table_of
from edgebert.bench.report.quantities import duration_text, size_text
from edgebert.bench.schema import Arm, Result

_STATES: dict[str, Tone] = {"warn": "bad", "fail": "bad", "pass": "good"}
_ABSENT = "not there"


def environment_of(result: Result) -> list[Facts]:
    """Return the computer, what is around it, the software, and every arm, as lists of facts."""
    return [*_computer(result), *(facts_of(arm.id, _arm_facts(arm)) for arm in result.measured_arms)]


def marked(facts: Sequence[Facts], first: Sequence[Facts]) -> tuple[Facts, ...]:
    """Return facts with those marked that differ from the first result's, which stands below them."""
    known = {(group.title, name): cell.text for group in first for name, cell in group.entries}
    titles = {group.title for group in first}
    return tuple(
        dataclasses.replace(
            group,
            entries=tuple(
                (name, _marked(cell, known.get((group.title, name), _ABSENT)) if group.title in titles else cell)
                for name, cell in group.entries
            ),
        )
        for group in facts
    )


def difference_tables(results: Sequence[tuple[str, Result]]) -> tuple[Table, ...]:
    """Return, for each result but the first, in what its surroundings differ from the first's, what decides on top."""
    first_name, first = results[0]
    tables = []
    for name, result in results[1:]:
        found = differences(first, result)
        rows = [
            (
                difference.path,
                difference.a,
                difference.b,
                Cell(text=difference.weight, tone="bad" if difference.weight == "decides" else ""),
                difference.why,
            )
            for difference in found
        ]
        caption = "Times may not be compared across what decides." if rows else "Nothing differs."
        title = f"Environment: {name} against {first_name}"
        tables.append(
            table_of(title, ("field", first_name, name, "weight", "why"), rows, caption=caption, wide=bool(rows))
        )
    return tuple(tables)


def everything_of(result: Result) -> Table:
    """Return every field that describes the surroundings, as it is recorded."""
    rows = [(path, text_of(value)) for path, value in surroundings(result).items()]
    return table_of("", ("field", "value"), rows)


def preflight_table(result: Result) -> Table | None:
    """Return the checks made before the run that did not pass, with what would cure them; None where there were none."""
    if not result.preflight:
        return None
    ordered = sorted(result.preflight, key=lambda check: ("fail", "warn", "unknown", "pass").index(check.state))
    return table_of(
        "Checks before the run",
        ("check", "state", "found", "what would cure it"),
        [
            (check.name, Cell(text=check.state, tone=_STATES.get(check.state, "")), check.found, check.fix)
            for check in ordered
        ],
    )


def _marked(cell: Cell, before: str) -> Cell:
    if cell.text == before:
        return cell
    return dataclasses.replace(cell, tone="changed", below=f"first result: {before}")


def _computer(result: Result) -> Iterator[Facts]:
    device, cpu, system, power = result.device, result.device.cpu, result.os, result.power_state
    reasons = result.not_measured

    def known(value: object, path: str) -> str:
        if value in (None, "", ()):
            return f"not known: {reasons.get(path, 'not read')}"
        return ("no", "yes")[value] if isinstance(value, bool) else str(value)

    yield facts_of(
        "Computer",
        (
            ("model", known(device.model, "device.model")),
            ("processor", known(cpu.model, "device.cpu.model")),
            ("cores", f"{known(cpu.cores, 'device.cpu.cores')}, {cpu.threads} threads, {cpu.usable_threads} usable"),
            ("instructions", " ".join(cpu.flags) or "none known"),
            ("caches", ", ".join(f"{name} {size}" for name, size in cpu.caches.items()) or "not known"),
            ("microcode", known(cpu.microcode, "device.cpu.microcode")),
            ("memory", size_text(device.memory_bytes) if device.memory_bytes else "not known"),
            ("governor", known(", ".join(dict.fromkeys(power.governor)), "power_state.governor")),
            ("clock driver", known(power.driver, "power_state.driver")),
            ("turbo", known(power.turbo, "power_state.turbo")),
            ("energy preference", known(power.epp, "power_state.epp")),
            ("two threads a core", known(power.smt, "power_state.smt")),
            ("mains", known(power.ac, "power_state.ac")),
            ("hypervisor", system.hypervisor or "none announced"),
        ),
    )
    if device.jetson is not None:
        yield facts_of("Jetson", _jetson_facts(result, known))
    around, group = result.interference, system.cgroup
    yield facts_of(
        "Around it",
        (
            ("system", f"{system.distro or system.system}, {system.kernel}, {device.arch}"),
            ("reached", device.transport),
            ("container", system.container or "none announced"),
            ("control group", f"processors {group.cpuset or 'all'}, quota {group.cpu_max or 'none'}"),
            ("memory limit", "none" if group.memory_max_bytes is None else size_text(group.memory_max_bytes)),
            ("load before, after", f"{_load(around.load_before)}; {_load(around.load_after)}"),
            ("other programs", _share(around.other_busy_ratio, " of the processors")),
            ("stolen time", _share(around.steal_ratio, "")),
            ("swap used", "not known" if around.swap_used_bytes is None else size_text(around.swap_used_bytes)),
            *sorted(result.env.items()),
        ),
    )
    yield facts_of("Software", (("edgebert", result.edgebert), *result.software.items()))


def _jetson_facts(result: Result, known: Callable[[object, str], str]) -> Iterator[tuple[str, str]]:
    jetson, power = result.device.jetson, result.power_state
    assert jetson is not None
    for name, field in (
        ("module", "module_name"),
        ("number", "module"),
        ("chip", "soc"),
        ("L4T", "l4t"),
        ("JetPack", "jetpack"),
        ("TensorRT", "tensorrt"),
        ("CUDA", "cuda"),
    ):
        yield name, known(getattr(jetson, field), f"device.jetson.{field}")
    mode, gpu = power.nvpmodel, power.gpu_clock
    yield "power mode", known(mode and f"{mode.name or 'without a name'} ({mode.id})", "power_state.nvpmodel")
    yield "clocks held", known(power.jetson_clocks, "power_state.jetson_clocks")
    limits = None
    if gpu is not None and gpu.min_khz is not None and gpu.max_khz is not None:
        limits = f"{gpu.min_khz / 1e3:.0f} to {gpu.max_khz / 1e3:.0f} MHz, {gpu.governor or 'no governor'}"
    yield "GPU clock", known(limits, "power_state.gpu_clock")
    scope = scope_of(tuple(rail.label for rail in jetson.rails))
    yield "power from", "no rail in /sys" if scope is None else str(scope)


def _arm_facts(arm: Arm) -> Iterator[tuple[str, str]]:
    memory, artifact, startup = arm.memory, arm.artifact, arm.startup
    yield "artefact", f"{artifact.name}, {artifact.kind}, SHA-256 {artifact.sha256[:16]}…"
    yield "on disk", f"{size_text(artifact.bytes)} executed, {size_text(artifact.bytes_on_disk)} in all"
    yield "precision", artifact.precision + (f", by {artifact.quantiser}" if artifact.quantiser else "")
    if artifact.source_model:
        yield "made from", f"checkpoint {artifact.source_model[:16]}…"
    yield "asked for", ", ".join(f"{name} {value}" for name, value in arm.options.items()) or "nothing"
    yield "really used", ", ".join(f"{name} {value}" for name, value in arm.effective.items()) or "not said"
    yield "input", f"{arm.pipeline.input}; {arm.pipeline.pre}"
    yield "inference, decision", f"{arm.pipeline.infer}; {arm.pipeline.post}"
    yield (
        "start",
        (
            f"import {duration_text(startup.import_ns.median)}, load {duration_text(startup.load_ns.median)}, first query "
            f"{duration_text(startup.first_query_ns.median)}, steady after {duration_text(startup.time_to_steady_ns.median)}"
        ),
    )
    yield (
        "memory",
        (
            f"{_bytes(memory.rss_before_load)} before loading, {_bytes(memory.rss_after_load)} after, "
            f"{_bytes(memory.rss_after_warmup)} after warm-up, {_bytes(memory.peak)} at the peak, "
            f"{size_text(memory.images_bytes)} of them images"
        ),
    )
    scenario = arm.scenarios[0]
    yield "processor time", f"{1e3 * scenario.cpu_seconds_per_query:.3g} ms an image, over all threads"


def _load(averages: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in averages) or "not known"


def _share(ratio: float | None, of: str) -> str:
    return "not known" if ratio is None else f"{ratio:.1%}{of}"


def _bytes(count: int | None) -> str:
    return "not known" if count is None else size_text(count)
