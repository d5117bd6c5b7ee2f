"""ONNX Runtime on the CPU."""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgebert.errors import BadDataError
from edgebert.extras import installed_version, require
from edgebert.runtime.lifetime import NativeModel
from edgebert.runtime.runner import (
    InputSpec,
    ModelSource,
    RunnerOptions,
    check_batch,
    check_device,
    check_logits,
    physical_cores,
    unloadable,
)

if TYPE_CHECKING:
    from typing_extensions import Self

_log = logging.getLogger("edgebert")

# The first release with the heap overflow of sub-byte buffers mended (reliability.md, section 9). Python 3.10 has none.
_SECURITY_FLOOR = "1.28.3"
_warned: set[str] = set()  # versions said to be below it, in this process


class OrtRunner(NativeModel):
    """Runs `model.onnx` in ONNX Runtime.

    One session is shared by all threads: its `run` is thread-safe (reliability.md, M7: 0 wrong of 10,113).
    """

    input_spec: InputSpec

    def __init__(self, session: Any, spec: InputSpec, threads: int, disabled_optimizers: tuple[str, ...]) -> None:
        super().__init__(session)
        self.input_spec = spec
        self._input, self._outputs = session.get_inputs()[0].name, [session.get_outputs()[0].name]
        self._spare: list[NDArray[np.uint8]] = []  # (1, height, width, 3) each, for images that are not C-contiguous
        self._threads = threads
        self._disabled_optimizers = disabled_optimizers

    @classmethod
    def devices(cls) -> tuple[str, ...]:
        """Return `("CPU",)`.

        Raises:
            UnavailableError: onnxruntime is not installed.
        """
        require("onnxruntime")
        return ("CPU",)

    @classmethod
    def open(cls, source: ModelSource, options: RunnerOptions) -> Self:
        """Load `model.onnx` from memory; see `Runner.open`."""
        check_device("onnxruntime", options.device)
        import onnxruntime

        # `require` has switched it off already; this is for a program that imported ONNX Runtime before us.
        onnxruntime.disable_telemetry_events()
        _warn_below_security_floor()
        threads = options.threads or physical_cores()
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads
        settings.inter_op_num_threads = 1
        settings.log_severity_level = 3  # errors only; what matters is raised
        try:
            session = onnxruntime.InferenceSession(
                source.files["model.onnx"],
                settings,
                providers=["CPUExecutionProvider"],
                disabled_optimizers=list(options.disabled_optimizers) or None,
            )
            _check_interface(session, source.spec)
            runner = cls(session, source.spec, threads, options.disabled_optimizers)
            # (1, height, width, 3); also says whether the model really answers what it declares
            runner.infer(np.zeros((1, source.spec.height, source.spec.width, 3), np.uint8))
        except _errors_of_onnxruntime() as error:
            raise unloadable("ONNX Runtime", error) from error
        return runner

    def infer(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Run one batch; see `Runner.infer`."""
        session = self._usable_model()
        images = check_batch(batch, self.input_spec)
        if images.flags.c_contiguous:  # goes to ONNX Runtime as it is, which reads it and lets it go
            return self._answered(session, images)
        if len(images) > 1:
            return self._answered(session, np.ascontiguousarray(images))
        try:
            contiguous = self._spare.pop()  # a list's pop and append are atomic
        except IndexError:
            contiguous = np.empty(images.shape, np.uint8)
        contiguous[:] = images
        logits = self._answered(session, contiguous)
        self._spare.append(contiguous)
        return logits

    def properties(self) -> Mapping[str, str]:
        """Return version, device, threads and what was switched off."""
        session = self._usable_model()
        found = {
            "backend": "onnxruntime",
            "version": installed_version("onnxruntime") or "unknown",
            "device": "CPU",
            "providers": ", ".join(session.get_providers()),
            "threads": str(session.get_session_options().intra_op_num_threads),
        }
        if self._disabled_optimizers:
            found["disabled_optimizers"] = ", ".join(self._disabled_optimizers)
        return found

    def _answered(self, session: Any, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        (logits,) = session.run(self._outputs, {self._input: images})
        return check_logits(logits, len(images), self.input_spec)


def _check_interface(session: Any, spec: InputSpec) -> None:
    """Refuse a graph that does not take uint8 (batch, height, width, 3) and give float32 (batch, classes)."""
    inputs = [(entry.type, entry.shape) for entry in session.get_inputs()]
    outputs = [(entry.type, entry.shape) for entry in session.get_outputs()]
    fits = (
        len(inputs) == len(outputs) == 1
        and inputs[0][0] == "tensor(uint8)"
        and len(inputs[0][1]) == 4
        and not isinstance(inputs[0][1][0], int)
        and inputs[0][1][1:] == [spec.height, spec.width, 3]
        and outputs[0][0] == "tensor(float)"
        and len(outputs[0][1]) == 2
        and outputs[0][1][1] in (spec.classes, None)
    )
    if not fits:
        raise BadDataError(
            f"the graph takes {inputs} and gives {outputs}",
            expected=f"uint8 (batch, {spec.height}, {spec.width}, 3) and float32 (batch, {spec.classes})",
        )


def _errors_of_onnxruntime() -> tuple[type[Exception], ...]:
    """Return every exception ONNX Runtime raises on a bad model or without memory: they have no common root but Exception."""
    state = importlib.import_module("onnxruntime.capi.onnxruntime_pybind11_state")
    own = [value for value in vars(state).values() if isinstance(value, type) and issubclass(value, Exception)]
    return (*own, RuntimeError, ValueError, MemoryError)


def _warn_below_security_floor() -> None:
    version = installed_version("onnxruntime")
    if version is None or version in _warned or _numbers(version) >= _numbers(_SECURITY_FLOOR):
        return
    _warned.add(version)
    _log.warning(
        "onnxruntime %s is older than %s, which mends a heap overflow: load only bundles you trust, "
        "or use Python 3.11 or newer",
        version,
        _SECURITY_FLOOR,
    )


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)[:3]]
