"""Measures on this device for a host: the same harness, with the host's images, and silent while something is timed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from edgebert._json import Fields, JsonObject, dump_json
from edgebert.bench.arms import ArmRequest
from edgebert.bench.codec import from_json, to_json
from edgebert.bench.device_lock import device_lock
from edgebert.bench.environment.computer import read_environment
from edgebert.bench.harness import Bench
from edgebert.bench.options import BenchOptions
from edgebert.bench.samples import IntArray, Samples, write_columns
from edgebert.bench.schema import Result
from edgebert.bench.scratch import scratch_folder
from edgebert.bench.selection import Selection
from edgebert.bench.session import LaunchRecord, Run, open_arms
from edgebert.bench.worker_process import WORKER_COMMAND
from edgebert.card import ModelCard
from edgebert.errors import BadDataError, EdgebertError, RefusedError
from edgebert.remote.device_facts import boot_id
from edgebert.remote.device_link import Link, QuietWorker
from edgebert.remote.device_store import Store
from edgebert.remote.frames import Frame
from edgebert.remote.wire import (
    KINDS,
    SentArm,
    columns_from_bytes,
    columns_to_bytes,
    selection_from_json,
)

_Answer = tuple[JsonObject, Mapping[str, bytes]]


def bench(link: Link, store: Store, request: Frame) -> _Answer:
    """Measure arms; say each launch when it is complete, and answer with the result and its samples.

    A run that ends early answers with an error, and with what was measured where the harness keeps it.
    """
    fields = request.fields
    options = from_json(BenchOptions, fields.fields("options").value, what="the options")
    before = _launches_before(store, fields)
    with ExitStack() as stack:
        stack.enter_context(device_lock())
        artefacts = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="artefacts-")))
        arms = arms_from_message(store, fields, artefacts)
        run = Bench(
            arms=tuple(arms),
            baseline=fields.integer("baseline"),
            reference=fields.integer("reference") if fields.value.get("reference") is not None else None,
            options=options,
            folder=stack.enter_context(scratch_folder()),
            worker_command=WORKER_COMMAND,
            select=_select(store, fields),
            start_worker=partial(QuietWorker, link),
            after_launch=partial(_say_launch, link, request),
            measured_before=before,
        )
        link.say("begin", request, {"boot": boot_id(), "surroundings": surroundings()})
        try:
            run.measure()
        except RefusedError:
            raise
        except EdgebertError as error:
            if run.run is not None and run.run.launches:
                link.say("partial", request, {}, _blobs(*run.result(interrupted=error.what)))
            raise
        return {}, _blobs(*run.result(interrupted=None))


def one_launch(link: Link, store: Store, request: Frame) -> _Answer:
    """Measure bundles in one launch, as `edgebert size` does, and answer with what its workers said and the columns."""
    fields = request.fields
    options = from_json(BenchOptions, fields.fields("options").value, what="the options")
    with ExitStack() as stack:
        stack.enter_context(device_lock())
        artefacts = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="artefacts-")))
        folder = stack.enter_context(scratch_folder())
        arms = arms_from_message(store, fields, artefacts)
        workers = [stack.enter_context(QuietWorker(link, arm.name, options.threads, WORKER_COMMAND)) for arm in arms]
        opened = open_arms(workers, arms, threads=options.threads, default_target=arms[0].target or "cpu")
        run = Run(selection_from_json(fields.fields("selection"), store.path), options, folder)
        run.launch(opened)
        record, columns = run.last_launch()
        cards = [arm.card.to_json() for arm in opened]
    return {"launch": to_json(record), "cards": cards}, {"columns": columns_to_bytes(columns)}


def changed_images(_link: Link, store: Store, request: Frame) -> _Answer:
    """Answer which images this device decodes to other pixels than the host did; their places in the list.

    Libraries of different versions round a JPEG differently. The same pixels are judged everywhere, so that the host sends these
    without loss.
    """
    selection = selection_from_json(request.fields.fields("selection"), store.path)
    otherwise = []
    for place, example in enumerate(selection.examples):
        try:
            example.load()
        except EdgebertError:
            otherwise.append(place)
    return {"otherwise": otherwise}, {}


def arms_from_message(store: Store, fields: Fields, folder: Path) -> list[ArmRequest]:
    """Lay the artefacts of a message out, each in a folder of its own, and return the arms."""
    found = []
    places: dict[tuple[str, tuple[tuple[str, str], ...]], Path] = {}
    for entry in fields.list_of_fields("arms"):
        arm = from_json(SentArm, entry.value, what="an arm")
        if "/" in arm.file or arm.file in ("", ".", ".."):
            raise BadDataError(f"`{arm.file:.80}` names no artefact", expected="a name")
        if (arm.file, arm.files) not in places:
            place = folder / str(len(places)) / arm.file
            files = [(f"{arm.file}/{name}" if name else arm.file, sha256) for name, sha256 in arm.files]
            store.lay_out(place.parent, files)
            places[arm.file, arm.files] = place
        path = places[arm.file, arm.files]
        found.append(ArmRequest(name=arm.name, path=path, kind=KINDS[arm.kind], target=arm.target, control=arm.control))
    return found


def surroundings() -> JsonObject:
    """Return what must be the same where a run is taken up again: processor, system and software."""
    environment = read_environment()
    return {
        "arch": environment.device.arch,
        "model": environment.device.model,
        "cpu": environment.device.cpu.model,
        "software": dict(environment.software),
    }


def _select(store: Store, fields: Fields) -> Callable[[Sequence[str], Sequence[ModelCard]], Selection]:
    selection = selection_from_json(fields.fields("selection"), store.path)

    def select(names: Sequence[str], cards: Sequence[ModelCard]) -> Selection:
        for name, card, order in zip(names, cards, selection.orders, strict=True):
            if card.class_names != tuple(selection.class_names[place] for place in order):
                raise BadDataError(f"arm `{name}` has other classes here than where it was sent from")
        return selection

    return select


def _launches_before(store: Store, fields: Fields) -> list[tuple[LaunchRecord, Mapping[str, IntArray]]]:
    """Read the launches that a run goes on from; they were made on this device, and since it was started."""
    found: list[tuple[LaunchRecord, Mapping[str, IntArray]]] = []
    for entry in fields.list_of_fields("before"):
        record = from_json(LaunchRecord, entry.fields("record").value, what="a launch")
        columns = columns_from_bytes(store.path(entry.text("columns")).read_bytes(), what="a launch")
        found.append((record, columns))
    return found


def _say_launch(link: Link, request: Frame, record: LaunchRecord, columns: Mapping[str, IntArray]) -> None:
    link.say("launched", request, {"launch": to_json(record)}, {"columns": columns_to_bytes(columns)})


def _blobs(result: Result, samples: Samples) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory(prefix="samples-") as name:
        path = Path(name) / "samples.npz"
        write_columns(path, samples.columns)
        return {"result": dump_json(to_json(result)).encode(), "samples": path.read_bytes()}
