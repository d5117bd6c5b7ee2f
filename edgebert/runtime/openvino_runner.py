"""OpenVINO on Intel CPUs, GPUs and NPUs.

What differs from OpenVINO's defaults, and why:

* one infer request per call at a time, taken from a pool: `CompiledModel.__call__` shares one request between threads
  and answered 4,792 of 5,469 calls wrongly (reliability.md, M7);
* input and output memory of our own: OpenVINO otherwise keeps, and later overwrites, the caller's arrays (M7);
* the precision hint is explicit: on CPUs with AMX and on GPUs the default computes FP32 models in 16 bits;
* no pinning to cores: two processes would be pinned to the same ones.

`edgebert.extras.require` switches OpenVINO's telemetry off before the import.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
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
    physical_cores,
    unloadable,
)

if TYPE_CHECKING:
    from typing_extensions import Self


class OpenVinoRunner(NativeModel):
    """Runs `model.xml` with `model.bin`, or `model.onnx`, in OpenVINO.

    The model is compiled for a batch of one image, statically: this is what is measured and what the canaries check, so
    a larger batch is the same request run once for each image, and every image gets the same answer alone or in company.
    Measured on two busy cores, 32 images: up to 1.4 times as long as one batch of 32 for students of 1 ms and more, 4.6 times
    (2.9 against 0.6 ms) for the smallest.
    """

    preferred_batch: int = 1
    input_spec: InputSpec

    def __init__(self, compiled: Any, spec: InputSpec) -> None:
        # Requests that no call uses; a list's append and pop are atomic.
        self._idle: list[_Request] = []
        super().__init__(compiled, self._idle)
        self.input_spec = spec

    @classmethod
    def devices(cls) -> tuple[str, ...]:
        """Return what OpenVINO finds here, such as `("CPU", "GPU")`.

        Raises:
            UnavailableError: openvino is not installed.
        """
        require("openvino")
        return tuple(_core().available_devices)

    @classmethod
    def open(cls, source: ModelSource, options: RunnerOptions) -> Self:
        """Read the model from memory and compile it; see `Runner.open`."""
        check_device("openvino", options.device)
        core = _core()
        try:
            model = _read_model(core, source.files)
            _check_interface(model, source.spec)
            model.reshape([1, source.spec.height, source.spec.width, 3])
            compiled = core.compile_model(model, options.device, _settings(options))
            runner = cls(compiled, source.spec)
            # (1, height, width, 3); also says whether the model really answers what it declares
            runner.infer(np.zeros((1, source.spec.height, source.spec.width, 3), np.uint8))
        except (RuntimeError, MemoryError) as error:  # the former is what OpenVINO raises for everything
            raise unloadable("OpenVINO", error) from error
        return runner

    def infer(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Run one batch; see `Runner.infer`."""
        compiled = self._usable_model()
        images = check_batch(batch, self.input_spec)
        try:
            request = self._idle.pop()
        except IndexError:
            request = self._new_request(compiled)
        if len(images) == 1:
            logits = _answered(request, images)
        else:
            logits = np.concatenate([_answered(request, images[at : at + 1]) for at in range(len(images))])
        if self._native:  # not closed meanwhile
            self._idle.append(request)
        return logits

    def close(self) -> None:
        """Free the model; see `Runner.close`."""
        super().close()
        if os.getpid() == self._opened_in:
            self._idle.clear()

    def properties(self) -> Mapping[str, str]:
        """Return version, device, and the threads, streams and precision that OpenVINO chose."""
        compiled = self._usable_model()
        found = {
            "backend": "openvino",
            "version": installed_version("openvino") or "unknown",
            "device": ", ".join(compiled.get_property("EXECUTION_DEVICES")),
        }
        for name, key in (
            ("threads", "INFERENCE_NUM_THREADS"),
            ("streams", "NUM_STREAMS"),
            ("precision", "INFERENCE_PRECISION_HINT"),
            ("pinning", "ENABLE_CPU_PINNING"),
        ):
            with suppress(
                RuntimeError
            ):  # not each kind of device has each; the list of those it has leaks, see `_supported`
                found[name] = _readable(compiled.get_property(key))
        return found

    def _new_request(self, compiled: Any) -> _Request:
        import openvino

        request, spec = compiled.create_infer_request(), self.input_spec
        image = openvino.Tensor(openvino.Type.u8, [1, spec.height, spec.width, 3])
        logits = openvino.Tensor(openvino.Type.f32, [1, spec.classes])
        request.set_input_tensor(0, image)
        try:
            request.set_output_tensor(0, logits)
        except RuntimeError as error:  # what OpenVINO raises for everything
            shape = list(compiled.output(0).shape)
            raise BadDataError(
                f"the model answers with shape {shape}",
                expected=f"float32 (1, {spec.classes}): one logit per class name",
            ) from error
        return _Request(native=request, image=image.data, logits=logits.data, tensors=(image, logits))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """An infer request with views of its own memory, made once: making them takes as long as a small model.

    `image` is uint8 (1, height, width, 3), `logits` float32 (1, classes); `tensors` own what they show.
    """

    native: Any
    image: NDArray[np.uint8]
    logits: NDArray[np.float32]
    tensors: tuple[Any, Any]


