"""The one seam: a Runner opens a compiled model and answers `infer(batch) -> logits`. It does not time itself.

A new backend is one file with a class of this shape, one line in `RUNNERS`, one extra in pyproject.toml and one
parameter of the conformance test.

>>> sorted(RUNNERS)
['onnxruntime', 'openvino', 'tensorrt', 'torch']
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from edgebert._cpu_quota import granted_cpus
from edgebert._out_of_memory import says_out_of_memory
from edgebert.errors import (
    BadDataError,
    BatchSizeError,
    EdgebertError,
    ForkedRuntimeError,
    ImageError,
    MemoryExhaustedError,
    UnavailableError,
    UsageError,
)

if TYPE_CHECKING:
    from typing_extensions import Self

# Backend -> "module:class", imported only when used.
RUNNERS = {
    "onnxruntime": "edgebert.runtime.ort_runner:OrtRunner",
    "openvino": "edgebert.runtime.openvino_runner:OpenVinoRunner",
    "tensorrt": "edgebert.runtime.tensorrt_runner:TensorRtRunner",
    "torch": "edgebert.runtime.torch_runner:TorchRunner",
}

MAX_BATCH = 1024
MAX_THREADS = 1024
_UINT8 = np.dtype(np.uint8)


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSpec:
    """What `Runner.infer` takes and gives: uint8 (batch, height, width, 3) RGB -> float32 (batch, classes)."""

    height: int
    width: int
    classes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerOptions:
    """How to open a model.

    Attributes:
        device: the backend's own name of the device, such as `CPU`.
        threads: intra-op threads; 0 means the physical cores this process may use.
        disabled_optimizers: graph optimisations that the compiled form must not meet (ONNX Runtime).
    """

    device: str = "CPU"
    threads: int = 0
    disabled_optimizers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.threads <= MAX_THREADS:
            raise UsageError(f"threads `{self.threads}`", expected=f"0 (the physical cores) to {MAX_THREADS}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """The bytes of a compiled model, already verified; nothing is read from disk after the hash was checked.

    Attributes:
        files: name -> content: `model.onnx`, `model.xml` and `model.bin`, or `engine.plan` and `engine.json`; empty for a checkpoint.
        folder: the checkpoint folder, for the eager PyTorch runner only.
        spec: what the model must take and give; a model that differs is refused.
    """

    spec: InputSpec
    files: Mapping[str, bytes] = field(default_factory=dict)
    folder: Path | None = None


class Runner(Protocol):
    """An opened model. `infer` may be called from several threads at once; a forked child gets an error.

    Attributes:
        preferred_batch: images in one call up to which a call takes less time than a call for each; `submit` makes its
            batches as large. 1 where a model runs its images one by one.
    """

    preferred_batch: int
    input_spec: InputSpec

    @classmethod
    def devices(cls) -> tuple[str, ...]:
        """Return the devices this backend has on this computer, by its own names, such as `("CPU",)`.

        Raises:
            UnavailableError: the backend is not installed.
        """
        ...

    @classmethod
    def open(cls, source: ModelSource, options: RunnerOptions) -> Self:
        """Load and compile.

        Raises:
            UnavailableError: the backend or the device is not here.
            BadDataError: the model cannot be loaded or run, or takes or gives something else than `source.spec`.
            MemoryExhaustedError: memory ran out, which says nothing of the model.
        """
        ...

    def infer(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Run one batch.

        Args:
            batch: uint8 (batch, height, width, 3) RGB of any strides; never written to, and not kept.

        Returns:
            float32 (batch, classes) logits, owning their memory.
        """
        ...

    def properties(self) -> Mapping[str, str]:
        """Return what the backend really uses: version, threads, precision, device."""
        ...

    def close(self) -> None:
        """Free the model; further calls of `infer` fail. Closing twice is allowed."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


def open_runner(backend: str, source: ModelSource, options: RunnerOptions | None = None) -> Runner:
    """Open a model with the backend of this name.

    Raises:
        UsageError: no such backend.
        UnavailableError: the backend or the device is not here.
        BadDataError: the model cannot be loaded or run, or does not fit `source.spec`.
        MemoryExhaustedError: memory ran out.
    """
    return _runner_class(backend).open(source, options or RunnerOptions())


def check_device(backend: str, device: str) -> None:
    """Return only if this computer can run models of `backend` on `device`; nothing is loaded or compiled.

    Raises:
        UsageError: no such backend.
        UnavailableError: the backend is not installed, or has no such device here.
    """
    available = _runner_class(backend).devices()
    # OpenVINO numbers several devices of a kind: `GPU` stands for the first of `GPU.0`, `GPU.1`.
    if not any(name == device or name.startswith(f"{device}.") for name in available):
        raise unavailable_device(backend, device, list(available))


def check_batch(batch: NDArray[np.uint8], spec: InputSpec) -> NDArray[np.uint8]:
    """Return the batch as it is, of any strides, or refuse what no graph of `spec` takes.

    Raises:
        ImageError: another dtype or shape.
        BatchSizeError: an empty batch, or more than 1,024 images.
    """
    if batch.dtype is _UINT8 and batch.shape == (1, spec.height, spec.width, 3):  # what nearly all are, asked first
        return batch
    if batch.dtype != np.uint8 or batch.ndim != 4 or batch.shape[1:] != (spec.height, spec.width, 3):
        raise ImageError(
            f"the batch has shape {batch.shape} and dtype {batch.dtype}",
            expected=f"uint8 (batch, {spec.height}, {spec.width}, 3), RGB",
        )
    if not 1 <= batch.shape[0] <= MAX_BATCH:
        raise BatchSizeError(f"the batch holds {batch.shape[0]} images", expected=f"1 to {MAX_BATCH}")
    return batch


def check_process(opened_in: int) -> None:
    """Raise `ForkedRuntimeError` in a forked child: its threads do not exist, so a call would hang (reliability.md, M8)."""
    if os.getpid() != opened_in:
        raise ForkedRuntimeError(
            f"this model was opened in process {opened_in} and used in its forked child {os.getpid()}",
            expected="one Classifier per process",
            hint="open it after the fork, or start processes with `spawn`",
        )


def physical_cores() -> int:
    """Return the number of physical cores this process may use: hyper-thread siblings count once, and a container's quota holds.

    A quota is rounded down: with one thread more than it grants all of them are stopped for the rest of each period.
    """
    cores, quota = _cores_of_affinity(), granted_cpus()
    return cores if quota is None else max(1, min(cores, int(quota)))


def _cores_of_affinity() -> int:
    try:
        allowed = os.sched_getaffinity(0)
    except AttributeError:  # not Linux
        return os.cpu_count() or 1
    cores = set()
    for cpu in allowed:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            cores.add(siblings.read_text().strip())
        except OSError:
            cores.add(str(cpu))
    return max(1, len(cores))


def check_logits(logits: NDArray[np.float32], images: int, spec: InputSpec) -> NDArray[np.float32]:
    """Return what a model answered, or refuse a shape or dtype that `spec` does not promise.

    Raises:
        BadDataError: anything but float32 (images, classes).
    """
    if logits.dtype != np.float32 or logits.shape != (images, spec.classes):
        raise BadDataError(
            f"the model answers with shape {logits.shape} and dtype {logits.dtype}",
            expected=f"float32 ({images}, {spec.classes}): one logit per class name",
        )
    return logits


def unloadable(backend: str, error: Exception) -> EdgebertError:
    """Return what an error of a backend means that came while a model was opened.

    Args:
        backend: how its vendor writes it.
        error: of whatever class the backend raises.
    """
    if isinstance(error, MemoryError) or says_out_of_memory(str(error)):
        return MemoryExhaustedError(
            f"memory ran out while {backend} loaded the model: {error}",
            expected="several times the size of the model",
            hint="free some memory and try again",
        )
    return BadDataError(f"{backend} cannot run the model: {error}")


def unavailable_device(backend: str, device: str, available: list[str]) -> UnavailableError:
    """Return the error for a device that this computer does not have."""
    return UnavailableError(
        f"{backend} has no device `{device}` on this computer",
        expected=", ".join(available) or "a driver for it",
        hint="edgebert doctor",
    )


def _runner_class(backend: str) -> type[Runner]:
    if backend not in RUNNERS:
        raise UsageError(f"no such backend: `{backend}`", expected=", ".join(RUNNERS), hint="edgebert targets")
    module_name, _, class_name = RUNNERS[backend].partition(":")
    return cast("type[Runner]", getattr(importlib.import_module(module_name), class_name))
