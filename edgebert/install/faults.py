"""What speaks against a bundle that is installed, and so which one to keep for going back."""

from __future__ import annotations

import shlex

from edgebert._console import printable
from edgebert.bundle import check_whole
from edgebert.errors import BundleError, EdgebertError, UnreadableBundleError
from edgebert.install import attempts
from edgebert.install.attempts import MOST_CRASHES
from edgebert.install.folder import Folder
from edgebert.install.state import Bad, BadKind, State
from edgebert.install.switch import previous_of


def speaks_against(folder: Folder, state: State, digest: str) -> Bad | None:
    """Return why a bundle is not picked, where it was marked or its process died too often; its files are not looked at.

    What cannot be read speaks against nothing: a device has to start.
    """
    return state.why_bad(digest) or _crashed(digest, attempts.crashes_known(folder, digest))


def _crashed(digest: str, crashes: int) -> Bad | None:
    if crashes < MOST_CRASHES:
        return None
    return Bad(
        digest=digest, kind="crashed", reason=f"its process died {MOST_CRASHES} times in a row while it was opened"
    )


def bad_of(digest: str, kind: BadKind, error: EdgebertError) -> Bad:
    """Return what is remembered of a bundle that failed; a path that is no text is written with escapes."""
    return Bad(digest=digest, kind=kind, reason=printable(error.what.splitlines()[0]))


def to_go_back_to(folder: Folder, state: State, new: str) -> tuple[str | None, State]:
    """Return which bundle becomes `previous` when a new one becomes current, and the state with what is wrong with others.

    That is the current one where nothing speaks against it and its copy is whole; else the previous one where that holds of
    it: a bundle that brings a fix must not cost the last one that worked. Where a link was lost, what was installed last.

    Args:
        folder: the installation's.
        state: what it remembers.
        new: the digest that becomes current.

    Returns:
        Where there is no good one, the current one all the same; None where there is nothing.

    Raises:
        UnreadableBundleError: the current one cannot be read and the previous one may be good, so that either may be the last.
        OSError: what is remembered of crashes cannot be read.
    """
    likely = (folder.link("current"), previous_of(folder, state), *(entry.digest for entry in reversed(state.history)))
    here = [
        digest for digest in dict.fromkeys(likely) if digest is not None and digest != new and folder.has_bundle(digest)
    ]
    unread: tuple[str, UnreadableBundleError] | None = None
    for digest in here:
        bad = state.why_bad(digest) or _crashed(digest, attempts.crashes(folder, digest))
        try:
            if bad is None:
                check_whole(folder.bundle_path(digest), digest)
        except UnreadableBundleError as error:
            if unread is None:
                unread = digest, error
                continue
        except BundleError as error:
            bad = bad_of(digest, "damaged", error)
        if bad is not None:
            state = state.with_bad(bad)
        elif unread is None:
            return digest, state
        else:
            raise UnreadableBundleError(
                unread[1].what,
                expected="a current bundle that can be read, or one known to be damaged, before another takes its place",
                hint=f"edgebert rollback {shlex.quote(str(folder.path))} first, where its disk has lost it",
            ) from unread[1]
    if unread is not None:
        return unread[0], state
    return (here[0] if here else None), state
