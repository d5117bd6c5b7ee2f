"""Eager PyTorch: the reference that the compiled forms are held against, and how `bench` runs a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

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
)

if TYPE_CHECKING:
    from typing_extensions import Self

    from edgebert.models.pixels import PixelClassifier


class TorchRunner(NativeModel):
    """Runs a checkpoint folder in eager PyTorch on the CPU, in FP32.

    PyTorch keeps its number of threads for the whole process: it is set before each call that finds another one.
    """

    input_spec: InputSpec

    def __init__(self, model: PixelClassifier, spec: InputSpec, threads: int) -> None:
        super().__init__(model)
        self.input_spec = spec
        self._threads = threads

    @classmethod
    def devices(cls) -> tuple[str, ...]:
        """Return `("CPU",)`.

        Raises:
            UnavailableError: torch or transformers is not installed.
        """
        require("torch")
        require("transformers")
        return ("CPU",)

    @classmethod
    def open(cls, source: ModelSource, options: RunnerOptions) -> Self:
        """Load the checkpoint in `source.folder`; see `Runner.open`."""
        check_device("torch", options.device)
        from edgebert.models.checkpoint import load_checkpoint
        from edgebert.models.fusion import refuse_fusion
        from edgebert.models.pixels import PixelClassifier

        if source.folder is None:
            raise BadDataError("the eager PyTorch runner was given no checkpoint folder", expected="a checkpoint")
        checkpoint = load_checkpoint(source.folder)
        refuse_fusion(checkpoint)
        preprocessing, classes = checkpoint.card.preprocessing, len(checkpoint.card.class_names)
        found = InputSpec(height=preprocessing.height, width=preprocessing.width, classes=classes)
        if found != source.spec:
            raise BadDataError(f"checkpoint `{source.folder}` takes and gives {found}", expected=str(source.spec))
        model = PixelClassifier(checkpoint.model, preprocessing).eval()
        runner = cls(model, source.spec, options.threads or physical_cores())
        # (1, height, width, 3); also says whether the model really answers what it declares
        runner.infer(np.zeros((1, source.spec.height, source.spec.width, 3), np.uint8))
        return runner

    def infer(self, batch: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Run one batch; see `Runner.infer`."""
        import torch

        model: PixelClassifier = self._usable_model()
        images = np.ascontiguousarray(check_batch(batch, self.input_spec))
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        with torch.inference_mode():
            # A copy: PyTorch warns of arrays it may not write to.
            logits: NDArray[np.float32] = model(torch.from_numpy(images.copy())).numpy()
        return check_logits(logits.copy(), len(images), self.input_spec)

    def properties(self) -> Mapping[str, str]:
        """Return version, device, threads and precision."""
        self._usable_model()
        return {
            "backend": "torch",
            "version": installed_version("torch") or "unknown",
            "device": "CPU",
            "threads": str(self._threads),
            "precision": "f32",
        }
