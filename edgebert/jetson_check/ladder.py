"""The rungs of the self-check, what each needs, and how they are climbed.

    report = check_jetson(told=print)

A rung that fails does not end the ladder: what needs it is skipped and says so, what does not is done.

>>> [step.name for step in steps()][:4]
['board', 'bindings', 'cuda', 'parse']
>>> step_of("parity int8").needs
('run int8',)
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgebert import __version__
from edgebert._json import Fields, JsonObject
from edgebert.bench.environment.jetson.identity import is_jetson
from edgebert.bench.environment.system_files import SystemFiles
from edgebert.bench.protocol import error_from_message
from edgebert.errors import CannotWriteError, EdgebertError, UnavailableError
from edgebert.export.engine import EngineOptions, build_engine
from edgebert.export.engine_process import available_bytes
from edgebert.jetson_check.engines import difference
from edgebert.jetson_check.privacy import Names, names_here
from edgebert.jetson_check.process import CHILD_COMMAND, answer_of
from edgebert.jetson_check.reference import CLASSES, IMAGES, ReferenceEngine, read_reference
from edgebert.jetson_check.report import Report, Rung, board_of

Told = Callable[[str, "Rung | None"], None]
"""Told of a rung by its name when it begins, and of what was found when it ends."""

_BUILD_S = 900.0  # a search of seconds; a board that swaps takes minutes
_SHARED_BYTES = 64 << 20  # of a build: more than these graphs can use


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a rung saw.

    Attributes:
        text: in words.
        facts: what was measured.
        error: where that is not what was expected.
        meaningless: why the rung has no meaning here; "" where it has.
    """

    text: str = ""
    facts: JsonObject = field(default_factory=dict)
    error: EdgebertError | None = None
    meaningless: str = ""


