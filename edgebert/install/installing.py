"""Installing a bundle, and going back: what the commands `install` and `rollback` do."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from edgebert.bundle import MAX_BUNDLE_BYTES, Bundle, read_bundle
from edgebert.errors import (
    BadDataError,
    BundleError,
    CannotWriteError,
    EdgebertError,
    NoSuchBundleError,
    RefusedBundleError,
    RefusedError,
    UnreadableError,
    UsageError,
)
from edgebert.install.faults import to_go_back_to
from edgebert.install.folder import (
    ATTEMPTS,
    BUNDLES,
    LOCK,
    STAGING_PREFIX,
    STATE,
    Folder,
    check_is_ours,
    check_links_work,
    check_owner,
    is_installation,
    names_in,
    open_folder,
)
from edgebert.install.links import check_links
from edgebert.install.lock import locked_folder
from edgebert.install.policy import Policy, is_weaker, read_policy, write_policy
from edgebert.install.reports import InstallReport, Outcome, RollbackReport
from edgebert.install.selftest import run_self_test
from edgebert.install.state import Installed, State, Switch, read_state, write_state
from edgebert.install.switch import (
    previous_of,
    publish,
    remove_leftovers,
    replace_signature,
    settle,
    stage,
    switch,
    unstage,
)
from edgebert.signing import OutsideItsTimeError, SignaturePolicy, Signers, check_signers

_log = logging.getLogger("edgebert")

STDIN = Path("-")
_MOST_PACKED_BYTES = MAX_BUNDLE_BYTES + (16 << 20)  # an archive's own entries
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallOptions:
    """How a bundle is installed.

    Attributes:
        self_test: `now` opens the bundle in a process of its own and asks its canaries before it becomes current; `later`
            leaves that to the first opening, for a device image that is made on another computer.
        timeout: seconds that the self-test may take.
        target: the form that the self-test opens; None for the first that fits this computer.
        allow_downgrade: accept an older release, or a bundle that something newer has replaced here, and let this bundle's
            release be the highest from then on; judge keys by this computer's clock, though that of an earlier installation was
            ahead of it; also begin a new state where the old one is damaged.
        allow_bad: accept a bundle that is marked bad here.
        signers: allowed signers, one of whom must have signed this bundle.
        identity: the principal who must have signed.
        revoked: a key revocation list, or public keys, that are not believed any more.
        require_signature: from now on every bundle here must be signed by one of `signers`, when it is installed and
            whenever it is opened.
        weaken_policy: let this call's signature options replace stricter ones; without any, demand no signatures any more.
    """

    self_test: Literal["now", "later"] = "now"
    timeout: float = 120.0
    target: str | None = None
    allow_downgrade: bool = False
    allow_bad: bool = False
    signers: Path | None = None
    identity: str | None = None
    revoked: Path | None = None
    require_signature: bool = False
    weaken_policy: bool = False

    def __post_init__(self) -> None:
        _check_timeout(self.timeout)
        if self.signers is None and (self.identity is not None or self.revoked is not None):
            raise UsageError("`--identity` and `--revoked` need `--signers`", hint="--signers FILE")


def _check_timeout(timeout: float) -> None:
    if not 0 < timeout <= 86_400:
        raise UsageError(f"a timeout of {timeout:g} s", expected="more than 0, at most a day")


def install(source: Path, path: Path, options: InstallOptions | None = None) -> InstallReport:
    """Install a bundle, or say that it is there already; whatever happens, the old bundle or the new one is current.

    Args:
        source: a bundle's folder, a packed one, or `-` for a packed one on stdin.
        path: the installation's folder; made where it is missing.
        options: the defaults where None.

    Raises:
        BundleError: the bundle is none, damaged, not signed as demanded, or fails its self-test; also an older one (77).
        UnavailableError: nothing in it can run on this computer.
        CannotWriteError: the folder cannot be written, is full, is something else, or belongs to somebody else and root calls.
        UnreadableError: what is installed cannot be read.
        LockedError: another process is changing the installation.
        RefusedError: a weaker policy than what is demanded here.
    """
    options = options or InstallOptions()
    with changing(path, create=True) as folder:
        state, is_new = _settled(folder, options)
        demanded = _demanded(folder, options)
        latest = 0 if options.allow_downgrade else state.latest_check
        bundle, signed_by, checked_at = _read(source, folder, demanded, latest)
        entry = Installed(
            digest=bundle.digest,
            name=bundle.manifest.name,
            release=bundle.manifest.release,
            signed_by=signed_by,
            checked_at=checked_at,
        )
        if folder.link("current") == bundle.digest:
            return _keep(folder, state, bundle, entry, demanded, options, is_new=is_new)
        _check_order(state, entry, options)
        return _replace(folder, state, bundle, entry, demanded, options)


def write_phase(bundle: Bundle, path: Path) -> InstallReport:
    """Install a verified bundle without its self-test and without asking for signatures: the writing and nothing else.

    For whoever proves that no kill, power cut or full disk leaves anything torn: it runs the same code as `install`.
    """
    options = InstallOptions(self_test="later", allow_downgrade=True, allow_bad=True)
    with changing(path, create=True) as folder:
        state, is_new = _settled(folder, options)
        demanded = _Demand(old=None, new=None, changes=False, checks=())
        entry = Installed(digest=bundle.digest, name=bundle.manifest.name, release=bundle.manifest.release)
        if folder.link("current") == bundle.digest:
            return _keep(folder, state, bundle, entry, demanded, options, is_new=is_new)
        return _replace(folder, state, bundle, entry, demanded, options)


def rollback(
    path: Path, *, self_test: Literal["now", "later"] = "now", timeout: float = 120.0, target: str | None = None
) -> RollbackReport:
    """Make the previous bundle current again, and the current one previous; twice is back where it was.

    Raises:
        UsageError: an impossible timeout.
        NoSuchBundleError: there is no previous bundle, or no installation.
        BundleError: the previous one is damaged, marked bad, not signed as demanded, or fails its self-test.
        CannotWriteError: the folder cannot be written.
        LockedError: another process is changing the installation.
    """
    _check_timeout(timeout)
    with changing(path, create=False) as folder:
        state = read_state(folder)
        check_links(folder, state)
        state = settle(folder, state)
        current, previous = folder.link("current"), previous_of(folder, state)
        if previous is None:
            raise NoSuchBundleError(
                f"`{path}` has no previous bundle",
                expected="one to go back to",
                hint="edgebert install BUNDLE --to DIR",
            )
        bad = state.why_bad(previous)
        if bad is not None:
            raise RefusedBundleError(
                f"the previous bundle {previous[:12]} is marked bad: {bad.reason}",
                expected="one that worked",
                hint="edgebert install BUNDLE --to DIR --allow-bad",
            )
        signers, known = read_policy(folder).for_bundle(previous), state.installed(previous)
        bundle = read_bundle(
            folder.bundle_path(previous),
            check_sums=lambda sums, signature: check_installed(sums, signature, signers, known),
        )
        if self_test == "now":
            run_self_test(folder.bundle_path(previous), len(bundle.manifest.canaries), target=target, timeout_s=timeout)
        switch(folder, state, Switch(to=previous, replaces=current))
        entry = known or Installed(digest=previous, name=bundle.manifest.name, release=bundle.manifest.release)
        return RollbackReport(path=path, bundle=entry, previous=current or "")


def check_installed(
    sums: bytes, signature: bytes | None, signers: Signers | None, known: Installed | None
) -> str | None:
    """Check the signature of a bundle that is installed, where one is demanded.

    A key that was valid when the bundle was installed stays good for it: a device must not stop when a key expires, nor when
    its clock starts in 1970.

    Returns:
        The principal who signed, or None where no signature is demanded.

    Raises:
        RefusedBundleError: it is not signed as demanded.
        UnavailableError: `ssh-keygen` is missing.
    """
    if signers is None:
        return None
    try:
        return check_signers(sums, signature, signers)
    except OutsideItsTimeError:
        if known is None or known.checked_at is None:
            raise
        return check_signers(sums, signature, signers, at=known.checked_at, named="when it was installed")


@contextlib.contextmanager
def changing(path: Path, *, create: bool) -> Iterator[Folder]:
    """Open an installation for whoever changes it: the lock is held, and what fails leaves nothing behind.

    Raises:
        NoSuchBundleError: it is not there, and not to be made.
        CannotWriteError: it cannot be written, or is something else.
        LockedError: another process is changing it.
    """
    made: list[Path] = []
    try:
        if create:
            made = _make(path)
        elif not is_installation(path):
            raise NoSuchBundleError(f"no installation at `{path}`", hint="edgebert install BUNDLE --to DIR")
        with open_folder(path) as folder:
            check_is_ours(folder)
            check_owner(folder)
            found = frozenset(names_in(folder.descriptor))
            with locked_folder(folder):
                try:
                    folder.make_inner_folders()
                    check_links_work(folder)
                    yield folder
                except BaseException:
                    _undo(folder, found, made)
                    raise
    except OSError as error:
        raise CannotWriteError(
            f"cannot write `{path}`: {error.strerror or error}",
            expected="a folder that this user may write, with room for the bundle",
            hint=f"ls -ld {path}; df -h {path}",
        ) from error


def _make(path: Path) -> list[Path]:
    """Make the folder and those above it, durably; return those that were missing, the deepest first."""
    if path.is_dir():
        return []
    missing = [path.absolute(), *(parent for parent in path.absolute().parents if not parent.exists())]
    path.mkdir(parents=True, exist_ok=True)
    for entry in missing:
        descriptor = os.open(entry.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    return missing


def _undo(folder: Folder, found: frozenset[str], made: Sequence[Path]) -> None:
    """Remove what a call that failed has left; what cannot be removed now the next call removes.

    Args:
        folder: the installation's.
        found: names that were in it before.
        made: folders that the call made, the deepest first.
    """
    with contextlib.suppress(OSError, EdgebertError):
        settle(folder, read_state(folder))
    if folder.link("current") is not None:
        return
    with contextlib.suppress(OSError):
        if STATE not in found:
            folder.remove(STATE)
        for name in (ATTEMPTS, BUNDLES):
            if name not in found:
                os.rmdir(name, dir_fd=folder.descriptor)
        if LOCK not in found:  # last: whoever waits for it sees that it was removed
            os.unlink(LOCK, dir_fd=folder.descriptor)
        for path in made:
            path.rmdir()


def _settled(folder: Folder, options: InstallOptions) -> tuple[State, bool]:
    """Return the state with nothing under way, and whether it is a new one that is not written yet.

    A damaged one begins anew where a downgrade is allowed, with what lies here; it is written with the bundle, so that a call
    that fails leaves the damaged one, which still refuses.
    """
    try:
        state, is_new = read_state(folder), False
    except (BadDataError, UnreadableError) as error:
        if not options.allow_downgrade:
            raise
        _log.warning("%s: it begins anew, and what was installed before current and previous is not known", error.what)
        state, is_new = _of_what_lies_here(folder), True
    check_links(folder, state)
    return settle(folder, state), is_new


def _of_what_lies_here(folder: Folder) -> State:
    """Return the state of an installation whose state is lost, as its bundles tell it: the current one was installed last."""
    state = State()
    last = (folder.link("previous"), folder.link("current"))
    for digest in (*(digest for digest in folder.digests() if digest not in last), *last):
        copy = None if digest is None else _whole_copy(folder, digest)
        if copy is not None:
            manifest = copy.manifest
            state = state.with_installed(Installed(digest=copy.digest, name=manifest.name, release=manifest.release))
    return replace(state, installs=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Demand:
    """What is asked of signatures.

    Attributes:
        old: whose signature the installation demands today.
        new: whose it demands once the bundle is current.
        changes: whether that is to be written.
        checks: all who must be satisfied with this bundle.
    """

    old: Signers | None
    new: Signers | None
    changes: bool
    checks: tuple[Signers, ...]


def _demanded(folder: Folder, options: InstallOptions) -> _Demand:
    """Return whose signature this bundle must have, and what is demanded from now on.

    Raises:
        UsageError: signatures are required, and nobody said whose.
        RefusedError: the new demand is weaker than the one here.
    """
    given = None
    if options.signers is not None:
        given = SignaturePolicy(
            allowed_signers=options.signers, identity=options.identity, revoked=options.revoked
        ).read()
    old, damaged = None, False
    try:
        old = read_policy(folder).signers
    except (RefusedError, UnreadableError):
        if not options.weaken_policy:
            raise
        damaged = True
    if options.require_signature and given is None and old is None:
        raise UsageError(
            "`--require-signature` does not say whose", expected="an allowed-signers file", hint="--signers FILE"
        )
    new = old
    if options.require_signature and given is not None:
        new = given
    elif options.weaken_policy and not options.require_signature:
        new = None
    if is_weaker(new, old) and not options.weaken_policy:
        raise RefusedError(
            f"the signatures asked for could let in what `{folder.path}` refuses today",
            expected="the same allowed signers or fewer of them, and what was revoked before still revoked",
            hint="add --weaken-policy if that is meant",
        )
    checks = dict.fromkeys(signers for signers in (new, given) if signers is not None)
    return _Demand(old=old, new=new, changes=damaged or new != old, checks=tuple(checks))


def _read(source: Path, folder: Folder, demanded: _Demand, latest: int) -> tuple[Bundle, str | None, int | None]:
    """Read the bundle, its signature first; return it, who signed it, and at what time that was judged.

    Args:
        source: where it lies.
        folder: the installation's.
        demanded: whose signatures.
        latest: no time before this counts, in seconds since 1970: a clock that went back must not bring an expired key back.
    """
    if not demanded.checks:
        with _unpacked(source, folder) as path:
            return read_bundle(path), None, None
    now, signed_by = time.time(), ""
    at = latest if now < latest else None
    if at is not None:
        _log.warning("this computer's clock is behind the last installation here: keys are judged by that one's time")

    def check(sums: bytes, signature: bytes | None) -> None:
        nonlocal signed_by
        for signers in demanded.checks:
            try:
                signed_by = check_signers(
                    sums, signature, signers, at=at, named="the time of the last installation here"
                )
            except OutsideItsTimeError as error:
                if at is None:
                    raise
                raise OutsideItsTimeError(
                    error.what,
                    expected=error.expected,
                    hint="if that clock was wrong and this one is right: --allow-downgrade judges by this one, from then on",
                ) from error

    with _unpacked(source, folder) as path:
        bundle = read_bundle(path, check_sums=check)
    return bundle, signed_by, int(max(now, latest))


@contextlib.contextmanager
def _unpacked(source: Path, folder: Folder) -> Iterator[Path]:
    """Yield the path of the bundle; one from stdin is kept beside the bundles while it is read, and then removed."""
    if source != STDIN:
        yield source
        return
    name = f"{STAGING_PREFIX}stdin-{os.getpid()}.zip"
    descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=folder.descriptor)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            size = 0
            while chunk := sys.stdin.buffer.read(_CHUNK):
                size += len(chunk)
                if size > _MOST_PACKED_BYTES:
                    raise RefusedBundleError(
                        f"more than {_MOST_PACKED_BYTES:,} bytes came on stdin", expected="a packed bundle"
                    )
                stream.write(chunk)
        path = folder.path / name
        try:
            yield path
        except BundleError as error:
            said = error.what.replace(str(path), "stdin")
            raise type(error)(said, expected=error.expected, hint=error.hint) from error
    finally:
        os.unlink(name, dir_fd=folder.descriptor)


def _check_order(state: State, entry: Installed, options: InstallOptions) -> None:
    """Refuse what went bad here, what is older than what was here, and what was replaced here.

    Raises:
        RefusedBundleError: it is one of these, and was not allowed.
    """
    bad = state.why_bad(entry.digest)
    if bad is not None and bad.kind != "damaged" and not options.allow_bad:
        raise RefusedBundleError(
            f"`{entry.name}` {entry.digest[:12]} is marked bad here: {bad.reason}",
            expected="a bundle that has not failed on this computer",
            hint="add --allow-bad to try it again",
        )
    if options.allow_downgrade:
        return
    if entry.release < state.highest_release:
        what = f"is release {entry.release}" if entry.release else "has no release number"
        raise RefusedBundleError(
            f"`{entry.name}` {entry.digest[:12]} {what}, and release {state.highest_release} was installed here",
            expected=f"release {state.highest_release} or newer",
            hint="add --allow-downgrade; or `edgebert rollback DIR` goes back to the previous one",
        )
    if state.was_replaced(entry.digest):
        raise RefusedBundleError(
            f"`{entry.name}` {entry.digest[:12]} was installed here before, and then replaced",
            expected="a bundle that is new here",
            hint="add --allow-downgrade; or `edgebert rollback DIR` goes back to the previous one",
        )


def _keep(
    folder: Folder,
    state: State,
    bundle: Bundle,
    entry: Installed,
    demanded: _Demand,
    options: InstallOptions,
    *,
    is_new: bool,
) -> InstallReport:
    """Leave what is current, after its copy was compared; mend the copy, its signature and the policy where they differ."""
    copy, said = _whole_copy(folder, bundle.digest), None
    known = state.installed(bundle.digest)
    outcome: Outcome = "already current"
    if copy is None:
        said, outcome = _stage_tested(folder, bundle, options), "repaired"
    elif bundle.signature is not None and copy.signature != bundle.signature:
        replace_signature(folder, bundle.digest, bundle.signature)
        outcome = "signature replaced"
    written = state
    if known is None or outcome != "already current" or (entry.signed_by and entry.signed_by != known.signed_by):
        history = (*(old for old in state.history if old.digest != entry.digest), entry)
        known = entry
        written = replace(state.without_bad(entry.digest), history=history)
    if options.allow_downgrade:
        written = written.with_marks_of(entry)
    if is_new or written != state:
        write_state(folder, written)
    if demanded.changes:
        write_policy(folder, Policy(signers=demanded.new))
    return _report(folder, state, demanded, outcome, known, said)


def _replace(
    folder: Folder, state: State, bundle: Bundle, entry: Installed, demanded: _Demand, options: InstallOptions
) -> InstallReport:
    """Put a bundle in the place of what is current."""
    replaces, state = to_go_back_to(folder, state, bundle.digest)
    copy = _whole_copy(folder, bundle.digest)
    if copy is None:
        said = _stage_tested(folder, bundle, options)
    else:
        if bundle.signature is not None and copy.signature != bundle.signature:
            replace_signature(folder, bundle.digest, bundle.signature)
        said = _tested(folder.bundle_path(bundle.digest), bundle, options)
    if demanded.changes:
        write_policy(folder, Policy(signers=demanded.old, next_signers=demanded.new, next_digest=bundle.digest))
    step = Switch(to=bundle.digest, replaces=replaces, installed=entry, resets=options.allow_downgrade)
    state = switch(folder, state, step)
    removed: list[str] = []
    try:
        if demanded.changes:
            write_policy(folder, Policy(signers=demanded.new))
        if state.pending is None:
            removed = remove_leftovers(folder, state)
    except OSError as error:
        _log.warning("`%s`: what is left over cannot be removed now (%s)", folder.path, error.strerror)
    return _report(folder, state, demanded, "installed", entry, said, removed)


def _whole_copy(folder: Folder, digest: str) -> Bundle | None:
    """Return the bundle as it lies in the installation, or None where it is missing or damaged."""
    if not folder.has_bundle(digest):
        return None
    try:
        copy = read_bundle(folder.bundle_path(digest))
    except BundleError:
        return None
    return copy if copy.digest == digest else None


def _stage_tested(folder: Folder, bundle: Bundle, options: InstallOptions) -> str | None:
    """Write the bundle, test it, and give it its name; return what the self-test said."""
    staged = stage(folder, bundle)
    try:
        said = _tested(folder.path / BUNDLES / staged, bundle, options)
    except BaseException:
        unstage(folder, staged)
        raise
    publish(folder, staged, bundle.digest)
    return said


def _tested(path: Path, bundle: Bundle, options: InstallOptions) -> str | None:
    if options.self_test == "later":
        return None
    found = run_self_test(path, len(bundle.manifest.canaries), target=options.target, timeout_s=options.timeout)
    return found.to_text()


def _report(
    folder: Folder,
    state: State,
    demanded: _Demand,
    outcome: Outcome,
    entry: Installed,
    said: str | None,
    removed: Sequence[str] = (),
) -> InstallReport:
    return InstallReport(
        path=folder.path,
        outcome=outcome,
        bundle=entry,
        previous=previous_of(folder, state),
        self_test=said,
        removed=tuple(digest for digest in removed if digest != entry.digest),
        signatures_required=demanded.new is not None,
    )
