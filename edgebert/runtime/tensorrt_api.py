"""The one place that imports `tensorrt`: which versions and boards are taken, its logger, and what differs between 10 and 11.

Names and the integers of enumerations change between TensorRT 10 and 11, so no integer is ever written down: what may be missing
is asked for with `getattr` or `hasattr` where it is used. In all of edgebert the module object is called `trt`, and its classes are
named `tensorrt.X` in annotations, so that `tests/tensorrt` can hold every use against the bindings of each version.

>>> check_version("10.3.0", l4t="36.4.3")
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import re
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from edgebert.errors import UnavailableError, UsageError
from edgebert.extras import install_command
from edgebert.fingerprint import GpuFacts
from edgebert.runtime.tensorrt_errors import SUPPORTED, error_from_texts

if TYPE_CHECKING:
    import tensorrt  # type: ignore[import-not-found, unused-ignore]  # the bindings have no types; tests/tensorrt makes some

Typing = Literal["strong", "weak"]

MINIMUM_L4T = (36, 4)  # JetPack 6.1, the first with TensorRT 10.3
TWO_WAYS = "add `--host USER@HOST` to do it on the board from here, or run the same command on the board itself"

_OLDEST = (10, 3)
_OLDEST_11_OF_JETSON = (11, 4, 1)  # 11.0 to 11.4.0 do not support JetPack (tensorrt_jetson.md, fact 3)
_NEWEST_MAJOR = 11
_OLD_BOARDS = {"5.3": "Nano or TX1", "6.2": "TX2", "7.2": "Xavier"}
_OLD_JETPACKS = ((32, "JetPack 4"), (35, "JetPack 5"), (36, "JetPack 6.0"))  # up to this release of L4T
_KEPT_TEXTS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    """One message of TensorRT's.

    Attributes:
        severity: name of the severity: `INTERNAL_ERROR`, `ERROR`, `WARNING`, `INFO` or `VERBOSE`.
        text: the message.
    """

    severity: str
    text: str

    @property
    def is_error(self) -> bool:
        """Whether it tells of a failure."""
        return self.severity in ("INTERNAL_ERROR", "ERROR")


@dataclass(slots=True)
class Log:
    """The newest messages of TensorRT's; it may write from several threads."""

    lines: deque[LogLine] = field(default_factory=lambda: deque(maxlen=_KEPT_TEXTS))

    def add(self, severity: str, text: str) -> None:
        """Keep a message, the chatter of `VERBOSE` left out."""
        if severity != "VERBOSE":
            self.lines.append(LogLine(severity=severity, text=text))

    def errors(self) -> list[str]:
        """Return the texts of errors, oldest first; of warnings where there is none."""
        lines = list(self.lines)
        errors = [line.text for line in lines if line.is_error]
        return errors or [line.text for line in lines if line.severity == "WARNING"]


def load_tensorrt(*, facts: GpuFacts | None = None) -> ModuleType:
    """Import TensorRT and return its module.

    Args:
        facts: of this computer's GPU, where they are known: a board that is too old is refused by name.

    Raises:
        UnavailableError: it is not installed, of a version that is not supported, or on a board that is not; the message
            names what is missing and the two ways on.
    """
    if facts is not None:
        check_board(facts)
    try:
        trt = importlib.import_module("tensorrt")
    except ModuleNotFoundError as error:
        raise UnavailableError(
            f"TensorRT is not on this computer (`{error}`)",
            expected=f"a Jetson with JetPack 6.1 or newer: {SUPPORTED}",
            hint=f"{TWO_WAYS} ({install_command('tensorrt')})",
        ) from error
    except ImportError as error:  # the bindings without their libraries
        raise error_from_texts([str(error)], doing="TensorRT cannot be imported", hint=TWO_WAYS) from error
    check_version(str(trt.__version__), l4t=None if facts is None else facts.l4t)
    if not hasattr(getattr(trt, "NetworkDefinitionCreationFlag", None), "STRONGLY_TYPED"):
        # Going on would be wrong, not only poorer: in 8.x the same bit meant something else.
        raise _unsupported(str(trt.__version__), "it knows no strongly typed networks")
    return trt


def check_version(version: str, *, l4t: str | None) -> None:
    """Return only if this version of edgebert was held against this version of TensorRT.

    Args:
        version: as `tensorrt.__version__` says.
        l4t: release of NVIDIA's Linux for Jetson, None elsewhere.

    Raises:
        UnavailableError: below 10.3; 12 and newer; 11.0 to 11.4.0 on a Jetson.
    """
    numbers = _numbers(version)
    if numbers < _OLDEST:
        raise _unsupported(version, "it is too old")
    if numbers[0] > _NEWEST_MAJOR:
        raise _unsupported(version, "this version of edgebert was never held against it")
    if numbers[0] == _NEWEST_MAJOR and l4t is not None and numbers[:3] < _OLDEST_11_OF_JETSON:
        raise _unsupported(version, "TensorRT 11 supports JetPack from 11.4.1 on")


