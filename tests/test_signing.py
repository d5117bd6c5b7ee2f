"""SSH signatures of bundles: made with every kind of key, checked against every kind of mistake."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from edgebert import signing
from edgebert.bundle import SIGNATURE_FILE, SUMS_FILE, read_bundle
from edgebert.errors import (
    BadDataError,
    CannotWriteError,
    EdgebertError,
    InputNotFoundError,
    MalformedBundleError,
    RefusedBundleError,
    UnavailableError,
    UsageError,
)
from edgebert.signing import (
    NAMESPACE,
    OutsideItsTimeError,
    SignaturePolicy,
    Signers,
    check_signature,
    check_signers,
    policy_from,
    sign_bundle,
    signature_facts,
    signature_text,
)

pytestmark = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="OpenSSH is not installed")
SUMS = b"what is signed\n"


@dataclass(frozen=True)
class Key:
    """A key pair and its lines."""

    path: Path

    @property
    def public(self) -> str:
        return " ".join(self.path.with_suffix(".pub").read_text(encoding="ascii").split()[:2])

    def signers(self, options: str = "", principals: str = "ops@example.com") -> Signers:
        return Signers(content=f"{principals} {options} {self.public}\n".encode())

    def sign(self, content: bytes = SUMS, namespace: str = NAMESPACE) -> bytes:
        command = ["ssh-keygen", "-Y", "sign", "-n", namespace, "-f", str(self.path)]
        return subprocess.run(command, input=content, capture_output=True, check=True).stdout


@pytest.fixture(scope="module")
def make_key(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Key]:
    """Return a function that makes a key of a type; those of equal names are the same."""
    folder = tmp_path_factory.mktemp("keys")

    def make(name: str = "ops", kind: str = "ed25519", passphrase: str = "") -> Key:
        path = folder / name
        if not path.exists():
            command = ["ssh-keygen", "-q", "-t", kind, "-N", passphrase, "-C", name, "-f", str(path)]
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
        return Key(path)

    return make


@pytest.fixture
def key(make_key: Callable[..., Key]) -> Key:
    return make_key()


@pytest.fixture
def bundle(make_toy_bundle: Callable[[Path], Path], tmp_path: Path) -> Path:
    return make_toy_bundle(tmp_path / "toy.edgebert")


# Signing.


def test_sign_bundle_writes_a_signature_of_the_sums(bundle: Path, key: Key) -> None:
    fingerprint = sign_bundle(bundle, key.path)
    found = read_bundle(bundle)
    assert found.signature is not None
    assert signature_facts(found.signature).fingerprint == fingerprint
    assert check_signers(found.sums, found.signature, key.signers()) == "ops@example.com"


def test_sign_bundle_leaves_the_digest_and_no_other_file(bundle: Path, key: Key, tmp_path: Path) -> None:
    digest, names = read_bundle(bundle).digest, {entry.name for entry in bundle.iterdir()}
    sign_bundle(bundle, key.path)
    assert read_bundle(bundle).digest == digest
    assert {entry.name for entry in bundle.iterdir()} == names | {SIGNATURE_FILE}
    assert [entry.name for entry in tmp_path.iterdir()] == ["toy.edgebert"]


def test_sign_bundle_removes_what_a_killed_run_left_beside_it(bundle: Path, key: Key, tmp_path: Path) -> None:
    (tmp_path / ".toy.edgebert.staging-1.sig").write_bytes(b"half")
    others = [tmp_path / ".toy.edgebert.staging-1234abcd", tmp_path / ".other.edgebert.staging-1.sig"]
    for other in others:
        other.touch()
    sign_bundle(bundle, key.path)
    assert not (tmp_path / ".toy.edgebert.staging-1.sig").exists()
    assert all(other.exists() for other in others)


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa", "rsa"])
def test_sign_bundle_takes_keys_of_every_type(kind: str, bundle: Path, make_key: Callable[..., Key]) -> None:
    key = make_key(f"of-{kind}", kind)
    sign_bundle(bundle, key.path)
    found = read_bundle(bundle)
    assert check_signers(found.sums, found.signature, key.signers()) == "ops@example.com"


def test_sign_bundle_asks_before_it_replaces_a_signature(bundle: Path, key: Key, make_key: Callable[..., Key]) -> None:
    sign_bundle(bundle, key.path)
    with pytest.raises(CannotWriteError, match="exists"):
        sign_bundle(bundle, key.path)
    other = sign_bundle(bundle, make_key("other").path, force=True)
    assert signature_facts(read_bundle(bundle).signature or b"").fingerprint == other


def test_sign_bundle_refuses_a_damaged_bundle(bundle: Path, key: Key) -> None:
    (bundle / "model.onnx").write_bytes(b"rot")
    with pytest.raises(RefusedBundleError):
        sign_bundle(bundle, key.path)
    assert not (bundle / SIGNATURE_FILE).exists()


def test_sign_bundle_refuses_a_packed_bundle(tmp_path: Path, key: Key) -> None:
    (tmp_path / "toy.zip").write_bytes(b"PK")
    with pytest.raises(UsageError, match="packed"):
        sign_bundle(tmp_path / "toy.zip", key.path)


def test_sign_bundle_without_the_key_says_so(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError, match="cannot read the key"):
        sign_bundle(bundle, tmp_path / "nowhere")


def test_sign_bundle_with_no_key_in_the_file_has_the_words_of_ssh_keygen(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "key").write_text("no key", encoding="ascii")
    with pytest.raises(EdgebertError, match="ssh-keygen did not sign with"):
        sign_bundle(bundle, tmp_path / "key")


def test_sign_bundle_with_an_encrypted_key_and_no_terminal_names_the_agent(
    bundle: Path, make_key: Callable[..., Key], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = make_key("encrypted", passphrase="correct horse")
    monkeypatch.setenv("SSH_ASKPASS", "/bin/false")
    monkeypatch.setenv("SSH_ASKPASS_REQUIRE", "force")
    with pytest.raises(EdgebertError) as caught:
        sign_bundle(bundle, key.path)
    assert "ssh-add" in (caught.value.hint or "")


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if shutil.which("ssh-agent") is None:
        pytest.skip("ssh-agent is not installed")
    socket = str(tmp_path / "agent")
    with subprocess.Popen(["ssh-agent", "-D", "-a", socket], stdout=subprocess.DEVNULL) as process:
        monkeypatch.setenv("SSH_AUTH_SOCK", socket)
        while not Path(socket).exists():
            assert process.poll() is None
        yield
        process.terminate()


@pytest.mark.usefixtures("agent")
def test_sign_bundle_with_a_public_key_asks_the_agent(
    bundle: Path, make_key: Callable[..., Key], tmp_path: Path
) -> None:
    key = make_key("in-agent")
    subprocess.run(["ssh-add", "-q", str(key.path)], check=True, stdin=subprocess.DEVNULL)
    public = tmp_path / "only.pub"
    shutil.copy(key.path.with_suffix(".pub"), public)
    sign_bundle(bundle, public)
    found = read_bundle(bundle)
    assert check_signers(found.sums, found.signature, key.signers()) == "ops@example.com"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_sign_bundle_says_that_the_folder_cannot_be_written(bundle: Path, key: Key) -> None:
    bundle.parent.chmod(0o500)
    try:
        with pytest.raises(CannotWriteError):
            sign_bundle(bundle, key.path)
    finally:
        bundle.parent.chmod(0o700)


# Checking.


def test_check_signature_returns_the_principal(bundle: Path, key: Key, tmp_path: Path) -> None:
    (tmp_path / "signers").write_bytes(key.signers().content)
    policy = SignaturePolicy(allowed_signers=tmp_path / "signers")
    assert check_signature(SUMS, key.sign(), policy) == "ops@example.com"


@pytest.mark.parametrize(
    ("principals", "identity", "found"),
    [
        ("a@x,b@x", None, "a@x"),
        ("a@x,b@x", "b@x", "b@x"),
        ("*@x", "anyone@x", "anyone@x"),
        ("*@x", None, "*@x"),
    ],
)
def test_check_signers_knows_several_principals_and_patterns(
    principals: str, identity: str | None, found: str, key: Key
) -> None:
    signers = Signers(content=key.signers(principals=principals).content, identity=identity)
    assert check_signers(SUMS, key.sign(), signers) == found


def test_check_signers_refuses_what_is_not_signed(key: Key) -> None:
    with pytest.raises(RefusedBundleError, match="not signed"):
        check_signers(SUMS, None, key.signers())


def test_check_signers_refuses_another_key(key: Key, make_key: Callable[..., Key]) -> None:
    with pytest.raises(RefusedBundleError, match="not among the allowed signers"):
        check_signers(SUMS, make_key("mallory").sign(), key.signers())


def test_check_signers_refuses_another_identity(key: Key) -> None:
    with pytest.raises(RefusedBundleError, match="not by `boss`"):
        check_signers(SUMS, key.sign(), Signers(content=key.signers().content, identity="boss"))


def test_check_signers_refuses_another_content(key: Key) -> None:
    with pytest.raises(RefusedBundleError, match="over another content"):
        check_signers(SUMS + b" ", key.sign(), key.signers())


def test_check_signers_refuses_another_namespace(key: Key) -> None:
    with pytest.raises(RefusedBundleError, match="made for `git`"):
        check_signers(SUMS, key.sign(namespace="git"), key.signers())


def test_check_signers_refuses_a_key_that_may_not_sign_bundles(key: Key) -> None:
    with pytest.raises(RefusedBundleError, match="may not sign bundles"):
        check_signers(SUMS, key.sign(), key.signers('namespaces="git"'))


def test_check_signers_refuses_a_revoked_key(key: Key) -> None:
    signers = Signers(content=key.signers().content, revoked=f"{key.public}\n".encode())
    with pytest.raises(RefusedBundleError, match="which was revoked"):
        check_signers(SUMS, key.sign(), signers)


def test_check_signers_reads_a_key_revocation_list(key: Key, make_key: Callable[..., Key], tmp_path: Path) -> None:
    other = make_key("lost")
    command = ["ssh-keygen", "-q", "-k", "-f", str(tmp_path / "krl"), str(other.path.with_suffix(".pub"))]
    subprocess.run(command, check=True)
    both = key.signers().content + other.signers().content
    signers = Signers(content=both, revoked=(tmp_path / "krl").read_bytes())
    assert check_signers(SUMS, key.sign(), signers) == "ops@example.com"
    with pytest.raises(RefusedBundleError, match="which was revoked"):
        check_signers(SUMS, other.sign(), signers)


@pytest.mark.parametrize("options", ['valid-before="20200101"', 'valid-after="20990101"'])
def test_check_signers_explains_a_key_outside_its_time_by_the_clock(options: str, key: Key) -> None:
    with pytest.raises(OutsideItsTimeError, match="may not be used at this time") as caught:
        check_signers(SUMS, key.sign(), key.signers(options))
    assert "clock" in (caught.value.hint or "")


def test_check_signers_judges_a_key_by_another_time(key: Key) -> None:
    assert (
        check_signers(SUMS, key.sign(), key.signers('valid-before="20200101"'), at=1_500_000_000) == "ops@example.com"
    )
    with pytest.raises(OutsideItsTimeError, match="2014-"):
        check_signers(SUMS, key.sign(), key.signers('valid-after="20200101"'), at=1_400_000_000)


def test_check_signers_names_the_time_that_it_judged_by(key: Key) -> None:
    dated = key.signers('valid-after="20200101"')
    with pytest.raises(OutsideItsTimeError) as caught:
        check_signers(SUMS, key.sign(), dated, at=1_400_000_000, named="when it was installed")
    assert (caught.value.expected or "").endswith(", when it was installed")
    assert "clock" not in (caught.value.expected or "") + (caught.value.hint or "")


def test_check_signers_knows_certificates(key: Key, make_key: Callable[..., Key], tmp_path: Path) -> None:
    authority = make_key("authority")
    for name, validity in (("valid", "always:forever"), ("expired", "20200101:20210101")):
        shutil.copy(key.path, tmp_path / name)
        shutil.copy(key.path.with_suffix(".pub"), tmp_path / f"{name}.pub")
        command = ["ssh-keygen", "-q", "-s", str(authority.path), "-I", name, "-n", "ops@example.com", "-V", validity]
        subprocess.run([*command, str(tmp_path / f"{name}.pub")], check=True)
    signers = authority.signers("cert-authority", principals="*@example.com")
    certificate = Key(tmp_path / "valid-cert.pub")
    command = ["ssh-keygen", "-Y", "sign", "-n", NAMESPACE, "-f"]
    signature = subprocess.run([*command, str(certificate.path)], input=SUMS, capture_output=True, check=False).stdout
    if not signature:
        pytest.skip("this ssh-keygen does not sign with a certificate's file")
    assert check_signers(SUMS, signature, signers) == "ops@example.com"
    old = subprocess.run(
        [*command, str(tmp_path / "expired-cert.pub")], input=SUMS, capture_output=True, check=False
    ).stdout
    with pytest.raises(RefusedBundleError):
        check_signers(SUMS, old, signers)


@pytest.mark.parametrize(
    "signature",
    [
        b"",
        b"garbage",
        b"-----BEGIN SSH SIGNATURE-----\n-----END SSH SIGNATURE-----\n",
        b"-----BEGIN SSH SIGNATURE-----\n!!!!\n-----END SSH SIGNATURE-----\n",
        b"-----BEGIN SSH SIGNATURE-----\nU1NIU0lHAAAAAg==\n-----END SSH SIGNATURE-----\n",
        b"-----BEGIN SSH SIGNATURE-----\n"
        + base64.b64encode(b"SSHSIG\0\0\0\1\xff\xff\xff\xff")
        + b"\n-----END SSH SIGNATURE-----",
        b"x" * (65 << 10),
    ],
)
def test_check_signers_refuses_garbage(signature: bytes, key: Key) -> None:
    with pytest.raises(RefusedBundleError, match="is no SSH signature"):
        check_signers(SUMS, signature, key.signers())


def test_check_signers_refuses_every_flipped_byte(key: Key) -> None:
    signature = key.sign()
    armour = b"-----BEGIN SSH SIGNATURE-----\n"
    body = base64.b64decode(b"".join(signature.split(b"-----")[2].split()))
    for at in range(0, len(body), 7):
        flipped = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
        text = armour + base64.b64encode(flipped) + b"\n-----END SSH SIGNATURE-----\n"
        with pytest.raises(RefusedBundleError):
            check_signers(SUMS, text, key.signers())


@pytest.mark.parametrize("content", [b"#\n", b"nonsense\n", b"\0\1\xff", b"a ssh-ed25519 AAAA\n"])
def test_check_signers_refuses_where_nobody_is_allowed(content: bytes, key: Key) -> None:
    with pytest.raises(RefusedBundleError, match="not among the allowed signers"):
        check_signers(SUMS, key.sign(), Signers(content=content))


def test_check_signers_works_without_memory_files(key: Key, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    assert check_signers(SUMS, key.sign(), key.signers()) == "ops@example.com"
    with pytest.raises(RefusedBundleError, match="may not sign bundles"):
        check_signers(SUMS, key.sign(), key.signers('namespaces="git"'))


@pytest.mark.parametrize("size", [0, signing.MAX_SIGNERS_BYTES + 1])
def test_policy_refuses_signers_of_no_sensible_size(size: int, tmp_path: Path) -> None:
    (tmp_path / "signers").write_bytes(bytes(size))
    with pytest.raises(BadDataError, match="bytes"):
        SignaturePolicy(allowed_signers=tmp_path / "signers").read()


def test_policy_without_the_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputNotFoundError, match="allowed signers"):
        SignaturePolicy(allowed_signers=tmp_path / "nowhere").read()


def test_policy_from_flags(tmp_path: Path) -> None:
    assert policy_from(None, None, None) is None
    assert policy_from(tmp_path, "me", None) == SignaturePolicy(allowed_signers=tmp_path, identity="me")
    with pytest.raises(UsageError, match="need `--signers`"):
        policy_from(None, "me", None)


# The program.


def _program(folder: Path, script: str) -> None:
    path = folder / "ssh-keygen"
    path.write_text(f"#!/bin/sh\n{script}\n", encoding="ascii")
    path.chmod(0o755)


def test_ssh_keygen_that_is_missing_is_unavailable(key: Key, monkeypatch: pytest.MonkeyPatch) -> None:
    signature = key.sign()
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UnavailableError, match="not installed") as caught:
        check_signers(SUMS, signature, key.signers())
    assert "apt-get install openssh-client" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "said", ["unknown option -- Y", 'Unsupported operation for -Y: "find-principals"', "illegal option -- Y"]
)
def test_ssh_keygen_that_is_too_old_is_unavailable(
    said: str, key: Key, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signature = key.sign()
    _program(tmp_path, f"echo '{said}' >&2; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(UnavailableError, match="too old"):
        check_signers(SUMS, signature, key.signers())


def test_ssh_keygen_that_hangs_is_unavailable(key: Key, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signature = key.sign()
    _program(tmp_path, "exec sleep 60")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(signing, "_TIMEOUT_S", 0.2)
    with pytest.raises(UnavailableError, match="did not answer"):
        check_signers(SUMS, signature, key.signers())


def test_ssh_keygen_that_cannot_be_run_is_unavailable(
    key: Key, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signature = key.sign()
    _program(tmp_path, "")
    (tmp_path / "ssh-keygen").write_bytes(b"\x7fELF of another machine")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(UnavailableError, match="cannot run"):
        check_signers(SUMS, signature, key.signers())


# What `verify` says.


def test_signature_text_of_an_unsigned_bundle(bundle: Path) -> None:
    assert signature_text(bundle, None) == "carries no signature"


def test_signature_text_names_the_key_and_who_it_is(bundle: Path, key: Key, tmp_path: Path) -> None:
    fingerprint = sign_bundle(bundle, key.path)
    assert fingerprint in signature_text(bundle, None)
    assert "was not asked" in signature_text(bundle, None)
    (tmp_path / "signers").write_bytes(key.signers().content)
    text = signature_text(bundle, SignaturePolicy(allowed_signers=tmp_path / "signers"))
    assert text == f"signed by `ops@example.com` (ssh-ed25519 key {fingerprint})"


def test_signature_is_asked_before_the_manifest_is_parsed(bundle: Path, key: Key, tmp_path: Path) -> None:
    (tmp_path / "signers").write_bytes(key.signers().content)
    (bundle / SUMS_FILE).write_bytes(b"")
    with pytest.raises(RefusedBundleError, match="not signed"):
        signature_text(bundle, SignaturePolicy(allowed_signers=tmp_path / "signers"))


def test_bundle_that_lists_its_signature_is_refused(bundle: Path) -> None:
    sums = (bundle / SUMS_FILE).read_bytes() + b"0" * 64 + b"  " + SIGNATURE_FILE.encode() + b"\n"
    (bundle / SUMS_FILE).write_bytes(sums)
    with pytest.raises((RefusedBundleError, MalformedBundleError)):
        read_bundle(bundle)
