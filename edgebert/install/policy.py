"""Whose signatures count in an installation: `policy.json`, schema `edgebert.policy/1`.

The allowed signers are kept inside, not beside it, so that the rule and the names change in one step. A policy that is about to
change names the bundle that it comes with (`next`): it counts for that bundle at once, and for all when the switch is done, so that
a kill between the two leaves no bundle under a rule that was never meant for it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

from edgebert._json import Fields, JsonObject, dump_json, parse_json_object
from edgebert.errors import BadDataError, RefusedError, UnreadableError
from edgebert.install.folder import NOT_A_FILE, POLICY, Folder
from edgebert.signing import Signers

POLICY_SCHEMA = "edgebert.policy/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What an installation demands of bundles.

    Attributes:
        signers: whose signature each must have; None where none is needed.
        next_signers: what is demanded of the bundle `next_digest`, and soon of all.
        next_digest: the bundle with which the policy changes, or None where it does not.
    """

    signers: Signers | None = None
    next_signers: Signers | None = None
    next_digest: str | None = None

    def for_bundle(self, digest: str) -> Signers | None:
        """Return whose signature this bundle must have, or None."""
        return self.next_signers if digest == self.next_digest else self.signers

    def settled(self, current: str | None) -> Policy:
        """Return the policy when no change is under way: the next one where its bundle became current, else the old one."""
        if self.next_digest is None:
            return self
        return Policy(signers=self.next_signers if current == self.next_digest else self.signers)


def read_policy(folder: Folder) -> Policy:
    """Read `policy.json`; nothing is demanded where there is none.

    Raises:
        RefusedError: it is damaged. What it demanded is not known then, so nothing may be believed.
        UnreadableError: the system does not let it be read; the same.
    """
    what = f"`{folder.path / POLICY}`"
    try:
        content = folder.read(POLICY)
        if content is None:
            return Policy()
        fields = Fields(parse_json_object(content, what=what), what=what)
        if fields.text("schema") != POLICY_SCHEMA:
            raise BadDataError(f"{what} has schema `{fields.text('schema'):.80}`", expected=f"`{POLICY_SCHEMA}`")
        policy = Policy(signers=_signers(fields, "require"))
        if fields.value.get("next") is not None:
            following = fields.fields("next")
            policy = replace(policy, next_signers=_signers(following, "require"), next_digest=following.text("digest"))
    except (OSError, BadDataError) as error:
        kind = UnreadableError if isinstance(error, OSError) and error.errno not in NOT_A_FILE else RefusedError
        raise kind(
            f"{what} cannot be read, so nobody knows whose bundles may run here: {error}",
            expected=f"a policy, schema `{POLICY_SCHEMA}`",
            hint="edgebert install BUNDLE --to DIR --signers FILE --require-signature --weaken-policy writes a new one",
        ) from error
    return policy


def write_policy(folder: Folder, policy: Policy) -> None:
    """Write `policy.json` in one step, or remove it where nothing is demanded; durable when this returns."""
    if policy == Policy():
        folder.remove(POLICY)
        return
    following: JsonObject | None = None
    if policy.next_digest is not None:
        following = {"digest": policy.next_digest, "require": _plain(policy.next_signers)}
    content: JsonObject = {"schema": POLICY_SCHEMA, "require": _plain(policy.signers), "next": following}
    folder.write(POLICY, dump_json(content).encode())


def is_weaker(new: Signers | None, old: Signers | None) -> bool:
    """Say whether a policy could accept a bundle that another one refuses.

    Stricter without doubt: fewer of the same lines, an identity where there was none, more revoked keys than before. Anything
    else counts as weaker: nothing here judges what a line of an allowed-signers file means.
    """
    if old is None:
        return False
    if new is None:
        return True
    more_signers = not set(_lines(new.content)) <= set(_lines(old.content))
    other_identity = old.identity is not None and new.identity != old.identity
    fewer_revoked = old.revoked is not None and not (
        new.revoked is not None and (new.revoked == old.revoked or _adds_keys(new.revoked, old.revoked))
    )
    return more_signers or other_identity or fewer_revoked


def _adds_keys(new: bytes, old: bytes) -> bool:
    """Say whether a text file of public keys has all lines of another; a binary list (KRL) is not looked into."""
    return b"\0" not in new + old and set(_lines(old)) <= set(_lines(new))


def _lines(content: bytes) -> list[bytes]:
    lines = (line.strip() for line in content.splitlines())
    return [line for line in lines if line and not line.startswith(b"#")]


def describe_signers(signers: Signers | None) -> JsonObject | None:
    """Return what is said of a policy: how many lines its allowed signers have, and their SHA-256."""
    if signers is None:
        return None
    return {
        "allowed_signers": len(_lines(signers.content)),
        "allowed_signers_sha256": hashlib.sha256(signers.content).hexdigest(),
        "identity": signers.identity,
        "revoked_sha256": None if signers.revoked is None else hashlib.sha256(signers.revoked).hexdigest(),
    }


def _plain(signers: Signers | None) -> Mapping[str, str | None] | None:
    if signers is None:
        return None
    return {
        "allowed_signers": signers.content.decode()
        if _is_text(signers.content)
        else "base64:" + base64.b64encode(signers.content).decode(),
        "identity": signers.identity,
        "revoked": None if signers.revoked is None else base64.b64encode(signers.revoked).decode(),
    }


def _is_text(content: bytes) -> bool:
    try:
        return not content.decode("utf-8").startswith("base64:")
    except UnicodeDecodeError:
        return False


def _signers(fields: Fields, key: str) -> Signers | None:
    if fields.value.get(key) is None:
        return None
    inner = fields.fields(key)
    text, revoked = inner.text("allowed_signers"), inner.optional_text("revoked")
    try:
        return Signers(
            content=base64.b64decode(text[7:], validate=True) if text.startswith("base64:") else text.encode(),
            identity=inner.optional_text("identity"),
            revoked=None if revoked is None else base64.b64decode(revoked, validate=True),
        )
    except (binascii.Error, UnicodeEncodeError) as error:
        raise BadDataError(f"{inner.what} cannot be decoded: {error}") from error
