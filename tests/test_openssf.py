"""OpenSSF model signatures, where the extra `sign` is installed; and what is said where it is not."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from edgebert.errors import BadDataError, CannotWriteError, InputNotFoundError, RefusedBundleError, UsageError
from edgebert.openssf import check_model_signature, sign_model, signature_path, verify_model
from edgebert.signing import sign_bundle

needs_package = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("model_signing", "OpenSSL")),
    reason="the extra `sign` is missing",
)
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")


@pytest.fixture
def bundle(make_toy_bundle: Callable[[Path], Path], tmp_path: Path) -> Path:
    return make_toy_bundle(tmp_path / "toy.edgebert")


@pytest.fixture
def make_key(tmp_path: Path) -> Callable[[str], tuple[Path, Path]]:
    """Return a function that makes a private and a public key."""

    def make(name: str) -> tuple[Path, Path]:
        private, public = tmp_path / f"{name}.pem", tmp_path / f"{name}.pub.pem"
        command = ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(private)]
        subprocess.run(command, check=True, capture_output=True)
        command = ["openssl", "ec", "-in", str(private), "-pubout", "-out", str(public)]
        subprocess.run(command, check=True, capture_output=True)
        return private, public

    return make


def test_check_without_a_key_is_a_usage_error(bundle: Path) -> None:
    with pytest.raises(UsageError, match="whose key"):
        check_model_signature(bundle, None)


def test_signature_path_of_the_current_folder_lies_beside_it(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bundle)
    assert signature_path(Path()) == bundle.parent / "toy.edgebert.sig"
    monkeypatch.chdir(bundle / "canary")
    assert signature_path(Path("..")) == bundle.parent / "toy.edgebert.sig"


@needs_package
@needs_openssl
class TestModelSignature:
    def test_holds_and_lies_beside_the_bundle(self, bundle: Path, make_key: Callable[[str], tuple[Path, Path]]) -> None:
        private, public = make_key("ours")
        assert sign_model(bundle, private) == signature_path(bundle) == bundle.parent / "toy.edgebert.sig"
        assert "holds" in verify_model(bundle, public)

    def test_holds_when_the_bundle_is_signed_by_ssh_later(
        self, bundle: Path, make_key: Callable[[str], tuple[Path, Path]], tmp_path: Path
    ) -> None:
        private, public = make_key("ours")
        sign_model(bundle, private)
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "ssh")], check=True)
        sign_bundle(bundle, tmp_path / "ssh")
        assert "holds" in verify_model(bundle, public)

    def test_of_another_key_is_refused(self, bundle: Path, make_key: Callable[[str], tuple[Path, Path]]) -> None:
        sign_model(bundle, make_key("ours")[0])
        with pytest.raises(RefusedBundleError, match="does not hold"):
            verify_model(bundle, make_key("theirs")[1])

    def test_of_another_bundle_is_refused(
        self,
        bundle: Path,
        make_key: Callable[[str], tuple[Path, Path]],
        make_toy_bundle: Callable[[Path], Path],
        tmp_path: Path,
    ) -> None:
        from dataclasses import replace

        from edgebert.bundle import read_bundle, write_bundle

        private, public = make_key("ours")
        sign_model(bundle, private)
        found = read_bundle(make_toy_bundle(tmp_path / "other.edgebert"))
        shutil.rmtree(bundle)
        bundle.mkdir()
        files = {name: content for name, content in found.files.items() if name != "manifest.json"}
        write_bundle(bundle, replace(found.manifest, name="another", recorded_with={}), files)
        with pytest.raises(RefusedBundleError, match="does not hold"):
            verify_model(bundle, public)

    @pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"mediaType": "x"}'])
    def test_that_is_none_is_refused(
        self, content: bytes, bundle: Path, make_key: Callable[[str], tuple[Path, Path]]
    ) -> None:
        signature_path(bundle).write_bytes(content)
        with pytest.raises(RefusedBundleError, match="does not hold"):
            verify_model(bundle, make_key("ours")[1])

    def test_that_is_missing_is_refused(self, bundle: Path, make_key: Callable[[str], tuple[Path, Path]]) -> None:
        with pytest.raises(RefusedBundleError, match="has no model signature"):
            verify_model(bundle, make_key("ours")[1])

    def test_is_not_replaced_unasked(self, bundle: Path, make_key: Callable[[str], tuple[Path, Path]]) -> None:
        private, _ = make_key("ours")
        sign_model(bundle, private)
        with pytest.raises(CannotWriteError, match="exists"):
            sign_model(bundle, private)
        sign_model(bundle, private, force=True)

    def test_by_no_key_is_refused(self, bundle: Path, tmp_path: Path) -> None:
        (tmp_path / "key.pem").write_text("no key", encoding="ascii")
        with pytest.raises(BadDataError, match="is no private key"):
            sign_model(bundle, tmp_path / "key.pem")
        with pytest.raises(InputNotFoundError, match="no such key"):
            sign_model(bundle, tmp_path / "nowhere.pem")
