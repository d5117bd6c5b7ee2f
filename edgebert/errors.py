"""Every error edgebert raises on purpose, and the exit code each one gives the command line.

    EdgebertError                 1   the work failed
    ├── UsageError                2   the request cannot be meant as written
    ├── NotComparableError        5   a measurement is not valid
    ├── BadDataError              65  images, labels, a manifest or a graph are not what they must be
    ├── InputNotFoundError        66  a file, folder, data set or model is not there
    ├── UnavailableError          69  a device, backend or extra is not here
    ├── CannotWriteError          74  the output cannot be written
    ├── LockedError               75  somebody else is writing the same output, or measuring; try again
    ├── MemoryExhaustedError      75  memory ran out; try again with more of it, or with less to do
    └── RefusedError              77  refused for safety: hashes, pickles, remote code
        └── ForkedRuntimeError    77  a runtime was used in a forked child

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


class UsageError(EdgebertError):
    """The request cannot be meant as written."""

    exit_code = 2


class NotComparableError(EdgebertError):
    """A measurement is not valid, so that its numbers may not be compared."""

    exit_code = 5


class BadDataError(EdgebertError):
    """Images, labels, a manifest or a graph are not what they must be."""

    exit_code = 65


class InputNotFoundError(EdgebertError):
    """A file, folder, data set or model that was named is not there."""

    exit_code = 66


class UnavailableError(EdgebertError):
    """A device, a backend or an extra is not on this computer."""

    exit_code = 69


class CannotWriteError(EdgebertError):
    """The output exists, or cannot be written."""

    exit_code = 74


class LockedError(EdgebertError):
    """Another process writes the same output, or measures on this computer; trying again later can succeed."""

    exit_code = 75


class MemoryExhaustedError(EdgebertError):
    """Memory ran out, here or in a worker; trying again with more of it can succeed."""

    exit_code = 75


class RefusedError(EdgebertError):
    """Refused for safety: a hash that does not match, a pickle, remote code."""

    exit_code = 77


class ForkedRuntimeError(RefusedError):
    """A runtime opened in the parent was used in a forked child, where its threads do not exist."""


INTERRUPTED_EXIT_CODE = 130