def _answered(request: _Request, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return float32 (1, classes), owning its memory, of uint8 (1, height, width, 3) of any strides."""
    request.image[...] = image  # the one copy on the way of an image
    request.native.infer(share_outputs=True)  # else it copies the logits too, into arrays that nobody reads
    logits: NDArray[np.float32] = request.logits.copy()
    return logits


# Process -> what holds its Core.
_cores: dict[int, NativeModel] = {}


def _core() -> Any:
    """Return the one Core of this process, which lives as long as the process.

    With a Core for each model, two models that were closed in the order in which they were opened left the main thread with an
    alternate signal stack that had been freed (each Core's CPU plugin sets one and restores what it found): the next signal, a
    Ctrl-C, ended the process with SIGSEGV. Seen with OpenVINO 2026.4 on a CPU with AVX-512; tests/runtime/test_processes.py has it.
    """
    process = os.getpid()
    if process not in _cores:
        import openvino

        _cores.setdefault(process, NativeModel(openvino.Core()))  # of two threads the first one's
    return _cores[process]._usable_model()


def _read_model(core: Any, files: Mapping[str, bytes]) -> Any:
    if "model.xml" not in files:
        return core.read_model(files["model.onnx"])
    # Intermediate representation never holds a document type: it would only serve to name other files (M4).
    if b"<!DOCTYPE" in files["model.xml"] or b"<!ENTITY" in files["model.xml"]:
        raise BadDataError("`model.xml` holds a document type declaration", expected="plain OpenVINO IR")
    return core.read_model(files["model.xml"], files["model.bin"])


def _settings(options: RunnerOptions) -> dict[str, object]:
    """Return the settings of this kind of device; GPU and NPU plugins refuse those of the CPU."""
    wanted = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": options.threads or physical_cores(),
        "ENABLE_CPU_PINNING": False,
    }
    supported = _supported(options.device)
    return {name: value for name, value in wanted.items() if name in supported}


@functools.cache
def _supported(device: str) -> frozenset[str]:
    """Return the names of a device's settings; asked once, as every question costs 2.3 KiB that OpenVINO 2026.4.1 never frees.

    Measured by asking 1,000 times: the names of the list that its Python binding returns stay. At 1,000 swaps that was 5 % of the process.
    """
    return frozenset(_core().get_property(device, "SUPPORTED_PROPERTIES"))


def _check_interface(model: Any, spec: InputSpec) -> None:
    """Refuse a model that does not take uint8 (batch, height, width, 3) and give float32 (batch, classes)."""
    import openvino

    inputs = [(port.element_type, port.partial_shape) for port in model.inputs]
    outputs = [(port.element_type, port.partial_shape) for port in model.outputs]
    fits = (
        len(inputs) == len(outputs) == 1
        and inputs[0][0] == openvino.Type.u8
        and inputs[0][1] == openvino.PartialShape([-1, spec.height, spec.width, 3])
        and outputs[0][0] == openvino.Type.f32
        and outputs[0][1].compatible(openvino.PartialShape([-1, spec.classes]))
    )
    if not fits:
        raise BadDataError(
            f"the model takes {_described(inputs)} and gives {_described(outputs)}",
            expected=f"uint8 (batch, {spec.height}, {spec.width}, 3) and float32 (batch, {spec.classes})",
        )


def _described(ports: list[tuple[Any, Any]]) -> str:
    return ", ".join(f"{kind.get_type_name()} {shape}" for kind, shape in ports)


def _readable(value: object) -> str:
    """Return a property's value as text: OpenVINO gives types and enumerations of its own."""
    return str(getattr(value, "get_type_name", lambda: value)())
