"""Opening what is installed: what an application does at every start, and what gets it out of a loop of crashes.

An opening is counted before it begins and forgotten when it is over (`edgebert.install.attempts`). Where the process died three
times in a row, or the bundle is refused, the installation goes back to the previous bundle, says so loudly, and marks the
other as bad, so that it is not picked again by itself. Where nothing can be written (a read-only file system, another user, an
installation under way) the same choice is made for this process alone.

What is not the bundle's fault does not count against it: a backend that is missing (`UnavailableError`), memory that
ran out, an interruption. The previous bundle would most likely fail the same way, and going back would hide what is wrong.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from edgebert.bundle import read_bundle
from edgebert.errors import (
    BadDataError,
    BundleError,
    EdgebertError,
    MalformedBundleError,
    NoSuchBundleError,
    NotFiniteError,
    RefusedError,
    UnreadableError,
)
from edgebert.install import attempts
from edgebert.install.faults import bad_of, speaks_against
from edgebert.install.folder import Folder, LinkName, is_installation, open_folder
from edgebert.install.installing import check_installed
from edgebert.install.links import why_no_current, wrong_links
from edgebert.install.lock import locked_folder
from edgebert.install.policy import describe_signers, read_policy
from edgebert.install.reports import StatusReport
from edgebert.install.state import Bad, BadKind, Installed, State, Switch, read_state
from edgebert.install.switch import previous_of, settle, switch
from edgebert.signing import SignaturePolicy, signature_text

_log = logging.getLogger("edgebert")
_Opened = TypeVar("_Opened")

# What opening a bundle raises that is at fault itself: refused, malformed, no model for the backend, or NaN for an answer.
_AT_FAULT = (BundleError, BadDataError, NotFiniteError)
_MOST_SWITCHES = 8  # of other processes, while this one opens


def open_installed(path: Path, open_one: Callable[[Path], _Opened]) -> _Opened:
    """Open the current bundle of an installation, or the previous one where the current one fails.

    Args:
        path: the installation's folder.
        open_one: opens the bundle in a folder, self-test included. `BundleError`, `BadDataError` and `NotFiniteError` mean that
            the bundle is at fault; what the caller alone demands must end otherwise, or it changes the installation for all.

    Returns:
        What `open_one` returned.

    Raises:
        NoSuchBundleError: nothing is installed there, or `current` is missing.
        MalformedBundleError: `current` is no link.
        BundleError, BadDataError, NotFiniteError: neither the current nor the previous bundle can be opened; of the current one,
            which stays current.
        RefusedError: the signature policy is damaged.
        UnreadableError, MemoryExhaustedError: the policy or the bundle cannot be read; nothing is rolled back then.
        EdgebertError: what `open_one` raised of another kind, such as `UnavailableError`; nothing is rolled back then.
    """
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(open_folder(path))
        except OSError as error:
            raise NoSuchBundleError(
                f"cannot open the installation `{path}`: {error.strerror or error}", hint=f"edgebert status {path}"
            ) from error
        _tidy(folder)
        return _Opening(folder).run(open_one)


def open_previous(path: Path, open_one: Callable[[Path], _Opened]) -> _Opened:
    """Open the previous bundle of an installation, signed as that demands; nothing is counted and nothing is changed.

    Raises:
        NoSuchBundleError: there is none.
        RefusedBundleError: it is not signed as demanded.
        EdgebertError: what `open_one` raised, or the policy cannot be read.
    """
    with open_folder(path) as folder:
        opening = _Opening(folder)
        previous = opening.previous()
        if previous is None:
            raise NoSuchBundleError(f"`{path}` has no previous bundle", hint=f"edgebert status {path}")
        opening.check_signature(previous)
        return open_one(folder.bundle_path(previous))


class _Opening:
    """One opening: which bundles were tried, why they failed, and what speaks against the current one."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.failed: dict[str, EdgebertError] = {}
        self._told = False

    def previous(self) -> str | None:
        """Return the digest of the previous bundle, or None."""
        return previous_of(self.folder, self.state())

    def run(self, open_one: Callable[[Path], _Opened]) -> _Opened:
        for _ in range(_MOST_SWITCHES):
            digest, leaves = self._choose()
            attempt, well = attempts.begin(self.folder, digest), False
            try:
                self.check_signature(digest)
                opened = open_one(self.folder.bundle_path(digest))
                well = True
            except UnreadableError:
                raise
            except _AT_FAULT as error:
                failure = error
            else:
                if leaves is not None:
                    self._go_back(leaves, digest)
                return opened
            finally:
                if attempt is not None:
                    attempt.end(well=well)
            self._learn(digest, failure)
        raise NoSuchBundleError(
            f"`{self.folder.path}` was changed {_MOST_SWITCHES} times while it was opened", hint="try again"
        )

    def _choose(self) -> tuple[str, Bad | None]:
        """Return what to open, and what is wrong with the current bundle where that is another one.

        The first of current and previous that nothing speaks against; else the first that was not tried.
        """
        state = self.state()
        current = self.folder.link("current")
        found = [digest for digest in (current, previous_of(self.folder, state)) if digest is not None]
        here = [digest for digest in found if self.folder.has_bundle(digest)]
        trouble = why_no_current(self.folder, state)
        if not here:
            raise trouble or NoSuchBundleError(
                f"nothing is installed in `{self.folder.path}`", hint=f"edgebert install BUNDLE --to {self.folder.path}"
            )
        against = {digest: speaks_against(self.folder, state, digest) for digest in here if digest not in self.failed}
        if not against:
            raise self.failed.get(current or "") or next(iter(self.failed.values()))
        chosen = next((digest for digest, bad in against.items() if bad is None), next(iter(against)))
        bad = against[chosen]
        if bad is not None:
            self._warn(chosen, f"is opened although {bad.reason}: there is no other one")
        if trouble is not None:
            _log.warning("%s: this process opens %s, the previous bundle; %s", trouble.what, chosen[:12], trouble.hint)
        if current is None or chosen == current:
            return chosen, None
        leaves = against.get(current) or self._failure_of(current)
        self._warn(current, f"failed ({leaves.reason}): {chosen[:12]}, the previous one, is tried")
        return chosen, leaves

    def _failure_of(self, digest: str) -> Bad:
        error = self.failed.get(digest)
        if error is None:
            return Bad(digest=digest, kind="damaged", reason="its files are missing")
        return bad_of(digest, self._kind(digest), error)

    def _go_back(self, leaves: Bad, to: str) -> None:
        """Make the previous bundle, which was opened well, current; durably where that can be done, and say so."""
        try:
            with locked_folder(self.folder):
                state = settle(self.folder, read_state(self.folder))
                if self.folder.link("current") != leaves.digest:
                    return  # somebody else was faster
                switch(self.folder, state.with_bad(leaves), Switch(to=to, replaces=leaves.digest))
        except (OSError, EdgebertError) as error:
            why = error.what if isinstance(error, EdgebertError) else error.strerror
            self._warn(
                leaves.digest,
                f"failed: this process uses {to[:12]}, the previous one; this is for this process only, as nothing can be "
                f"written ({why})",
            )
            return
        self._warn(leaves.digest, f"failed ({leaves.reason}): rolled back to {to[:12]}, the previous one")

    def _warn(self, digest: str, text: str) -> None:
        _log.warning("bundle %s in `%s` %s", digest[:12], self.folder.path, text)

    def _kind(self, digest: str) -> BadKind:
        """Tell a bundle that is bad from a copy of it that is damaged here and can be installed again."""
        try:
            read_bundle(self.folder.bundle_path(digest))
        except BundleError:
            return "damaged"
        return "self-test"

    def check_signature(self, digest: str) -> str | None:
        """Check that a bundle is signed as the installation demands; return who signed it, or None if it demands nothing."""
        signers = read_policy(self.folder).for_bundle(digest)
        if signers is None:
            return None
        known, path, principals = self.state().installed(digest), self.folder.bundle_path(digest), [""]

        def check(sums: bytes, signature: bytes | None) -> None:
            principals.append(check_installed(sums, signature, signers, known) or "")

        found = read_bundle(path, check_sums=check)
        if found.digest != digest:
            raise MalformedBundleError(
                f"`{path}` holds the bundle {found.digest[:12]}", expected="the one that its folder is named after"
            )
        return principals[-1]

    def state(self) -> State:
        """Return the state; nothing is remembered where it cannot be read, since a device has to start."""
        try:
            return read_state(self.folder)
        except (BadDataError, UnreadableError) as error:
            if not self._told:
                _log.warning("%s", error.what)
            self._told = True
            return State()

    def _learn(self, digest: str, error: EdgebertError) -> None:
        """Remember that a bundle failed, unless it was replaced and removed while it was being opened."""
        state = self.state()
        if digest in (self.folder.link("current"), previous_of(self.folder, state)):
            self.failed[digest] = error


