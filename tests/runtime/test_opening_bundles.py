"""What `Classifier` takes: a bundle, a zip of one, an installation; signatures and decoding on the way."""

from __future__ import annotations

import io
import logging
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from PIL import Image

from edgebert import Classifier
from edgebert.archive import write_archive
from edgebert.bundle import Bundle, read_bundle, write_bundle
from edgebert.errors import (
    BadDataError,
    InputNotFoundError,
    MalformedBundleError,
    MemoryExhaustedError,
    NoSuchBundleError,
    RefusedBundleError,
    UsageError,
)
from edgebert.install import InstallOptions, install, status
from edgebert.runtime import opened as opened_module
from edgebert.runtime.choice import Choice, open_first
from edgebert.runtime.runner import Runner
from edgebert.signing import SignaturePolicy, sign_bundle


@pytest.fixture
def bundle(make_toy_bundle: Callable[[Path], Path], tmp_path: Path) -> Path:
    return make_toy_bundle(tmp_path / "toy.edgebert")


def renamed(bundle: Path, copy: Path, *, broken: bool = False) -> Path:
    """Return a copy under another name; a broken one has canary logits that the model does not give."""
    read = read_bundle(bundle)
    manifest = replace(read.manifest, name=copy.stem)
    if broken:
        first, *rest = manifest.canaries
        row = next(iter(first.logits.values()))
        moved = dict.fromkeys(first.logits, tuple(value + (10 if value == max(row) else 0) for value in row))
        manifest = replace(manifest, canaries=(replace(first, logits=moved), *rest))
    copy.mkdir()
    write_bundle(copy, manifest, {name: read.files[name] for name in read.manifest.sizes})
    return copy


@pytest.fixture
def key(tmp_path: Path) -> Path:
    if shutil.which("ssh-keygen") is None:
        pytest.skip("ssh-keygen is not here")
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    return key


def policy_of(key: Path) -> SignaturePolicy:
    allowed = key.with_name("allowed")
    allowed.write_text(f"maker@example.org {key.with_suffix('.pub').read_text()}")
    return SignaturePolicy(allowed_signers=allowed)


def test_classifier_opens_a_zip_as_the_folder_it_was_made_of(bundle: Path, tmp_path: Path) -> None:
    write_archive(read_bundle(bundle), tmp_path / "toy.zip")
    with Classifier(bundle) as folder, Classifier(tmp_path / "toy.zip") as archive:
        assert archive.digest == folder.digest
        image = np.zeros((6, 8, 3), np.uint8)
        assert archive.predict(image) == folder.predict(image)


def test_classifier_opens_the_current_bundle_of_an_installation(bundle: Path, tmp_path: Path) -> None:
    installed = install(bundle, tmp_path / "model")
    with Classifier(tmp_path / "model") as classifier:
        assert classifier.digest == installed.bundle.digest


