"""The self-test of a bundle before it becomes current: opened and asked its canaries in a process of its own.

A backend that crashes, hangs or eats all memory takes that process down and not the one that installs. Where memory runs out
the kernel is told to end the test first, and not the application that may be running beside it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgebert._json import Fields, parse_json_object
from edgebert.errors import (
    BadDataError,
    EdgebertError,
    MalformedBundleError,
    MemoryExhaustedError,
    RefusedBundleError,
    UnavailableError,
    UnreadableBundleError,
)

_log = logging.getLogger("edgebert")

# The child sees the modules that this process sees, whatever its variables and its current folder say.
_CHILD = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from edgebert.install.selftest import main; sys.exit(main(sys.argv[2:]))"
)
_MOST_ANSWER_BYTES = 1 << 20
_GRACE_S = 5.0  # for a child to end itself
_ERRORS: dict[int, type[EdgebertError]] = {
    kind.exit_code: kind
    for kind in (
        MalformedBundleError,
        UnavailableError,
        UnreadableBundleError,
        MemoryExhaustedError,
        RefusedBundleError,
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfTest:
    """What the self-test found.

    Attributes:
        target: the form that fits this computer, or `portable`.
        backend: what ran it.
        canaries: how many were answered.
    """

    target: str
    backend: str
    canaries: int

    def to_text(self) -> str:
        """Return one sentence."""
        return f"`{self.target}` answers all {self.canaries} canaries in {self.backend}"


def run_self_test(bundle: Path, canaries: int, *, target: str | None, timeout_s: float) -> SelfTest:
    """Open a bundle in a child process, which verifies it and answers every canary.

    Args:
        bundle: its folder.
        canaries: how many it has.
        target: the form to open; None for the first that fits this computer.
        timeout_s: seconds after which the child is ended.

    Raises:
        BundleError: the bundle failed; also where the child crashed or took too long.
        UnavailableError: nothing in the bundle can run on this computer; that is not the bundle's fault.
        MemoryExhaustedError: the child was killed, most likely for want of memory.
    """
    if not sys.executable:
        raise UnavailableError(
            "no Python interpreter is known here, so no self-test can be run beside this process",
            hint="install with --self-test later: the first opening runs it",
        )
    paths = [str(Path(entry).absolute()) if entry else str(Path.cwd()) for entry in sys.path]
    arguments = [str(bundle.absolute()), str(timeout_s), *([] if target is None else [target])]
    command = [sys.executable, "-I", "-c", _CHILD, json.dumps(paths), *arguments]
    try:
        # The child ends itself at the timeout, also where this process was killed; a child that cannot is ended here.
        ran = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=timeout_s + _GRACE_S, cwd="/"
        )
    except subprocess.TimeoutExpired as error:
        raise _too_long(bundle, timeout_s) from error
    if ran.returncode == -signal.SIGALRM:
        raise _too_long(bundle, timeout_s)
    if ran.returncode < 0:
        raise _died(bundle, -ran.returncode, ran.stderr)
    return _answer(bundle, canaries, ran)


def main(arguments: Sequence[str]) -> int:
    """Open the bundle and tell how it went, as one JSON object on stdout; what the backend prints goes to stderr."""
    answer = os.dup(1)
    os.dup2(2, 1)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    bundle, timeout_s, target = arguments[0], float(arguments[1]), arguments[2] if len(arguments) > 2 else None
    signal.signal(
        signal.SIGALRM, signal.SIG_DFL
    )  # which ends a process in native code as well; a handler of ours would wait
    signal.setitimer(signal.ITIMER_REAL, timeout_s)
    warnings = _Warnings()
    _log.addHandler(warnings)
    try:
        from edgebert.runtime.classifier import Classifier

        with Classifier(bundle, target=target) as classifier:
            content: dict[str, object] = {"target": classifier.target, "backend": classifier.backend}
    except EdgebertError as error:
        content = {"exit_code": error.exit_code, "what": error.what, "expected": error.expected, "hint": error.hint}
    except MemoryError:
        content = {"exit_code": MemoryExhaustedError.exit_code, "what": "memory ran out in the self-test"}
    os.write(answer, json.dumps({**content, "warnings": warnings.texts}).encode())
    return 0


class _Warnings(logging.Handler):
    """Keeps what was warned of, for the process that installs to say."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def _answer(bundle: Path, canaries: int, ran: subprocess.CompletedProcess[bytes]) -> SelfTest:
    try:
        fields = Fields(
            parse_json_object(ran.stdout, what="the self-test's answer", max_bytes=_MOST_ANSWER_BYTES),
            what="the self-test's answer",
        )
        for text in fields.texts("warnings"):
            _log.warning("%s", text)
        if "exit_code" in fields.value:
            kind = _ERRORS.get(fields.integer("exit_code"), EdgebertError)
            raise kind(
                fields.text("what"), expected=fields.optional_text("expected"), hint=fields.optional_text("hint")
            )
        return SelfTest(target=fields.text("target"), backend=fields.text("backend"), canaries=canaries)
    except BadDataError as error:
        if isinstance(error, MalformedBundleError):
            raise
        raise EdgebertError(
            f"the self-test of `{bundle}` ended with code {ran.returncode} and no answer: {_last_line(ran.stderr)}",
            expected="one that says how it went",
            hint=f"edgebert verify {bundle} --debug",
        ) from error


def _died(bundle: Path, number: int, stderr: bytes) -> EdgebertError:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    if number == signal.SIGKILL:
        return MemoryExhaustedError(
            "the self-test was killed from outside (SIGKILL), most likely because memory ran out",
            expected="memory for the bundle that runs and the new one together",
            hint="stop the application while installing, or free memory",
        )
    if number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        return EdgebertError(f"the self-test was ended from outside ({name})", hint="run it again")
    last = _last_line(stderr)
    return RefusedBundleError(
        f"`{bundle}` is refused: its self-test died of {name}{f': {last}' if last else ''}",
        expected="a bundle that the backend here can load",
        hint="compile the graph on this computer, or for another target",
    )


def _too_long(bundle: Path, timeout_s: float) -> RefusedBundleError:
    return RefusedBundleError(
        f"`{bundle}` is refused: its self-test did not end within {timeout_s:g} s",
        expected="a bundle that opens, and answers its canaries",
        hint="--timeout SECONDS gives it more",
    )


def _last_line(stderr: bytes) -> str:
    lines = stderr.decode("utf-8", "replace").strip().splitlines()
    return lines[-1].strip()[:300] if lines else ""
