"""Who answers for a bundle: SSH signatures of `SHA256SUMS`, made and checked by OpenSSH's `ssh-keygen -Y`.

A signature covers `SHA256SUMS`, and that covers every other file. It lies beside it as `SHA256SUMS.sig`, is made with any SSH
key (also one of an agent, a security token or a certificate), in the namespace `edgebert-bundle`, so that no signature that was made
for something else counts. Whom to believe says an allowed-signers file (`man ssh-keygen`, ALLOWED SIGNERS).

No package is needed, only `ssh-keygen`; docs/signing.md tells how keys are made, changed and revoked.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgebert._durable import staging_prefix
from edgebert._files import check_file_is_free, locked, read_input
from edgebert.bundle import MAX_SIGNATURE_BYTES, SIGNATURE_FILE, SUMS_FILE, read_bundle
from edgebert.errors import (
    BadDataError,
    CannotWriteError,
    EdgebertError,
    RefusedBundleError,
    UnavailableError,
    UsageError,
)

NAMESPACE = "edgebert-bundle"
MAX_SIGNERS_BYTES = 1 << 20
_STAGED = ".sig"

_BEGIN, _END = b"-----BEGIN SSH SIGNATURE-----", b"-----END SSH SIGNATURE-----"
_BY_THE_CLOCK = "the time of this computer's clock"
_TIMEOUT_S = 60  # of a check, which asks nobody anything
_OUTSIDE_ITS_TIME = re.compile(r"(?:key|certificate)[^\n]*(?:expired|not yet valid)[^\n]*", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class SignaturePolicy:
    """Whose signature a bundle must carry.

    Attributes:
        allowed_signers: an allowed-signers file of OpenSSH.
        identity: the principal who must have signed; None for anyone in the file.
        revoked: a key revocation list, or a file of public keys, that are not believed any more.
    """

    allowed_signers: Path
    identity: str | None = None
    revoked: Path | None = None

    def read(self) -> Signers:
        """Return the contents of the files.

        Raises:
            InputNotFoundError: a file is not there.
            BadDataError: it is empty or too large.
        """
        signers = read_input(self.allowed_signers, what="the allowed signers")
        revoked = None if self.revoked is None else read_input(self.revoked, what="the revoked keys")
        for path, content in ((self.allowed_signers, signers), (self.revoked, revoked)):
            if content is not None and not 0 < len(content) <= MAX_SIGNERS_BYTES:
                raise BadDataError(f"`{path}` has {len(content):,} bytes", expected=f"1 to {MAX_SIGNERS_BYTES:,}")
        return Signers(content=signers, identity=self.identity, revoked=revoked)


@dataclass(frozen=True, slots=True, kw_only=True)
class Signers:
    """A `SignaturePolicy` with the contents of its files, as an installation keeps it."""

    content: bytes
    identity: str | None = None
    revoked: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SignatureFacts:
    """What a signature says of itself, believed by nobody yet.

    Attributes:
        namespace: what it was made for.
        key_type: such as `ssh-ed25519`.
        fingerprint: of the key, as `ssh-keygen -l` prints it.
    """

    namespace: str
    key_type: str
    fingerprint: str


class OutsideItsTimeError(RefusedBundleError):
    """A key or a certificate is not valid at the time of the check; at another time it is."""


def sign_bundle(path: Path, key: Path, *, force: bool = False) -> str:
    """Sign a bundle: write `SHA256SUMS.sig`, after every file was compared with `SHA256SUMS`.

    Args:
        path: the bundle's folder.
        key: a private key; or a public one whose private half an SSH agent holds.
        force: replace a signature that is there.

    Returns:
        The key's fingerprint, such as `SHA256:LGrxAl…`.

    Raises:
        BundleError: the bundle is damaged, so that it is not signed.
        UsageError: it is a file: a packed bundle.
        InputNotFoundError: there is no such key.
        UnavailableError: `ssh-keygen` is missing or too old.
        CannotWriteError: there is a signature already, or the folder cannot be written.
        EdgebertError: `ssh-keygen` did not sign; the message has its words.
    """
    if path.is_file():
        raise UsageError(f"`{path}` is a packed bundle", expected="a folder `NAME.edgebert`; sign it, then pack it")
    bundle = read_bundle(path)
    check_file_is_free(path / SIGNATURE_FILE, force=force)
    read_input(key, what="the key")
    signature = _sign(bundle.sums, key)
    facts = signature_facts(signature)
    write_signature(path, signature)
    return facts.fingerprint


def write_signature(path: Path, signature: bytes) -> None:
    """Put `SHA256SUMS.sig` into a bundle's folder in one step.

    It is written beside the folder: an interrupted run must not leave a file inside that does not belong there. What one left
    beside it the next run removes.
    """
    folder = path.resolve()
    staging = folder.parent / f"{staging_prefix(folder)}{os.getpid()}{_STAGED}"
    try:
        with locked(path):
            _remove_staged(folder)
            try:
                staging.write_bytes(signature)
                _sync(staging)
                staging.replace(folder / SIGNATURE_FILE)
                _sync(folder)
            finally:
                staging.unlink(missing_ok=True)
    except OSError as error:
        raise CannotWriteError(f"cannot write `{path / SIGNATURE_FILE}`: {error.strerror or error}") from error


def _remove_staged(folder: Path) -> None:
    """Remove signatures that killed runs left beside a bundle; only for the holder of its lock."""
    for entry in folder.parent.iterdir():
        if entry.name.startswith(staging_prefix(folder)) and entry.name.endswith(_STAGED):
            entry.unlink(missing_ok=True)


def check_signature(sums: bytes, signature: bytes | None, policy: SignaturePolicy) -> str:
    """Check the signature of a bundle against a policy.

    Args:
        sums: content of `SHA256SUMS`.
        signature: content of `SHA256SUMS.sig`, or None where there is none.
        policy: whom to believe.

    Returns:
        The principal who signed, as the allowed-signers file calls them.

    Raises:
        RefusedBundleError: not signed, or not by one of those, or for something else, or over another content.
        InputNotFoundError: the allowed signers or the revoked keys are not there.
        UnavailableError: `ssh-keygen` is missing or too old.
    """
    return check_signers(sums, signature, policy.read())


def check_signers(
    sums: bytes, signature: bytes | None, signers: Signers, *, at: float | None = None, named: str = "as asked"
) -> str:
    """Check as `check_signature` does, against the contents of the files.

    Args:
        at: the time at which the key must be valid, in seconds since 1970; None for this computer's clock.
        named: what that time is, for the message, such as "when it was installed"; unused where `at` is None.

    Raises:
        OutsideItsTimeError: the key or its certificate is not valid at that time.
    """
    if signature is None:
        raise RefusedBundleError(
            f"the bundle is not signed: it has no `{SIGNATURE_FILE}`",
            expected="a signature of one of the allowed signers",
            hint="edgebert sign BUNDLE --key KEY",
        )
    facts = signature_facts(signature)
    if facts.namespace != NAMESPACE:
        raise RefusedBundleError(
            f"the bundle's signature was made for `{facts.namespace:.80}`",
            expected=f"the namespace `{NAMESPACE}`",
            hint="edgebert sign BUNDLE --key KEY",
        )
    when = () if at is None else ("-O", f"verify-time={time.strftime('%Y%m%d%H%M%S', time.localtime(at))}")
    revoked = signers.revoked
    with _as_files(signers.content, signature, *([] if revoked is None else [revoked])) as (files, descriptors):
        known = ("-f", files[0], "-s", files[1], *when)
        crl = () if revoked is None else ("-r", files[2])
        principal = signers.identity
        if principal is None:
            ran = _ssh_keygen(("-Y", "find-principals", *known), sums, descriptors, _TIMEOUT_S)
            principal = ran.stdout.decode("utf-8", "replace").partition("\n")[0]
            if ran.returncode or not principal:
                raise _not_believed(facts, ran, at, named)
        asked = ("-Y", "verify", *known, "-n", NAMESPACE, "-I", principal)
        ran = _ssh_keygen((*asked, *crl), sums, descriptors, _TIMEOUT_S)
        if ran.returncode == 0:
            return principal
        if crl and _ssh_keygen(asked, sums, descriptors, _TIMEOUT_S).returncode == 0:  # it does not say so itself
            raise _refused(facts, "which was revoked", "a key that still counts")
    raise _not_believed(facts, ran, at, named, identity=signers.identity)


def policy_from(signers: Path | None, identity: str | None, revoked: Path | None) -> SignaturePolicy | None:
    """Return the policy of the flags `--signers`, `--identity` and `--revoked`, or None where none was given.

    Raises:
        UsageError: an identity or revoked keys without signers.
    """
    if signers is not None:
        return SignaturePolicy(allowed_signers=signers, identity=identity, revoked=revoked)
    if identity is not None or revoked is not None:
        raise UsageError("`--identity` and `--revoked` need `--signers`", hint="--signers FILE")
    return None


def signature_text(path: Path, policy: SignaturePolicy | None) -> str:
    """Check a bundle's signature, then its hashes, and return one sentence about the signature.

    Args:
        path: the bundle.
        policy: whom to believe; None believes nobody, and only says which key signed.

    Raises:
        BundleError: it is not signed as demanded, or damaged.
    """
    principals: list[str] = []

    def check(sums: bytes, signature: bytes | None) -> None:
        if policy is not None:
            principals.append(check_signature(sums, signature, policy))

    signature = read_bundle(path, check_sums=check).signature
    if signature is None:
        return "carries no signature"
    facts = signature_facts(signature)
    key = f"{facts.key_type} key {facts.fingerprint}"
    if principals:
        return f"signed by `{principals[0]}` ({key})"
    return f"signed by {key}; whether that is a key of yours was not asked: --signers FILE"


def signature_facts(signature: bytes) -> SignatureFacts:
    """Read what a signature says of itself (OpenSSH's PROTOCOL.sshsig); only `check_signature` says whether it is true.

    Raises:
        RefusedBundleError: it is no SSH signature.
    """
    if len(signature) > MAX_SIGNATURE_BYTES:
        raise _no_signature(f"{len(signature):,} bytes")
    text = signature.strip()
    if not text.startswith(_BEGIN) or not text.endswith(_END):
        raise _no_signature("no armour")
    try:
        blob = base64.b64decode(b"".join(text[len(_BEGIN) : -len(_END)].split()), validate=True)
    except binascii.Error as error:
        raise _no_signature(str(error)) from error
    if blob[:10] != b"SSHSIG\x00\x00\x00\x01":
        raise _no_signature("not of version 1")
    key, rest = _string(blob[10:])
    namespace, _ = _string(rest)
    key_type, _ = _string(key)
    digest = base64.b64encode(hashlib.sha256(key).digest()).decode().rstrip("=")
    return SignatureFacts(
        namespace=namespace.decode("utf-8", "replace"),
        key_type=key_type.decode("utf-8", "replace"),
        fingerprint=f"SHA256:{digest}",
    )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _string(blob: bytes) -> tuple[bytes, bytes]:
    """Split a length-prefixed string (RFC 4251, section 5) from what follows it."""
    length = int.from_bytes(blob[:4], "big")
    if len(blob) < 4 + length:
        raise _no_signature("cut short")
    return blob[4 : 4 + length], blob[4 + length :]


def _no_signature(why: str) -> RefusedBundleError:
    return RefusedBundleError(
        f"the bundle's `{SIGNATURE_FILE}` is no SSH signature ({why})",
        expected=f"a file that begins with `{_BEGIN.decode()}`",
        hint="edgebert sign BUNDLE --key KEY --force",
    )


def _sign(sums: bytes, key: Path) -> bytes:
    """Return the signature; `ssh-keygen` asks for a passphrase on the terminal itself."""
    ran = _ssh_keygen(("-Y", "sign", "-n", NAMESPACE, "-f", str(key)), sums, (), None)
    if ran.returncode or not ran.stdout:
        said = _said(ran)
        hint = "an encrypted key asks for its passphrase on a terminal; or: ssh-add KEY, and --key KEY.pub"
        raise EdgebertError(
            f"ssh-keygen did not sign with `{key}`: {said or ran.returncode}", expected="a usable SSH key", hint=hint
        )
    return ran.stdout


def _not_believed(
    facts: SignatureFacts,
    ran: subprocess.CompletedProcess[bytes],
    at: float | None,
    named: str,
    *,
    identity: str | None = None,
) -> RefusedBundleError:
    """Turn what `ssh-keygen` said into an error that says what is wrong."""
    said, key = _said(ran), f"{facts.key_type[:40]} key {facts.fingerprint}"
    wrong_time = _OUTSIDE_ITS_TIME.search(said)
    if wrong_time:
        clock = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
        sign = "sign with a key that is valid: edgebert sign BUNDLE --key KEY --force"
        return OutsideItsTimeError(
            f"the bundle is signed by {key}, which may not be used at this time: {wrong_time.group()}",
            expected=f"a key that is valid at {clock}, {named if at is not None else _BY_THE_CLOCK}",
            hint=sign if at is not None else f"if that clock is wrong, set it; else {sign}",
        )
    if "not permitted for use in signature namespace" in said:
        return _refused(facts, "which may not sign bundles", f"a key allowed for `{NAMESPACE}`", said)
    if "incorrect signature" in said:
        what = f"the bundle has a signature by {key} over another content"
        hint = "copy the bundle again, or sign it anew: edgebert sign BUNDLE --key KEY --force"
        return RefusedBundleError(what, expected=f"the signature of this `{SUMS_FILE}`", hint=hint)
    if identity is not None:
        return _refused(facts, f"not by `{identity}`", f"a key that the allowed signers list as `{identity}`", said)
    return _refused(facts, "which is not among the allowed signers", "one of their keys", said)


def _refused(facts: SignatureFacts, what: str, expected: str, said: str = "") -> RefusedBundleError:
    return RefusedBundleError(
        f"the bundle is signed by {facts.key_type[:40]} key {facts.fingerprint}, {what}{f' ({said})' if said else ''}",
        expected=expected,
        hint="edgebert sign BUNDLE --key KEY --force",
    )


def _said(ran: subprocess.CompletedProcess[bytes]) -> str:
    lines = [line.strip() for line in ran.stderr.decode("utf-8", "replace").splitlines()]
    # Files come as descriptors, whose names tell nobody anything.
    lines = [re.sub(r"^/\S+/(?:fd/\d+|\d\.input)(?=:)", "line ", line) for line in lines if line.strip("@ ")]
    return "; ".join(lines)[:600]


def _ssh_keygen(
    arguments: Sequence[str], content: bytes, descriptors: Sequence[int], timeout: float | None
) -> subprocess.CompletedProcess[bytes]:
    program = shutil.which("ssh-keygen")
    if program is None:
        raise UnavailableError(
            "`ssh-keygen` is not installed, and signatures are made and checked by it",
            expected="OpenSSH 8.2 or newer",
            hint="sudo apt-get install openssh-client",
        )
    try:
        ran = subprocess.run(
            [program, *arguments],
            input=content,
            capture_output=True,
            check=False,
            timeout=timeout,
            pass_fds=tuple(descriptors),
            env={**os.environ, "LC_ALL": "C"},
        )
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(f"`{program}` did not answer within {timeout:g} s") from error
    except OSError as error:
        raise UnavailableError(f"cannot run `{program}`: {error.strerror}") from error
    if re.search(rb"(?:unknown|illegal|invalid) option -- |Unsupported operation for -Y|Invalid option", ran.stderr):
        raise UnavailableError(
            f"`{program}` is too old for signatures: {_said(ran)}",
            expected="OpenSSH 8.2 or newer",
            hint="ssh -V tells its version",
        )
    return ran


@contextlib.contextmanager
def _as_files(*contents: bytes) -> Iterator[tuple[list[str], list[int]]]:
    """Yield paths under which a child reads these bytes, and the descriptors that it must inherit.

    In memory where Linux can, so that a computer whose file systems are read-only checks signatures as well.
    """
    if sys.platform == "linux" and Path("/proc/self/fd").is_dir():
        with contextlib.ExitStack() as stack:
            streams = [stack.enter_context(os.fdopen(os.memfd_create("edgebert"), "w+b")) for _ in contents]
            for stream, content in zip(streams, contents, strict=True):
                stream.write(content)
                stream.flush()
            yield [f"/proc/self/fd/{stream.fileno()}" for stream in streams], [stream.fileno() for stream in streams]
        return
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{number}.input" for number in range(len(contents))]
        for path, content in zip(paths, contents, strict=True):
            path.write_bytes(content)
        yield [str(path) for path in paths], []


__all__ = [
    "NAMESPACE",
    "OutsideItsTimeError",
    "SignatureFacts",
    "SignaturePolicy",
    "Signers",
    "check_signature",
    "check_signers",
    "policy_from",
    "sign_bundle",
    "signature_facts",
    "signature_text",
    "write_signature",
]
