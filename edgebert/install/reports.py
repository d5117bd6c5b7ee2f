"""What the commands `install`, `rollback` and `status` answer: as text for people, and as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgebert._json import JsonObject
from edgebert.install.state import Bad, Installed, listed

Outcome = Literal["installed", "already current", "repaired", "signature replaced"]


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallReport:
    """What an installation did; what it says is durable.

    Attributes:
        path: the installation's folder.
        outcome: what was done.
        bundle: what is current now.
        previous: the digest that `edgebert rollback` goes back to, or None.
        self_test: one sentence, or None where it is left to the first opening.
        removed: digests of bundles that were removed.
        signatures_required: whether every bundle here must be signed.
    """

    path: Path
    outcome: Outcome
    bundle: Installed
    previous: str | None
    self_test: str | None
    removed: tuple[str, ...]
    signatures_required: bool

    def to_json(self) -> JsonObject:
        """Return the fields as a JSON object."""
        return {
            "path": str(self.path),
            "outcome": self.outcome,
            "digest": self.bundle.digest,
            "name": self.bundle.name,
            "release": self.bundle.release,
            "signed_by": self.bundle.signed_by,
            "previous": self.previous,
            "self_test": self.self_test,
            "removed": list(self.removed),
            "signatures_required": self.signatures_required,
        }

    def to_text(self) -> str:
        """Return the report for a terminal."""
        lines = [f"{self.path}: {self.outcome}: {_bundle_text(self.bundle)}"]
        if self.outcome != "already current":
            lines.append(f"  self-test: {self.self_test or 'left to the first opening'}")
        if self.previous is not None:
            lines.append(f"  previous: {self.previous[:12]}; edgebert rollback {self.path} goes back to it")
        if self.removed:
            lines.append(f"  removed: {listed(self.removed)}")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True, kw_only=True)
class RollbackReport:
    """What a roll-back did.

    Attributes:
        path: the installation's folder.
        bundle: what is current now.
        previous: the digest that was current before.
    """

    path: Path
    bundle: Installed
    previous: str

    def to_json(self) -> JsonObject:
        """Return the fields as a JSON object."""
        return {
            "path": str(self.path),
            "digest": self.bundle.digest,
            "name": self.bundle.name,
            "release": self.bundle.release,
            "previous": self.previous,
        }

    def to_text(self) -> str:
        """Return the report for a terminal."""
        return f"{self.path}: rolled back to {_bundle_text(self.bundle)}\n  previous: {self.previous[:12]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusReport:
    """What an installation holds.

    Attributes:
        path: its folder.
        current: what is used, or None where nothing was installed.
        previous: what is gone back to, or None.
        crashes: openings of `current` whose process died, since it was last opened well.
        highest_release: of all that was ever installed.
        installs: how often anything was installed.
        bad: what is not picked again by itself.
        policy: whose signatures are demanded, or None.
        notes: what is out of order, such as a damaged state.
    """

    path: Path
    current: Installed | None
    previous: Installed | None
    crashes: int
    highest_release: int
    installs: int
    bad: tuple[Bad, ...]
    policy: JsonObject | None
    notes: tuple[str, ...]

    def to_json(self) -> JsonObject:
        """Return the fields as a JSON object."""
        return {
            "path": str(self.path),
            "current": None if self.current is None else self.current.to_json(),
            "previous": None if self.previous is None else self.previous.to_json(),
            "crashes": self.crashes,
            "highest_release": self.highest_release,
            "installs": self.installs,
            "bad": [entry.to_json() for entry in self.bad],
            "policy": self.policy,
            "notes": list(self.notes),
        }

    def to_text(self) -> str:
        """Return the report for a terminal."""
        facts = [
            ("current", "nothing" if self.current is None else _bundle_text(self.current)),
            ("previous", "none" if self.previous is None else _bundle_text(self.previous)),
            ("crashes", f"{self.crashes} openings of the current bundle in a row whose process died"),
            ("highest release", str(self.highest_release)),
            ("installs", str(self.installs)),
            ("signatures", _policy_text(self.policy)),
            *(("bad", f"{entry.digest[:12]} ({entry.kind}): {entry.reason}") for entry in self.bad),
            *(("note", note) for note in self.notes),
        ]
        width = max(len(name) for name, _ in facts)
        return "\n".join([str(self.path), *(f"  {name:<{width}}  {value}" for name, value in facts)])


def _bundle_text(bundle: Installed) -> str:
    release = f", release {bundle.release}" if bundle.release else ""
    signed = f", signed by {bundle.signed_by}" if bundle.signed_by else ""
    return f"`{bundle.name}` {bundle.digest[:12]}{release}{signed}"


def _policy_text(policy: JsonObject | None) -> str:
    if policy is None:
        return "not required"
    who = f" as `{policy['identity']}`" if policy["identity"] else ""
    return f"required{who}: {policy['allowed_signers']} lines of allowed signers (SHA-256 {policy['allowed_signers_sha256']})"
