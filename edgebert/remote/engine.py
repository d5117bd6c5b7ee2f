"""The host's end of what `edgebert.remote.device_engine` does: engines built on a device, and forms that are compared there.

What a device answers is bounded, and held against what was asked; its words are shown without control characters.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgebert._console import printable
from edgebert._json import JsonObject, JsonValue
from edgebert._progress import Progress
from edgebert.bench.codec import from_json, to_json
from edgebert.bench.columns import read_npy
from edgebert.bench.rounds import Times
from edgebert.errors import BadDataError, RefusedError
from edgebert.export.engine_choice import ChosenEngine, EngineAccount, EngineSettings, Trial, TriedEngine
from edgebert.export.forms import CompiledForm
from edgebert.export.place import Compared
from edgebert.remote.agent import plain_text
from edgebert.remote.objects import files_to_json, object_of_bytes
from edgebert.remote.session import DeviceSession, Reply, SentObject
from edgebert.remote.wire import columns_from_bytes, names_of_times
from edgebert.runtime.runner import InputSpec
from edgebert.runtime.tensorrt_api import Typing

if TYPE_CHECKING:
    from typing_extensions import Self

_T = TypeVar("_T")

# Sent at once; a push that was cut off goes on within the last one.
_TENSOR_BYTES = 8 << 20
_MEASURE_SECONDS = 1800.0  # answers to all images, beside what is timed
_MOST_ROUNDS = 100
_MOST_TEXT = 100
_MOST_FIGURE = 1e9  # of milliseconds, seconds, MiB: what is told stays readable
_MOST_NOTES = 20


def engine_on(
    session: DeviceSession, graphs: Mapping[Typing, bytes], settings: EngineSettings, trial: Trial, *, keep: bool
) -> ChosenEngine:
    """Build engines on a device; see `edgebert.export.engine_choice.chosen_engine`.

    Args:
        session: with the device.
        graphs: an ONNX file for each typing that was asked for.
        settings: how.
        trial: what engines are measured on.
        keep: leave the times of kernels on the device, for the next build.

    Raises:
        RefusedError: the answer is none to what was asked.
        EdgebertError: what the device refused.
    """
    objects = {typing: object_of_bytes(graph) for typing, graph in graphs.items()}
    tensors = _objects_of(trial.tensors)
    expected = object_of_bytes(trial.expected.astype(np.uint8).tobytes())
    session.push([*objects.values(), *tensors, expected])
    described: JsonObject = {
        "spec": _spec(trial.spec),
        "tensors": [entry.sha256 for entry in tensors],
        "expected": expected.sha256,
        "thresholds": list(trial.thresholds),
        "floor": trial.floor,
        "max_drop": trial.max_drop,
    }
    request: JsonObject = {
        "graphs": {typing: entry.sha256 for typing, entry in objects.items()},
        "settings": to_json(settings),
        "trial": described,
        "keep": keep,
    }
    timeout_s = len(graphs) * settings.timeout_s + settings.max_seconds + _MEASURE_SECONDS
    with _Shown(session.name) as shown:
        reply = session.ask("engine", request, timeout_s=timeout_s, said=shown.said)
    account = _checked(
        session.name,
        lambda: from_json(EngineAccount, reply.fields.fields("account").value, what="what is told of the engine"),
    )
    return ChosenEngine(files=reply.blobs, account=_plain_account(session.name, account, graphs, trial.floor))


def compared_on(
    session: DeviceSession,
    forms: Sequence[CompiledForm],
    spec: InputSpec,
    images: NDArray[np.uint8],
    *,
    max_seconds: float,
) -> Compared:
    """Compare forms on a device; see `edgebert.export.place.Place.compared`.

    Raises:
        RefusedError: the answer is none to what was asked.
        EdgebertError: what the device refused.
    """
    files = [{name: object_of_bytes(content) for name, content in form.files.items()} for form in forms]
    tensors = _objects_of(images)
    session.push([*(entry for named in files for entry in named.values()), *tensors])
    listed: list[JsonValue] = [
        {"files": files_to_json(named), "disabled_optimizers": list(form.disabled_optimizers)}
        for named, form in zip(files, forms, strict=True)
    ]
    request: JsonObject = {
        "backend": forms[0].backend,
        "device": forms[0].device,
        "forms": listed,
        "spec": _spec(spec),
        "tensors": [entry.sha256 for entry in tensors],
        "max_seconds": max_seconds,
    }
    # Slow models are timed for five rounds in any case, and warmed up.
    reply = session.ask("compare", request, timeout_s=10 * max_seconds + _MEASURE_SECONDS)
    name = session.name
    rows = array_of(name, reply.blobs.get("rows", b""), (len(forms), len(images), spec.classes))
    return Compared(
        rows=tuple(rows),
        times=_checked(name, lambda: _times(reply, len(forms))),
        hardware=_text(name, reply, "hardware"),
        threads=_text(name, reply, "threads"),
    )


def array_of(name: str, content: bytes, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return the float32 array of this shape that a device answered with.

    Raises:
        RefusedError: it is another one, or none.
    """
    try:
        rows = read_npy(io.BytesIO(content), len(content), np.float32)
    except BadDataError as error:
        raise RefusedError(f"`{name}` answers with no array") from error
    if rows.shape != shape:
        raise RefusedError(f"`{name}` answers with {rows.dtype} {rows.shape}", expected=f"float32 {shape}")
    return rows.view(np.float32)


