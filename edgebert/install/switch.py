"""Changing what is current, so that a kill or a power cut at any moment leaves the old or the new, and the next call goes on.

The switch is written down in `state.json` first, then `current` is replaced in one step, then `previous`, then the state again.
Whoever comes after a kill finds the note: where `current` already is what the note says, the rest is done; else the note is dropped.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from edgebert.bundle import SIGNATURE_FILE, Bundle
from edgebert.errors import CannotWriteError, RefusedError, UnreadableError
from edgebert.install import attempts
from edgebert.install.folder import ATTEMPTS, BUNDLES, STAGING_PREFIX, Folder, remove_tree, write_file
from edgebert.install.policy import read_policy, write_policy
from edgebert.install.state import State, Switch, write_state

_log = logging.getLogger("edgebert")

_SPARE_BYTES = 1 << 20  # for folders, links and the state


def previous_of(folder: Folder, state: State) -> str | None:
    """Return what is gone back to: what `previous` points to, or what a switch that was cut short replaced."""
    current, pending = folder.link("current"), state.pending
    previous = pending.replaces if pending is not None and pending.to == current else folder.link("previous")
    if previous is None or previous == current or not folder.has_bundle(previous):
        return None
    return previous


def settle(folder: Folder, state: State) -> State:
    """Complete or drop what a killed run had under way, remove what it left, and return the state.

    Only for the holder of the lock. Costs a listing of two folders where nothing was left. What is left and cannot be removed, as
    root's in the folder of another user, is warned of and stays: it is in nobody's way.
    """
    current, pending = folder.link("current"), state.pending
    if (
        pending is not None
        and pending.to == current
        and pending.replaces
        and folder.link("previous") != pending.replaces
    ):
        folder.set_link("previous", pending.replaces)
    if folder.link("previous") is not None and folder.link("previous") == current:
        folder.remove("previous")
    if pending is not None:
        state = state.settled(current)
        write_state(folder, state)
        if pending.to == current:
            _forget_attempts(folder, pending.replaces)
    elif current is not None:
        _forget_attempts(folder, current, folder.link("previous"))
    with contextlib.suppress(RefusedError, UnreadableError):  # a damaged one is refused where it is needed
        policy = read_policy(folder)
        if policy.next_digest is not None:
            write_policy(folder, policy.settled(current))
    remove_leftovers(folder, state)
    return state


def remove_leftovers(folder: Folder, state: State) -> list[str]:
    """Remove what killed runs left and all bundles but the two in use; return the digests of these bundles.

    What cannot be removed is a warning.
    """
    top, inside = folder.leftovers(installed_before=bool(state.history))
    if not top and not inside:
        return []
    for name in top:
        _remove(folder, name, folder.descriptor, name)
    removed = []
    with folder.inner(BUNDLES) as bundles:
        for name in inside:
            if _remove(folder, f"{BUNDLES}/{name}", bundles, name) and not name.startswith(STAGING_PREFIX):
                removed.append(name)
    return removed


def _remove(folder: Folder, what: str, parent: int, name: str) -> bool:
    """Remove a leftover; say whether nothing of it stands under its name any more."""
    try:
        if not name.startswith(STAGING_PREFIX):
            # Renamed first: a half-removed folder must not stand under the name of a complete bundle.
            staging = f"{STAGING_PREFIX}old-{name}"
            remove_tree(parent, staging)
            os.rename(name, staging, src_dir_fd=parent, dst_dir_fd=parent)
            name = staging
        remove_tree(parent, name)
    except OSError as error:
        _log.warning(
            "`%s` is left over and cannot be removed (%s); whoever may: rm -r %s",
            folder.path / what,
            error.strerror,
            shlex.quote(str((folder.path / what).with_name(name))),
        )
        return False
    return True


def switch(folder: Folder, state: State, step: Switch) -> State:
    """Make a bundle current and what was current previous; durable when this returns.

    Once `current` is switched, that is what counts: what cannot be written after it is a warning, and done by the next call.

    Returns:
        The new state; with the switch still pending where something was left to the next call, and nothing may be removed.

    Raises:
        OSError: something cannot be written; what was current still is.
    """
    old, noted = folder.link("current"), replace(state, pending=step)
    write_state(folder, noted)
    try:
        folder.set_link("current", step.to)
    except OSError:
        if folder.link("current") != old:  # replaced, but not known to be durable
            with contextlib.suppress(OSError):
                folder.remove("current") if old is None else folder.set_link("current", old)
        raise
    state = noted.settled(step.to)
    try:
        if step.replaces is not None:
            folder.set_link("previous", step.replaces)
        write_state(folder, state)
    except OSError as error:
        _log.warning(
            "`%s`: `current` is switched, and durable; what follows it cannot be written now (%s), and the next call does it",
            folder.path,
            error.strerror,
        )
        return noted
    _forget_attempts(folder, step.replaces)
    return state


def _forget_attempts(folder: Folder, *all_but: str | None) -> None:
    """Forget the crashes of all bundles but these: of one that just became current, and of those that are gone."""
    try:
        attempts.forget(folder, all_but=frozenset(digest for digest in all_but if digest is not None))
    except FileNotFoundError:
        return
    except OSError as error:
        _log.warning("`%s`: old crashes cannot be forgotten (%s)", folder.path / ATTEMPTS, error.strerror)


def stage(folder: Folder, bundle: Bundle) -> str:
    """Write a bundle's verified bytes into a new folder inside `bundles/`, durably, and return its name there.

    Raises:
        CannotWriteError: there is not room enough.
        OSError: something cannot be written; nothing is left then.
    """
    check_room(folder, bundle)
    name = f"{STAGING_PREFIX}{bundle.digest}-{os.getpid()}"
    with folder.inner(BUNDLES) as bundles:
        remove_tree(bundles, name)
        try:
            os.mkdir(name, dir_fd=bundles)
            _fill(bundles, name, bundle.all_files())
        except BaseException:
            remove_tree(bundles, name)
            raise
    return name


def publish(folder: Folder, staged: str, digest: str) -> None:
    """Give a staged bundle its name, in the place of a damaged copy where there is one; durable when this returns."""
    with folder.inner(BUNDLES) as bundles:
        damaged = f"{STAGING_PREFIX}damaged-{digest}"
        if folder.has_bundle(digest):
            remove_tree(bundles, damaged)
            os.rename(digest, damaged, src_dir_fd=bundles, dst_dir_fd=bundles)
        os.rename(staged, digest, src_dir_fd=bundles, dst_dir_fd=bundles)
        os.fsync(bundles)
        remove_tree(bundles, damaged)


def unstage(folder: Folder, staged: str) -> None:
    """Remove a staged bundle."""
    with folder.inner(BUNDLES) as bundles:
        remove_tree(bundles, staged)


def replace_signature(folder: Folder, digest: str, signature: bytes) -> None:
    """Give an installed bundle another signature in one step; durable when this returns."""
    staging = f"{STAGING_PREFIX}{digest}-signature-{os.getpid()}"
    with folder.inner(BUNDLES) as bundles:
        try:
            write_file(bundles, staging, signature)
            os.replace(staging, f"{digest}/{SIGNATURE_FILE}", src_dir_fd=bundles, dst_dir_fd=bundles)
        finally:
            remove_tree(bundles, staging)
    with folder.inner(f"{BUNDLES}/{digest}") as inside:
        os.fsync(inside)


def check_room(folder: Folder, bundle: Bundle) -> None:
    """Refuse before anything is written where the file system has no room; a full one is found while writing as well.

    Raises:
        CannotWriteError: the bundle does not fit.
    """
    found = os.fstatvfs(folder.descriptor)
    block = found.f_frsize or 4096
    needed = sum(-(-len(content) // block) * block for content in bundle.all_files().values()) + _SPARE_BYTES
    free = found.f_bavail * block
    if needed > free:
        raise CannotWriteError(
            f"`{folder.path}` has {free / (1 << 20):,.1f} MiB free, and the bundle takes {needed / (1 << 20):,.1f}",
            expected="room for the new bundle beside the current and the previous one",
            hint="free some, or choose a folder on another file system with `--to`",
        )


def _fill(parent: int, name: str, files: Mapping[str, bytes]) -> None:
    """Write files below a folder; every file and folder is synced, the deepest first, and last the parent."""
    root = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
    try:
        made: list[str] = []
        for file, content in sorted(files.items()):
            for folder in reversed(Path(file).parents[:-1]):
                if folder.as_posix() not in made:
                    os.mkdir(folder.as_posix(), dir_fd=root)
                    made.append(folder.as_posix())
            write_file(root, file, content)
        for folder_name in reversed(made):
            inner = os.open(folder_name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=root)
            try:
                os.fsync(inner)
            finally:
                os.close(inner)
        os.fsync(root)
        os.fsync(parent)
    finally:
        os.close(root)
