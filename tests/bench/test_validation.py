"""A result that does not follow from its samples is refused, wherever it was changed."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgebert._json import JsonValue
from edgebert.bench.codec import from_json, to_json
from edgebert.bench.comparison.validation import (
    check_command,
    check_not_measured,
    check_result,
    check_status,
    json_mismatches,
    mismatches,
    rebuilt_result,
    validate_results,
)
from edgebert.bench.result import samples_path, write_result
from edgebert.bench.samples import Samples, read_samples, write_columns
from edgebert.bench.schema import FileRecord, Result
from edgebert.errors import BadDataError, InputNotFoundError, RefusedError

Synthetic = Callable[..., tuple[Result, Samples]]
Run = Callable[..., tuple[int, str, str]]

_CACHE: list[tuple[Result, Samples]] = []

# What no sample can say: the computer, sizes of files, what workers and sensors reported, and what was asked for.
DECLARED = re.compile(
    r"^(device|os|power_state|interference|process|seeds|preflight)\b"
    r"|^arms\..+\.(artifact|harness|memory|temperature)\b"
    r"|^arms\..+\.consistency\.input_sensitivity$"
    r"|^arms\..+\.scenarios\.single-stream\.(warmup\.ns|looks)$"
    r"|^arms\..+\.startup\.\w+\.values\[\d+\]$"
    r"|^dataset\.skipped$"
)
# What the statistics are made with: other numbers give other statistics, which are then what the samples give.
PARAMETERS = re.compile(r"\.(margin|sample|temperature)$|^seeds\.")


@pytest.fixture
def made(synthetic: Synthetic) -> tuple[Result, Samples]:
    """Return a result and its samples, made once."""
    if not _CACHE:
        _CACHE.append(synthetic(launches=2, queries=60))
    return _CACHE[0]


@pytest.fixture
def written(tmp_path: Path, made: tuple[Result, Samples]) -> Path:
    """Return the path of the result, its samples beside it."""
    path = tmp_path / "r.json"
    write_result(path, *made, force=False)
    return path


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_validate_holds_for_an_honest_result(written: Path, run: Run) -> None:
    code, out, err = run("validate", written)
    assert (code, err) == (0, "")
    assert out.startswith("r.json: holds\n")
    assert "all statistics follow from" in out


def test_validate_says_the_same_as_json(written: Path, run: Run) -> None:
    code, out, _ = run("validate", written, "--json")
    content = json.loads(out)
    assert code == content["exit_code"] == 0
    assert content["results"][0]["file"] == "r.json"
    assert len(content["results"][0]["held"]) >= 4


def test_validate_refuses_samples_that_were_changed(written: Path, run: Run) -> None:
    beside = samples_path(written)
    columns = dict(read_samples(beside).columns)
    columns["t_done"] = columns["t_done"] + 1
    write_columns(beside, columns)
    code, out, _ = run("validate", written)
    assert code == 77
    assert "REFUSED" in out


def test_validate_refuses_changed_samples_whose_hash_was_changed_as_well(
    tmp_path: Path, made: tuple[Result, Samples], run: Run
) -> None:
    result, samples = made
    done = samples["t_done"].copy()
    done[samples["arm"] == 1] -= 100_000
    path = tmp_path / "r.json"
    write_result(path, result, Samples({**samples.columns, "t_done": done}), force=False)
    code, out, _ = run("validate", path)
    assert code == 65
    p50 = result.arm("student").scenarios[0].latency.e2e.p50.value
    assert p50 is not None
    assert f"arms.student.scenarios.single-stream.latency.e2e.p50.value: {p50}, from the samples {p50 - 100_000}" in out


@pytest.mark.parametrize(
    "column",
    [
        "t_sched",
        "t_issue",
        "t_pre_end",
        "t_inf_end",
        "pred",
        "sample_index",
        "block_wall_ns",
        "block_cpu_ns",
        "block_involuntary",
        "accuracy_pred",
        "accuracy_label",
        "accuracy_confidence",
        "logit",
        "schedule",
    ],
)
def test_check_result_finds_a_column_that_was_changed(
    tmp_path: Path, made: tuple[Result, Samples], column: str
) -> None:
    result, samples = made
    shift = {"block_involuntary": 1, "t_sched": 1, "accuracy_confidence": -(10**8)}.get(column, 0)
    changed = {**samples.columns, column: np.roll(samples[column], 1) + shift}
    path = tmp_path / "r.json"
    write_result(path, result, Samples(changed), force=False)
    with pytest.raises(BadDataError):
        check_result(path)


def test_mismatches_finds_every_number_that_is_not_declared(made: tuple[Result, Samples]) -> None:
    """All numbers are changed at once, and those of which the samples know nothing are exactly those listed above."""
    result, samples = made
    changed = from_json(Result, _changed(to_json(result), ""), what="a changed result")
    touched = {entry.path for entry in mismatches(result, changed)}
    found = {entry.path for entry in mismatches(changed, rebuilt_result(changed, samples, what="it"))}
    missed = {path for path in touched - found if not DECLARED.match(path)}
    # The median of changed values is the changed median.
    assert {path for path in missed if not path.endswith(".median")} == set()
    assert len(found) > 400
    assert not {path for path in found if DECLARED.match(path)}


def test_mismatches_finds_each_number_alone(made: tuple[Result, Samples]) -> None:
    """Changed one by one against the statistics of the honest result: no number hides behind another."""
    result, samples = made
    honest, content = to_json(rebuilt_result(result, samples, what="it")), to_json(result)
    paths = [path for path, value in _numbers(content, ()) if not _kept(path)]
    assert len(paths) > 400
    for path in paths:
        changed = _with(content, path, _other(_at(content, path)))
        assert isinstance(changed, Mapping)
        assert len(json_mismatches(changed, honest)) == 1, path


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (lambda arm: arm["startup"]["load_ns"].update(median=1), "arms.teacher.startup.load_ns.median"),
        (lambda arm: arm["accuracy"].update(macro_f1=0.5), "arms.teacher.accuracy.macro_f1"),
        (lambda arm: arm["scenarios"][0]["warmup"].update(queries=1), "scenarios.single-stream.warmup.queries"),
        (lambda arm: arm["scenarios"][0].update(launches=9), "scenarios.single-stream.launches"),
        (lambda arm: arm["scenarios"][0]["params"].update(batch=2), "scenarios.single-stream.params.batch"),
        (lambda arm: arm["consistency"].update(mismatch=1), "consistency.mismatch"),
    ],
)
def test_validate_names_the_path_and_both_values(
    written: Path, run: Run, change: Callable[[dict[str, Any]], object], path: str
) -> None:
    edit(written, lambda content: change(content["arms"][0]))
    code, out, _ = run("validate", written)
    assert code == 65
    assert re.search(re.escape(path) + r": \S+, from the samples \S+", out)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content["comparisons"][1].update(verdict="slower"),
        lambda content: content["comparisons"].pop(),
        lambda content: content.update(comparisons=[]),
        lambda content: content["dataset"].update(n=31),
        lambda content: content["dataset"].update(timed=7),
        lambda content: content["dataset"].update(per_class=[10, 10, 11]),
    ],
)
def test_validate_refuses_what_is_no_number_of_an_arm(
    written: Path, run: Run, change: Callable[[dict[str, Any]], object]
) -> None:
    edit(written, change)
    assert run("validate", written)[0] == 65


def test_check_status_refuses_to_be_valid_with_answers_that_differ(synthetic: Synthetic) -> None:
    result, _ = synthetic(launches=2, mismatch=True)
    assert not result.status.valid
    lying = dataclasses.replace(result, status=dataclasses.replace(result.status, valid=True))
    with pytest.raises(BadDataError, match=r"`status\.valid` is true, and from the samples it is false"):
        check_status(lying, "it")
    check_status(result, "it")


def test_check_status_refuses_to_be_converged_where_an_interval_is_wide(made: tuple[Result, Samples]) -> None:
    result, _ = made
    standard = dataclasses.replace(result, rigor="standard")
    with pytest.raises(BadDataError, match=r"status\.converged"):
        check_status(standard, "it")


@pytest.mark.parametrize(
    "command",
    [
        ("edgebert", "bench", "other=x.onnx", "--data", "digits"),
        ("edgebert", "bench", "teacher=x.onnx", "third=y.onnx", "--data", "digits"),
        ("edgebert", "bench", "--data", "digits"),
        ("rm", "-rf"),
        (),
    ],
)
def test_check_command_refuses_one_with_other_arms(made: tuple[Result, Samples], command: tuple[str, ...]) -> None:
    with pytest.raises(BadDataError):
        check_command(dataclasses.replace(made[0], command=command), "it")


def test_check_command_knows_one_artefact_on_several_targets(made: tuple[Result, Samples]) -> None:
    result = made[0]
    arms = tuple(
        dataclasses.replace(arm, id=name, artifact=dataclasses.replace(arm.artifact, sha256=name[:1] * 64))
        for arm, name in zip(result.arms, ("a@cpu", "a@intel-cpu", "b"), strict=True)
    )
    several = dataclasses.replace(result, arms=tuple(dataclasses.replace(arm, role="candidate") for arm in arms))
    check_command(dataclasses.replace(several, command=("edgebert", "bench", "a=a.edgebert", "b=b.onnx")), "it")
    with pytest.raises(BadDataError, match="a@cpu, a@intel-cpu, b"):
        check_command(dataclasses.replace(several, command=("edgebert", "bench", "a=a.edgebert")), "it")


@pytest.mark.parametrize("path", ["arms.teacher.accuracy.top1", "arms.accuracy.top1", "device.cpu.threads", "dataset"])
def test_check_not_measured_refuses_a_value_that_is_there(made: tuple[Result, Samples], path: str) -> None:
    with pytest.raises(BadDataError, match=f"`{re.escape(path)}` was not measured"):
        check_not_measured(dataclasses.replace(made[0], not_measured={path: "made up"}), "it")


@pytest.mark.parametrize("path", ["device.gpu", "arms.teacher.startup.cold", "arms.scenarios.energy", "nowhere.at.all"])
def test_check_not_measured_takes_null_and_what_is_absent(made: tuple[Result, Samples], path: str) -> None:
    check_not_measured(dataclasses.replace(made[0], not_measured={path: "made up"}), "it")


def test_check_result_hashes_every_file_beside_it(written: Path) -> None:
    log = written.with_name("r.log")
    log.write_text("hello")
    record = FileRecord(name="r.log", sha256="0" * 64)
    edit(written, lambda content: content["files"].update(log=to_json(record)))
    with pytest.raises(RefusedError, match=r"r\.log"):
        check_result(written)
    log.unlink()
    with pytest.raises(InputNotFoundError, match=r"r\.log"):
        check_result(written)


@pytest.mark.parametrize("damage", ["no arm", "short", "classes"])
def test_check_result_tells_samples_that_do_not_fit_from_a_fault_of_ours(
    tmp_path: Path, made: tuple[Result, Samples], damage: str
) -> None:
    result, samples = made
    columns = dict(samples.columns)
    if damage == "no arm":
        columns["arm"] = columns["arm"] * 0
    elif damage == "short":
        columns["accuracy_arm"] = columns["accuracy_arm"] + 7
    else:
        columns["accuracy_label"] = columns["accuracy_label"] + 1_000
    path = tmp_path / "r.json"
    write_result(path, result, Samples(columns), force=False)
    with pytest.raises(BadDataError):
        check_result(path)


def test_validate_results_goes_on_after_one_that_is_refused(written: Path, tmp_path: Path) -> None:
    report = validate_results([tmp_path / "nowhere.json", written])
    assert [entry.exit_code for entry in report.results] == [66, 0]
    assert report.exit_code == 66
    assert "nowhere.json: REFUSED" in report.to_text()
    assert "r.json: holds" in report.to_text()


def test_check_result_takes_a_partial_result_without_arms(tmp_path: Path, made: tuple[Result, Samples]) -> None:
    result, samples = made
    status = dataclasses.replace(result.status, partial=True, valid=False)
    empty = dataclasses.replace(result, arms=(), comparisons=(), dataset=None, status=status)
    path = tmp_path / "r.json"
    write_result(path, empty, samples, force=False)
    assert check_result(path)[-1] == "nothing was measured: there are no statistics to make again"


def _changed(value: JsonValue, path: str) -> JsonValue:
    """Return the value with every number another one, but for the parameters of the statistics."""
    if isinstance(value, Mapping):
        return {key: _changed(entry, f"{path}.{key}".lstrip(".")) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_changed(entry, path) for entry in value]
    if PARAMETERS.search(path) or path.startswith("command"):
        return value
    return _other(value)


def _other(value: JsonValue) -> JsonValue:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    return value + 1 if isinstance(value, int) else value * (1 + 1e-6) + 1e-6


def _numbers(value: JsonValue, path: tuple[str | int, ...]) -> Iterator[tuple[tuple[str | int, ...], JsonValue]]:
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _numbers(entry, (*path, key))
    elif isinstance(value, (list, tuple)):
        for at, entry in enumerate(value):
            yield from _numbers(entry, (*path, at))
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield path, value


def _kept(path: tuple[str | int, ...]) -> bool:
    return path[0] in ("seeds", "device", "os", "power_state", "interference", "preflight")


def _at(value: JsonValue, path: tuple[str | int, ...]) -> JsonValue:
    for step in path:
        value = value[step]  # type: ignore[index]  # the path was walked before
    return value


def _with(value: JsonValue, path: tuple[str | int, ...], new: JsonValue) -> JsonValue:
    if not path:
        return new
    if isinstance(value, Mapping):
        return {key: _with(entry, path[1:], new) if key == path[0] else entry for key, entry in value.items()}
    assert isinstance(value, (list, tuple))
    return [_with(entry, path[1:], new) if at == path[0] else entry for at, entry in enumerate(value)]
