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
)
from edgebert.install import attempts
from edgebert.install.attempts import MOST_CRASHES
from edgebert.install.folder import Folder, is_installation, open_folder
from edgebert.install.installing import check_installed
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
            the bundle is at fault.

    Returns:
        What `open_one` returned.

    Raises:
        NoSuchBundleError: nothing is installed there.
        BundleError, BadDataError, NotFiniteError: neither the current nor the previous bundle can be opened; of the last
            that was tried.
        RefusedError: the signature policy cannot be read.
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


class _Opening:
    """One opening: which bundles were tried, and why they failed."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.failed: dict[str, EdgebertError] = {}
        self._told = False

    def run(self, open_one: Callable[[Path], _Opened]) -> _Opened:
        for _ in range(_MOST_SWITCHES):
            digest = self._choose()
            attempt, well = attempts.begin(self.folder, digest), False
            try:
                self.check_signature(digest)
                opened = open_one(self.folder.bundle_path(digest))
                well = True
            except _AT_FAULT as error:
                failure = error
            else:
                return opened
            finally:
                if attempt is not None:
                    attempt.end(well=well)
            self._learn(digest, failure)
        raise NoSuchBundleError(
            f"`{self.folder.path}` was changed {_MOST_SWITCHES} times while it was opened", hint="try again"
        )

    def _choose(self) -> str:
        """Return what to open: the first of current and previous that nothing speaks against, else the first not tried."""
        state = self._state()
        current = self.folder.link("current")
        found = [digest for digest in (current, previous_of(self.folder, state)) if digest is not None]
        here = [digest for digest in found if self.folder.has_bundle(digest)]
        if not here:
            raise NoSuchBundleError(
                f"nothing is installed in `{self.folder.path}`", hint=f"edgebert install BUNDLE --to {self.folder.path}"
            )
        left = [digest for digest in here if digest not in self.failed]
        if not left:
            raise list(self.failed.values())[-1]
        against = {digest: self._speaks_against(state, digest) for digest in left}
        good = [digest for digest in left if against[digest] is None]
        if not good:
            if against[left[0]] is not None:
                _log.warning(
                    "bundle %s in `%s` is opened although %s: there is no other one",
                    left[0][:12],
                    self.folder.path,
                    against[left[0]],
                )
            return left[0]
        if current is not None and good[0] != current:
            self._go_back(state, current, good[0], against.get(current))
        return good[0]

    def _speaks_against(self, state: State, digest: str) -> Bad | None:
        bad = state.why_bad(digest)
        if bad is not None:
            return bad
        if attempts.crashes(self.folder, digest) < MOST_CRASHES:
            return None
        return Bad(
            digest=digest, kind="crashed", reason=f"its process died {MOST_CRASHES} times in a row while it was opened"
        )

    def _go_back(self, state: State, current: str, to: str, bad: Bad | None) -> None:
        """Make the previous bundle current, durably where that can be done, and say so."""
        reason = bad.reason if bad is not None else str(self.failed.get(current) or "its files are missing")
        if bad is None:
            bad = Bad(digest=current, kind=self._kind(current), reason=reason.splitlines()[0])
        text = "bundle %s in `%s` failed (%s): %s %s, the previous one"
        try:
            with locked_folder(self.folder):
                state = settle(self.folder, read_state(self.folder))
                if self.folder.link("current") != current:
                    return  # somebody else was faster
                switch(self.folder, state.with_bad(bad), Switch(to=to, replaces=current))
        except (OSError, EdgebertError) as error:
            why = error.what if isinstance(error, EdgebertError) else error.strerror
            _log.warning(
                text + "; this is for this process only, as nothing can be written (%s)",
                current[:12],
                self.folder.path,
                bad.reason,
                "this process opens",
                to[:12],
                why,
            )
            return
        _log.warning(text, current[:12], self.folder.path, bad.reason, "rolled back to", to[:12])

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
        known, path, principals = self._state().installed(digest), self.folder.bundle_path(digest), [""]

        def check(sums: bytes, signature: bytes | None) -> None:
            principals.append(check_installed(sums, signature, signers, known) or "")

        found = read_bundle(path, check_sums=check)
        if found.digest != digest:
            raise MalformedBundleError(
                f"`{path}` holds the bundle {found.digest[:12]}", expected="the one that its folder is named after"
            )
        return principals[-1]

    def _state(self) -> State:
        """Return the state; nothing is remembered where it is damaged, since a device has to start."""
        try:
            return read_state(self.folder)
        except BadDataError as error:
            if not self._told:
                _log.warning("%s", error.what)
            self._told = True
            return State()

    def _learn(self, digest: str, error: EdgebertError) -> None:
        """Remember that a bundle failed, unless it was replaced and removed while it was being opened."""
        state = self._state()
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
            except BadDataError as error:
                notes.append(error.what)
                state = State()
            previous = previous_of(folder, state)
            policy = None
            try:
                policy = describe_signers(read_policy(folder).settled(current).signers)
            except RefusedError as error:
                notes.append(error.what)
            state = state.settled(current)
            if current is not None and not folder.has_bundle(current):
                notes.append(f"the current bundle {current[:12]} is missing: the previous one is opened")
            return StatusReport(
                path=path,
                current=_known(state, current),
                previous=_known(state, previous),
                crashes=0 if current is None else attempts.crashes(folder, current),
                highest_release=state.highest_release,
                installs=state.installs,
                bad=state.bad,
                policy=policy,
                notes=tuple(notes),
            )
    except OSError as error:
        raise NoSuchBundleError(f"cannot read the installation `{path}`: {error.strerror or error}") from error


def verify_installation(path: Path, signers: SignaturePolicy | None = None) -> tuple[Path, list[str]]:
    """Check who signed the current bundle, as the installation demands and as `signers` does.

    Returns:
        The folder of the current bundle, and one line for each thing that held.

    Raises:
        NoSuchBundleError: nothing is installed.
        BundleError: the current bundle is not signed as demanded, or damaged.
        RefusedError: the policy cannot be read.
    """
    with open_folder(path) as folder:
        current = folder.link("current")
        if current is None:
            raise NoSuchBundleError(f"nothing is installed in `{path}`", hint=f"edgebert install BUNDLE --to {path}")
        principal = _Opening(folder).check_signature(current)
        bundle = folder.bundle_path(current)
        held = [
            f"current is {current}",
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
        top, inside = folder.leftovers()
        if state.pending is None and not top and not inside:
            return
        with locked_folder(folder):
            settle(folder, read_state(folder))
    except (OSError, EdgebertError):
        return
