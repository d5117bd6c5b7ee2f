"""`edgebert install BUNDLE --to DIR --host USER@HOST`: put a bundle in place on a device, over SSH.

The device needs Python 3.10 and one backend, and nothing of edgebert: its agent is sent. The bundle is read and verified
here first, goes over as one stream, and is verified again, self-tested and switched to there, by the same code as an
installation on this computer. A link that breaks at any moment leaves the old or the new installation, whole.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from edgebert._console import printable
from edgebert._files import read_input
from edgebert._json import Fields, JsonObject, JsonValue
from edgebert.archive import archive_pieces
from edgebert.bundle import read_bundle
from edgebert.errors import BadDataError, RefusedError, UsageError
from edgebert.install.installing import STDIN, InstallOptions
from edgebert.install.reports import Outcome
from edgebert.remote.agent import Device, run_agent
from edgebert.remote.ssh import SshOptions
from edgebert.remote.transport import ssh_of

_DIGEST = re.compile(r"[0-9a-f]{64}")
_MOST_NAME = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteInstallation:
    """What an installation on a device did; what it says is durable there.

    Attributes:
        device: what it said of itself.
        path: the installation's folder on it.
        outcome: what was done.
        digest: of the bundle that is current now: the one that was sent.
        name: of that bundle.
        release: of that bundle; 0 where it has no number.
        signed_by: whose signature was checked there, or None.
        previous: the digest that a roll-back goes to, or None.
        self_test: one sentence, or None where it is left to the first opening.
        removed: digests of bundles that were removed there.
        signatures_required: whether every bundle there must be signed.
        sent_bytes: over the link, the device wheel included where it was missing.
    """

    device: Device
    path: str
    outcome: str
    digest: str
    name: str
    release: int
    signed_by: str | None
    previous: str | None
    self_test: str | None
    removed: tuple[str, ...]
    signatures_required: bool
    sent_bytes: int

    def to_json(self) -> JsonObject:
        """Return the fields of a local installation's report, and `host`, `machine` and `sent_bytes`."""
        return {
            "host": self.device.name,
            "machine": self.device.machine,
            "path": self.path,
            "outcome": self.outcome,
            "digest": self.digest,
            "name": self.name,
            "release": self.release,
            "signed_by": self.signed_by,
            "previous": self.previous,
            "self_test": self.self_test,
            "removed": list(self.removed),
            "signatures_required": self.signatures_required,
            "sent_bytes": self.sent_bytes,
        }

    def to_text(self) -> str:
        """Return the report for a terminal."""
        release = f", release {self.release}" if self.release else ""
        signed = f", signed by {self.signed_by}" if self.signed_by else ""
        lines = [f"{self.device.name}:{self.path}: {self.outcome}: {self.name} {self.digest[:12]}{release}{signed}"]
        if self.outcome != "already current":
            lines.append(f"  self-test: {self.self_test or 'left to the first opening'}")
        if self.previous is not None:
            lines.append(f"  previous: {self.previous[:12]}")
        lines.append(f"  sent: {self.sent_bytes:,} bytes to {self.device.machine}")
        return "\n".join(lines)


