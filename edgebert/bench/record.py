"""Puts a result together: facts of the session, statistics of its samples, and the verdict on whether they hold."""

from __future__ import annotations

import datetime
import logging
import shlex
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import edgebert
from edgebert.bench import analysis
from edgebert.bench.arms import ArmRequest
from edgebert.bench.environment import Environment, other_busy_ratio, read_environment, steal_ratio
from edgebert.bench.options import BenchOptions
from edgebert.bench.schema import (
    SCHEMA,
    Arm,
    Artifact,
    Consistency,
    Interference,
    Memory,
    PipelineRecord,
    Result,
    Seeds,
    Startup,
    Status,
    WarmupRecord,
)
from edgebert.bench.selection import Selection
from edgebert.bench.session import Session

_log = logging.getLogger("edgebert")

# A repeated input that is answered in less than this share of a new one's time is answered from memory. bench.md says
# 5 % faster for a dedicated audit; 64 pairs on a busy computer need more room, and a cache gives far less than this.
MIN_INPUT_SENSITIVITY = 0.7

_MAX_STEAL = 0.02  # share of processor time taken by other guests from which a note is made
_MAX_OTHERS = 0.10  # the same for other programs of this computer; this process and the kernel stay below
_MAX_GAP = 0.01  # bench.md, section 5
_MAX_TIMER_SHARE = 0.01  # of p50; bench.md, section 5

