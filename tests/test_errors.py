"""The error tree: exit codes and the three parts of a message."""

from __future__ import annotations

import pytest

from edgebert import errors
from edgebert.errors import BadDataError, EdgebertError, ForkedRuntimeError, RefusedError


@pytest.mark.parametrize(
    ("name", "exit_code"),
    [
        ("EdgebertError", 1),
        ("ClosedError", 1),
        ("NotFiniteError", 1),
        ("UsageError", 2),
        ("NotComparableError", 5),
        ("BadDataError", 65),
        ("ImageError", 65),
        ("BatchSizeError", 65),
        ("MalformedBundleError", 65),
        ("InputNotFoundError", 66),
        ("NoSuchBundleError", 66),
        ("UnavailableError", 69),
        ("CannotWriteError", 74),
        ("UnreadableError", 74),
        ("UnreadableBundleError", 74),
        ("LockedError", 75),
        ("LinkLostError", 75),
        ("MemoryExhaustedError", 75),
        ("QueueFullError", 75),
        ("RefusedError", 77),
        ("RefusedBundleError", 77),
        ("ForkedRuntimeError", 77),
    ],
)
def test_errors_have_the_exit_codes_of_the_command_line(name: str, exit_code: int) -> None:
    error = getattr(errors, name)
    assert issubclass(error, EdgebertError)
    assert error.exit_code == exit_code
    assert name in (errors.__doc__ or "")


def test_errors_has_no_further_error() -> None:
    found = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert len(found) == 23  # those above, and BundleError, which has no code of its own
    assert issubclass(ForkedRuntimeError, RefusedError)


def test_message_has_what_expected_and_hint() -> None:
    error = BadDataError("`a` is wrong", expected="`b`", hint="edgebert doctor")
    assert str(error) == "`a` is wrong\nexpected: `b`\nhint: edgebert doctor"
    assert str(BadDataError("`a` is wrong")) == "`a` is wrong"
    assert error.args == ("`a` is wrong",)