@dataclass(slots=True, kw_only=True)
class Climb:
    """One climb: what the rungs leave for each other.

    Attributes:
        root: where `proc`, `sys` and `etc` lie.
        folder: for engines; removed by the last rung.
        command: what does a task.
        most_s: no rung's process may take longer.
        strong_only: the TensorRT that builds strongly typed networks only, "" for another.
        engines: name -> folder of the engine.
        logits: name -> float32 (8, 10) of the engine.
    """

    root: Path
    folder: Path
    command: Sequence[str]
    most_s: float
    strong_only: str = ""
    engines: dict[str, Path] = field(default_factory=dict)
    logits: dict[str, NDArray[np.float32]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One rung.

    Attributes:
        name: unique.
        shows: what a rung that holds has shown.
        needs: rungs that must have held.
        timeout_s: of its process.
        look: does it.
    """

    name: str
    shows: str
    needs: tuple[str, ...]
    timeout_s: float
    look: Callable[[Climb, float], Found]


def steps() -> tuple[Step, ...]:
    """Return the rungs in the order in which they are climbed."""
    engines = read_reference().engines
    builds = [_engine_step("build", each, "parse", _BUILD_S, _build) for each in engines]
    runs = [_engine_step("run", each, f"build {each.name}", 180.0, _run) for each in engines]
    parities = [_engine_step("parity", each, f"run {each.name}", 10.0, _parity) for each in engines]
    timings = [_engine_step("timing", each, f"run {each.name}", 180.0, _timing) for each in engines]
    return (
        _task_step("board", "which board and JetPack this is, and that edgebert supports it", (), 60.0),
        Step(
            name="bindings",
            shows="`import tensorrt` works, and is a version that edgebert knows",
            needs=("board",),
            timeout_s=180.0,
            look=_bindings,
        ),
        _task_step("cuda", "libcudart, the GPU, memory, copies and events through ctypes", ("board",), 90.0),
        _task_step("parse", "TensorRT's parser takes the graphs that edgebert writes", ("bindings", "cuda"), 180.0),
        *builds,
        *runs,
        *parities,
        *timings,
        _task_step("refusal", "an engine of another board is refused unopened", ("bindings", "cuda"), 180.0),
        _task_step("sensors", "power mode, clocks, temperatures, rails and throttle counters", (), 60.0),
        Step(name="cleanup", shows="nothing is left behind", needs=(), timeout_s=10.0, look=_cleanup),
    )


def step_of(name: str) -> Step:
    """Return the rung of this name."""
    return next(step for step in steps() if step.name == name)


def longest_seconds() -> float:
    """Return how long a whole ladder may take at most, if every process is ended for its time."""
    return sum(step.timeout_s for step in steps()) + 60.0


def check_jetson(
    *,
    told: Told = lambda _name, _rung: None,
    root: Path = Path("/"),
    command: Sequence[str] = CHILD_COMMAND,
    most_s: float = float("inf"),
) -> Report:
    """Climb the ladder on this board.

    Args:
        told: hears of each rung.
        root: where `proc`, `sys` and `etc` lie; another folder serves recorded trees.
        command: what does a task in a process of its own; the real child but in tests.
        most_s: that the process of one rung may take; each has a limit of its own.

    Raises:
        UnavailableError: this computer is no Jetson.
    """
    if not is_jetson(SystemFiles(root)):
        raise UnavailableError(
            "this computer is no Jetson",
            expected="a Jetson Orin or Thor with JetPack 6.1 or newer",
            hint="run this on the board itself (edgebert device-wheel -o . makes all that it needs there), or add `--host USER@HOST`",
        )
    names = names_here(root)
    rungs: list[Rung] = []
    folder = Path(tempfile.mkdtemp(prefix="edgebert-jetson-check-"))
    climb = Climb(root=root, folder=folder, command=command, most_s=most_s)
    try:
        for step in steps():
            told(step.name, None)
            rungs.append(_climbed(step, climb, {rung.name: rung for rung in rungs}, names))
            told(step.name, rungs[-1])
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return Report(edgebert=__version__, date=today(), board=board_of(rungs[0]), rungs=tuple(rungs))


def today() -> str:
    """Return the day, in UTC: the time of day tells nothing about the board."""
    return datetime.now(timezone.utc).date().isoformat()


def _climbed(step: Step, climb: Climb, before: Mapping[str, Rung], names: Names) -> Rung:
    """Return what became of one rung, with nothing in it that the file may not tell."""
    broken = next((before[need] for need in step.needs if before[need].state != "ok"), None)
    if broken is not None:
        was = "failed" if broken.state == "failed" else "was skipped"
        return Rung(name=step.name, state="skipped", found=f"it needs `{broken.name}`, which {was}")
    started = time.monotonic()
    try:
        found = step.look(climb, min(step.timeout_s, climb.most_s))
    except EdgebertError as error:
        found = Found(error=error)
    except OSError as error:  # a full disk, no process left: a finding like any other
        cannot = CannotWriteError(
            f"the system refuses: {error.strerror or error}",
            expected="room for a few MiB in the temporary folder, and for a process",
            hint="df -h /tmp; free -m",
        )
        found = Found(error=cannot)
    return _rung(step.name, found, time.monotonic() - started).tidied(names)


def _rung(name: str, found: Found, seconds: float) -> Rung:
    if found.meaningless:
        return Rung(name=name, state="skipped", found=found.meaningless, seconds=seconds)
    error = found.error
    if error is None:
        return Rung(name=name, state="ok", found=found.text, seconds=seconds, facts=found.facts)
    return Rung(
        name=name,
        state="failed",
        found=error.what,
        expected=error.expected or "",
        hint=error.hint or "",
        exit_code=error.exit_code,
        seconds=seconds,
        facts={**({"seen": found.text} if found.text else {}), **found.facts},
    )


def _task_step(name: str, shows: str, needs: tuple[str, ...], timeout_s: float) -> Step:
    return Step(name=name, shows=shows, needs=needs, timeout_s=timeout_s, look=partial(_task, name))


def _engine_step(
    kind: str,
    engine: ReferenceEngine,
    need: str,
    timeout_s: float,
    look: Callable[[ReferenceEngine, Climb, float], Found],
) -> Step:
    shown = {
        "build": "TensorRT builds an engine",
        "run": "the engine runs, and its work is captured as a CUDA graph",
        "parity": "the engine answers as ONNX Runtime does",
        "timing": "CUDA's events and the clock tell how long it takes",
    }
    form = f"{engine.precision.upper()}, {engine.typing}ly typed"
    return Step(
        name=f"{kind} {engine.name}",
        shows=f"{shown[kind]} ({form})",
        needs=(need,),
        timeout_s=timeout_s,
        look=partial(look, engine),
    )


def _asked(climb: Climb, task: str, content: JsonObject, timeout_s: float) -> Fields:
    return answer_of(task, {"root": str(climb.root), **content}, timeout_s=timeout_s, command=climb.command)


def _found(answer: Fields) -> Found:
    said = answer.value.get("error")
    error = None if said is None else error_from_message(answer.fields("error"))
    return Found(text=answer.text("found"), facts=answer.fields("facts").value, error=error)


def _task(task: str, climb: Climb, timeout_s: float) -> Found:
    return _found(_asked(climb, task, {}, timeout_s))


def _bindings(climb: Climb, timeout_s: float) -> Found:
    found = _task("bindings", climb, timeout_s)
    if found.facts.get("builds strongly typed networks only") is True:
        climb.strong_only = str(found.facts.get("tensorrt"))
    return found


def _build(engine: ReferenceEngine, climb: Climb, timeout_s: float) -> Found:
    """Build in the process that `compile` builds in; nothing of it stays in the user's timing cache."""
    if engine.typing == "weak" and climb.strong_only:
        return Found(meaningless=f"TensorRT {climb.strong_only} builds strongly typed networks only")
    options = EngineOptions(
        folder=climb.folder / engine.name,
        typing=engine.typing,
        precision=engine.precision,
        workspace_mb=_SHARED_BYTES >> 20,
        timing_cache="off",
        timeout_s=timeout_s,
    )
    (candidate,) = build_engine(engine.graph(), options).candidates
    assert candidate.folder is not None
    assert candidate.manifest is not None
    climb.engines[engine.name] = candidate.folder
    peak, manifest = candidate.peak, candidate.manifest
    facts: JsonObject = {
        "label": manifest.label,
        "seconds": candidate.seconds,
        "plan_bytes": manifest.plan_bytes,
        "flags": list(candidate.builder_flags),
        "notes": list(candidate.notes),
        "fingerprint": manifest.fingerprint.to_text(),
        "peak_resident_mib": None if peak is None else peak.resident_mib,
        "least_available_mib": None if peak is None else peak.least_available_mib,
    }
    return Found(
        text=f"{manifest.label}, {manifest.plan_bytes:,} bytes in {candidate.seconds:.1f} s"
        + ("" if peak is None else f", {peak.resident_mib:,} MiB at its peak"),
        facts=facts,
    )


def _run(engine: ReferenceEngine, climb: Climb, timeout_s: float) -> Found:
    answer = _asked(climb, "run", {"folder": str(climb.engines[engine.name])}, timeout_s)
    found = _found(answer)
    if found.error is None:
        logits = np.array(answer.rows_of_numbers("logits"), np.float32)
        if logits.shape != (IMAGES, CLASSES):
            raise EdgebertError(f"the engine answers with shape {logits.shape}", expected=f"({IMAGES}, {CLASSES})")
        climb.logits[engine.name] = logits
    return found


def _parity(engine: ReferenceEngine, climb: Climb, _timeout_s: float) -> Found:
    text, facts, error = difference(engine, climb.logits[engine.name])
    return Found(text=text, facts={**facts, "onnxruntime": read_reference().onnxruntime}, error=error)


def _timing(engine: ReferenceEngine, climb: Climb, timeout_s: float) -> Found:
    return _found(_asked(climb, "timing", {"folder": str(climb.engines[engine.name])}, timeout_s))


def _cleanup(climb: Climb, _timeout_s: float) -> Found:
    """Remove the engines; every process was waited for where it was started."""
    try:
        shutil.rmtree(climb.folder)
    except OSError as error:
        raise CannotWriteError(
            f"the engines of this check cannot be removed: {error.strerror or error}",
            expected="a temporary folder of your own",
            hint="rm -r /tmp/edgebert-jetson-check-*",
        ) from error
    available = available_bytes(climb.root)
    left = "" if available is None else f"; {available >> 20:,} MiB of memory are free"
    return Found(
        text=f"nothing is left behind{left}",
        facts={"available_bytes": available},
    )
