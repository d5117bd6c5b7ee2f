"""Puts a result together: facts of the session, statistics of its samples, and the verdict on whether they hold."""

from __future__ import annotations

import base64
import datetime
import io
import logging
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

import edgebert
from edgebert.bench.accuracy import Reference, flipped_images
from edgebert.bench.arms import ArmRequest
from edgebert.bench.comparisons import comparisons_from_samples
from edgebert.bench.energy import missing_energy
from edgebert.bench.environment.computer import read_activity, read_environment
from edgebert.bench.environment.interference import interference_of, spanned
from edgebert.bench.environment.jetson.findings import slow_down_findings, timed_spans
from edgebert.bench.environment.telemetry import Telemetry
from edgebert.bench.options import BenchOptions
from edgebert.bench.rebuild import Declared, statistics_of_arm
from edgebert.bench.samples import Samples
from edgebert.bench.schema import (
    SCHEMA,
    Arm,
    Artifact,
    ColdStart,
    HarnessCost,
    Interference,
    Memory,
    PipelineRecord,
    PreflightCheck,
    Result,
    Role,
    ScenarioName,
    ScenarioParams,
    Seeds,
    Spread,
    Startup,
    Status,
    WarmupRecord,
)
from edgebert.bench.selection import Selection
from edgebert.bench.session import ArmSession, Session, merged_columns
from edgebert.bench.status import status_of
from edgebert.preprocess import RgbImage

_log = logging.getLogger("edgebert")

# What the schema of bench.md, section 11.1, has room for and this version does not measure.
_NOT_MEASURED = {
    "nonce": "only for results that come from another computer",
    "device.gpu": "no GPU was measured",
    "device.npu": "no NPU was measured",
}

# Options that a repeated run needs where they are not the default.
_REPEATED = (
    "rigor",
    "launches",
    "max_launches",
    "queries",
    "seconds",
    "max_seconds",
    "max_warmup_seconds",
    "margin",
    "images",
    "cpus",
    "fps",
    "deadline_ms",
    "policy",
    "streams",
    "bound_ms",
    "bound_share",
    "soak_minutes",
    "baseline",
    "reference",
)