# What the schema of bench.md, section 11.1, has room for and this version does not measure.
_NOT_MEASURED = {
    "nonce": "only for results that come from another computer",
    "comparisons.verdict": "one launch cannot show how launches differ; see `scope`",
    "comparisons.noise_floor": "no A/A arm was measured",
    "arms.scenarios.offline": "not measured by this version",
    "arms.scenarios.paced": "not measured by this version",
    "arms.scenarios.n_eff": "not measured by this version",
    "arms.scenarios.energy": "not measured by this version",
    "arms.scenarios.thermal": "not measured by this version",
    "arms.startup.cold": "one launch with a warm page cache; `load_ns` is of that launch",
    "device.gpu": "no GPU was measured",
    "device.npu": "no NPU was measured",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """All that a result is made of.

    Attributes:
        arms: as requested.
        hashes: SHA-256 of each artefact, the same before and after.
        selection: the test images.
        session: what the workers gave.
        options: in effect.
        threads: in effect.
        baseline: index of the arm that speed-ups refer to.
        reference: index of the arm that `--reference` names; None to find one by provenance.
    """

    arms: tuple[ArmRequest, ...]
    hashes: tuple[str, ...]
    selection: Selection
    session: Session
    options: BenchOptions
    threads: int
    baseline: int
    reference: int | None

    @property
    def names(self) -> list[str]:
        """Names of the arms."""
        return [arm.name for arm in self.arms]


def result_from_session(measured: Measured) -> Result:
    """Return the result, without the record of its samples file, and log what the reader must know."""
    environment = read_environment()
    references, reasons = references_for(measured)
    arms = tuple(_arm(measured, index, references[index]) for index in range(len(measured.arms)))
    comparisons = tuple(
        analysis.comparison_from_samples(
            measured.session.samples, measured.baseline, index, measured.names, seed=measured.options.seed
        )
        for index in range(len(arms))
        if index != measured.baseline
    )
    status = _status(measured, arms, environment)
    for reason in status.reasons:
        _log.warning("%s", reason)
    for warning in status.warnings:
        _log.info("note: %s", warning)
    session, seed = measured.session, measured.options.seed
    return Result(
        schema=SCHEMA,
        run_id=uuid.uuid4().hex,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        edgebert=edgebert.__version__,
        command=command_line(measured),
        rigor="within-run",
        seeds=Seeds(inputs=seed, schedule=seed, bootstrap=seed),
        status=status,
        device=environment.device,
        os=environment.os,
        power_state=environment.power_state,
        interference=Interference(
            load_before=session.before.load,
            load_after=session.after.load,
            steal_ratio=steal_ratio(session.before, session.after),
            other_busy_ratio=_other_busy_ratio(measured),
            swap_used_bytes=session.after.swap_used_bytes,
        ),
        software=environment.software,
        env=environment.env,
        dataset=measured.selection.record(session.timed),
        arms=arms,
        comparisons=comparisons,
        files={},
        not_measured={**_NOT_MEASURED, **environment.not_available, **reasons},
    )


def references_for(measured: Measured) -> tuple[list[tuple[int, str] | None], dict[str, str]]:
    """Return, for each arm, the arm that agreement refers to, and for each without one, why it has none.

    The one that `--reference` names; else the first FP32 arm made from the same checkpoint.
    """
    found: list[tuple[int, str] | None] = []
    reasons: dict[str, str] = {}
    sessions = measured.session.arms
    for index, name in enumerate(measured.names):
        model = sessions[index].loaded.source_model
        same = [
            other
            for other, session in enumerate(sessions)
            if session.loaded.precision == "fp32" and model is not None and session.loaded.source_model == model
        ]
        chosen = measured.reference if measured.reference is not None else next(iter(same), None)
        if chosen is None:
            reasons[f"arms.{name}.accuracy.agreement"] = (
                "no FP32 arm is made from the same checkpoint; see `--reference`"
            )
        elif chosen == index:
            reasons[f"arms.{name}.accuracy.agreement"] = "this arm is the reference"
        found.append(None if chosen is None or chosen == index else (chosen, measured.names[chosen]))
    return found, reasons


def command_line(measured: Measured) -> tuple[str, ...]:
    """Return the command that repeats the measurement; artefacts by their names, not by where they lay."""
    options, words = measured.options, ["edgebert", "bench"]
    once = {arm.path: arm for arm in reversed(measured.arms)}
    for path in dict.fromkeys(arm.path for arm in measured.arms):
        name = once[path].name.partition("@")[0]
        words.append(f"{name}={path.name}")
    words += ["--data", Path(options.data).name if Path(options.data).is_absolute() else options.data]
    words += [word for target in options.targets for word in ("--target", target)]
    words += [
        word for theirs, ours in sorted(options.class_map.items()) for word in ("--class-map", f"{theirs}={ours}")
    ]
    defaults = BenchOptions(data=options.data)
    for flag, value, default in (
        ("--queries", options.queries, defaults.queries),
        ("--seconds", options.seconds, defaults.seconds),
        ("--max-seconds", options.max_seconds, defaults.max_seconds),
        ("--max-warmup-seconds", options.max_warmup_seconds, defaults.max_warmup_seconds),
        ("--images", options.images, defaults.images),
        ("--baseline", options.baseline, None),
        ("--reference", options.reference, None),
    ):
        if value != default:
            words += [flag, f"{value:g}" if isinstance(value, float) else str(value)]
    return (*words, "--threads", str(measured.threads), "--seed", str(options.seed), "-o", "result.json")


def shell_text(command: Sequence[str]) -> str:
    """Return a command as it is typed."""
    return shlex.join(command)


def _arm(measured: Measured, index: int, reference: tuple[int, str] | None) -> Arm:
    session, samples = measured.session.arms[index], measured.session.samples
    request, loaded, card = measured.arms[index], session.loaded, session.card
    checked, mismatch = analysis.timed_mismatches(samples, index)
    preprocessing = card.preprocessing
    return Arm(
        id=request.name,
        role="baseline" if index == measured.baseline else "candidate",
        target=loaded.target,
        backend=loaded.backend,
        options={"device": loaded.device, "threads": str(measured.threads)},
        effective=session.finished.properties,
        artifact=_artifact(measured, index),
        pipeline=PipelineRecord(
            pre=f"{preprocessing.resize} {preprocessing.interpolation} to {preprocessing.height}x{preprocessing.width}"
            f"@{preprocessing.sha256()[:12]}",
            infer=f"{loaded.backend}, normalisation in the graph",
            post="softmax, argmax, class name" if card.task == "single-label" else "sigmoid, thresholds, class names",
            input="uint8 HWC RGB, decoded, original size",
        ),
        accuracy=analysis.accuracy_from_samples(samples, index, measured.selection.class_names, reference),
        consistency=Consistency(
            timed_checked=checked,
            mismatch=mismatch,
            errors=analysis.failed_queries(samples, index),
            first_error=session.finished.first_error,
            input_sensitivity=session.finished.input_sensitivity,
        ),
        startup=Startup(import_ns=loaded.import_ns, load_ns=loaded.load_ns),
        memory=Memory(
            rss_before_load=loaded.rss_before_load,
            rss_after_load=loaded.rss_after_load,
            peak=session.finished.peak,
            images_bytes=session.images_bytes,
        ),
        scenarios=(
            analysis.scenario_from_samples(
                samples,
                index,
                warmup=WarmupRecord(converged=session.warm.converged, queries=session.warm.queries, ns=session.warm.ns),
                timer_overhead_ns=session.warm.timer_overhead_ns,
                seed=measured.options.seed,
            ),
        ),
    )


def _artifact(measured: Measured, index: int) -> Artifact:
    request, session = measured.arms[index], measured.session.arms[index]
    steps = session.card.provenance.chain()
    versions = next((step.versions for step in steps if step.stage == "quantize"), {})
    path = request.path
    on_disk = [entry for entry in path.rglob("*") if entry.is_file()] if path.is_dir() else [path]
    return Artifact(
        name=path.resolve().name,
        kind=request.kind,  # type: ignore[arg-type]  # `arms_from_paths` refuses results
        sha256=measured.hashes[index],
        bytes=sum(session.loaded.files.values()),
        bytes_on_disk=sum(file.stat().st_size for file in on_disk),
        files=session.loaded.files,
        precision=session.loaded.precision,
        quantiser=next((f"{name} {versions[name]}" for name in ("edgebert", "nncf") if name in versions), None),
        source_model=session.loaded.source_model,
        parameters=next((step.parameters for step in steps if step.parameters is not None), None),
        bundle_digest=session.loaded.bundle_digest,
    )


def _status(measured: Measured, arms: Sequence[Arm], environment: Environment) -> Status:
    before, after = measured.session.before.throttle_events, measured.session.after.throttle_events
    throttled = None if before is None or after is None else after > before
    invalid = [reason for arm in arms for reason in invalid_reasons(arm)]
    restless = [
        f"arm `{arm.id}` was not steady after {arm.scenarios[0].warmup.ns / 1e9:.0f} s of warm-up (medians differ by more "
        "than 2 %)"
        for arm in arms
        if not arm.scenarios[0].warmup.converged
    ]
    slowed = ["the processor was throttled while timing"] if throttled else []
    return Status(
        valid=not invalid,
        converged=not restless,
        throttled=throttled,
        virtualised=environment.virtualised,
        partial=False,
        reasons=(*invalid, *restless, *slowed),
        warnings=_warnings(measured, arms),
    )


def invalid_reasons(arm: Arm) -> list[str]:
    """Return why an arm's numbers may not be used; none where they may."""
    found, consistency = [], arm.consistency
    if consistency.errors:
        found.append(f"arm `{arm.id}`: {consistency.errors} queries failed; the first: {consistency.first_error}")
    if consistency.mismatch:
        found.append(
            f"arm `{arm.id}`: {consistency.mismatch} of {consistency.timed_checked} timed decisions differ from those "
            "that accuracy was measured on"
        )
    sensitivity = consistency.input_sensitivity
    if sensitivity is not None and sensitivity < MIN_INPUT_SENSITIVITY:
        found.append(
            f"arm `{arm.id}` answers a repeated input in {sensitivity:.0%} of the time of a new one: answers are remembered"
        )
    return found


def _warnings(measured: Measured, arms: Sequence[Arm]) -> tuple[str, ...]:
    found = []
    stolen = steal_ratio(measured.session.before, measured.session.after)
    if stolen is not None and stolen > _MAX_STEAL:
        found.append(f"the hypervisor gave {stolen:.1%} of the processor time to others while timing")
    others = _other_busy_ratio(measured)
    if others is not None and others > _MAX_OTHERS:
        found.append(
            f"other programs used {others:.0%} of the processor time while timing: take the latencies as upper bounds"
        )
    if measured.session.timed < min(measured.options.images, len(measured.selection.examples)):
        found.append(f"{measured.session.timed} images are timed: more do not fit the memory set aside for them")
    for arm in arms:
        scenario = arm.scenarios[0]
        p50 = scenario.latency.e2e.p50.value
        if scenario.gap_ratio > _MAX_GAP:
            found.append(f"arm `{arm.id}`: {scenario.gap_ratio:.1%} of the block time belongs to no query")
        if p50 is not None and scenario.timer_overhead_ns > _MAX_TIMER_SHARE * p50:
            found.append(f"arm `{arm.id}`: reading the clock takes more than 1 % of p50")
    return tuple(found)


def _other_busy_ratio(measured: Measured) -> float | None:
    session = measured.session
    own_cpu_s = float(session.samples["block_cpu_ns"].sum()) / 1e9
    return other_busy_ratio(session.before, session.after, own_cpu_s)
