from __future__ import annotations

import dataclasses
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from edgebert._json import JsonValue
from edgebert.bench.codec import from_json, to_json
from edgebert.bench.result import read_result, read_result_samples, samples_path, write_result
from edgebert.bench.samples import Samples, read_samples, write_columns
from edgebert.bench.schema import Result
from edgebert.errors import BadDataError, InputNotFoundError, RefusedError

Synthetic = Callable[..., tuple[Result, Samples]]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    pair: tuple[float, float]
    kind: Literal["a", "b"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    count: int
    share: float
    name: str | None
    flag: bool
    many: tuple[Inner, ...]
    named: dict[str, int]


GOOD: dict[str, JsonValue] = {
    "count": 3,
    "share": 1,
    "name": None,
    "flag": True,
    "many": [{"pair": [1, 2.5], "kind": "a"}],
    "named": {"x": 1},
}


def test_from_json_reads_what_to_json_wrote_and_ignores_what_it_does_not_know() -> None:
    record = from_json(Outer, {**GOOD, "added later": [1]}, what="it")
    assert record.many == (Inner(pair=(1.0, 2.5), kind="a"),)
    assert isinstance(record.share, float)
    assert from_json(Outer, to_json(record), what="it") == record


@pytest.mark.parametrize(
    "change",
    [
        {"count": True},
        {"count": 1.5},
        {"count": 2**64},
        {"share": "1"},
        {"share": 10**400},
        {"name": 3},
        {"flag": 1},
        {"many": {}},
        {"many": [{"pair": [1], "kind": "a"}]},
        {"many": [{"pair": [1, 2], "kind": "c"}]},
        {"many": [None]},
        {"named": [1]},
        {"named": {"x": None}},
    ],
)
def test_from_json_refuses_another_type(change: dict[str, JsonValue]) -> None:
    with pytest.raises(BadDataError, match="it, `"):
        from_json(Outer, {**GOOD, **change}, what="it")


def test_from_json_names_a_missing_field() -> None:
    with pytest.raises(BadDataError, match="it holds no `count`"):
        from_json(Outer, {key: value for key, value in GOOD.items() if key != "count"}, what="it")


@pytest.fixture
def written(tmp_path: Path, synthetic: Synthetic) -> Path:
    """Return the path of a result with its samples."""
    result, samples = synthetic()
    path = tmp_path / "r.json"
    write_result(path, result, samples, force=False)
    return path


def edit(path: Path, change: Callable[[dict[str, object]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_read_result_gives_back_the_result_and_its_samples(written: Path, synthetic: Synthetic) -> None:
    result = read_result(written)
    samples = read_result_samples(written, result)
    expected, columns = synthetic()
    assert dataclasses.replace(result, files={}, run_id="", created="") == dataclasses.replace(
        expected, run_id="", created=""
    )
    assert all(np.array_equal(samples[name], columns[name]) for name in columns.columns)


def test_result_holds_finite_numbers_only_and_a_reason_for_what_is_not_measured(written: Path) -> None:
    content = json.loads(written.read_text(), parse_constant=lambda name: pytest.fail(f"{name} in the result"))
    assert content["schema"] == "edgebert.bench/1"
    assert all(content["not_measured"].values())
    expected = {
        "run_id", "created", "edgebert", "command", "rigor", "seeds", "status", "device", "os", "power_state",
        "software", "env", "dataset", "arms", "comparisons", "files",
    }  # fmt: skip
    assert expected <= set(content)


def test_read_result_refuses_samples_that_were_changed(written: Path) -> None:
    beside = samples_path(written)
    content = bytearray(beside.read_bytes())
    content[len(content) // 2] ^= 1
    beside.write_bytes(content)
    with pytest.raises(RefusedError, match=r"r\.samples\.npz"):
        read_result(written)


def test_read_result_misses_samples_that_are_not_there(written: Path) -> None:
    samples_path(written).unlink()
    with pytest.raises(InputNotFoundError, match=r"r\.samples\.npz"):
        read_result(written)


@pytest.mark.parametrize("name", ["../r.samples.npz", "/etc/passwd", "", ".."])
def test_read_result_refuses_samples_elsewhere(written: Path, name: str) -> None:
    edit(written, lambda content: content.update(files={"samples": {"name": name, "sha256": "00"}}))
    with pytest.raises(RefusedError):
        read_result(written)


@pytest.mark.parametrize("schema", ["edgebert.bench/2", "edgebert.bundle/1", ""])
def test_read_result_refuses_another_schema(written: Path, schema: str) -> None:
    edit(written, lambda content: content.update(schema=schema))
    with pytest.raises(BadDataError, match="schema"):
        read_result(written)


@pytest.mark.parametrize("field", ["status", "arms", "dataset", "comparisons"])
def test_read_result_names_a_field_that_is_missing(written: Path, field: str) -> None:
    edit(written, lambda content: content.pop(field))
    with pytest.raises(BadDataError, match=f"`{field}`"):
        read_result(written)


def test_read_result_refuses_tables_that_do_not_fit_the_classes(written: Path) -> None:
    def narrow(content: dict[str, object]) -> None:
        content["arms"][0]["accuracy"]["confusion"] = [[1]]  # type: ignore[index]  # a decoded result

    edit(written, narrow)
    with pytest.raises(BadDataError, match="do not fit 3 classes"):
        read_result(written)


def test_read_result_refuses_numbers_that_are_not_finite(written: Path) -> None:
    written.write_text(written.read_text().replace('"macro_f1": 1.0', '"macro_f1": NaN'))
    with pytest.raises(BadDataError, match="not valid JSON"):
        read_result(written)


def test_write_columns_gives_equal_bytes_for_equal_columns(tmp_path: Path, synthetic: Synthetic) -> None:
    _, samples = synthetic()
    for name in ("a", "b"):
        write_columns(tmp_path / name, samples.columns)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("damage", ["pickle", "float", "missing", "length", "text", "truncated"])
def test_read_samples_refuses_what_is_not_columns_of_integers(
    tmp_path: Path, synthetic: Synthetic, damage: str
) -> None:
    _, samples = synthetic()
    columns: dict[str, object] = dict(samples.columns)
    path = tmp_path / "s.npz"
    if damage == "pickle":
        columns["t_done"] = np.array([{}], object)
    elif damage == "float":
        columns["t_done"] = samples["t_done"].astype(np.float64)
    elif damage == "missing":
        del columns["t_done"]
    elif damage == "length":
        columns["t_done"] = samples["t_done"][1:]
    np.savez(path, **columns)  # type: ignore[arg-type]  # damaged on purpose
    if damage == "text":
        path.write_text("no archive")
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(BadDataError):
        read_samples(path)


def test_read_samples_refuses_an_archive_that_unpacks_to_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgebert.bench.samples.MAX_SAMPLES_BYTES", 1_000)
    with zipfile.ZipFile(tmp_path / "s.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("t_done.npy", b"\0" * 2_000)
    with pytest.raises(BadDataError, match="unpacks to 2,000 bytes"):
        read_samples(tmp_path / "s.npz")