_THUMBNAIL = 64  # pixels, the longer side


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
        telemetry: what the sampler saw; None where it did not run.
        preflight: the state of the computer before the run.
        params: for each arm, of the scenarios that were run beside single-stream.
        cold: of each arm; None where none were made.
        notes: what scenarios left out, or ended early.
        interrupted: why the run was cut short; None where it was not.
    """

    arms: tuple[ArmRequest, ...]
    hashes: tuple[str, ...]
    selection: Selection
    session: Session
    options: BenchOptions
    threads: int
    baseline: int
    reference: int | None
    telemetry: Telemetry | None = None
    preflight: tuple[PreflightCheck, ...] = ()
    params: tuple[Mapping[ScenarioName, ScenarioParams], ...] = ()
    cold: tuple[ColdStart | None, ...] = ()
    notes: tuple[str, ...] = ()
    interrupted: str | None = None

    @property
    def roles(self) -> list[Role]:
        """Roles of the arms."""
        return roles_of(self.arms, self.baseline)

    @property
    def names(self) -> list[str]:
        """Names of the arms."""
        return [arm.name for arm in self.arms]


def roles_of(arms: Sequence[ArmRequest], baseline: int) -> list[Role]:
    """Return the role of each arm; `baseline` is the index of the one that speed-ups refer to."""
    return ["aa" if arm.control else "baseline" if at == baseline else "candidate" for at, arm in enumerate(arms)]


def result_from_session(measured: Measured) -> Result:
    """Return the result, without the record of its samples file, and log what the reader must know."""
    environment = read_environment()
    references, reasons = references_for(measured)
    session, options = measured.session, measured.options
    samples = session.samples
    arms = tuple(_arm(measured, index, references[index]) for index in range(len(measured.arms)))
    comparisons = comparisons_from_samples(
        samples, measured.names, measured.roles, margin=options.margin, seed=options.seed
    )
    before, after = spanned(session.activities)
    interference = interference_of(session.activities, session.own_cpu_s)
    status = status_of(
        arms,
        comparisons,
        interference,
        options=options,
        images=(session.timed, len(measured.selection.examples)),
        throttle=(before.throttle_events, after.throttle_events),
        virtualised=environment.virtualised,
        notes=measured.notes,
        interrupted=measured.interrupted,
        slow_downs=() if measured.telemetry is None else slow_down_findings(measured.telemetry, timed_spans(samples)),
    )
    for reason in status.reasons:
        _log.warning("%s", reason)
    for warning in status.warnings:
        _log.info("note: %s", warning)
    reasons |= missing_energy(samples, arms)
    sensors = {} if measured.telemetry is None else {f"telemetry.{k}": v for k, v in measured.telemetry.reasons.items()}
    return Result(
        schema=SCHEMA,
        run_id=uuid.uuid4().hex,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        edgebert=edgebert.__version__,
        command=command_line(measured),
        rigor=options.rigor,
        seeds=Seeds(inputs=options.seed, schedule=options.seed, bootstrap=options.seed),
        status=status,
        device=environment.device,
        os=environment.os,
        power_state=environment.power_state,
        interference=interference,
        preflight=measured.preflight,
        software=environment.software,
        env=environment.env,
        dataset=measured.selection.record(session.timed),
        arms=arms,
        comparisons=comparisons,
        files={},
        not_measured={**_NOT_MEASURED, **environment.not_available, **sensors, **reasons},
        process=environment.process,
    )


def nothing_measured(
    arms: Sequence[ArmRequest], options: BenchOptions, threads: int, checks: tuple[PreflightCheck, ...], reason: str
) -> tuple[Result, Samples]:
    """Return the result, and the empty samples, of a run that was cut short before every arm had answered."""
    environment, activity = read_environment(), read_activity()
    result = Result(
        schema=SCHEMA,
        run_id=uuid.uuid4().hex,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        edgebert=edgebert.__version__,
        command=_command_line(arms, options, threads),
        rigor=options.rigor,
        seeds=Seeds(inputs=options.seed, schedule=options.seed, bootstrap=options.seed),
        status=Status(
            valid=False,
            converged=False,
            throttled=None,
            virtualised=environment.virtualised,
            partial=True,
            reasons=(f"the run was cut short before every arm was measured: {reason}",),
            warnings=(),
        ),
        device=environment.device,
        os=environment.os,
        power_state=environment.power_state,
        interference=Interference(
            load_before=activity.load,
            load_after=activity.load,
            steal_ratio=None,
            other_busy_ratio=None,
            swap_used_bytes=activity.swap_used_bytes,
        ),
        preflight=checks,
        software=environment.software,
        env=environment.env,
        dataset=None,
        arms=(),
        comparisons=(),
        files={},
        not_measured={**_NOT_MEASURED, "arms": reason, "dataset": reason, **environment.not_available},
        process=environment.process,
    )
    return result, Samples(merged_columns([]))


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
            if not measured.arms[other].control
            and session.loaded.precision == "fp32"
            and model is not None
            and session.loaded.source_model == model
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
    return _command_line(measured.arms, measured.options, measured.threads)


def _command_line(arms: Sequence[ArmRequest], options: BenchOptions, threads: int) -> tuple[str, ...]:
    words = ["edgebert", "bench"]
    once = {arm.path: arm for arm in reversed(arms)}
    for path in dict.fromkeys(arm.path for arm in arms if not arm.control):
        name = once[path].name.partition("@")[0]
        words.append(f"{name}={path.name}")
    words += ["--data", Path(options.data).name if Path(options.data).is_absolute() else options.data]
    words += [word for target in options.targets for word in ("--target", target)]
    words += [
        word for theirs, ours in sorted(options.class_map.items()) for word in ("--class-map", f"{theirs}={ours}")
    ]
    defaults = BenchOptions(data=options.data)
    for scenario in options.scenarios:
        words += ["--scenario", scenario]
    for name in _REPEATED:
        value = getattr(options, name)
        if value != getattr(defaults, name):
            words += [f"--{name.replace('_', '-')}", f"{value:g}" if isinstance(value, float) else str(value)]
    return (*words, "--threads", str(threads), "--seed", str(options.seed), "-o", "result.json")


def _arm(measured: Measured, index: int, reference: tuple[int, str] | None) -> Arm:
    session, options = measured.session.arms[index], measured.options
    request, loaded, card = measured.arms[index], session.loaded, session.card
    preprocessing = card.preprocessing
    temperature = 1.0 if card.confidence is None else card.confidence.temperature
    statistics = statistics_of_arm(
        measured.session.samples,
        index,
        Declared(
            class_names=measured.selection.class_names,
            reference=None if reference is None else Reference(*reference),
            temperature=temperature,
            known=_known_images(measured, index, reference),
            flipped=options.flipped,
            seed=options.seed,
            looks=measured.session.looks,
            warmup=warmup_of(session),
            first_error=session.first_error,
            input_sensitivity=_middle(facts.finished.input_sensitivity for facts in session.launches),
            scenarios=measured.params[index] if measured.params else {},
        ),
    )
    return Arm(
        id=request.name,
        role=measured.roles[index],
        target=loaded.target,
        backend=loaded.backend,
        options={
            "device": loaded.device,
            "threads": str(measured.threads),
            **({"cpus": options.cpus} if options.cpus else {}),
        },
        effective=session.launches[-1].finished.properties,
        temperature=temperature,
        artifact=_artifact(measured, index),
        pipeline=PipelineRecord(
            pre=f"{preprocessing.resize} {preprocessing.interpolation} to {preprocessing.height}x{preprocessing.width}"
            f"@{preprocessing.sha256()[:12]}",
            infer=f"{loaded.backend}, normalisation in the graph",
            post="softmax, argmax, class name" if card.task == "single-label" else "sigmoid, thresholds, class names",
            input="uint8 HWC RGB, decoded, original size",
        ),
        accuracy=statistics.accuracy,
        consistency=statistics.consistency,
        startup=startup_of(session, measured.cold[index] if measured.cold else None),
        memory=memory_of(session),
        harness=_cost(session),
        scenarios=statistics.scenarios,
    )


def warmup_of(session: ArmSession) -> WarmupRecord:
    """Return how the warm-ups of all launches ended."""
    warm = [facts.warm for facts in session.launches]
    return WarmupRecord(
        converged=all(facts.converged for facts in warm),
        queries=sum(facts.queries for facts in warm),
        ns=sum(facts.ns for facts in warm),
    )


def startup_of(session: ArmSession, cold: ColdStart | None) -> Startup:
    """Return what each launch needed before it was timed."""
    return Startup(
        import_ns=spread_of([facts.loaded.import_ns for facts in session.launches]),
        load_ns=spread_of([facts.loaded.load_ns for facts in session.launches]),
        first_query_ns=spread_of([facts.warm.first_ns for facts in session.launches]),
        time_to_steady_ns=spread_of([facts.warm.ns for facts in session.launches]),
        cold=cold,
    )


def spread_of(values: Sequence[int]) -> Spread:
    """Return one time of every launch, with the lower median."""
    return Spread(median=sorted(values)[(len(values) - 1) // 2], values=tuple(values))


def memory_of(session: ArmSession) -> Memory:
    """Return the memory of the launch whose peak is highest."""
    facts = max(session.launches, key=lambda facts: facts.finished.peak or 0)
    return Memory(
        rss_before_load=facts.loaded.rss_before_load,
        rss_after_load=facts.loaded.rss_after_load,
        rss_after_warmup=facts.warm.rss,
        peak=facts.finished.peak,
        images_bytes=facts.images_bytes,
    )


def _middle(values: Iterable[float | None]) -> float | None:
    """Return the upper median: a backend that remembers does so in every launch, a disturbance does not."""
    known = sorted(value for value in values if value is not None)
    return known[len(known) // 2] if known else None


def _cost(session: ArmSession) -> HarnessCost:
    found = session.launches[0].finished.harness
    assert found is not None, "the first launch measures it"
    return found


def _known_images(
    measured: Measured, index: int, reference: tuple[int, str] | None
) -> Mapping[int, tuple[str, str | None]]:
    """Return name and thumbnail of the images that an arm decides otherwise than its reference."""
    if reference is None or measured.arms[index].control or measured.selection.task == "multi-label":
        return {}
    changed = flipped_images(measured.session.samples, index, reference[0])[: measured.options.flipped]
    examples = measured.selection.examples
    return {sample: (examples[sample].id, _thumbnail(examples[sample].load())) for sample in changed.tolist()}


def _thumbnail(image: RgbImage) -> str:
    """Return a PNG of at most 64 pixels each way, in base64."""
    picture, stream = Image.fromarray(image), io.BytesIO()
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    picture.save(stream, "PNG", optimize=True)
    return base64.b64encode(stream.getvalue()).decode("ascii")


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