def test_classifier_goes_back_when_the_current_bundle_fails_its_self_test(
    bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    where = tmp_path / "model"
    good = install(bundle, where).bundle.digest
    broken = renamed(bundle, tmp_path / "broken.edgebert", broken=True)
    install(broken, where, InstallOptions(self_test="later"))
    with caplog.at_level(logging.WARNING), Classifier(where) as classifier:
        assert classifier.digest == good
    assert any("canar" in record.getMessage() for record in caplog.records)
    assert (where / "current").readlink().name == good


def test_classifier_refuses_an_installed_folder_that_holds_another_bundle(bundle: Path, tmp_path: Path) -> None:
    where = tmp_path / "model"
    digest = install(bundle, where).bundle.digest
    folder = where / "bundles" / digest
    shutil.rmtree(folder)
    renamed(bundle, folder)
    with pytest.raises(RefusedBundleError, match="the one that its folder is named after"):
        Classifier(where)


class _Unheard(Exception):
    """A backend's error of a class that nobody knows."""


def _break_form(bundle: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Let every model of a bundle of this name fail with an error, at its first inference."""

    def failing(read: Bundle, choices: list[Choice]) -> tuple[Choice, Runner]:
        choice, runner = open_first(read, choices)
        if read.manifest.name == bundle.stem:

            def infer(_: object) -> NoReturn:
                raise error

            monkeypatch.setattr(runner, "infer", infer)
        return choice, runner

    monkeypatch.setattr(opened_module, "open_first", failing)


def test_classifier_refuses_a_bundle_whose_model_fails_in_any_way(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _break_form(bundle, monkeypatch, _Unheard("no such kernel"))
    with pytest.raises(MalformedBundleError, match="no such kernel"):
        Classifier(bundle)


@pytest.mark.parametrize("error", [_Unheard("Failed to allocate memory for the buffer"), MemoryError()])
def test_classifier_does_not_blame_a_bundle_when_memory_runs_out(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    _break_form(bundle, monkeypatch, error)
    with pytest.raises(MemoryExhaustedError, match="memory ran out"):
        Classifier(bundle)


def test_classifier_goes_back_when_the_current_bundle_fails_in_any_way(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, update = tmp_path / "app", renamed(bundle, tmp_path / "next.edgebert")
    install(bundle, folder)
    install(update, folder, InstallOptions(self_test="later"))
    _break_form(update, monkeypatch, _Unheard("no such kernel"))
    with Classifier(folder) as classifier:
        assert classifier.digest == read_bundle(bundle).digest


def test_swap_takes_an_installation(bundle: Path, tmp_path: Path) -> None:
    where = tmp_path / "model"
    with Classifier(bundle) as classifier:
        new = install(renamed(bundle, tmp_path / "other.edgebert"), where).bundle.digest
        assert classifier.swap(where) == new
        assert classifier.predict(np.zeros((6, 8, 3), np.uint8)).digest == new


def test_classifier_with_signers_opens_what_they_signed_and_nothing_else(bundle: Path, key: Path) -> None:
    policy = policy_of(key)
    with pytest.raises(RefusedBundleError, match="not signed"):
        Classifier(bundle, signers=policy)
    sign_bundle(bundle, key)
    with Classifier(bundle, signers=policy) as classifier:
        assert classifier.class_names[0] == "bolt"


def test_swap_asks_for_the_signature_as_well(bundle: Path, key: Path, tmp_path: Path) -> None:
    unsigned = renamed(bundle, tmp_path / "unsigned.edgebert")
    sign_bundle(bundle, key)
    with Classifier(bundle, signers=policy_of(key)) as classifier:
        before = classifier.digest
        with pytest.raises(RefusedBundleError, match="not signed"):
            classifier.swap(unsigned)
        assert classifier.digest == before


@pytest.fixture
def two(bundle: Path, key: Path, tmp_path: Path) -> Path:
    """An installation that demands no signature: the previous bundle is signed, the current one is not."""
    sign_bundle(bundle, key)
    for each in (bundle, renamed(bundle, tmp_path / "other.edgebert")):
        install(each, tmp_path / "model", InstallOptions(self_test="later"))
    return tmp_path / "model"


def _unchanged(path: Path, before: str | None) -> bool:
    found = status(path)
    return (found.current.digest if found.current else None, found.bad) == (before, ())


def test_classifier_with_signers_refuses_an_installation_and_changes_nothing_there(two: Path, key: Path) -> None:
    current = (two / "current").readlink().name
    with pytest.raises(RefusedBundleError, match="not signed"):
        Classifier(two, signers=policy_of(key))
    assert _unchanged(two, current)


def test_classifier_with_a_wrong_file_of_signers_changes_nothing(two: Path, key: Path, tmp_path: Path) -> None:
    current = (two / "current").readlink().name
    (tmp_path / "empty").touch()
    for name, kind in (("empty", BadDataError), ("nowhere", InputNotFoundError)):
        with pytest.raises(kind):
            Classifier(two, signers=SignaturePolicy(allowed_signers=tmp_path / name))
    assert _unchanged(two, current)


def test_classifier_with_signers_opens_an_installation_that_they_signed(
    bundle: Path, key: Path, tmp_path: Path
) -> None:
    sign_bundle(bundle, key)
    digest = install(bundle, tmp_path / "model", InstallOptions(self_test="later")).bundle.digest
    with Classifier(tmp_path / "model", signers=policy_of(key)) as classifier:
        assert classifier.digest == digest


def test_classifier_with_signers_goes_back_from_a_damaged_copy(two: Path, key: Path) -> None:
    previous = (two / "previous").readlink().name
    (two / "current" / "SHA256SUMS").write_bytes(b"rot")
    with Classifier(two, signers=policy_of(key)) as classifier:
        assert classifier.digest == previous


@pytest.fixture
def demanding(bundle: Path, key: Path, tmp_path: Path) -> Path:
    """An installation that demands a signature of its two bundles, from both of which it was taken away afterwards."""
    path = tmp_path / "model"
    other = renamed(bundle, tmp_path / "other.edgebert")
    signers = policy_of(key).allowed_signers
    for each in (bundle, other):
        sign_bundle(each, key)
        install(each, path, InstallOptions(self_test="later", signers=signers, require_signature=True))
    for name in ("current", "previous"):
        (path / name / "SHA256SUMS.sig").unlink()
    return path


@pytest.mark.parametrize("name", ["current", "previous"])
def test_classifier_of_a_link_of_an_installation_demands_what_that_demands(name: str, demanding: Path) -> None:
    with pytest.raises(RefusedBundleError, match="not signed"):
        Classifier(demanding / name)


def test_classifier_of_a_link_to_current_demands_what_the_installation_demands(demanding: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("model/current")
    with pytest.raises(RefusedBundleError, match="not signed"):
        Classifier(tmp_path / "link")


def test_classifier_of_current_goes_back_as_the_installation_does(bundle: Path, tmp_path: Path) -> None:
    where = tmp_path / "model"
    good = install(bundle, where).bundle.digest
    install(renamed(bundle, tmp_path / "broken.edgebert", broken=True), where, InstallOptions(self_test="later"))
    with Classifier(where / "current") as classifier:
        assert classifier.digest == good
    assert (where / "current").readlink().name == good


def test_classifier_of_previous_opens_that_bundle_and_changes_nothing(two: Path) -> None:
    current, previous = ((two / name).readlink().name for name in ("current", "previous"))
    with Classifier(two / "previous") as classifier:
        assert classifier.digest == previous
    assert _unchanged(two, current)


def test_classifier_of_previous_says_that_there_is_none(bundle: Path, tmp_path: Path) -> None:
    install(bundle, tmp_path / "model", InstallOptions(self_test="later"))
    with pytest.raises(NoSuchBundleError, match="no previous bundle"):
        Classifier(tmp_path / "model" / "previous")


def test_classifier_of_an_installation_without_links_says_what_is_wrong(two: Path) -> None:
    for name in ("current", "previous"):
        (two / name).unlink()
    with pytest.raises(NoSuchBundleError, match="current` is missing, and bundles are installed"):
        Classifier(two)


def test_reduced_decoding_is_said_and_gives_near_answers(
    bundle: Path, caplog: pytest.LogCaptureFixture, toy: object
) -> None:
    rows, columns = np.mgrid[0:480, 0:640]
    picture = np.stack([rows / 2, columns / 3, (rows + columns) / 5], axis=2).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(picture).save(stream, "JPEG", quality=92)
    with caplog.at_level(logging.WARNING), Classifier(bundle, decoding="reduced") as reduced:
        near = reduced.predict(stream.getvalue())
    assert any("reduced size" in record.getMessage() for record in caplog.records)
    with Classifier(bundle) as exact:
        assert near.scores == pytest.approx(exact.predict(stream.getvalue()).scores, abs=0.05)


def test_decoding_of_another_name_is_a_usage_error(bundle: Path) -> None:
    with pytest.raises(UsageError, match="decoding `fast`"):
        Classifier(bundle, decoding="fast")  # type: ignore[arg-type]  # what an untyped program may say