def install_on(
    host: str,
    bundle: Path,
    to: str,
    options: InstallOptions | None = None,
    *,
    python: str | None = None,
    wheels: Path | None = None,
    ssh: SshOptions | None = None,
) -> RemoteInstallation:
    """Install a bundle on a device.

    Args:
        host: `[USER@]HOST[:PORT]`, where HOST may be an alias of the SSH configuration, or a name of `edgebert devices`.
        bundle: a bundle's folder, or a packed one.
        to: the installation's folder on the device; `~/` is the home folder there, and what is not absolute lies in it.
        options: as of an installation on this computer; its files of signers are read here and sent.
        python: the device's Python; its entry's, or `python3`, if None.
        wheels: a folder here with numpy and Pillow for a device that lacks them; None to fetch them.
        ssh: how the device is reached.

    Raises:
        BundleError: the bundle is none, or damaged, here.
        UsageError: `host` or `to` names nothing.
        RefusedError: a host key, a login or an answer cannot be trusted; or the device refused the bundle.
        LinkLostError: the device cannot be reached, or the link broke; the old or the new bundle is current there.
        UnavailableError: asyncssh is missing here, or Python or a backend there; or numpy or Pillow there, and there are none for it.
        EdgebertError: what else the installation there failed with, of the same class as here.
    """
    options = options or InstallOptions()
    device = ssh_of(host, python=python)
    if not to or to.startswith("-") or not to.isprintable():
        raise UsageError(
            f"`{printable(to)}` names no folder", expected="a folder on the device, such as /var/lib/widgets"
        )
    if bundle == STDIN:
        raise UsageError("`-` with `--host`: a bundle for a device is read from a file", hint="cat > widgets.zip")
    read = read_bundle(bundle)
    files = read.all_files()
    answered = run_agent(
        device.destination,
        _words(to, options),
        archive_pieces(files),
        sum(map(len, files.values())),
        files=_files(options),
        answer_seconds=2 * options.timeout + 120,  # the self-test, and one of what is rolled back to
        python=device.python,
        wheels=wheels,
        options=ssh,
    )
    try:
        return _report(answered.device, answered.answer, read.digest, answered.sent_bytes)
    except BadDataError as error:
        raise RefusedError(printable(error.what), expected=error.expected) from error


def _words(to: str, options: InstallOptions) -> list[str]:
    """Return the agent's arguments; a file of this computer stands there as `{NAME}`."""
    words = ["install", "-", f"--to={to}", "--json", f"--self-test={options.self_test}", f"--timeout={options.timeout}"]
    words += [
        f"--{name}={value}" for name, value in (("target", options.target), ("identity", options.identity)) if value
    ]
    words += [f"--{name}={{{name}}}" for name in _files(options)]
    flags = ("allow_downgrade", "allow_bad", "require_signature", "weaken_policy")
    return words + [f"--{name.replace('_', '-')}" for name in flags if getattr(options, name)]


def _files(options: InstallOptions) -> dict[str, bytes]:
    """Return the files of this computer that the agent is to read, by the name of their option."""
    named = {"signers": options.signers, "revoked": options.revoked}
    return {name: read_input(path, what=f"`--{name}`") for name, path in named.items() if path is not None}


def _report(device: Device, answer: Mapping[str, JsonValue], digest: str, sent_bytes: int) -> RemoteInstallation:
    """Read the agent's report strictly: it comes from a peer that nothing obliges to tell the truth.

    Raises:
        BadDataError: it is not one of an installation of this very bundle.
    """
    fields = Fields(answer, what=f"the answer of `{device.name}`")
    outcome = fields.text("outcome")
    if outcome not in get_args(Outcome):
        raise BadDataError(f"`{device.name}` says `{outcome:.50}`", expected=", ".join(get_args(Outcome)))
    if fields.text("digest") != digest:
        raise BadDataError(
            f"`{device.name}` says that bundle `{fields.text('digest'):.64}` is current",
            expected=f"`{digest}`, which was sent",
        )
    previous, removed = fields.optional_text("previous"), fields.texts("removed")
    for named in (*removed, *([] if previous is None else [previous])):
        if not _DIGEST.fullmatch(named):
            raise BadDataError(f"`{device.name}` calls a bundle `{named:.64}`", expected="64 hexadecimal digits")
    return RemoteInstallation(
        device=device,
        path=printable(fields.text("path"))[:4096],
        outcome=outcome,
        digest=digest,
        name=printable(fields.text("name"))[:_MOST_NAME],
        release=fields.integer("release"),
        signed_by=_shown(fields.optional_text("signed_by")),
        previous=previous,
        self_test=_shown(fields.optional_text("self_test")),
        removed=removed,
        signatures_required=answer.get("signatures_required") is True,
        sent_bytes=sent_bytes,
    )


def _shown(text: str | None) -> str | None:
    return None if text is None else printable(text)[:_MOST_NAME]
