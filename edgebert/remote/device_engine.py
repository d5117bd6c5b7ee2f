"""Engines built on this device for a host, and forms that are compared here: both timed, and silent on the link meanwhile.

engine  {graphs, settings, trial, keep}           -> progress {…} while it is built; answer {account} with the engine's files
compare {backend, device, forms, spec, tensors}   -> answer {hardware, threads} with the logits and the times of each form
"""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgebert._json import Fields, JsonObject
from edgebert.bench.codec import from_json, to_json
from edgebert.bench.device_lock import COMPARE_WAIT_SECONDS, device_lock
from edgebert.bench.environment.computer import hardware_name
from edgebert.bench.rounds import TIMED_IMAGES, answers_of, timed_rounds
from edgebert.errors import BadDataError
from edgebert.export.engine_choice import EngineSettings, Trial, chosen_engine
from edgebert.remote.wire import columns_to_bytes, names_of_times
from edgebert.runtime.runner import InputSpec, ModelSource, RunnerOptions, check_device, open_runner
from edgebert.runtime.tensorrt_api import Typing

if TYPE_CHECKING:
    from typing_extensions import Self

    from edgebert.remote.device_link import Link
    from edgebert.remote.device_store import Store
    from edgebert.remote.frames import Frame

_Answer = tuple[JsonObject, Mapping[str, bytes]]
_TYPINGS: tuple[Typing, ...] = ("weak", "strong")
_SAY_SECONDS = 0.5  # between two messages of progress


def engine(link: Link, store: Store, request: Frame) -> _Answer:
    """Build the engines that were asked for, measure them on the host's images, and answer with the one that ships.

    The times of kernels stay in the user's own folder only where the host asked for what is pushed to be kept.
    """
    fields = request.fields
    check_device("tensorrt", "GPU")
    settings = from_json(EngineSettings, fields.fields("settings").value, what="the settings of an engine")
    settings = replace(settings, keeps_times=fields.value.get("keep") is True)
    named = fields.fields("graphs")
    graphs: dict[Typing, bytes] = {
        typing: store.path(named.text(typing)).read_bytes() for typing in _TYPINGS if typing in named.value
    }
    trial = _trial(store, fields.fields("trial"))
    with device_lock(), tempfile.TemporaryDirectory(prefix="engines-") as folder:
        chosen = chosen_engine(
            graphs,
            settings,
            trial,
            Path(folder),
            progress=lambda what, total: LinkProgress(link, request, what, total),
            quiet=link.quiet,
        )
    for content in chosen.files.values():
        store.keep(content)  # the host asks for answers of it next, and need not send it back
    return {"account": to_json(chosen.account)}, chosen.files


def compare(link: Link, store: Store, request: Frame) -> _Answer:
    """Open forms side by side, ask them of all images, and time them in turn; the blobs are `rows` and `times`."""
    fields = request.fields
    spec = _spec(fields.fields("spec"))
    images = _tensors(store, fields, spec)
    with device_lock(wait_s=COMPARE_WAIT_SECONDS), ExitStack() as stack:
        runners = []
        for form in fields.list_of_fields("forms"):
            files = {
                entry.text("name"): store.path(entry.text("sha256")).read_bytes()
                for entry in form.list_of_fields("files")
            }
            options = RunnerOptions(device=fields.text("device"), disabled_optimizers=form.texts("disabled_optimizers"))
            runners.append(open_runner(fields.text("backend"), ModelSource(spec=spec, files=files), options))
            stack.callback(runners[-1].close)
        rows = np.stack([answers_of(runner, images) for runner in runners])  # (forms, images, classes)
        times = timed_rounds(
            [runner.infer for runner in runners],
            images[:TIMED_IMAGES],
            max_seconds=fields.number("max_seconds"),
            quiet=link.quiet,
        )
        threads = runners[-1].properties().get("threads", "unknown")
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.ascontiguousarray(rows, np.float32), allow_pickle=False)
    columns = {
        name: times[form][round_][block]
        for name, (form, round_, block) in names_of_times(len(times), len(times[0])).items()
    }
    content: JsonObject = {"hardware": hardware_name(), "threads": threads, "rounds": len(times[0])}
    return content, {"rows": stream.getvalue(), "times": columns_to_bytes(columns)}


class LinkProgress:
    """Tells the host how far a build is, as `edgebert._progress.Progress` tells a terminal; a context manager.

    Args:
        link: to the host.
        request: that the messages belong to.
        what: the work.
        total: number of steps.
    """

    def __init__(self, link: Link, request: Frame, what: str, total: int) -> None:
        self._link, self._request, self._what, self._total = link, request, what, total
        self._done = 0
        self._said_at = 0.0

    def advance(self, steps: int = 1, note: str | None = None) -> None:
        """Count `steps` more, and say so now and then."""
        self._done += steps
        now = time.monotonic()
        if now - self._said_at >= _SAY_SECONDS:
            self._said_at = now
            self._say(note or "")

    def __enter__(self) -> Self:
        self._say("")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self._done = self._total
            self._say("")

    def _say(self, note: str) -> None:
        content: JsonObject = {"what": self._what, "done": self._done, "total": self._total, "note": note[:200]}
        self._link.say("progress", self._request, content)


def _trial(store: Store, fields: Fields) -> Trial:
    spec = _spec(fields.fields("spec"))
    tensors = _tensors(store, fields, spec)
    expected = np.frombuffer(store.path(fields.text("expected")).read_bytes(), np.uint8)
    return Trial(
        spec=spec,
        tensors=tensors,
        expected=expected.reshape(len(tensors), spec.classes).astype(np.bool_),
        thresholds=_numbers(fields, "thresholds"),
        floor=fields.number("floor"),
        max_drop=fields.number("max_drop"),
    )


def _spec(fields: Fields) -> InputSpec:
    return InputSpec(height=fields.integer("height"), width=fields.integer("width"), classes=fields.integer("classes"))


def _tensors(store: Store, fields: Fields, spec: InputSpec) -> NDArray[np.uint8]:
    """Return uint8 (images, height, width, 3) of the objects that hold some each."""
    pieces = [np.frombuffer(store.path(sha256).read_bytes(), np.uint8) for sha256 in fields.texts("tensors")]
    if not pieces:
        raise BadDataError("no image was sent", expected="at least one")
    return np.concatenate(pieces).reshape(-1, spec.height, spec.width, 3)


def _numbers(fields: Fields, name: str) -> tuple[float, ...]:
    listed: Any = fields.value.get(name)
    if not isinstance(listed, Sequence) or not all(type(value) in (int, float) for value in listed):
        raise BadDataError(f"{fields.what} holds no numbers as `{name}`", expected="a list of numbers")
    return tuple(float(value) for value in listed)
