"""A run on a device while it is measured, so that a link that breaks costs one launch at most: a folder beside the result.

    result.json.run/
      run.json            what was asked, of whom, and the hashes of everything that was sent
      launch-0.json       what the workers said
      launch-0.npz        their columns

Each launch is written when it has come, whole, and checked; `bench --resume` sends them back, and the harness goes on from them.
The folder is removed when the result is written.
"""

from __future__ import annotations

import contextlib
import fnmatch
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgebert._files import (
    FolderKind,
    Output,
    check_folder_is_free,
    names_in,
    read_input,
    sha256_of_file,
    staged_together,
)
from edgebert._json import Fields, JsonObject, JsonValue, dump_json, parse_json_object
from edgebert.bench.codec import from_json, to_json
from edgebert.bench.session import LaunchRecord
from edgebert.errors import BadDataError, InputNotFoundError, NotComparableError
from edgebert.remote.wire import columns_from_bytes

SCHEMA = "edgebert.run/1"
RUN_FILE = "run.json"
RUN_FOLDER = FolderKind(
    marker=RUN_FILE, schema="edgebert.run/", holds=(RUN_FILE, "launch-*.json", "launch-*.npz", ".run.json.staging-*")
)
_LAUNCH = re.compile(r"launch-(\d{1,4})\.json")
_MAX_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptLaunch:
    """One launch of a run, as it lies in the folder."""

    record: LaunchRecord
    columns: Path


class RunFolder:
    """A run that is being measured.

    Args:
        path: of the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def beside(cls, output: Path) -> RunFolder:
        """Return the folder of a result: `result.json` -> `result.json.run`."""
        return cls(output.with_name(f"{output.name}.run"))

    def begin(self, asked: JsonObject, *, force: bool) -> None:
        """Make the folder of a new run; `asked` must be the same where it is taken up again.

        Raises:
            CannotWriteError: there is one of an earlier run, and no `force`, or it cannot be written.
        """
        check_folder_is_free(self.path, force=force, kind=RUN_FOLDER)
        with staged_together(Output(path=self.path, force=force, kind=RUN_FOLDER)) as (staging,):
            content: JsonObject = {"schema": SCHEMA, "asked": asked, "device": None}
            (staging / RUN_FILE).write_text(dump_json(content), encoding="utf-8")

    def settle(self, asked: JsonObject) -> JsonValue:
        """Check that this is a run of the same request, and return what its device said, None where it said nothing yet.

        Raises:
            InputNotFoundError: there is no such folder.
            BadDataError: it holds something else.
            NotComparableError: something else was asked then.
        """
        fields = self._fields()
        for name, value in asked.items():
            before = fields.fields("asked").value.get(name)
            if before != value:
                raise NotComparableError(
                    f"`{self.path}` is a run with another `{name}`",
                    expected="the same artefacts, images, options and device",
                    hint="measure anew, without `--resume`",
                )
        return fields.value.get("device")

    def bind(self, device: JsonObject) -> None:
        """Keep what the device said of itself, or check that it is still the same.

        Raises:
            NotComparableError: it was started anew since, has other software, or is another one.
        """
        fields = self._fields()
        before = fields.value.get("device")
        if before is None:
            content: JsonObject = {**fields.value, "device": device}
            with staged_together(Output(path=self.path / RUN_FILE, force=True)) as (staging,):
                staging.write_text(dump_json(content), encoding="utf-8")
            return
        known = before if isinstance(before, Mapping) else {}
        changed = sorted(name for name in {*known, *device} if known.get(name) != device.get(name))
        if changed:
            why = "was started anew" if changed == ["boot"] else f"differs in {', '.join(changed)}"
            raise NotComparableError(
                f"the device {why} since the run `{self.path}` began: its launches cannot be joined",
                expected="the same device, software and uptime",
                hint="measure anew, without `--resume`",
            )

    def keep(self, record: LaunchRecord, columns: bytes) -> None:
        """Keep a launch; it counts once both its files have their names."""
        stem = self.path / f"launch-{record.number}"
        outputs = [Output(path=stem.with_suffix(suffix), force=True) for suffix in (".json", ".npz")]
        with staged_together(*outputs) as (staged, beside):
            beside.write_bytes(columns)
            content: JsonObject = {"launch": to_json(record), "sha256": sha256_of_file(beside)}
            staged.write_text(dump_json(content), encoding="utf-8")

    def launches(self) -> tuple[KeptLaunch, ...]:
        """Return the launches that are complete, from the first on without a gap.

        Raises:
            BadDataError: a file is damaged.
        """
        found = []
        for number in self._numbers():
            name = f"launch-{number}.json"
            fields = Fields(
                parse_json_object(
                    read_input(self.path / name, what="the launch"), what=f"`{name}`", max_bytes=_MAX_BYTES
                ),
                what=f"`{name}`",
            )
            columns = self.path / f"launch-{number}.npz"
            if not columns.is_file() or sha256_of_file(columns) != fields.text("sha256"):
                raise BadDataError(f"`{columns}` is not what it was", hint="measure anew, without `--resume`")
            columns_from_bytes(columns.read_bytes(), what=f"`{columns.name}`")
            record = from_json(LaunchRecord, fields.fields("launch").value, what=f"`{name}`")
            if record.number != number:
                raise BadDataError(f"`{name}` is launch {record.number}", hint="measure anew, without `--resume`")
            found.append(KeptLaunch(record=record, columns=columns))
        return tuple(found)

    def remove(self) -> None:
        """Remove the run, once the result is written: its own files, and the folder where it holds nothing else."""
        for name in names_in(self.path) if self.path.is_dir() else ():
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in RUN_FOLDER.holds):
                with contextlib.suppress(OSError):
                    (self.path / name).unlink()
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def _numbers(self) -> Iterator[int]:
        there = {int(match[1]) for match in map(_LAUNCH.fullmatch, names_in(self.path)) if match}
        number = 0
        while number in there:
            yield number
            number += 1

    def _fields(self) -> Fields:
        if not (self.path / RUN_FILE).is_file():
            raise InputNotFoundError(
                f"`{self.path}` is no run that was cut short",
                expected=f"a folder with `{RUN_FILE}`, as `bench --host` leaves beside its output",
            )
        what = f"`{self.path / RUN_FILE}`"
        content = parse_json_object(read_input(self.path / RUN_FILE, what="the run"), what=what, max_bytes=_MAX_BYTES)
        fields = Fields(content, what=what)
        if fields.text("schema") != SCHEMA:
            raise BadDataError(f"{what} has schema `{fields.text('schema'):.40}`", expected=SCHEMA)
        return fields
