"""`edgebert status DIR --host USER@HOST` and `edgebert rollback DIR --host USER@HOST`: an installation on a device, over SSH.

The device's agent does both, by the same code as on this computer; what it answers is read strictly, since a device is an
untrusted peer (docs/remote.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgebert._console import printable
from edgebert._json import Fields, JsonObject, JsonValue
from edgebert.errors import BadDataError, RefusedError, UsageError
from edgebert.install.reports import RollbackReport, StatusReport
from edgebert.install.state import Bad, Installed, digest_of
from edgebert.remote.agent import Device, run_agent
from edgebert.remote.ssh import SshOptions
from edgebert.remote.transport import ssh_of

_MOST_TEXT = 2000
_STATUS_SECONDS = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class OnDevice:
    """A report of an installation on a device.

    Attributes:
        device: what it said of itself.
        report: of its installation; every text in it is printable.
    """

    device: Device
    report: StatusReport | RollbackReport

    def to_json(self) -> JsonObject:
        """Return the fields of a local report, and `host` and `machine`."""
        return {"host": self.device.name, "machine": self.device.machine, **self.report.to_json()}

    def to_text(self) -> str:
        """Return the report for a terminal."""
        return f"{self.device.name}:{self.report.to_text()}"


def status_on(
    host: str, path: str, *, python: str | None = None, wheels: Path | None = None, ssh: SshOptions | None = None
) -> OnDevice:
    """Say what is installed on a device.

    Args:
        host: `[USER@]HOST[:PORT]`; HOST may be an alias of the SSH configuration.
        path: the installation's folder on the device; `~/` is the home folder there, and what is not absolute lies in it.
        python: the device's Python; its entry's, or `python3`, if None.
        wheels: a folder here with numpy and Pillow for a device that lacks them; None to fetch them.
        ssh: how the device is reached.

    Raises:
        UsageError: `host` or `path` names nothing.
        RefusedError: a host key, a login or an answer cannot be trusted.
        LinkLostError: the device cannot be reached, or the link broke.
        UnavailableError: asyncssh is missing here, or Python or a backend there; or numpy or Pillow there, and there are none for it.
        EdgebertError: what else the agent there refused, of the same class as here.
    """
    words = ["status", _folder(path), "--json"]
    return _answered(host, words, _status, seconds=_STATUS_SECONDS, python=python, wheels=wheels, ssh=ssh)


def rollback_on(
    host: str,
    path: str,
    *,
    self_test: str = "now",
    timeout: float = 120.0,
    target: str | None = None,
    python: str | None = None,
    wheels: Path | None = None,
    ssh: SshOptions | None = None,
) -> OnDevice:
    """Make the previous bundle of an installation on a device current again.

    Args:
        host: as of `status_on`.
        path: as of `status_on`.
        self_test: `later` leaves it to the first opening.
        timeout: of the self-test, in seconds.
        target: the form that the self-test opens; the first that fits if left out.
        python: the device's Python; its entry's, or `python3`, if None.
        wheels: a folder here with numpy and Pillow for a device that lacks them; None to fetch them.
        ssh: how the device is reached.

    Raises:
        EdgebertError: as of `status_on`, and what a roll-back on this computer raises.
    """
    words = ["rollback", _folder(path), "--json", f"--self-test={self_test}", f"--timeout={timeout}"]
    words += [f"--target={target}"] if target else []
    return _answered(host, words, _rollback, seconds=timeout + _STATUS_SECONDS, python=python, wheels=wheels, ssh=ssh)


def _folder(path: str) -> str:
    if not path or path.startswith("-") or not path.isprintable():
        raise UsageError(
            f"`{printable(path)}` names no folder", expected="a folder on the device, such as /var/lib/widgets"
        )
    return path


def _answered(
    host: str,
    words: Sequence[str],
    read: Callable[[Fields], StatusReport | RollbackReport],
    *,
    seconds: float,
    python: str | None,
    wheels: Path | None,
    ssh: SshOptions | None,
) -> OnDevice:
    device = ssh_of(host, python=python)
    answered = run_agent(
        device.destination, words, (), 0, answer_seconds=seconds, python=device.python, wheels=wheels, options=ssh
    )
    try:
        report = read(Fields(answered.answer, what=f"the answer of `{answered.device.name}`"))
    except BadDataError as error:
        raise RefusedError(printable(error.what), expected=error.expected) from error
    return OnDevice(device=answered.device, report=report)


def _status(fields: Fields) -> StatusReport:
    policy = fields.value.get("policy")
    return StatusReport(
        path=Path(_shown(fields.text("path"))),
        current=_installed(fields, "current"),
        previous=_installed(fields, "previous"),
        crashes=fields.integer("crashes"),
        highest_release=fields.integer("highest_release"),
        installs=fields.integer("installs"),
        bad=tuple(
            Bad(digest=bad.digest, kind=bad.kind, reason=_shown(bad.reason))
            for bad in map(Bad.from_fields, fields.list_of_fields("bad"))
        ),
        policy=None if policy is None else _policy(fields.fields("policy")),
        notes=tuple(map(_shown, fields.texts("notes"))),
    )


def _rollback(fields: Fields) -> RollbackReport:
    bundle = Fields(
        {"signed_by": None, **fields.value}, what=fields.what
    )  # a roll-back's report does not say who signed
    return RollbackReport(
        path=Path(_shown(fields.text("path"))), bundle=_named(bundle), previous=digest_of(fields, "previous")
    )


def _installed(fields: Fields, name: str) -> Installed | None:
    return None if fields.value.get(name) is None else _named(fields.fields(name))


def _named(fields: Fields) -> Installed:
    read = Installed.from_fields(fields)
    signed_by = None if read.signed_by is None else _shown(read.signed_by)
    return Installed(
        digest=read.digest,
        name=_shown(read.name),
        release=read.release,
        signed_by=signed_by,
        checked_at=read.checked_at,
    )


def _policy(fields: Fields) -> JsonObject:
    """Return what `StatusReport` shows of a policy."""
    identity = fields.optional_text("identity")
    shown: dict[str, JsonValue] = {
        "identity": None if identity is None else _shown(identity),
        "allowed_signers": fields.integer("allowed_signers"),
        "allowed_signers_sha256": _shown(fields.text("allowed_signers_sha256")),
    }
    return shown


def _shown(text: str) -> str:
    return printable(text)[:_MOST_TEXT]
