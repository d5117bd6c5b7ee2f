"""Bundles: what is read is what was written, and everything else is refused before any model parser runs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgebert.bundle import MAX_FILES, check_whole, read_bundle
from edgebert.errors import BadDataError, EdgebertError, InputNotFoundError, RefusedError
from edgebert.manifest import BUNDLE_SCHEMA, tolerance_of

Bundles = Callable[[Path], Path]


@pytest.fixture
def bundle(make_toy_bundle: Bundles, tmp_path: Path) -> Path:
    return make_toy_bundle(tmp_path / "toy.edgebert")


@pytest.fixture
def parsers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The name of every runner that is asked for; whatever a test reads must leave it empty."""
    asked: list[str] = []

    def spy(backend: str, *_: object) -> None:
        asked.append(backend)
        raise AssertionError(backend)

    monkeypatch.setattr("edgebert.runtime.choice.open_runner", spy)
    monkeypatch.setattr("edgebert.runtime.choice.check_device", spy)
    return asked


def _rehash(bundle: Path) -> None:
    """Write `SHA256SUMS` anew, as somebody would who edits a bundle and knows its format."""
    names = sorted(file.relative_to(bundle).as_posix() for file in bundle.rglob("*") if file.is_file())
    lines = [
        f"{hashlib.sha256((bundle / name).read_bytes()).hexdigest()}  {name}\n"
        for name in names
        if name != "SHA256SUMS"
    ]
    (bundle / "SHA256SUMS").write_text("".join(lines), encoding="ascii", newline="\n")


def _edit(bundle: Path, change: Callable[[Any], object]) -> None:
    """Change the parsed manifest and hash everything anew."""
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_bytes())
    change(manifest)
    path.write_text(json.dumps(manifest), encoding="utf-8")
    _rehash(bundle)


def _open(bundle: Path) -> None:
    """Open a bundle as a user does."""
    from edgebert.runtime.classifier import Classifier

    Classifier(bundle).close()


def _refusal(bundle: Path) -> EdgebertError | None:
    """Return the error that reading raises, or None; any other exception is a failure of the test."""
    try:
        read_bundle(bundle)
    except EdgebertError as error:
        return error
    return None


# Reading what was written


def test_read_bundle_returns_what_was_written(bundle: Path) -> None:
    read = read_bundle(bundle)
    assert read.manifest.name == "toy"
    assert read.manifest.card.class_names == ("bolt", "gear", "nut", "washer")
    assert [form.target for form in read.manifest.forms] == ["cpu", "intel-cpu"]
    assert set(read.files) == {"manifest.json", *read.manifest.sizes}
    assert read.files["model.onnx"] == (bundle / "model.onnx").read_bytes()
    assert read.digest == hashlib.sha256((bundle / "SHA256SUMS").read_bytes()).hexdigest()
    assert read.size_bytes == sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file()) - (
        (bundle / "SHA256SUMS").stat().st_size
    )


def test_read_bundle_follows_a_link_to_the_bundle_itself(bundle: Path) -> None:
    current = bundle.with_name("current")
    current.symlink_to(bundle)
    assert read_bundle(current).digest == read_bundle(bundle).digest


