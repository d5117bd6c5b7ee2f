"""One opened bundle while it serves: verified, self-tested, and freed when the last call that uses it has ended.

Every call writes itself into `running` before it looks whether the bundle has retired, and whoever retires it looks into
`running` after saying so: one of the two always sees the other, without a lock on the way of a call.
"""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import logging
import os
import sys
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, get_args

from edgebert.bundle import Bundle, read_bundle
from edgebert.errors import (
    BadDataError,
    BundleError,
    ClosedError,
    EdgebertError,
    MalformedBundleError,
    RefusedBundleError,
    UsageError,
)
from edgebert.preprocess import Decoding
from edgebert.runtime.canaries import check_canaries
from edgebert.runtime.choice import Choice, choices_for, open_first, say_of_weights
from edgebert.runtime.pipeline import Pipeline
from edgebert.runtime.runner import unloadable

if TYPE_CHECKING:
    from edgebert.signing import SignaturePolicy, Signers

_log = logging.getLogger("edgebert")

_NOTABLE = 0.2  # share of the tolerance that another processor uses but the same one never does
_GLANCE_S = 0.05  # how often a wait for calls looks whether only calls of its own thread are left

_EXIT_WAIT_S = 10.0  # for calls that run when the interpreter ends; a hung one must not keep it for ever

_ending = threading.Event()
_open: weakref.WeakSet[OpenedBundle] = weakref.WeakSet()


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenOptions:
    """How every bundle of a Classifier is opened, the first one and those that are swapped in.

    Attributes:
        target: use the form of this target and no other; None takes the first that fits.
        threads: for each answer; 0 means the physical cores this process may use.
        signers: who must have signed it; None asks for no signature.
        decoding: how JPEG files are decoded (`edgebert.preprocess.load_image`); canaries always exactly.
    """

    target: str | None = None
    threads: int = 0
    signers: SignaturePolicy | None = None
    decoding: Decoding = "exact"

    def __post_init__(self) -> None:
        if self.decoding not in get_args(Decoding):
            raise UsageError(f"decoding `{self.decoding}`", expected=" or ".join(get_args(Decoding)))


