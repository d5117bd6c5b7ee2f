"""Every error edgebert raises on purpose, and the exit code each one gives the command line.

    EdgebertError                 1   the work failed
    ├── ClosedError               1   a Classifier or a model was used after `close`
    ├── NotFiniteError            1   a model answered with NaN or infinity
    ├── UsageError                2   the request cannot be meant as written
    ├── NotComparableError        5   a measurement is not valid
    ├── BadDataError              65  images, labels, a manifest or a graph are not what they must be
    │   ├── ImageError            65  one image is not of an accepted kind: format, dtype, shape
    │   ├── BatchSizeError        65  a batch is empty, or too large
    │   └── MalformedBundleError  65  it is no bundle, or its parts contradict each other
    ├── InputNotFoundError        66  a file, folder, data set or model is not there
    │   └── NoSuchBundleError     66  there is no bundle at that path
    ├── UnavailableError          69  a device, backend or extra is not here
    ├── CannotWriteError          74  the output cannot be written
    ├── UnreadableError           74  what is there cannot be read: a disk's error, no permission, no descriptor left
    │   └── UnreadableBundleError 74  the same of a bundle, which may be in order
    ├── LockedError               75  somebody else is writing the same output, or measuring; try again
    ├── LinkLostError             75  a device cannot be reached, or the link to it broke; try again
    ├── MemoryExhaustedError      75  memory ran out; try again with more of it, or with less to do
    ├── QueueFullError            75  more images wait for an answer than may; try again
    └── RefusedError              77  refused for safety: hashes, pickles, remote code
        ├── RefusedBundleError    77  a file was changed, a signature is missing, a canary is answered otherwise
        └── ForkedRuntimeError    77  a runtime was used in a forked child

Whatever is wrong with a bundle is a `BundleError` as well: `MalformedBundleError`, `NoSuchBundleError`, `RefusedBundleError`; so is
`UnreadableBundleError`, which says nothing against the bundle. Memory that runs out is `MemoryExhaustedError`, and no `BundleError`.

A message has three parts: what failed, with the value; what was expected or is available; and `hint:` with the command
that mends it.

>>> print(InputNotFoundError("no such folder: `widgets`", expected="a folder of images", hint="edgebert train digits"))
no such folder: `widgets`
expected: a folder of images
hint: edgebert train digits
"""

from __future__ import annotations

from typing import ClassVar


class EdgebertError(Exception):
    """Root of all errors that edgebert raises on purpose.

    Args:
        what: what failed, with the offending value in backticks.
        expected: what was expected or is available.
        hint: the command or change that mends it.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, expected: str | None = None, hint: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.expected = expected
        self.hint = hint

    def __str__(self) -> str:
        lines = [self.what]
        if self.expected:
            lines.append(f"expected: {self.expected}")
        if self.hint:
            lines.append(f"hint: {self.hint}")
        return "\n".join(lines)


class ClosedError(EdgebertError):
    """A Classifier or a model was used after `close`."""


class NotFiniteError(EdgebertError):
    """A model answered with NaN or infinity, so that no class can be told."""


class UsageError(EdgebertError):
    """The request cannot be meant as written."""

    exit_code = 2


class NotComparableError(EdgebertError):
    """A measurement is not valid, so that its numbers may not be compared."""

    exit_code = 5


class BadDataError(EdgebertError):
    """Images, labels, a manifest or a graph are not what they must be."""

    exit_code = 65


class ImageError(BadDataError):
    """One image is not of an accepted kind: its format, dtype or shape."""


class BatchSizeError(BadDataError):
    """A batch is empty, or larger than what is taken at once."""


class BundleError(EdgebertError):
    """Something is wrong with a bundle, or with reading it."""


class MalformedBundleError(BundleError, BadDataError):
    """It is no bundle, or its parts are malformed or contradict each other."""

    exit_code = BadDataError.exit_code


class InputNotFoundError(EdgebertError):
    """A file, folder, data set or model that was named is not there."""

    exit_code = 66


class NoSuchBundleError(BundleError, InputNotFoundError):
    """There is no bundle at that path."""

    exit_code = InputNotFoundError.exit_code


class UnavailableError(EdgebertError):
    """A device, a backend or an extra is not on this computer."""

    exit_code = 69


class CannotWriteError(EdgebertError):
    """The output exists, or cannot be written."""

    exit_code = 74


class UnreadableError(EdgebertError):
    """What is there cannot be read: an error of the disk, a permission, too many open files; nothing is known of its content."""

    exit_code = 74


class UnreadableBundleError(BundleError, UnreadableError):
    """A bundle is there, and the system does not let it be read: no fault of the bundle's."""

    exit_code = UnreadableError.exit_code


class LockedError(EdgebertError):
    """Another process writes the same output, or measures on this computer; trying again later can succeed."""

    exit_code = 75


class LinkLostError(EdgebertError):
    """A device could not be reached, or the link to it broke in the middle; trying again later can succeed."""

    exit_code = 75


class MemoryExhaustedError(EdgebertError):
    """Memory ran out, here or in a worker; trying again with more of it can succeed."""

    exit_code = 75


class QueueFullError(EdgebertError):
    """As many submitted images wait for an answer as may; trying again later can succeed."""

    exit_code = 75


class RefusedError(EdgebertError):
    """Refused for safety: a hash that does not match, a pickle, remote code."""

    exit_code = 77


class RefusedBundleError(BundleError, RefusedError):
    """A bundle's file was changed, its signature is missing or foreign, or it answers a canary otherwise."""

    exit_code = RefusedError.exit_code


class ForkedRuntimeError(RefusedError):
    """A runtime opened in the parent was used in a forked child, where its threads do not exist."""


INTERRUPTED_EXIT_CODE = 130
