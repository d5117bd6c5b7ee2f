"""Whether this computer can measure what it is asked to, said before anything else is done."""

from __future__ import annotations

from collections.abc import Iterable

from edgebert.errors import UnavailableError
from edgebert.runtime.runner import check_device
from edgebert.target import resolve_target


def check_targets_are_here(targets: Iterable[str]) -> None:
    """Return only where this computer has the backend and the device of every target.

    Raises:
        UsageError: no such target.
        UnavailableError: it has not; the message names what is missing, and the two ways on.
    """
    for name in targets:
        target = resolve_target(name)
        try:
            check_device(target.backend, target.device)
        except UnavailableError as error:
            lacks = f" ({error.hint})" if error.hint and error.hint.startswith("pip ") else ""
            raise UnavailableError(
                f"`--target {name}` ({target.summary}) cannot run on this computer: {error.what}{lacks}",
                expected="a computer that has it, or a target of `edgebert targets` that this one can run",
                hint=f"measure on the device, over SSH: add `--host USER@HOST`; or run the same command on the device itself, "
                f"where `edgebert targets` lists `{name}`",
            ) from error