def test_sha256sums_is_what_sha256sum_checks(bundle: Path) -> None:
    tool = shutil.which("sha256sum")
    if tool is None:
        pytest.skip("no sha256sum on this computer")
    subprocess.run([tool, "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=bundle, check=True)


def test_write_bundle_gives_equal_bytes_for_equal_contents(
    make_toy_bundle: Bundles, bundle: Path, tmp_path: Path
) -> None:
    again = make_toy_bundle(tmp_path / "other.edgebert")
    assert (again / "SHA256SUMS").read_bytes() == (bundle / "SHA256SUMS").read_bytes()


def test_manifest_keeps_unknown_fields_out_of_the_way(bundle: Path) -> None:
    _edit(bundle, lambda manifest: manifest.update(invented_later={"x": 1}))
    assert read_bundle(bundle).manifest.name == "toy"


# Damage: 77, naming the file, before any parser


def test_read_bundle_refuses_every_flipped_bit(bundle: Path, parsers: list[str]) -> None:
    rng = np.random.default_rng(5)
    names = [file.relative_to(bundle).as_posix() for file in sorted(bundle.rglob("*")) if file.is_file()]
    accepted = []
    for name in names:
        path = bundle / name
        content = path.read_bytes()
        # Every byte of the sums, the first and last bytes of the others and a sample of the rest; one random bit each.
        places = (
            range(len(content)) if name == "SHA256SUMS" else {0, len(content) - 1, *rng.integers(0, len(content), 60)}
        )
        for place in places:
            damaged = bytearray(content)
            damaged[place] ^= 1 << int(rng.integers(8))
            path.write_bytes(damaged)
            refusal = _refusal(bundle)
            named = name == "SHA256SUMS" or f"`{name}`" in str(refusal)
            if not isinstance(refusal, RefusedError) or not named:
                accepted.append((name, place))
        path.write_bytes(content)
    assert not accepted
    assert not parsers
    read_bundle(bundle)


@pytest.mark.parametrize("cut", [0, 1, -1])
def test_read_bundle_refuses_a_cut_sums_file(bundle: Path, cut: int) -> None:
    sums = bundle / "SHA256SUMS"
    sums.write_bytes(sums.read_bytes()[:cut])
    with pytest.raises(RefusedError, match="SHA256SUMS"):
        read_bundle(bundle)


@pytest.mark.parametrize(
    "name", ["SHA256SUMS", "manifest.json", "model.onnx", "forms/intel-cpu/model.onnx", "canary/2.png"]
)
def test_opening_refuses_a_missing_file(bundle: Path, parsers: list[str], name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(RefusedError, match=name):
        _open(bundle)
    assert not parsers


@pytest.mark.parametrize("name", ["notes.txt", "canary/9.png", ".hidden", "forms/x", "caché.png"])
def test_opening_refuses_an_extra_file(bundle: Path, parsers: list[str], name: str) -> None:
    (bundle / name).write_bytes(b"")
    with pytest.raises(RefusedError, match=name):
        _open(bundle)
    assert not parsers


@pytest.mark.parametrize("name", ["empty", "canary/empty", "forms/cpu"])
def test_opening_refuses_an_extra_folder(bundle: Path, parsers: list[str], name: str) -> None:
    (bundle / name).mkdir()
    with pytest.raises(RefusedError, match=name):
        _open(bundle)
    assert not parsers


@pytest.mark.parametrize("name", ["model.onnx", "canary", "SHA256SUMS", "manifest.json"])
def test_opening_refuses_a_symbolic_link(bundle: Path, parsers: list[str], name: str) -> None:
    outside = bundle.with_name("outside")
    (bundle / name).rename(outside)
    (bundle / name).symlink_to(outside)
    with pytest.raises(RefusedError, match=name):
        _open(bundle)
    assert not parsers


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs on this system")
def test_opening_refuses_a_fifo_without_waiting(bundle: Path) -> None:
    (bundle / "model.onnx").unlink()
    os.mkfifo(bundle / "model.onnx")
    with pytest.raises(RefusedError, match=r"model\.onnx"):
        _open(bundle)


def test_opening_refuses_swapped_canaries(bundle: Path, parsers: list[str]) -> None:
    first, second = bundle / "canary" / "0.png", bundle / "canary" / "1.png"
    contents = first.read_bytes(), second.read_bytes()
    first.write_bytes(contents[1])
    second.write_bytes(contents[0])
    with pytest.raises(RefusedError, match=r"canary/0\.png"):
        _open(bundle)
    assert not parsers


@pytest.mark.parametrize(
    "name",
    [
        "../outside",
        "/etc/passwd",
        "a/../b",
        "./a",
        "a//b",
        "a\\b",
        "C:a",
        "a b",
        "a.",
        "-x",
        "a/b/c/d",
        "x" * 101,
        "a\tb",
    ],
)
def test_opening_refuses_a_name_that_is_not_plain(bundle: Path, parsers: list[str], name: str) -> None:
    sums = bundle / "SHA256SUMS"
    lines = [*sums.read_text().splitlines(keepends=True), f"{'0' * 64}  {name}\n"]
    sums.write_text("".join(sorted(lines, key=lambda line: line[66:])))
    with pytest.raises(RefusedError, match="SHA256SUMS"):
        _open(bundle)
    assert not parsers


def test_opening_refuses_names_that_differ_in_case_only(bundle: Path) -> None:
    (bundle / "MODEL.onnx").write_bytes(b"")
    _rehash(bundle)
    with pytest.raises(RefusedError, match="twice"):
        _open(bundle)


def test_opening_refuses_too_many_files(bundle: Path) -> None:
    for number in range(MAX_FILES):
        (bundle / "canary" / f"extra{number}.png").write_bytes(b"")
    _rehash(bundle)
    with pytest.raises(RefusedError, match=f"at most {MAX_FILES}"):
        _open(bundle)


def test_opening_refuses_a_file_above_the_cap(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgebert.bundle.MAX_BUNDLE_BYTES", 100)
    with pytest.raises(RefusedError, match="too large"):
        _open(bundle)


def test_reading_a_damaged_bundle_imports_no_backend(bundle: Path) -> None:
    (bundle / "model.onnx").write_bytes(b"damaged")
    code = (
        "import sys\nfrom edgebert import Classifier, RefusedError\n"
        f"try:\n    Classifier({str(bundle)!r})\n    raise SystemExit('opened')\nexcept RefusedError:\n    pass\n"
        "loaded = {'onnxruntime', 'openvino', 'torch', 'onnx'} & set(sys.modules)\n"
        "loaded |= {name for name in sys.modules if name.endswith('_runner')}\nraise SystemExit(str(loaded) if loaded else 0)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


# No bundle at all


def test_read_bundle_says_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError, match="edgebert compile"):
        read_bundle(tmp_path / "none.edgebert")


def test_read_bundle_refuses_a_file(bundle: Path) -> None:
    with pytest.raises(BadDataError, match="is a file"):
        read_bundle(bundle / "model.onnx")


def test_read_bundle_refuses_a_folder_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(BadDataError, match="is no bundle"):
        read_bundle(tmp_path)


# A manifest that is rightly hashed but wrong: 65, before any parser


def _twice(manifest: Any) -> None:
    manifest["card"]["class_names"] = ["bolt", "gear", "nut", "bolt"]


def _one_class(manifest: Any) -> None:
    manifest["card"]["class_names"] = ["bolt"]


def _one_class_less(manifest: Any) -> None:
    manifest["card"]["class_names"].pop()


def _one_class_more(manifest: Any) -> None:
    manifest["card"]["class_names"].append("screw")


def _renamed_class(manifest: Any) -> None:
    manifest["card"]["class_names"][1] = "wheel"


def _label_of_another_class(manifest: Any) -> None:
    canary = manifest["canaries"][0]
    canary["label"] = next(name for name in manifest["card"]["class_names"] if name != canary["label"])


def _file_not_there(manifest: Any) -> None:
    manifest["forms"][0]["files"] = ["forms/cpu/model.onnx"]


def _canary_file_not_there(manifest: Any) -> None:
    manifest["canaries"][0]["file"] = "../../outside.png"


def _int8_with(manifest: Any, weight_bits: object) -> None:
    manifest.update(precision="int8")
    manifest["forms"][0].update(weight_bits=weight_bits)


MALFORMED: dict[str, Callable[[Any], object]] = {
    "duplicate class": _twice,
    "one class": _one_class,
    "one class less": _one_class_less,
    "one class more": _one_class_more,
    "renamed class": _renamed_class,
    "class names of another type": lambda manifest: manifest["card"].update(class_names={"a": 1}),
    "label of another class": _label_of_another_class,
    "newer schema": lambda manifest: manifest.update(schema="edgebert.bundle/2"),
    "other schema": lambda manifest: manifest.update(schema="somebody.else/1"),
    "no schema": lambda manifest: manifest.pop("schema"),
    "no card": lambda manifest: manifest.pop("card"),
    "no forms": lambda manifest: manifest.update(forms=[]),
    "a target twice": lambda manifest: manifest["forms"].append(manifest["forms"][0]),
    "unknown backend": lambda manifest: manifest["forms"][0].update(backend="shell"),
    "unknown precision": lambda manifest: manifest.update(precision="fp12"),
    "a form without recorded answers": lambda manifest: manifest["forms"][0].update(device="GPU"),
    "weight bits of an FP32 form": lambda manifest: manifest["forms"][0].update(weight_bits=8),
    "three weight bits": lambda manifest: _int8_with(manifest, 3),
    "no number of weight bits": lambda manifest: _int8_with(manifest, None),
    "weight bits as text": lambda manifest: _int8_with(manifest, "7"),
    "two canaries": lambda manifest: manifest.update(canaries=manifest["canaries"][:2]),
    "no logits": lambda manifest: manifest["canaries"][0].update(logits={}, tolerance={}),
    "logits of one engine only": lambda manifest: manifest["canaries"][0]["logits"].pop("openvino"),
    "canaries of different engines": lambda manifest: [
        manifest["canaries"][0][key].pop("openvino") for key in ("logits", "tolerance")
    ],
    "no tolerance": lambda manifest: manifest["canaries"][0]["tolerance"].update(openvino=0),
    "wrong size": lambda manifest: manifest["sizes"].update({"model.onnx": 10**6}),
    "size missing": lambda manifest: manifest["sizes"].pop("model.onnx"),
    "file not there": _file_not_there,
    "canary file not there": _canary_file_not_there,
    "impossible preprocessing": lambda manifest: manifest["card"]["preprocessing"].update(height=-1),
    "unknown preprocessing": lambda manifest: manifest["card"]["preprocessing"].update(crop="left"),
}


@pytest.mark.parametrize("change", MALFORMED.values(), ids=MALFORMED)
def test_opening_refuses_a_malformed_manifest(
    bundle: Path, parsers: list[str], change: Callable[[Any], object]
) -> None:
    _edit(bundle, change)
    with pytest.raises(BadDataError, match=r"manifest\.json") as caught:
        _open(bundle)
    assert caught.value.exit_code == 65
    assert not parsers


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"\xff", b'{"schema": "edgebert.bundle/1", "schema": 1}', b'{"a": NaN}', b"[" * 100_000]
)
def test_opening_refuses_a_manifest_that_is_no_json(bundle: Path, parsers: list[str], text: bytes) -> None:
    (bundle / "manifest.json").write_bytes(text)
    _rehash(bundle)
    with pytest.raises(BadDataError, match=r"manifest\.json"):
        _open(bundle)
    assert not parsers


def _paths(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, entry in items for found in _paths(entry, (*path, key)))]


@pytest.mark.parametrize("value", [None, -1, "", "x", [], {}, [[]], 1e300])
def test_reading_any_manifest_with_one_value_replaced_raises_only_our_errors(bundle: Path, value: Any) -> None:
    original = json.loads((bundle / "manifest.json").read_bytes())
    for path in _paths(original)[1:]:

        def replace(manifest: Any, path: tuple[str | int, ...] = path) -> None:
            for key in path[:-1]:
                manifest = manifest[key]
            manifest[path[-1]] = value

        manifest = json.loads(json.dumps(original))
        replace(manifest)
        (bundle / "manifest.json").write_text(json.dumps(manifest))
        _rehash(bundle)
        refusal = _refusal(bundle)
        assert refusal is None or refusal.exit_code in (65, 77), path


@pytest.mark.parametrize(
    "change",
    [{"mean": [0.5, 0.5, 0.5]}, {"std": [0.2, 0.2, 0.2]}, {"interpolation": "nearest"}, {"channel_order": "bgr"},
     {"resize": "crop", "shortest_edge": 8}],
)  # fmt: skip
def test_opening_refuses_changed_preprocessing(bundle: Path, parsers: list[str], change: dict[str, object]) -> None:
    _edit(bundle, lambda manifest: manifest["card"]["preprocessing"].update(change))
    with pytest.raises(RefusedError, match="preprocessing"):
        _open(bundle)
    assert not parsers


@pytest.mark.parametrize(("written", "read"), [({}, 8), ({"weight_bits": 8}, 8), ({"weight_bits": 7}, 7)])
def test_weight_bits_of_an_int8_form_are_eight_where_nothing_is_said(
    bundle: Path, written: dict[str, int], read: int
) -> None:
    def change(manifest: Any) -> None:
        manifest.update(precision="int8")
        manifest["forms"][0].update(written)

    _edit(bundle, change)
    assert read_bundle(bundle).manifest.forms[0].weight_bits == read


def test_an_fp32_form_says_nothing_of_weight_bits(bundle: Path) -> None:
    form = read_bundle(bundle).manifest.forms[0]
    assert (form.weight_bits, "weight_bits" in form.to_json()) == (None, False)


def test_tolerance_of_grows_with_precision_and_device() -> None:
    logits = (-1.0, 3.0)
    assert tolerance_of(logits, "fp32", "CPU") == pytest.approx(0.004)
    assert tolerance_of(logits, "fp32", "GPU") == pytest.approx(0.08)
    assert tolerance_of(logits, "int8", "CPU") == tolerance_of(logits, "int8", "GPU") == pytest.approx(0.4)
    assert tolerance_of((1.0, 1.0), "fp32", "CPU") > 0


def test_schema_is_the_documented_one() -> None:
    assert BUNDLE_SCHEMA == "edgebert.bundle/1"


# Looking whether a copy is whole


def test_check_whole_takes_what_was_written(bundle: Path) -> None:
    check_whole(bundle, read_bundle(bundle).digest)


def test_check_whole_refuses_a_changed_file(bundle: Path) -> None:
    digest = read_bundle(bundle).digest
    content = (bundle / "model.onnx").read_bytes()
    (bundle / "model.onnx").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(RefusedError, match=r"`model\.onnx` was changed"):
        check_whole(bundle, digest)


def test_check_whole_refuses_a_file_that_has_more(bundle: Path) -> None:
    digest = read_bundle(bundle).digest
    with (bundle / "model.onnx").open("ab") as stream:
        stream.write(b"\0")
    with pytest.raises(RefusedError, match=r"`model\.onnx` was changed"):
        check_whole(bundle, digest)


def test_check_whole_refuses_a_missing_and_a_further_file(bundle: Path) -> None:
    digest = read_bundle(bundle).digest
    (bundle / "notes").write_bytes(b"")
    with pytest.raises(RefusedError, match="`notes` does not belong to it"):
        check_whole(bundle, digest)
    (bundle / "notes").unlink()
    (bundle / "model.onnx").unlink()
    with pytest.raises(RefusedError, match=r"`model\.onnx` is missing"):
        check_whole(bundle, digest)


def test_check_whole_refuses_another_bundle(bundle: Path) -> None:
    with pytest.raises(RefusedError, match="another bundle's"):
        check_whole(bundle, "0" * 64)
