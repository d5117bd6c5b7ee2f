"""Results on disk: a JSON file of the schema `edgebert.bench/1`, with its raw samples beside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from edgebert._files import Output, claimed, read_input, sha256_of_file, staged_together
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

    Both are complete before either gets its name, and a call that is killed between the two is finished by the next one.

    Raises:
        CannotWriteError: one of them exists without `force`, or cannot be written.
    """
    beside = samples_path(path)
    outputs = Output(path=path, force=force), Output(path=beside, force=force)
    with claimed(path, beside), staged_together(*outputs) as (staged_result, staged_samples):
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
    _check_schema(Fields(value, what=what).text("schema"), what)
    result = from_json(Result, value, what=what)
    _check_arms(result, what)
    _check_comparisons(result, what)
    _check_files(path, result)
    return result


def read_result_samples(path: Path, result: Result) -> Samples:
    """Read the raw samples beside a result that `read_result` has checked.

    Raises:
        BadDataError: they are not columns of integers.
    """
    return read_samples(path.with_name(result.files["samples"].name))


def _check_schema(schema: str, what: str) -> None:
    """Refuse another family, and another major version of this one."""
    if schema == SCHEMA:
        return
    family, _, ours = SCHEMA.partition("/")
    found, _, major = schema.partition("/")
    newer = found == family and major.isdecimal() and int(major[:9]) > int(ours)
    raise BadDataError(
        f"{what} has schema `{schema:.80}`",
        expected=f"`{SCHEMA}`",
        hint="it was made by a newer edgebert: upgrade, then read it again"
        if newer
        else "use the version of edgebert that made it, or measure again",
    )


def _check_arms(result: Result, what: str) -> None:
    names = [arm.id for arm in result.arms]
    if result.dataset is None or not names:
        _check_nothing_measured(result, what)
        return
    if len(set(names)) < len(names):
        raise BadDataError(f"{what} has arms {', '.join(names)}", expected="each name once")
    roles = [arm.role for arm in result.arms]
    if roles.count("baseline") != 1 or roles.count("aa") > 1:
        raise BadDataError(f"{what} has arms of roles {', '.join(roles)}", expected="one baseline, at most one aa")
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
        scenarios = [scenario.name for scenario in arm.scenarios]
        if not scenarios or scenarios[0] != "single-stream" or len(set(scenarios)) < len(scenarios):
            raise BadDataError(
                f"{what}, arm `{arm.id}` has the scenarios {', '.join(scenarios) or 'none'}",
                expected="single-stream first, each once",
            )


def _check_nothing_measured(result: Result, what: str) -> None:
    """A run that was cut short before every arm had answered has no arms and says so."""
    if result.arms or result.comparisons:
        raise BadDataError(f"{what} has arms and no dataset", expected="both, or neither")
    if not result.status.partial:
        raise BadDataError(f"{what} has arms none, and is not partial", expected="at least one arm")


def _check_comparisons(result: Result, what: str) -> None:
    names = {arm.id for arm in result.arms}
    scenarios = {(arm.id, scenario.name) for arm in result.arms for scenario in arm.scenarios}
    for entry in result.comparisons:
        if not {entry.a, entry.b} <= names or entry.a == entry.b:
            raise BadDataError(f"{what} compares `{entry.a}` with `{entry.b}`", expected=", ".join(sorted(names)))
        if not {(entry.a, entry.scenario), (entry.b, entry.scenario)} <= scenarios:
            raise BadDataError(f"{what} compares by `{entry.scenario}`", expected="a scenario that both arms have")


def _check_files(path: Path, result: Result) -> None:
    if "samples" not in result.files and result.arms:
        raise BadDataError(f"`{path.name}` names no samples", expected="`files.samples`")
    for kind, record in result.files.items():
        if Path(record.name).name != record.name or record.name in ("", ".", ".."):
            raise RefusedError(f"`{path.name}` names its {kind} `{record.name}`", expected="a file beside it")
        beside = path.with_name(record.name)
        if not beside.is_file():
            raise InputNotFoundError(
                f"the {kind} of `{path.name}` are not there: `{record.name}`", expected="beside it"
            )
        found = sha256_of_file(beside)
        if found != record.sha256:
            raise RefusedError(
                f"`{record.name}` has SHA-256 {found[:12]}…",
                expected=f"{record.sha256[:12]}…, the {kind} that `{path.name}` was made with",
                hint="measure again, or fetch all files of the same run",
            )
