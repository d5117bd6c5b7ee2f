"""Compatibility: bundles of every released version are read and answer as they did; newer ones are read, or refused by name."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import edgebert
from edgebert import Classifier
from edgebert.bundle import read_bundle
from edgebert.errors import MalformedBundleError

BUNDLES = Path(__file__).parent / "bundles"
CHANGELOG = Path(__file__).parent.parent / "CHANGELOG.md"
KEPT = sorted(BUNDLES.glob("*/*.edgebert"))
NEWEST = max(KEPT, key=lambda path: tuple(map(int, path.parent.name.split("."))))


def _name(path: Path) -> str:
    return f"{path.parent.name}-{path.stem}"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A copy of the newest one, to be made newer."""
    return Path(shutil.copytree(NEWEST, tmp_path / "newer.edgebert"))


def _edit(bundle: Path, change: Callable[[Any], object]) -> None:
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_bytes())
    change(manifest)
    path.write_text(json.dumps(manifest), encoding="utf-8")
    names = sorted(file.relative_to(bundle).as_posix() for file in bundle.rglob("*") if file.is_file())
    lines = [
        f"{hashlib.sha256((bundle / name).read_bytes()).hexdigest()}  {name}\n"
        for name in names
        if name != "SHA256SUMS"
    ]
    (bundle / "SHA256SUMS").write_text("".join(lines), encoding="ascii", newline="\n")


def test_every_released_version_has_its_bundles() -> None:
    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", CHANGELOG.read_text(encoding="utf-8"), re.MULTILINE)
    missing = {*released, edgebert.__version__} - {path.parent.name for path in KEPT}
    assert not missing, "run tests/bundles/make.py at the commit of that version"


@pytest.mark.parametrize("path", KEPT, ids=_name)
def test_a_kept_bundle_is_small(path: Path) -> None:
    assert sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) < 30_000


@pytest.mark.parametrize("path", KEPT, ids=_name)
@pytest.mark.parametrize("target", ["cpu", "intel-cpu"])
def test_a_kept_bundle_answers_its_canaries(path: Path, target: str) -> None:
    manifest = read_bundle(path).manifest
    with Classifier(path, target=target) as classifier:
        assert classifier.target == target
        for canary in manifest.canaries:
            assert set(classifier.predict(path / canary.file).labels) == set(canary.labels)


def test_what_an_old_manifest_does_not_say_has_a_default() -> None:
    manifest = read_bundle(BUNDLES / "0.1.0" / "single.edgebert").manifest
    assert (manifest.release, manifest.requires, manifest.made_by, manifest.extra) == (0, (), "", {})
    assert not manifest.recorded_with


# A newer version of the same major


def _newer_minor(manifest: Any) -> None:
    manifest["expires"] = {"year": 2040}
    manifest["card"]["licence"] = "MIT"
    manifest["card"]["provenance"]["place"] = "Erlangen"
    manifest["forms"][0]["cores"] = 4
    manifest["forms"].insert(1, {"target": "riscv-npu", "backend": "tt", "files": ["model.onnx"], "tiles": [1, 2]})
    manifest["canaries"][2]["taken"] = "2031"
    manifest["requires"] = []


@pytest.mark.parametrize("target", ["cpu", "intel-cpu"])
def test_a_newer_minor_version_is_read_and_answers(bundle: Path, target: str) -> None:
    _edit(bundle, _newer_minor)
    manifest = read_bundle(bundle).manifest
    assert [form.target for form in manifest.forms] == ["cpu", "intel-cpu"]
    assert [form["target"] for form in manifest.unknown_forms] == ["riscv-npu"]
    Classifier(bundle, target=target).close()


def test_what_a_newer_minor_version_wrote_is_written_again(bundle: Path) -> None:
    _edit(bundle, _newer_minor)
    wanted = json.loads((bundle / "manifest.json").read_bytes())
    written = json.loads(json.dumps(read_bundle(bundle).manifest.to_json()))
    wanted["forms"].append(wanted["forms"].pop(1))  # unknown forms come after the known ones
    assert {name: written[name] for name in wanted} == wanted
    assert set(written) - set(wanted) <= {"release", "made_by", "recorded_with"}


def test_what_is_written_again_is_read_again(bundle: Path) -> None:
    _edit(bundle, _newer_minor)
    first = read_bundle(bundle).manifest
    _edit(bundle, lambda manifest: (manifest.clear(), manifest.update(json.loads(json.dumps(first.to_json())))))
    assert read_bundle(bundle).manifest == first


def test_the_files_of_an_unknown_form_are_checked_as_the_others(bundle: Path) -> None:
    content = b"tiles"
    (bundle / "forms" / "riscv-npu").mkdir()
    (bundle / "forms" / "riscv-npu" / "model.tt").write_bytes(content)

    def change(manifest: Any) -> None:
        _newer_minor(manifest)
        manifest["forms"][1]["files"] = ["forms/riscv-npu/model.tt"]
        manifest["sizes"]["forms/riscv-npu/model.tt"] = len(content)

    _edit(bundle, change)
    assert read_bundle(bundle).files["forms/riscv-npu/model.tt"] == content
    _edit(bundle, lambda manifest: manifest["forms"].pop(1))
    with pytest.raises(MalformedBundleError, match=r"model\.tt"):
        read_bundle(bundle)


# A newer major version, and what it may ask of its readers


def test_a_newer_major_version_is_refused_naming_what_made_it(bundle: Path) -> None:
    _edit(bundle, lambda manifest: manifest.update(schema="edgebert.bundle/2", made_by="edgebert 3.1.0", card=[]))
    with pytest.raises(MalformedBundleError, match=r"edgebert\.bundle/2` and was made by `edgebert 3\.1\.0`"):
        read_bundle(bundle)


def test_an_unknown_requirement_is_refused_naming_what_made_it(bundle: Path) -> None:
    _edit(bundle, lambda manifest: manifest.update(requires=["three-eyes"], made_by="edgebert 1.9.0"))
    with pytest.raises(MalformedBundleError, match=r"requires `three-eyes` and was made by `edgebert 1\.9\.0`"):
        read_bundle(bundle)


@pytest.mark.parametrize("release", [-1, 2**53, "3", 1.5, True, None])
def test_an_impossible_release_is_refused(bundle: Path, release: object) -> None:
    _edit(bundle, lambda manifest: manifest.update(release=release))
    with pytest.raises(MalformedBundleError, match="release"):
        read_bundle(bundle)


def test_release_is_read(bundle: Path) -> None:
    _edit(bundle, lambda manifest: manifest.update(release=7))
    assert read_bundle(bundle).manifest.release == 7
