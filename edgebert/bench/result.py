"""Results on disk: a JSON file of the schema `edgebert.bench/1`, with its raw samples beside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edgebert._files import read_input, sha256_of_file, staged_file
from edgebert._json import Fields, dump_json, parse_json_object
from edgebert.bench.codec import from_json, to_json
from edgebert.bench.samples import Samples, read_samples, write_columns
from edgebert.bench.schema import SCHEMA, FileRecord, Result
from edgebert.errors import BadDataError, InputNotFoundError, RefusedError

MAX_RESULT_BYTES = 64 << 20


def samples_path(path: Path) -> Path:
    """Return where the raw samples of a result lie: `result.json` -> `result.samples.npz`."""
    return path.with_name(f"{path.stem}.samples.npz")


def write_result(path: Path, result: Result, samples: Samples, *, force: bool) -> Result:
    """Write a result and its raw samples beside it, both or neither, and return it with the samples' name and hash.

    Both are complete before either gets its name; the two renames follow one another at once.

    Raises:
        CannotWriteError: one of them exists without `force`, or cannot be written.
    """
    beside = samples_path(path)
    with staged_file(beside, force=force) as staged_samples, staged_file(path, force=force) as staged_result:
        write_columns(staged_samples, samples.columns)
        record = FileRecord(name=beside.name, sha256=sha256_of_file(staged_samples))
        result = replace(result, files={"samples": record})
        staged_result.write_text(dump_json(to_json(result)), encoding="utf-8")
    return result


def read_result(path: Path) -> Result:
    """Read a result and check that the samples beside it are those it was made from.

    Raises:
        InputNotFoundError: the result or its samples are not there.
        BadDataError: not a result of this schema.
        RefusedError: the samples are not the ones the result was made from.
    """
    what = f"`{path.name}`"
    value = parse_json_object(read_input(path, what="the result"), what=what, max_bytes=MAX_RESULT_BYTES)
    schema = Fields(value, what=what).text("schema")
    if schema != SCHEMA:
        raise BadDataError(
            f"{what} has schema `{schema:.80}`",
            expected=f"`{SCHEMA}`",
            hint="use the version of edgebert that made it, or a newer one",
        )
    result = from_json(Result, value, what=what)
    _check_arms(result, what)
    _check_samples(path, result)
    return result


def read_result_samples(path: Path, result: Result) -> Samples:
    """Read the raw samples beside a result that `read_result` has checked.

    Raises:
        BadDataError: they are not columns of integers.
    """
    return read_samples(path.with_name(result.files["samples"].name))


def _check_arms(result: Result, what: str) -> None:
    names = [arm.id for arm in result.arms]
    if not names or len(set(names)) < len(names):
        raise BadDataError(f"{what} has arms {', '.join(names) or 'none'}", expected="at least one, each name once")
    classes = len(result.dataset.class_names)
    for arm in result.arms:
        matrix, several = arm.accuracy.confusion, result.dataset.task == "multi-label"
        if several != (arm.accuracy.multi_label is not None):
            raise BadDataError(f"{what}, arm `{arm.id}`: its accuracy is not that of a {result.dataset.task} data set")
        if (
            len(matrix) != (0 if several else classes)
            or any(len(row) != classes for row in matrix)
            or len(arm.accuracy.per_class) != classes
        ):
            raise BadDataError(f"{what}, arm `{arm.id}`: the tables do not fit {classes} classes")
        if not arm.scenarios:
            raise BadDataError(f"{what}, arm `{arm.id}` has no scenario")
    for comparison in result.comparisons:
        if not {comparison.a, comparison.b} <= set(names):
            raise BadDataError(f"{what} compares `{comparison.a}` with `{comparison.b}`", expected=", ".join(names))


def _check_samples(path: Path, result: Result) -> None:
    record = result.files.get("samples")
    if record is None:
        raise BadDataError(f"`{path.name}` names no samples", expected="`files.samples`")
    if Path(record.name).name != record.name or record.name in ("", ".", ".."):
        raise RefusedError(f"`{path.name}` names its samples `{record.name}`", expected="a file beside it")
    beside = path.with_name(record.name)
    if not beside.is_file():
        raise InputNotFoundError(f"the samples of `{path.name}` are not there: `{record.name}`", expected="beside it")
    found = sha256_of_file(beside)
    if found != record.sha256:
        raise RefusedError(
            f"`{record.name}` has SHA-256 {found[:12]}…",
            expected=f"{record.sha256[:12]}…, the samples that `{path.name}` was made from",
            hint="measure again, or fetch both files of the same run",
        )
