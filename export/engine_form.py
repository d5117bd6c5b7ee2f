"""What `compile` takes for an engine: held against what was asked for, wherever it was built, and told in a few lines."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgebert._console import printable
from edgebert.errors import BadDataError, RefusedError
from edgebert.export.engine import TypingChoice
from edgebert.export.engine_choice import ChosenEngine, EngineSettings, Trial, TriedEngine
from edgebert.runtime.engine_manifest import ENGINE_FILE, PLAN_FILE, EngineManifest, EnginePrecision
from edgebert.runtime.tensorrt_api import Typing

_MAX_PLAN_GROWTH = 4  # an engine holds the weights of its graph, and kernels
_MAX_KERNEL_BYTES = 128 << 20
_MAX_NOTE = 300
_MAX_FAILURE = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineAsked:
    """What `compile` asks of every engine; see `edgebert.export.engine_choice.EngineSettings`.

    Attributes:
        typing: `strong`, `weak`, or `auto` for both.
        workspace_mb: most that one layer may use beside its tensors, in MiB; 0 for a share of the free memory.
        optimization_level: TensorRT's, 0 to 5.
        dla_core: build for this DLA core; None for the GPU.
        max_batch: largest batch that an engine takes, from 1 on.
        timeout_s: of one build.
        max_seconds: timed, at most.
        trial: the images that typings are measured on; None where time alone counts, as in `edgebert size`.
    """

    typing: TypingChoice = "auto"
    workspace_mb: int = 0
    optimization_level: int = 3
    dla_core: int | None = None
    max_batch: int = 1
    timeout_s: float = 7200.0
    max_seconds: float = 20.0
    trial: Trial | None = None

    def settings(self, typing: TypingChoice, precision: EnginePrecision) -> EngineSettings:
        """Return how an engine is built of a graph that has these typings and this precision.

        Raises:
            UsageError: a setting is out of its range.
        """
        return EngineSettings(
            precision=precision,
            typing=typing,
            workspace_mb=self.workspace_mb,
            optimization_level=self.optimization_level,
            dla_core=self.dla_core,
            max_batch=self.max_batch,
            timeout_s=self.timeout_s,
            max_seconds=self.max_seconds,
        )


def checked_engine(
    chosen: ChosenEngine, graphs: Mapping[Typing, bytes], settings: EngineSettings, *, machine: str, where: str
) -> EngineManifest:
    """Return the manifest of an engine that is what was asked for.

    Args:
        chosen: as a device answered.
        graphs: that it was given.
        settings: that it was given.
        machine: its processor architecture.
        where: its name, for messages.

    Raises:
        RefusedError: a file is missing, of another name or too large; or the engine is of another graph, other settings or another
            computer, or not the one that its manifest describes.
    """
    if set(chosen.files) != {PLAN_FILE, ENGINE_FILE}:
        said = ", ".join(sorted(printable(name)[:40] for name in chosen.files)) or "nothing"
        raise RefusedError(f"`{where}` makes {said}", expected=f"{PLAN_FILE}, {ENGINE_FILE}")
    plan = chosen.files[PLAN_FILE]
    most = _MAX_PLAN_GROWTH * max(map(len, graphs.values())) + _MAX_KERNEL_BYTES
    if len(plan) > most:
        raise RefusedError(f"`{where}` makes an engine of {len(plan):,} bytes", expected=f"at most {most:,}")
    try:
        manifest = EngineManifest.from_bytes(chosen.files[ENGINE_FILE])
    except BadDataError as error:
        raise RefusedError(f"`{where}`: {printable(error.what)[:_MAX_NOTE]}", expected=error.expected) from error
    wrong = _wrong(manifest, plan, chosen, graphs, settings, machine)
    if wrong:
        raise RefusedError(f"`{where}` answers with an engine {wrong}", expected="the one that was asked for")
    return manifest


def _wrong(
    manifest: EngineManifest,
    plan: bytes,
    chosen: ChosenEngine,
    graphs: Mapping[Typing, bytes],
    settings: EngineSettings,
    machine: str,
) -> str:
    """Return what of an engine is not as it was asked for, empty where all is."""
    typing, fingerprint = manifest.typing, manifest.fingerprint
    graph = graphs.get(typing)
    version = manifest.versions.get("tensorrt", "")
    asked: tuple[tuple[str, object, object], ...] = (
        (
            "whose manifest describes another one",
            (manifest.plan_sha256, manifest.plan_bytes),
            (hashlib.sha256(plan).hexdigest(), len(plan)),
        ),
        ("of another typing than it says", typing, chosen.account.typing),
        ("of another graph", manifest.graph_sha256, None if graph is None else hashlib.sha256(graph).hexdigest()),
        ("of another precision", manifest.precision, settings.precision),
        ("built with other flags", manifest.flags, settings.options(Path()).flags(typing)),
        ("for other batches", (manifest.min_batch, manifest.max_batch), (1, settings.max_batch)),
        ("for another system", (fingerprint.os, fingerprint.machine), ("linux", machine)),
        ("for another TensorRT than it names", fingerprint.backend_version, f"== {version}"),
        ("with conditions that nobody knows", dict(fingerprint.unknown), {}),
    )
    return next((what for what, found, expected in asked if found != expected), "")


def engine_notes(chosen: ChosenEngine, label: str) -> tuple[str, ...]:
    """Return what a user should know of how an engine came about; texts of a device on one line each, and not too long.

    Args:
        chosen: as a device answered.
        label: of the engine, such as `strong-int8`.
    """
    account = chosen.account
    lines = [f"{label}: {account.reason}"]
    for tried in account.tried:
        lines += _told(tried, ships=tried.typing == account.typing)
    return tuple(line[: _MAX_FAILURE if " failed: " in line else _MAX_NOTE] for line in map(_plain, lines))


def _told(tried: TriedEngine, *, ships: bool) -> list[str]:
    if tried.failure:
        # What was expected holds last words of a process, with paths of its computer, and is in the log; this goes into the bundle.
        return [f"{tried.typing} failed: {tried.failure.partition(chr(10))[0]}"]
    if not ships:
        return []
    memory = "" if tried.resident_mib is None else f", the builder held {tried.resident_mib:,} MiB at its peak"
    left = "" if tried.least_available_mib is None else f", {tried.least_available_mib:,} MiB were left"
    flags = f", flags {' '.join(tried.builder_flags)}" if tried.builder_flags else ""
    built = f"built in {tried.seconds:.0f} s, timing cache {tried.timing_cache}{memory}{left}{flags}"
    return [built, *(f"TensorRT: {note}" for note in tried.notes)]


def _plain(text: str) -> str:
    return " ".join(printable(text).split())