def status(path: Path) -> StatusReport:
    """Say what an installation holds; changes nothing and needs no permission to write.

    Raises:
        NoSuchBundleError: there is no installation.
    """
    if not is_installation(path):
        raise NoSuchBundleError(f"no installation at `{path}`", hint=f"edgebert install BUNDLE --to {path}")
    notes: list[str] = []
    try:
        with open_folder(path) as folder:
            current = folder.link("current")
            try:
                state = read_state(folder)
            except (BadDataError, UnreadableError) as error:
                notes.append(error.what)
                state = State()
            previous = previous_of(folder, state)
            policy = None
            try:
                policy = describe_signers(read_policy(folder).settled(current).signers)
            except (RefusedError, UnreadableError) as error:
                notes.append(error.what)
            missing = why_no_current(folder, state)
            wrong: list[BundleError] = [*wrong_links(folder, state)]
            notes += [f"{error.what}; {error.hint}" for error in wrong or ([missing] if missing is not None else [])]
            state = state.settled(current)
            if current is not None and not folder.has_bundle(current):
                notes.append(f"the current bundle {current[:12]} is missing: the previous one is opened")
            return StatusReport(
                path=path,
                current=_known(state, current),
                previous=_known(state, previous),
                crashes=0 if current is None else attempts.crashes_known(folder, current),
                highest_release=state.highest_release,
                installs=state.installs,
                bad=state.bad,
                policy=policy,
                notes=tuple(notes),
            )
    except OSError as error:
        raise NoSuchBundleError(f"cannot read the installation `{path}`: {error.strerror or error}") from error


