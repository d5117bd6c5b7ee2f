"""Where a graph is compiled and asked: this computer, or a device that does it for us (`edgebert.remote.compile`)."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgebert.bench.device_lock import COMPARE_WAIT_SECONDS, device_lock
from edgebert.bench.environment.computer import hardware_name
from edgebert.bench.rounds import TIMED_IMAGES, Times, answers_of, timed_rounds
from edgebert.errors import UnavailableError
from edgebert.export.forms import HERE as BUILDER_HERE
from edgebert.export.forms import Builder, CompiledForm, machine_of
from edgebert.fingerprint import computer_facts, machine
from edgebert.runtime import instructions
from edgebert.runtime.classifier import Classifier
from edgebert.runtime.instructions import Int8Instructions
from edgebert.runtime.runner import InputSpec, ModelSource, RunnerOptions, check_device, open_runner
from edgebert.target import Target, check_module

_log = logging.getLogger("edgebert")

Rows = NDArray[np.float32]  # (images, classes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """Forms that were asked the same and timed in turn.

    Attributes:
        rows: of each form, float32 (images, classes): its logits of all images.
        times: by form, round and block: int64 (queries,) nanoseconds.
        hardware: what they ran on.
        threads: of the last form's backend, as it says itself.
    """

    rows: tuple[Rows, ...] = field(repr=False)
    times: Times = field(repr=False)
    hardware: str
    threads: str


class Place(Protocol):
    """What `compile` and `size` ask of the computer that the forms are for.

    Attributes:
        max_image_bytes: of the preprocessed images that one question may be asked of, together.
    """

    max_image_bytes: int

    @property
    def builder(self) -> Builder:
        """What builds forms there."""
        ...

    def check(self, target: Target) -> None:
        """Return only where a target can be compiled for and run there.

        Raises:
            UnavailableError: it cannot.
        """
        ...

    def has(self, backend: str) -> None:
        """Return only where a backend runs on the CPU there.

        Raises:
            UnavailableError: it does not.
        """
        ...

    def int8(self, backend: str) -> Int8Instructions:
        """Return what a backend multiplies int8 with there."""
        ...

    def answers(
        self,
        backend: str,
        device: str,
        files: Mapping[str, bytes],
        disabled_optimizers: tuple[str, ...],
        spec: InputSpec,
        tensors: NDArray[np.uint8],
    ) -> Rows:
        """Return float32 (images, classes): what a model answers there, one image at a time and on one thread."""
        ...

    def compared(
        self, forms: Sequence[CompiledForm], spec: InputSpec, images: NDArray[np.uint8], *, max_seconds: float
    ) -> Compared:
        """Ask forms of all images there, and time them in interleaved blocks; see `edgebert.bench.rounds`.

        Args:
            forms: for one target.
            spec: what they take and give.
            images: uint8 (images, height, width, 3).
            max_seconds: timed, at most; the answers take what they take.

        Raises:
            LockedError: another measurement runs there, and does not end in half an hour.
        """
        ...

    def opens(self, folder: Path, target: str) -> bool:
        """Open one form of a bundle there, as a user would; False where it cannot run there.

        Raises:
            RefusedError: it answers a canary otherwise.
        """
        ...


class _Here:
    """This computer."""

    builder: Builder = BUILDER_HERE
    max_image_bytes = 1 << 40

    def check(self, target: Target) -> None:
        check_device(target.backend, target.device)
        if target.form == "engine":
            check_module(target, computer_facts(target.backend, with_gpu=True).gpu.module, "this computer")
        if machine_of(target) != machine():
            raise UnavailableError(
                f"`{target.name}` needs an {machine_of(target)} processor, and this computer has {machine()}",
                expected="a target of this computer, such as `cpu`",
                hint="edgebert targets",
            )

    def has(self, backend: str) -> None:
        check_device(backend, "CPU")

    def int8(self, backend: str) -> Int8Instructions:
        return instructions.int8_instructions(backend)

    def answers(
        self,
        backend: str,
        device: str,
        files: Mapping[str, bytes],
        disabled_optimizers: tuple[str, ...],
        spec: InputSpec,
        tensors: NDArray[np.uint8],
    ) -> Rows:
        options = RunnerOptions(device=device, threads=1, disabled_optimizers=disabled_optimizers)
        with open_runner(backend, ModelSource(spec=spec, files=files), options) as runner:
            return np.concatenate([runner.infer(tensor[np.newaxis]) for tensor in tensors])

    def compared(
        self, forms: Sequence[CompiledForm], spec: InputSpec, images: NDArray[np.uint8], *, max_seconds: float
    ) -> Compared:
        with device_lock(wait_s=COMPARE_WAIT_SECONDS), ExitStack() as stack:
            runners = []
            for form in forms:
                options = RunnerOptions(device=form.device, disabled_optimizers=form.disabled_optimizers)
                runners.append(open_runner(form.backend, ModelSource(spec=spec, files=form.files), options))
                stack.callback(runners[-1].close)
            rows = tuple(answers_of(runner, images) for runner in runners)
            infers = [runner.infer for runner in runners]
            times = timed_rounds(infers, images[:TIMED_IMAGES], max_seconds=max_seconds)
            threads = runners[-1].properties().get("threads", "unknown")
        return Compared(rows=rows, times=times, hardware=hardware_name(), threads=threads)

    def opens(self, folder: Path, target: str) -> bool:
        try:
            Classifier(folder, target=target).close()
        except UnavailableError as error:
            _log.info("the form for `%s` is kept unverified: %s", target, error.what)
            return False
        return True


HERE: Place = _Here()