class OpenedBundle:
    """A bundle that serves.

    Args:
        bundle: verified.
        choice: what of it runs.
        pipeline: of the opened model; belongs to this object from now on.

    Attributes:
        running: a call -> the thread that must go on for the call to end.
        retired: no further call may begin.
    """

    __slots__ = (
        "__weakref__",
        "_freed",
        "_opened_in",
        "backend",
        "class_names",
        "digest",
        "input_spec",
        "path",
        "pipeline",
        "retired",
        "running",
        "target",
    )

    def __init__(self, bundle: Bundle, choice: Choice, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.path = bundle.path
        self.digest = bundle.digest
        self.class_names = bundle.manifest.card.class_names
        self.input_spec = pipeline.runner.input_spec
        self.target = choice.target
        self.backend = choice.backend
        self.running: dict[object, int] = {}
        self.retired = False
        self._freed = threading.Event()
        self._opened_in = os.getpid()
        _open.add(self)

    def leave(self, call: object) -> None:
        """End a call; it need not have begun."""
        self.running.pop(call, None)
        if self.retired:
            self.settle()

    def retire(self) -> None:
        """Let no further call begin; the model is freed when those that run have ended."""
        self.retired = True
        self.settle()

    def settle(self) -> None:
        """Free the model if it has retired and no call runs."""
        if self.retired and not self.running and os.getpid() == self._opened_in:
            self.pipeline.runner.close()
            self._freed.set()

    def wait_until_freed(self) -> None:
        """Wait for the running calls to end, unless this thread is in the middle of one, which would wait for itself."""
        while not self._freed.is_set() and not self.is_called_here():
            self._freed.wait(_GLANCE_S)

    def is_called_here(self) -> bool:
        """Whether this thread is in the middle of a call: a signal handler, or the callback of a future."""
        return threading.get_ident() in self.running.copy().values()


def closed() -> ClosedError:
    """Return the error of a Classifier that was closed."""
    return ClosedError("this classifier was closed", hint='open it again: `Classifier("NAME.edgebert")`')


def open_bundle(path: Path, options: OpenOptions) -> OpenedBundle:
    """Read, verify, choose, load and self-test: the one way from a path to a bundle that serves.

    Args:
        path: a bundle, a `.zip` of one, or an installation, of which the current bundle is opened, or the one before it where
            that fails. `DIR/current` is the installation as well, and `DIR/previous` its previous bundle: signed as the
            installation demands, though nothing else is opened in its place.
        options: how.

    Raises:
        BundleError: there is no bundle, or it is malformed, or changed, or not signed as it must be, or does not answer its
            canaries.
        UnavailableError: nothing in it can run on this computer.
        UnreadableError, MemoryExhaustedError: it cannot be read, which says nothing against it.
        UsageError: no such target.
    """
    if not _may_be_installed(path):
        return _opened(_verified(path, options.signers), options)
    from edgebert.install import installation_of, open_installed, open_previous

    found = installation_of(path)
    if found is None:
        return _opened(_verified(path, options.signers), options)
    signers = None if options.signers is None else options.signers.read()
    open_it = open_installed if found[1] == "current" else open_previous
    try:
        return open_it(found[0], lambda one: _opened(_installed(one, signers), options))
    except _NotAsAskedError as unmet:
        error = unmet.error
    raise error


class _NotAsAskedError(Exception):
    """A bundle of an installation is not signed as the caller demands, who is not everybody: no reason to change anything."""

    def __init__(self, error: EdgebertError) -> None:
        super().__init__(error)
        self.error = error


def _may_be_installed(path: Path) -> bool:
    """Say whether a path can stand for an installation: the rest is only imported where it is needed."""
    return (
        path.name in ("current", "previous")
        or os.path.islink(path)  # noqa: PTH114  # Path's raises where a name is too long, or holds a NUL
        or any(os.path.lexists(path / name) for name in ("current", "bundles"))  # a bundle holds neither
    )


def _installed(path: Path, signers: Signers | None) -> Bundle:
    """Read a bundle of an installation, which checked its own demands: it must still be the one its folder is named after.

    Raises:
        _NotAsAskedError: it is, and not signed by `signers`.
    """

    def check(sums: bytes, signature: bytes | None) -> None:
        digest = hashlib.sha256(sums).hexdigest()
        if digest != path.name:
            raise RefusedBundleError(
                f"`{path}` holds the bundle {digest[:12]}", expected="the one that its folder is named after"
            )
        if signers is None:
            return
        from edgebert.signing import check_signers

        try:
            check_signers(sums, signature, signers)
        except EdgebertError as error:
            raise _NotAsAskedError(error) from error

    return read_bundle(path, check_sums=check)


def _verified(path: Path, policy: SignaturePolicy | None) -> Bundle:
    """Read a bundle, its signature first where one is demanded."""
    if policy is None:
        return read_bundle(path)
    from edgebert.signing import check_signature

    def check(sums: bytes, signature: bytes | None) -> None:
        check_signature(sums, signature, policy)

    return read_bundle(path, check_sums=check)


def _opened(bundle: Bundle, options: OpenOptions) -> OpenedBundle:
    """Open a verified bundle; whatever fails, no model stays open."""
    choices = choices_for(bundle, options.target, options.threads)
    try:
        choice, runner = open_first(bundle, choices)
        try:
            say_of_weights(bundle, choice)
            pipeline = Pipeline(runner, bundle.manifest.card, bundle.digest, decoding=options.decoding)
            used = check_canaries(bundle, pipeline, choice.engine)
        except BaseException:
            runner.close()
            raise
    except BundleError:
        raise
    except BadDataError as error:  # a form whose hash is right does not load, or does not fit the class names
        raise _of_bundle(bundle, error) from error
    except EdgebertError:
        raise
    # Where a backend's exceptions meet ours: they have no class in common, so that a form that fails in another way than its runner
    # knows is told from the rest by nothing but that. Unnamed it would keep an installation from going back.
    except Exception as error:
        raise _of_bundle(bundle, unloadable("the backend", error)) from error
    if used > _NOTABLE:
        _log.warning(
            "`%s` answers its canaries rightly but not exactly as where it was made (%.0f %% of the tolerance): its "
            "accuracy here may differ from what was measured; `edgebert bench` tells",
            bundle.path,
            100 * used,
        )
    return OpenedBundle(bundle, choice, pipeline)


def _of_bundle(bundle: Bundle, error: EdgebertError) -> EdgebertError:
    """Return the error of a form as one of its bundle; memory that ran out is no fault of it."""
    if not isinstance(error, BadDataError):
        return error
    return MalformedBundleError(
        f"`{bundle.path}`: {error.what}", expected=error.expected, hint=error.hint or "compile the graph again"
    )


def return_freed_memory() -> None:
    """Give what a freed model leaves in the allocator back to the system, where the C library can.

    Several threads build and use models, and glibc keeps an arena for each: over a thousand swaps the pieces that stay in them
    add up.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def refuse_at_exit() -> None:
    """Let no call begin while the interpreter ends: a daemon thread is stopped here, another one is told.

    A thread that stands in native code when the interpreter stops it would abort the process (pybind11's frames cannot be
    unwound); one that waits in Python is left waiting, silently, as daemon threads are.

    Raises:
        ClosedError: the interpreter is ending.
    """
    if not _ending.is_set():
        return
    if threading.current_thread().daemon:
        threading.Event().wait()
    raise ClosedError("the interpreter is ending, which closes every classifier", hint="close it yourself, earlier")


def begin_exit() -> None:
    """Say that the interpreter is ending; calls that run may end."""
    _ending.set()
    for opened in tuple(_open):
        opened.retired = True


def _end_calls() -> None:
    """Let running calls end before the interpreter stops their threads."""
    begin_exit()
    here, until = threading.get_ident(), monotonic() + _EXIT_WAIT_S
    for opened in tuple(_open):
        while any(thread != here for thread in opened.running.copy().values()) and monotonic() < until:
            threading.Event().wait(0.001)


def _retire_in_child() -> None:
    """Let calls in a forked child find a bundle that has retired, so that they look further and are told why."""
    for opened in tuple(_open):
        opened.retired = True
    _open.clear()


atexit.register(_end_calls)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_retire_in_child)
