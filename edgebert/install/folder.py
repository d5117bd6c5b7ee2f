"""The folder that holds an installation, and the few ways in which it is changed.

    DIR/bundles/<digest>/   complete bundles
    DIR/current             a symbolic link, `bundles/<digest>`: what is used; switching it is the one step that matters
    DIR/previous            the same of what was current before
    DIR/state.json          what was installed, and what turned out bad (`edgebert.install.state`)
    DIR/policy.json         whose signatures count, where that was said (`edgebert.install.policy`)
    DIR/attempts/           openings that have not ended well yet (`edgebert.install.attempts`)
    DIR/.lock               held by whoever changes any of it but `attempts/`

DIR may be a symbolic link of the user's. It is opened once; everything inside is reached from that descriptor, and a link in the
place of one of these files and folders is refused, so that nobody who can write there turns a write of ours elsewhere.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shlex
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgebert.errors import CannotWriteError, RefusedError, UnavailableError

BUNDLES = "bundles"
ATTEMPTS = "attempts"
LOCK = ".lock"
STATE = "state.json"
POLICY = "policy.json"
STAGING_PREFIX = ".staging-"

LinkName = Literal["current", "previous"]

_OWN = {BUNDLES, ATTEMPTS, LOCK, STATE, POLICY, "current", "previous"}
_FOREIGN_BUT_FINE = {"lost+found"}  # at the top of a file system of its own
_DIGEST = re.compile(r"[0-9a-f]{64}")
_LINK = re.compile(rf"{BUNDLES}/([0-9a-f]{{64}})")
_MOST_BYTES = (
    16 << 20
)  # of a file of ours at the top: two policies of the largest lists that `edgebert.signing` takes fit

# What the system says of a file of ours that is something else: a link, a folder, too large. Whatever else it says (EIO, EACCES, …) says
# nothing of the file.
NOT_A_FILE = frozenset({errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.EINVAL, errno.EFBIG})


@dataclass(frozen=True, slots=True)
class Folder:
    """An installation's folder, open.

    Attributes:
        path: as the user named it.
        descriptor: of the folder itself.
    """

    path: Path
    descriptor: int

    def link(self, name: LinkName) -> str | None:
        """Return the digest that a link points to, or None where there is none or it points elsewhere."""
        try:
            found = _LINK.fullmatch(os.readlink(name, dir_fd=self.descriptor))
        except OSError:
            return None
        return found[1] if found else None

    def bundle_path(self, digest: str) -> Path:
        """Return where a bundle lies."""
        return self.path / BUNDLES / digest

    def has_bundle(self, digest: str) -> bool:
        """Say whether there is a folder of this bundle; whether it is whole only reading it tells."""
        try:
            status = os.stat(f"{BUNDLES}/{digest}", dir_fd=self.descriptor, follow_symlinks=False)
        except OSError:
            return False
        return stat.S_ISDIR(status.st_mode)

    def read(self, name: str) -> bytes | None:
        """Return the content of a file at the top, or None where there is none.

        Raises:
            OSError: it cannot be read, is a link, or no plain file.
        """
        try:
            descriptor = os.open(name, os.O_RDONLY | _NO_LINK | os.O_NONBLOCK, dir_fd=self.descriptor)
        except FileNotFoundError:
            return None
        with os.fdopen(descriptor, "rb") as stream:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(errno.EINVAL, "no plain file")
            content = stream.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        return content

    def write(self, name: str, content: bytes) -> None:
        """Put a file at the top in one step; it is durable when this returns.

        Raises:
            OSError: it cannot be written, or is larger than `read` takes.
        """
        if len(content) > _MOST_BYTES:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        staging = f"{STAGING_PREFIX}{name}-{os.getpid()}"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(staging, dir_fd=self.descriptor)
        try:
            write_file(self.descriptor, staging, content)
            os.replace(staging, name, src_dir_fd=self.descriptor, dst_dir_fd=self.descriptor)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(staging, dir_fd=self.descriptor)
            raise
        os.fsync(self.descriptor)

    def remove(self, name: str) -> None:
        """Remove a file or link at the top, if it is there; durable when this returns."""
        try:
            os.unlink(name, dir_fd=self.descriptor)
        except FileNotFoundError:
            return
        os.fsync(self.descriptor)

    def set_link(self, name: LinkName, digest: str) -> None:
        """Point a link to a bundle in one step; it is durable when this returns."""
        staging = f"{STAGING_PREFIX}{name}-{os.getpid()}"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(staging, dir_fd=self.descriptor)
        try:
            os.symlink(f"{BUNDLES}/{digest}", staging, dir_fd=self.descriptor)
            os.replace(staging, name, src_dir_fd=self.descriptor, dst_dir_fd=self.descriptor)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(staging, dir_fd=self.descriptor)
            raise
        os.fsync(self.descriptor)

    @contextlib.contextmanager
    def inner(self, name: str) -> Iterator[int]:
        """Yield a descriptor of one of the inner folders.

        Raises:
            OSError: it is not there, or is a link.
        """
        descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY | _NO_LINK, dir_fd=self.descriptor)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def make_inner_folders(self) -> None:
        """Make `bundles/` and `attempts/` where they are missing, and refuse links and files in their place."""
        for name in (BUNDLES, ATTEMPTS):
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, dir_fd=self.descriptor)
                os.fsync(self.descriptor)
            try:
                with self.inner(name):
                    pass
            except OSError as error:
                if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                    raise
                raise RefusedError(
                    f"`{self.path / name}` is a link or a file ({error.strerror})",
                    expected="a folder: an installation keeps its bundles in itself",
                    hint=f"look who put it there, and remove it: rm {self.path / name}",
                ) from error

    def digests(self) -> list[str]:
        """Return the digests of all bundles that lie here, also of those that no link points to."""
        return [name for name in self._names_of_bundles() if _DIGEST.fullmatch(name)]

    def leftovers(self, *, installed_before: bool) -> tuple[list[str], list[str]]:
        """Return what killed runs left: names at the top, and in `bundles/` all but what the links point to.

        A name in `bundles/` that is neither a digest nor one of ours is nobody's business, and not returned. Nor is any bundle
        where something was installed and a link is missing or no link of ours: it was lost, and the bundle it pointed to was not.

        Args:
            installed_before: whether the state remembers any bundle.
        """
        top = [name for name in names_in(self.descriptor) if name.startswith(STAGING_PREFIX)]
        current, previous = self.link("current"), self.link("previous")
        lost = (previous is None and self.is_there("previous")) or (
            current is None and (installed_before or previous is not None or self.is_there("current"))
        )
        inside = [
            name
            for name in self._names_of_bundles()
            if name.startswith(STAGING_PREFIX)
            or (not lost and _DIGEST.fullmatch(name) and name not in (current, previous))
        ]
        return sorted(top), sorted(inside)

    def is_there(self, name: str) -> bool:
        """Say whether there is anything of this name at the top, a dangling link included."""
        try:
            os.stat(name, dir_fd=self.descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def _names_of_bundles(self) -> list[str]:
        try:
            with self.inner(BUNDLES) as bundles:
                return sorted(names_in(bundles))
        except FileNotFoundError:
            return []


_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_MOST_LINKS = 40  # Linux follows no more


def is_installation(path: Path) -> bool:
    """Say whether a path is the folder of an installation, also of one that was never completed."""
    is_folder = os.path.isdir(path / BUNDLES)  # noqa: PTH112  # Path's raises where a name is too long, or holds a NUL
    return is_folder and any(os.path.lexists(path / name) for name in ("current", STATE, LOCK))


def installation_of(path: Path) -> tuple[Path, LinkName] | None:
    """Return the installation that a path stands for, and which of its bundles; None where it stands for none.

    Its folder stands for `current`, `DIR/current` and `DIR/previous` for what they are called, links of the user's for what they lead to.
    """
    for _ in range(_MOST_LINKS):
        if path.name in ("current", "previous") and is_installation(path.parent):
            return path.parent, "current" if path.name == "current" else "previous"
        if is_installation(path):
            return path, "current"
        try:
            path = path.parent / path.readlink()
        except (OSError, ValueError):  # no link, or a NUL in the name
            return None
    return None


@contextlib.contextmanager
def open_folder(path: Path) -> Iterator[Folder]:
    """Open an installation's folder.

    Raises:
        OSError: it is not there, or is no folder.
        UnavailableError: on Windows, whose symbolic links need an administrator.
    """
    if sys.platform == "win32":
        raise UnavailableError(
            "installations are for Linux and macOS", expected="a bundle's folder", hint="use the bundle itself"
        )
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield Folder(path, descriptor)
    finally:
        with contextlib.suppress(OSError):  # it is closed, whatever it says, and what was done is done
            os.close(descriptor)


def check_is_ours(folder: Folder) -> None:
    """Refuse a folder that holds something else, so that a slip of the keyboard fills no folder of the user's.

    Raises:
        CannotWriteError: it is neither empty nor an installation.
    """
    strangers = [
        name
        for name in sorted(names_in(folder.descriptor))
        if name not in _OWN | _FOREIGN_BUT_FINE and not name.startswith(STAGING_PREFIX)
    ]
    if strangers and not is_installation(folder.path):
        raise CannotWriteError(
            f"`{folder.path}` holds `{strangers[0]}`, so it is no installation, and not empty",
            expected="a folder that only `edgebert install` fills",
            hint="choose another one with `--to`",
        )


def check_owner(folder: Folder) -> None:
    """Refuse root in the folder of somebody else, who could neither change nor remove what root writes there.

    Raises:
        CannotWriteError: it belongs to another user.
    """
    owner = os.fstat(folder.descriptor).st_uid
    if os.geteuid() != 0 or owner == 0:
        return
    try:
        import pwd  # not on Windows

        name = pwd.getpwuid(owner).pw_name
    except (ImportError, KeyError):
        name = f"#{owner}"
    raise CannotWriteError(
        f"`{folder.path}` belongs to `{name}`, and root is about to change it",
        expected="its owner, who could neither change nor remove what root writes there",
        hint=f"sudo -u {shlex.quote(name)} COMMAND; or, where root alone is to change it: "
        f"chown -R root {shlex.quote(str(folder.path))}",
    )


def check_links_work(folder: Folder) -> None:
    """Refuse a file system that cannot switch a link in one step, before anything large is written.

    Raises:
        CannotWriteError: symbolic links, or their replacement, do not work there.
    """
    if folder.link("current") is not None:
        return
    names = [f"{STAGING_PREFIX}probe-{number}-{os.getpid()}" for number in range(2)]
    try:
        for name in names:
            os.symlink(BUNDLES, name, dir_fd=folder.descriptor)
        os.replace(names[0], names[1], src_dir_fd=folder.descriptor, dst_dir_fd=folder.descriptor)
    except OSError as error:
        if error.errno in (errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EDQUOT):
            raise
        raise CannotWriteError(
            f"the file system of `{folder.path}` has no symbolic links ({error.strerror})",
            expected="one such as ext4, xfs, btrfs, f2fs or overlayfs; FAT and exFAT have none",
            hint="choose a folder on another file system with `--to`",
        ) from error
    finally:
        for name in names:
            with contextlib.suppress(OSError):
                os.unlink(name, dir_fd=folder.descriptor)


def names_in(descriptor: int) -> list[str]:
    """Return the names in an open folder."""
    with os.scandir(descriptor) as entries:
        return [entry.name for entry in entries]


def write_file(parent: int, name: str, content: bytes) -> None:
    """Write a new file below a folder's descriptor and sync it; its mode follows the umask."""
    descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK, 0o666, dir_fd=parent)
    with os.fdopen(descriptor, "wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(descriptor)


def remove_tree(parent: int, name: str) -> None:
    """Remove a file, link or folder with all that is in it; never follows a link, and does not mind if it is gone."""
    try:
        status = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if not stat.S_ISDIR(status.st_mode):
            os.unlink(name, dir_fd=parent)
            return
        descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY | _NO_LINK, dir_fd=parent)
    except FileNotFoundError:
        return
    try:
        for entry in names_in(descriptor):
            remove_tree(descriptor, entry)
    finally:
        os.close(descriptor)
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(name, dir_fd=parent)
