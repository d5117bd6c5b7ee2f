"""What every runner's life has in common: use after close, use after fork, and the end of a forked child.

A native model owns threads. In a forked child they do not exist, so a call would wait for them for ever, and so would the
destructor that runs when the child ends (reliability.md, M8: neither ONNX Runtime nor OpenVINO ended within 8 s).
Hence two measures: every call checks its process, and a child never destroys what it inherited.
"""

from __future__ import annotations

import ctypes
import os
import sys
import weakref
from types import TracebackType
from typing import TYPE_CHECKING, Any

from edgebert.errors import ClosedError
from edgebert.runtime.runner import check_process

if TYPE_CHECKING:
    from typing_extensions import Self

_open_models: weakref.WeakSet[NativeModel] = weakref.WeakSet()


class NativeModel:
    """Base of the runners: remembers its process, and whether it was closed.

    A subclass lists in `_native` what must not be destroyed in a forked child, the model itself first.

    Attributes:
        preferred_batch: images in one call above which none gets its answer sooner; see `Runner.preferred_batch`.
    """

    preferred_batch: int = 8

    def __init__(self, *native: object) -> None:
        self._opened_in = os.getpid()
        self._native = list(native)
        _open_models.add(self)

    # Any: the backends' own classes have no types of their own.
    def _usable_model(self) -> Any:
        """Return the first of `_native`, or raise: in a forked child `ForkedRuntimeError`, after `close` `ClosedError`."""
        check_process(self._opened_in)
        try:
            return self._native[0]
        except IndexError:
            raise ClosedError("this model was closed", hint="open the artefact again") from None

    def close(self) -> None:
        """Free the model; further calls of `infer` fail. Closing twice is allowed.

        A call that still runs in another thread ends normally: it holds what it needs.
        """
        if os.getpid() == self._opened_in:
            self._native.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _keep_inherited_models() -> None:
    """Give every inherited native object one reference that nobody ever drops, so that no destructor runs here."""
    increment = ctypes.pythonapi.Py_IncRef
    for model in tuple(_open_models):
        for kept in (model, model._native, *model._native):
            increment(ctypes.py_object(kept))


if hasattr(os, "register_at_fork") and sys.implementation.name == "cpython":
    os.register_at_fork(after_in_child=_keep_inherited_models)
