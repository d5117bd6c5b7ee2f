"""What is wrong where `current` is no link of ours, and the command that mends it.

A copy that follows links (`scp -r`, `cp -rL`) makes folders of `current` and `previous`; one that rewrites them makes them point elsewhere;
a slip of the keyboard removes them. The bundles are still there then, and nothing may remove them.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import stat

from edgebert.errors import BundleError, MalformedBundleError, NoSuchBundleError
from edgebert.install.folder import BUNDLES, Folder, LinkName
from edgebert.install.state import State

_MOST_SUMS_BYTES = 64 << 10


def why_no_current(folder: Folder, state: State) -> BundleError | None:
    """Return what is wrong where something was installed and `current` does not say what; None where nothing is.

    Args:
        folder: the installation's.
        state: what it remembers.
    """
    if folder.link("current") is not None:
        return None
    if folder.is_there("current"):
        return _no_link(folder, "current", state)
    if not folder.digests() or not (state.history or folder.is_there("previous")):
        return None
    digest = _likely(folder, state)
    return NoSuchBundleError(
        f"`{folder.path / 'current'}` is missing, and bundles are installed",
        expected="a link to the one that is used",
        hint=f"ln -s {BUNDLES}/{digest} {_quoted(folder, 'current')}",
    )


def wrong_links(folder: Folder, state: State) -> list[MalformedBundleError]:
    """Return what is wrong where a folder, or a link of somebody else's, is in the place of one of ours."""
    names: tuple[LinkName, ...] = ("current", "previous")
    return [_no_link(folder, name, state) for name in names if folder.link(name) is None and folder.is_there(name)]


def check_links(folder: Folder, state: State) -> None:
    """Refuse what cannot be replaced in one step.

    Raises:
        MalformedBundleError: `current` or `previous` is no link of ours.
    """
    for error in wrong_links(folder, state):
        raise error


def _no_link(folder: Folder, name: LinkName, state: State) -> MalformedBundleError:
    mode = os.stat(name, dir_fd=folder.descriptor, follow_symlinks=False).st_mode
    if stat.S_ISLNK(mode):
        what, remove = f"is a link to `{os.readlink(name, dir_fd=folder.descriptor)}`", "rm"
    else:
        what, remove = "is a folder and no link" if stat.S_ISDIR(mode) else "is a file and no link", "rm -r"
    hint = f"{remove} {_quoted(folder, name)}"
    digest = _likely(folder, state) if name == "current" else _copied(folder, name)
    if digest in folder.digests():
        hint += f" && ln -s {BUNDLES}/{digest} {_quoted(folder, name)}"
    return MalformedBundleError(
        f"`{folder.path / name}` {what}",
        expected=f"a link into `{BUNDLES}/`; `cp -a`, `rsync -a` and tar copy an installation with its links",
        hint=hint,
    )


def _likely(folder: Folder, state: State) -> str | None:
    """Return the digest that `current` most likely stood for, of a bundle that is here; None where there is none."""
    here = folder.digests()
    remembered = [entry.digest for entry in reversed(state.history)]
    return next((digest for digest in (_copied(folder, "current"), *remembered, *here) if digest in here), None)


def _copied(folder: Folder, name: LinkName) -> str | None:
    """Return the digest of the bundle that lies in the place of a link, or that a link there ends in."""
    try:
        target = os.readlink(name, dir_fd=folder.descriptor)
        return target.rstrip("/").rpartition("/")[2]
    except OSError:
        pass
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        with os.fdopen(os.open(f"{name}/SHA256SUMS", flags, dir_fd=folder.descriptor), "rb") as stream:
            return hashlib.sha256(stream.read(_MOST_SUMS_BYTES)).hexdigest()
    except OSError:
        return None


def _quoted(folder: Folder, name: str) -> str:
    return shlex.quote(str(folder.path / name))
