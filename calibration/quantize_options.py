"""What `edgebert quantize` can be asked for.

>>> QuantizeOptions(images=2)
Traceback (most recent call last):
...
edgebert.errors.UsageError: images `2`
expected: 16 to 100,000 calibration images
hint: leave it at 512
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from edgebert.calibration.confidence import check_abstaining
from edgebert.calibration.guard import GuardOptions
from edgebert.calibration.search import Effort
from edgebert.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeOptions:
    """How to quantise.

    Attributes:
        images: calibration images, 16 to 100,000. 32 and 128 images differ by at most 0.08 points of top-1 (PTQ4ViT), NVIDIA
            asks for 500 and more.
        effort: how much is tried (`edgebert.calibration.search`): `fast`, `standard` or `best`.
        max_drop: the accuracy guard: at most so many points of top-1 lost on validation images; None for no such promise.
        min_agreement: at least so many percent of them decided as FP32 decides; None for no such promise.
        min_int8_share: share of the multiplications below which the guard gives up, in (0, 1].
        sensitivity: a `.json` file to write what each layer costs by itself; its chart lies beside it as `.svg`.
        abstain_precision: abstain where the score is low, so that this share of the other answers is right, above 0.5 and below 1;
            None: never abstain. Chosen on validation images (docs/confidence.md).
        finetune: DATA whose training images the weights learn from to live with the rounding, usually those of the
            calibration; its validation images choose the epoch. None for no fine-tuning.
        teacher: for `finetune`: a checkpoint folder or a Hugging Face id to answer as. None: the FP32 graph.
        finetune_epochs: passes over the training images, 1 to 5.
        finetune_scales: `learned` with the weights, or `frozen` as they were measured.
        finetune_learning_rate: the highest; scales have ten times as much.
        class_map: a class name in the data -> the model's name for it.
        max_skipped: largest share of unreadable images in the data.
        force: replace existing files.
    """

    images: int = 512
    effort: Effort = "standard"
    max_drop: float | None = None
    min_agreement: float | None = None
    min_int8_share: float = 0.25
    sensitivity: str | None = None
    abstain_precision: float | None = None
    finetune: str | None = None
    teacher: str | None = None
    finetune_epochs: int = 2
    finetune_scales: Literal["learned", "frozen"] = "learned"
    finetune_learning_rate: float = 1e-5
    class_map: Mapping[str, str] = field(default_factory=dict)
    max_skipped: float = 0.01
    force: bool = False

    def __post_init__(self) -> None:
        if not 16 <= self.images <= 100_000:
            raise UsageError(
                f"images `{self.images}`", expected="16 to 100,000 calibration images", hint="leave it at 512"
            )
        if self.effort not in get_args(Effort):
            raise UsageError(f"effort `{self.effort}`", expected=", ".join(get_args(Effort)))
        if self.sensitivity is not None and not self.sensitivity.endswith(".json"):
            raise UsageError(f"sensitivity `{self.sensitivity}`", expected="the name of a `.json` file")
        _ = self.guard  # checks its own
        self._check_finetuning()
        check_abstaining("single-label", self.abstain_precision)

    def _check_finetuning(self) -> None:
        if self.teacher is not None and self.finetune is None:
            raise UsageError(
                f"teacher `{self.teacher}` without data to fine-tune on",
                expected="`--finetune DATA` beside it",
                hint=f"--finetune DATA --teacher {self.teacher}",
            )
        if not 1 <= self.finetune_epochs <= 5:
            raise UsageError(f"finetune_epochs `{self.finetune_epochs}`", expected="1 to 5", hint="leave it at 2")
        if self.finetune_scales not in ("learned", "frozen"):
            raise UsageError(f"finetune_scales `{self.finetune_scales}`", expected="learned, frozen")
        if not 1e-8 <= self.finetune_learning_rate <= 1e-2:
            raise UsageError(f"finetune_learning_rate `{self.finetune_learning_rate}`", expected="1e-8 to 0.01")

    @property
    def guard(self) -> GuardOptions:
        """The promise, where there is one."""
        return GuardOptions(
            max_drop=self.max_drop, min_agreement=self.min_agreement, min_int8_share=self.min_int8_share
        )