def check_board(facts: GpuFacts) -> None:
    """Return only if a computer is none of the Jetsons that are too old; other computers pass.

    Raises:
        UnavailableError: an L4T before 36.4.0, or a GPU of a Xavier, TX2 or Nano.
    """
    expected = "JetPack 6.1 (L4T 36.4.0) with TensorRT 10.3, or newer"
    if facts.compute_capability in _OLD_BOARDS:
        board = _OLD_BOARDS[facts.compute_capability]
        raise UnavailableError(
            f"this is a Jetson {board} (compute capability {facts.compute_capability}), which is not supported",
            expected=f"a Jetson Orin (8.7) or Thor (11.0) with {expected}",
            hint="the portable graph runs here in ONNX Runtime: `--target cpu`",
        )
    refusal = l4t_refusal(facts.l4t)
    if refusal:
        raise UnavailableError(refusal, expected=expected, hint="flash JetPack 6.1 or newer with NVIDIA's SDK Manager")


def l4t_refusal(l4t: str | None) -> str:
    """Return why a release of NVIDIA's Linux for Jetson is refused; empty where it is not, and where it is not known.

    >>> l4t_refusal("35.3.1")
    'L4T 35.3.1 (JetPack 5) is older than JetPack 6.1 (L4T 36.4.0), which brings TensorRT 10.3'
    """
    if l4t is None or not l4t[:1].isdecimal() or _numbers(l4t) >= MINIMUM_L4T:
        return ""
    release = _numbers(l4t)[0]
    jetpack = next(name for newest, name in _OLD_JETPACKS if release <= newest)
    return f"L4T {l4t} ({jetpack}) is older than JetPack 6.1 (L4T 36.4.0), which brings TensorRT 10.3"


def is_strong_only(trt: ModuleType) -> bool:
    """Say whether this TensorRT builds strongly typed networks only, as 11 does."""
    return not hasattr(trt.BuilderFlag, "INT8")


def network_flags(trt: ModuleType, typing: Typing) -> int:
    """Return the flags of `Builder.create_network`.

    Raises:
        UsageError: a weakly typed network, which this TensorRT does not build.
    """
    if typing == "weak" and is_strong_only(trt):
        raise UsageError(
            f"`--typing weak`, and TensorRT {trt.__version__} builds strongly typed networks only",
            expected="strong or auto",
            hint="--typing strong",
        )
    if typing == "weak" or is_strong_only(trt):  # 11 is always strongly typed, and its bit 0 meant another thing in 10
        return 0
    return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


@functools.cache
def logger_of(trt: ModuleType) -> Any:
    """Return the logger of this process: TensorRT keeps the first it is given, and warns of another.

    Its `collected` is the `Log` that messages go to.
    """

    class CollectingLogger(trt.ILogger):  # type: ignore[misc, name-defined, unused-ignore]  # its base is not known before
        """Keeps what TensorRT says; nothing of it goes to a terminal by itself."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.collected = Log()

        def log(self, severity: tensorrt.ILogger.Severity, msg: str) -> None:
            self.collected.add(severity.name, msg)

    return CollectingLogger()


_recording = threading.Lock()


@contextlib.contextmanager
def recorded(logger: Any) -> Iterator[Log]:
    """Yield a log that holds what TensorRT says from here to the end; one at a time, since it cannot tell callers apart."""
    with _recording:
        before, logger.collected = logger.collected, Log()
        try:
            yield logger.collected
        finally:
            logger.collected = before


def new_builder(trt: ModuleType, logger: Any) -> tensorrt.Builder:
    """Return a builder.

    Raises:
        UnavailableError: there is no driver or no GPU.
    """
    try:
        return trt.Builder(logger)
    except TypeError as error:  # how the bindings show a null pointer
        raise error_from_texts([str(error)], doing="TensorRT's builder cannot start", hint=TWO_WAYS) from error


def new_runtime(trt: ModuleType, logger: Any) -> tensorrt.Runtime:
    """Return a runtime; its `engine_host_code_allowed` stays off, whatever an engine asks for.

    Raises:
        UnavailableError: there is no driver or no GPU.
    """
    try:
        return trt.Runtime(logger)
    except TypeError as error:  # how the bindings show a null pointer
        raise error_from_texts([str(error)], doing="TensorRT's runtime cannot start", hint=TWO_WAYS) from error


def _unsupported(version: str, why: str) -> UnavailableError:
    return UnavailableError(
        f"TensorRT `{version}` is not supported: {why}",
        expected=SUPPORTED,
        hint="use the one that JetPack 6.1 or newer brings: sudo apt-get install python3-libnvinfer",
    )


def _numbers(version: str) -> tuple[int, ...]:
    """Return the leading numbers: `10.13.3.9` -> (10, 13, 3, 9)."""
    found = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(int(part) for part in found.group().split(".")) if found else (0,)
