"""OpenSSF model signatures of a bundle, for hosts whose other tools check these: the extra `sign`.

The signature is one file beside the bundle, `NAME.edgebert.sig`. A device neither needs nor checks it (the package brings 34
others); there the SSH signature inside the bundle counts, `edgebert.signing`.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from edgebert._files import staged_file
from edgebert.bundle import SIGNATURE_FILE, read_bundle
from edgebert.errors import BadDataError, InputNotFoundError, RefusedBundleError, UsageError
from edgebert.extras import require


def signature_path(bundle: Path) -> Path:
    """Return where the signature of a bundle lies: beside it, as nothing may lie inside that `SHA256SUMS` does not list.

    >>> signature_path(Path("widgets.edgebert")).name
    'widgets.edgebert.sig'
    """
    named = (
        bundle.resolve() if bundle.name in ("", "..") else bundle
    )  # `.` and `..` have no name to put another in the place of
    return named.with_name(f"{bundle.resolve().name}.sig")


def sign_model(bundle: Path, private_key: Path, *, force: bool = False) -> Path:
    """Sign a bundle with an elliptic-curve key, after every file was compared with `SHA256SUMS`.

    Args:
        bundle: its folder.
        private_key: a PEM file, not encrypted; `openssl ecparam -name prime256v1 -genkey -noout` makes one.
        force: replace a signature that is there.

    Returns:
        The file that was written.

    Raises:
        BundleError: the bundle is damaged, so that it is not signed.
        InputNotFoundError: there is no such key.
        BadDataError: it is no such key.
        UnavailableError: the extra `sign` is not installed.
        CannotWriteError: there is a signature already, or it cannot be written.
    """
    signing = require("model_signing.signing")
    read_bundle(bundle)
    _check_key(private_key)
    try:
        config = signing.Config().use_elliptic_key_signer(private_key=private_key)
    except (ValueError, TypeError) as error:  # TypeError: it is encrypted
        raise BadDataError(f"`{private_key}` is no private key: {error}", expected=_KEY, hint=_MAKE_KEY) from error
    output = signature_path(bundle)
    with staged_file(output, force=force) as staging:
        config.set_hashing_config(_hashing()).sign(bundle, staging)
    return output


def verify_model(bundle: Path, public_key: Path) -> str:
    """Check the model signature of a bundle, and the bundle itself.

    Returns:
        One sentence that says what held.

    Raises:
        BundleError: the bundle is damaged; or its signature is missing, by another key, or over another content.
        InputNotFoundError: there is no such key.
        BadDataError: it is no such key.
        UnavailableError: the extra `sign` is not installed.
    """
    verifying = require("model_signing.verifying")
    read_bundle(bundle)
    _check_key(public_key)
    signature = signature_path(bundle)
    if not signature.is_file():
        raise RefusedBundleError(
            f"`{bundle}` has no model signature",
            expected=f"`{signature}`",
            hint=f"edgebert sign {bundle} --model-signing --key KEY.pem",
        )
    try:
        config = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    except (ValueError, TypeError) as error:
        raise BadDataError(f"`{public_key}` is no public key: {error}", expected=_KEY, hint=_MAKE_KEY) from error
    try:
        config.set_hashing_config(_hashing()).verify(bundle, signature)
    except _failures() as error:
        raise RefusedBundleError(
            f"the model signature `{signature}` does not hold: {type(error).__name__}: {error!s:.300}",
            expected=f"one by the key `{public_key}` over these files",
            hint=f"edgebert sign {bundle} --model-signing --key KEY.pem --force",
        ) from error
    return f"the model signature holds, by the key `{public_key}`"


def check_model_signature(bundle: Path, public_key: Path | None) -> list[str]:
    """Check as `verify_model` does, and return its sentence as a list.

    Raises:
        UsageError: no key was named.
    """
    if public_key is None:
        raise UsageError("`--model-signing` does not say whose key", expected="a PEM file", hint="--public-key FILE")
    return [verify_model(bundle, public_key)]


_KEY = "an elliptic-curve key of P-256, P-384 or P-521 in PEM"
_MAKE_KEY = (
    "openssl ecparam -name prime256v1 -genkey -noout -out KEY.pem; openssl ec -in KEY.pem -pubout -out KEY.pub.pem"
)


def _check_key(path: Path) -> None:
    if not path.is_file():
        raise InputNotFoundError(f"no such key: `{path}`", expected=_KEY, hint=_MAKE_KEY)


def _hashing() -> Any:  # a class of a package that need not be here
    """Everything but the SSH signature, so that either can be made first, and git's files as well."""
    return require("model_signing.hashing").Config().set_ignored_paths(paths=[SIGNATURE_FILE], ignore_git_paths=False)


def _failures() -> tuple[type[Exception], ...]:
    """What its check raises: of its own (ValueError), of the signature (InvalidSignature), of a file that is none."""
    return ValueError, KeyError, TypeError, importlib.import_module("cryptography.exceptions").InvalidSignature
