"""`edgebert bench ... --host USER@HOST`: the same harness on a device, with the images and artefacts of this computer.

The artefacts and the encoded test images are pushed by content hash; the device measures, silently, and says each launch when it is
complete. What comes back at the end is a result and its raw samples. It is taken for a stranger's: read strictly, every statistic made
again from the samples, and what this computer knows itself (artefacts, images, labels) held against it.
"""

from __future__ import annotations

import base64
import binascii
import datetime
import hashlib
import logging
import re
import tempfile
import threading
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from edgebert._console import printable
from edgebert._files import (
    check_can_be_written,
    check_file_is_free,
    check_not_input,
    read_input,
    sha256_of_path,
)
from edgebert._json import JsonObject, JsonValue, dump_json, parse_json_object
from edgebert.bench.arms import ArmRequest, arms_from_paths, control_of, find_arm
from edgebert.bench.codec import from_json, to_json
from edgebert.bench.comparison.validation import check_result
from edgebert.bench.graph_card import graph_card
from edgebert.bench.harness import selection_from_data
from edgebert.bench.options import BenchOptions
from edgebert.bench.record import roles_of
from edgebert.bench.result import MAX_RESULT_BYTES, read_result, read_result_samples, samples_path, write_result
from edgebert.bench.samples import Samples
from edgebert.bench.schema import Result
from edgebert.bench.selection import Selection
from edgebert.bench.session import LaunchRecord
from edgebert.bundle import read_bundle
from edgebert.card import ModelCard
from edgebert.errors import BadDataError, EdgebertError, LinkLostError, RefusedError
from edgebert.remote.agent import plain_text
from edgebert.remote.device_wheel import device_wheel
from edgebert.remote.objects import arms_to_json, object_of_file, object_of_image, object_without_loss, sent_arms
from edgebert.remote.run_folder import RunFolder
from edgebert.remote.session import DeviceSession, Reply
from edgebert.remote.ssh import SshOptions
from edgebert.remote.transport import Transport
from edgebert.remote.wire import columns_from_bytes, selection_to_json

_log = logging.getLogger("edgebert")