def verify_installation(
    path: Path, signers: SignaturePolicy | None = None, *, which: LinkName = "current"
) -> tuple[Path, list[str]]:
    """Check who signed the current bundle, or the previous one, as the installation demands and as `signers` does.

    Returns:
        The folder of that bundle, and one line for each thing that held.

    Raises:
        NoSuchBundleError: there is none.
        MalformedBundleError: `current` is no link.
        BundleError: it is not signed as demanded, or damaged.
        RefusedError: the policy is damaged.
    """
    with open_folder(path) as folder:
        opening = _Opening(folder)
        digest = folder.link("current") if which == "current" else opening.previous()
        if digest is None:
            nothing = NoSuchBundleError(f"`{path}` has no {which} bundle", hint=f"edgebert install BUNDLE --to {path}")
            raise (why_no_current(folder, opening.state()) if which == "current" else None) or nothing
        principal = opening.check_signature(digest)
        bundle = folder.bundle_path(digest)
        held = [
            f"{which} is {digest}",
            f"signed by `{principal}`, as the installation demands"
            if principal is not None
            else "the installation demands no signature",
        ]
        return bundle, held + ([] if signers is None else [signature_text(bundle, signers)])


def _known(state: State, digest: str | None) -> Installed | None:
    if digest is None:
        return None
    return state.installed(digest) or Installed(digest=digest, name="unknown")


def _tidy(folder: Folder) -> None:
    """Complete what a killed run had under way, where there is anything, nobody is at it, and it can be written."""
    try:
        state = read_state(folder)
        top, inside = folder.leftovers(installed_before=bool(state.history))
        if state.pending is None and not top and not inside:
            return
        with locked_folder(folder):
            settle(folder, read_state(folder))
    except (OSError, EdgebertError):
        return