class _Shown:
    """Shows what a device says of its progress, one bar after the other; a context manager."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._stack = ExitStack()
        self._what = ""
        self._done = 0
        self._bar: Progress | None = None

    def said(self, kind: str, reply: Reply) -> None:
        """Take what the device says before it answers.

        Raises:
            RefusedError: it is no progress.
        """
        if kind != "progress":
            raise RefusedError(f"`{self._name}` says `{printable(kind)[:40]}`", expected="progress")
        fields = reply.fields
        what, note = _text(self._name, reply, "what"), _text(self._name, reply, "note")
        done, total = _checked(self._name, lambda: (fields.integer("done"), fields.integer("total")))
        if not 0 <= done <= total <= 1_000_000:
            raise RefusedError(f"`{self._name}` has done {done} of {total}", expected="a part of the whole")
        if self._bar is None or what != self._what:
            self._stack.close()
            self._what, self._done = what, 0
            self._bar = self._stack.enter_context(Progress(f"{what} on {self._name}", total))
        self._bar.advance(max(0, done - self._done), note=note)
        self._done = max(self._done, done)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def _objects_of(images: NDArray[np.uint8]) -> list[SentObject]:
    """Return uint8 (images, height, width, 3) as objects of some images each."""
    each = max(1, _TENSOR_BYTES // max(1, images[:1].nbytes))
    return [
        object_of_bytes(np.ascontiguousarray(images[start : start + each]).tobytes())
        for start in range(0, len(images), each)
    ]


def _spec(spec: InputSpec) -> JsonObject:
    return {"height": spec.height, "width": spec.width, "classes": spec.classes}


def _plain_account(name: str, account: EngineAccount, graphs: Mapping[Typing, bytes], floor: float) -> EngineAccount:
    """Return what a device tells of a build, its texts on one line each.

    Raises:
        RefusedError: it tells of what was not asked for, not of all that was, too much, or what cannot be.
    """
    typings = [tried.typing for tried in account.tried]
    if sorted(typings) != sorted(graphs) or account.typing not in typings:
        raise RefusedError(f"`{name}` tells of other engines than were asked for", expected=", ".join(graphs))
    ships = next(tried for tried in account.tried if tried.typing == account.typing)
    if ships.failure or ships.accuracy is None or ships.latency_ms is None or ships.accuracy < floor:
        raise RefusedError(
            f"`{name}` answers with an engine that failed, was not measured, or loses accuracy",
            expected=f"one that was measured, with an accuracy of {floor:.2%} or more",
        )
    if not all(map(_can_be, account.tried)):
        raise RefusedError(f"`{name}` tells figures of an engine that cannot be", expected="shares, times and sizes")
    if any(max(len(tried.notes), len(tried.builder_flags)) > _MOST_NOTES for tried in account.tried):
        raise RefusedError(f"`{name}` tells more of an engine than can be taken", expected=f"{_MOST_NOTES} notes")
    return EngineAccount(
        typing=account.typing, reason=_plain(account.reason), tried=tuple(map(_plain_tried, account.tried))
    )


def _can_be(tried: TriedEngine) -> bool:
    figures = (tried.latency_ms, tried.queries, tried.seconds, tried.resident_mib, tried.least_available_mib)
    return 0 <= (tried.accuracy or 0) <= 1 and all(0 <= (figure or 0) <= _MOST_FIGURE for figure in figures)


def _plain_tried(tried: TriedEngine) -> TriedEngine:
    return TriedEngine(
        typing=tried.typing,
        failure=_plain(tried.failure),
        accuracy=tried.accuracy,
        latency_ms=tried.latency_ms,
        queries=tried.queries,
        seconds=tried.seconds,
        resident_mib=tried.resident_mib,
        least_available_mib=tried.least_available_mib,
        timing_cache=_plain(tried.timing_cache),
        builder_flags=tuple(map(_plain, tried.builder_flags)),
        notes=tuple(map(_plain, tried.notes)),
    )


def _plain(text: str) -> str:
    return plain_text(text) or ""


def _times(reply: Reply, forms: int) -> Times:
    rounds = reply.fields.integer("rounds")
    if not 1 <= rounds <= _MOST_ROUNDS:
        raise BadDataError(f"{rounds} rounds", expected=f"1 to {_MOST_ROUNDS}")
    columns = columns_from_bytes(reply.blobs.get("times", b""), what="the times")
    names = names_of_times(forms, rounds)
    if set(columns) != set(names) or not all(column.size and (column > 0).all() for column in columns.values()):
        raise BadDataError("times that do not fit together", expected=f"{len(names)} columns of positive times")
    times: Times = [[[] for _ in range(rounds)] for _ in range(forms)]
    for name, (form, round_, _) in names.items():
        times[form][round_].append(columns[name])
    return times


def _text(name: str, reply: Reply, field: str) -> str:
    return _plain(_checked(name, lambda: reply.fields.text(field)))[:_MOST_TEXT]


def _checked(name: str, read: Callable[[], _T]) -> _T:
    try:
        return read()
    except BadDataError as error:
        raise RefusedError(
            f"`{name}` answers with {printable(error.what)[:500]}", expected=plain_text(error.expected)
        ) from error