_DEADLINE_SECONDS = 7 * 86_400.0  # of a whole run: a soak may take days, and silence is noticed by itself
_HOST = re.compile(r"[A-Za-z0-9._:\[\]-]{1,255}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteBench:
    """What is to be measured, worked out on this computer before anything is sent.

    Attributes:
        arms: as requested, and the A/A control.
        baseline: index of the arm that speed-ups refer to.
        reference: index of the arm that agreement refers to, or None.
        options: how to measure.
        hashes: SHA-256 of each artefact.
        selection: the test images.
    """

    arms: tuple[ArmRequest, ...]
    baseline: int
    reference: int | None
    options: BenchOptions
    hashes: tuple[str, ...]
    selection: Selection


def bench_on(
    transport: Transport,
    paths: Sequence[str | Path],
    output: Path,
    options: BenchOptions,
    *,
    resume: Path | None = None,
    keep: bool = False,
    ssh: SshOptions | None = None,
    stop: threading.Event | None = None,
) -> Result:
    """Measure artefacts on a device and write the result and its raw samples here.

    Args:
        transport: how the device is reached.
        paths: bundles and graphs, as `edgebert.bench.result_from_arms` takes them.
        output: the result, a `.json` file; the samples go beside it.
        options: how to measure.
        resume: the folder of a run that was cut short, to go on from; None to begin anew.
        keep: leave what is pushed on the device.
        ssh: how it is reached, over SSH.
        stop: once it is set, the run ends as by Ctrl-C.

    Raises:
        UsageError: a checkpoint, or an arm that is none.
        BadDataError: the data do not fit the artefacts; said before anything is sent.
        RefusedError: a host key, a login or an answer cannot be trusted.
        LinkLostError: the device cannot be reached, or the link broke; the launches that were complete are kept in a folder
            beside the output, for `resume`.
        NotComparableError: `resume` names a run of something else, or of another device.
        EdgebertError: what the measurement there failed with; a partial result was written where launches were complete.
    """
    check_file_is_free(output, force=options.force)
    check_file_is_free(samples_path(output), force=options.force)
    check_can_be_written(output)
    work = planned(paths, output, options)
    run = RunFolder.beside(output) if resume is None else RunFolder(resume)
    asked = _asked(work, transport)
    if resume is None:
        run.begin(asked, force=options.force)
    else:
        run.settle(asked)
    try:
        with DeviceSession(transport, ssh=ssh, keep=keep, stop=stop) as session:
            measuring = _Measuring(session=session, work=work, run=run, output=output)
            result, samples = measuring.measured()
    except (EdgebertError, KeyboardInterrupt) as error:
        if not run.launches():
            run.remove()  # there is nothing to go on from, and it would be in the way of the next call
            raise
        if isinstance(error, LinkLostError):
            raise _with_resume(error, run) from error
        if isinstance(error, KeyboardInterrupt):
            _log.warning("%s: `--resume %s` goes on from there", _kept(run), run.path)
        raise
    written = write_result(output, result, samples, force=options.force)
    run.remove()
    return written


def planned(paths: Sequence[str | Path], output: Path, options: BenchOptions) -> RemoteBench:
    """Work out what is to be measured: arms, their cards, and the test images that all of them may be judged on.

    Raises:
        EdgebertError: an artefact cannot be read, or the data do not fit; see `bench_on`.
    """
    asked = arms_from_paths(paths, options.targets)
    check_not_input(output, *(arm.path for arm in asked))
    names = [arm.name for arm in asked]
    baseline = find_arm(names, options.baseline, flag="baseline") if options.baseline else 0
    reference = find_arm(names, options.reference, flag="reference") if options.reference else None
    arms = (*asked, control_of(asked[baseline]))
    sent_arms(arms)  # refuses what no device can run, before any image is read
    cards = [_card(arm) for arm in arms]
    return RemoteBench(
        arms=arms,
        baseline=baseline,
        reference=reference,
        options=options,
        hashes=tuple(sha256_of_path(arm.path) for arm in arms),
        selection=selection_from_data(options, [arm.name for arm in arms], cards),
    )


@dataclass(slots=True, kw_only=True)
class _Measuring:
    """One conversation with one device."""

    session: DeviceSession
    work: RemoteBench
    run: RunFolder
    output: Path

    def measured(self) -> tuple[Result, Samples]:
        """Push, measure, and return the result that was checked."""
        work = self.work
        arms, objects = sent_arms(work.arms)
        self.session.push(objects)
        selection = push_images(self.session, work.selection)
        before = self.run.launches()
        columns = [object_of_file(launch.columns) for launch in before]
        self.session.push(columns)
        listed: list[JsonValue] = [
            {"record": to_json(launch.record), "columns": entry.sha256}
            for launch, entry in zip(before, columns, strict=True)
        ]
        if before:
            _log.info("`%s`: %d launches were measured before", self.session.name, len(before))
        request: JsonObject = {
            "arms": arms_to_json(arms),
            "options": to_json(replace(work.options, force=False)),
            "selection": selection,
            "baseline": work.baseline,
            "reference": work.reference,
            "before": listed,
        }
        _log.info("`%s`: %d arms, %d images", self.session.name, len(arms), len(work.selection.examples))
        reply = self.session.ask("bench", request, timeout_s=_DEADLINE_SECONDS, said=self._said)
        return self._checked(reply)

    def _said(self, kind: str, reply: Reply) -> None:
        """Take what the device says before it answers."""
        try:
            if kind == "begin":
                surroundings = reply.fields.fields("surroundings").value
                self.run.bind({"boot": reply.fields.text("boot"), **surroundings})
            elif kind == "launched":
                record = from_json(LaunchRecord, reply.fields.fields("launch").value, what="a launch")
                columns = reply.blobs.get("columns", b"")
                columns_from_bytes(columns, what="a launch")
                if record.number != len(self.run.launches()):
                    raise BadDataError(f"launch {record.number + 1}", expected=str(len(self.run.launches()) + 1))
                self.run.keep(record, columns)
                _log.info("`%s`: launch %d is complete", self.session.name, record.number + 1)
            elif kind == "partial":
                result, samples = self._checked(reply, partial=True)
                write_result(self.output, result, samples, force=self.work.options.force)
                _log.warning("what was measured is in `%s`, marked partial", self.output)
            else:
                raise BadDataError(f"`{kind:.40}`", expected="begin, launched or partial")
        except BadDataError as error:
            raise RefusedError(
                f"`{self.session.name}` says {printable(error.what)}", expected=plain_text(error.expected)
            ) from error

    def _checked(self, reply: Reply, *, partial: bool = False) -> tuple[Result, Samples]:
        """Return a result of the device: what follows from its samples, and is about what was asked.

        Raises:
            RefusedError: it is not.
        """
        name = self.session.name
        try:
            with tempfile.TemporaryDirectory(prefix="edgebert-bench-") as folder:
                path = Path(folder) / "result.json"
                path.write_bytes(reply.blobs.get("result", b""))
                _write_samples(path, reply.blobs.get("samples", b""))
                check_result(path)
                result = read_result(path)
                samples = read_result_samples(path, result)
                _check_is_asked(result, samples, self.work, partial=partial)
        except (BadDataError, RefusedError) as error:
            raise RefusedError(
                f"the result of `{name}` cannot be trusted: {printable(error.what)[:1500]}",
                expected=plain_text(error.expected),
            ) from error
        return self._ours(result), samples

    def _ours(self, result: Result) -> Result:
        """Return the result under a number and a date of this computer, and with how the device was reached."""
        transport = self.session.transport
        host = str(transport).rpartition("@")[2]
        command = list(result.command)
        place = next((at for at, word in enumerate(command) if word.startswith("--")), len(command))
        words = ["--host", host] if _HOST.fullmatch(host) else []
        return replace(
            result,
            run_id=uuid.uuid4().hex,
            created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            command=(*command[:place], *words, *command[place:]),
            device=replace(result.device, transport=transport.way),
        )


def push_images(session: DeviceSession, selection: Selection) -> JsonObject:
    """Push the images of a selection, and return it as a message.

    An image that the device decodes to other pixels, as libraries of JPEG of different versions do, is sent again without loss: the
    same pixels are judged everywhere.
    """
    objects = {example.pixel_sha256: object_of_image(example) for example in selection.examples}
    session.push(list(objects.values()))
    message = selection_to_json(selection, {pixels: entry.sha256 for pixels, entry in objects.items()})
    reply = session.ask("images", {"selection": message}, timeout_s=_DEADLINE_SECONDS)
    try:
        otherwise = reply.fields.integers("otherwise")
    except BadDataError as error:
        raise RefusedError(printable(error.what)) from error
    if not otherwise:
        return message
    if not all(0 <= place < len(selection.examples) for place in otherwise):
        raise RefusedError(f"`{session.name}` speaks of images that it was not sent")
    _log.warning(
        "`%s` decodes %d of %d images to other pixels (%s); they are sent without loss, so that the same ones are judged",
        session.name,
        len(otherwise),
        len(selection.examples),
        f"Pillow {session.device.modules.get('PIL', 'unknown')} there",
    )
    for place in otherwise:
        example = selection.examples[place]
        objects[example.pixel_sha256] = object_without_loss(example)
    session.push([objects[selection.examples[place].pixel_sha256] for place in otherwise])
    return selection_to_json(selection, {pixels: entry.sha256 for pixels, entry in objects.items()})


def _card(arm: ArmRequest) -> ModelCard:
    if arm.kind == "bundle":
        return read_bundle(arm.path).manifest.card
    return graph_card(read_input(arm.path, what="the graph"), what=f"`{arm.path}`")


def _asked(work: RemoteBench, transport: Transport) -> JsonObject:
    """Return what must be the same where a run is taken up again."""
    return {
        "host": str(transport),
        "wheel": device_wheel().sha256,
        "arms": [[arm.name, arm.target, sha256] for arm, sha256 in zip(work.arms, work.hashes, strict=True)],
        "images": work.selection.record(0).sha256,
        "options": to_json(replace(work.options, force=False, data="")),
        "baseline": work.baseline,
        "reference": work.reference,
    }


def _write_samples(result: Path, content: bytes) -> None:
    """Lay the samples of a device beside its result, and name them there: names of files are this computer's own."""
    samples_path(result).write_bytes(content)
    value = parse_json_object(result.read_bytes(), what="the result", max_bytes=MAX_RESULT_BYTES)
    record: JsonObject = {"name": samples_path(result).name, "sha256": hashlib.sha256(content).hexdigest()}
    named: JsonObject = {**value, "files": {"samples": record}}
    result.write_text(dump_json(named), encoding="utf-8")


def _check_is_asked(result: Result, samples: Samples, work: RemoteBench, *, partial: bool) -> None:
    """Hold what this computer knows against a result.

    Raises:
        BadDataError: it is about something else, or marked otherwise than it ended.
    """
    roles = roles_of(work.arms, work.baseline)
    expected = [(arm.name, role, sha256) for arm, role, sha256 in zip(work.arms, roles, work.hashes, strict=True)]
    found = [(arm.id, arm.role, arm.artifact.sha256) for arm in result.arms]
    if found != expected:
        raise BadDataError("it is about other arms", expected=", ".join(arm.name for arm in work.arms))
    if result.status.partial != partial:
        raise BadDataError(f"it is marked {'partial' if result.status.partial else 'complete'}")
    assert result.dataset is not None
    wanted = work.selection.record(result.dataset.timed)
    if to_json(result.dataset) != to_json(wanted):
        raise BadDataError("it is about other images")
    if (result.rigor, result.seeds.inputs) != (work.options.rigor, work.options.seed):
        raise BadDataError("it was measured with other options")
    _check_labels(samples, work.selection)
    for arm in result.arms:
        for flipped in arm.accuracy.flipped:
            if flipped.thumbnail is not None:
                _check_thumbnail(flipped.thumbnail)


def _check_labels(samples: Samples, selection: Selection) -> None:
    """Check that the labels are those of this computer's images, single-label ones by their number."""
    if selection.task != "single-label":
        return
    truth = np.array([example.label for example in selection.examples], np.int64)
    labels, numbers = samples["accuracy_label"], samples["accuracy_sample"]
    if numbers.size and (numbers.min() < 0 or numbers.max() >= truth.size):
        raise BadDataError("it speaks of images that it was not sent")
    if not np.array_equal(labels, truth[numbers]):
        raise BadDataError("it has other labels than the images that were sent")


def _check_thumbnail(text: str) -> None:
    try:
        content = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise BadDataError("a thumbnail is no base64") from error
    if not content.startswith(b"\x89PNG\r\n\x1a\n") or len(content) > 64 << 10:
        raise BadDataError("a thumbnail is no small PNG")


def _kept(run: RunFolder) -> str:
    count = len(run.launches())
    return f"{count} complete {'launch is' if count == 1 else 'launches are'} kept in `{run.path}`"


def _with_resume(error: LinkLostError, run: RunFolder) -> LinkLostError:
    """Return the error with what is kept, and how to go on from it."""
    return LinkLostError(
        f"{error.what}; {_kept(run)}, and no result was written",
        expected=error.expected,
        hint=f"the same command with `--resume {run.path}` goes on from there",
    )
