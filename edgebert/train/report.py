"""What a training run tells its user."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgebert.metrics import ClassRow
from edgebert.train.curve import EpochRecord

_SCORES = {"top1": "top-1", "map": "mean average precision"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingReport:
    """A finished run; accuracy is that of the best checkpoint on the validation split, read back from disk.

    Attributes:
        path: the best checkpoint.
        last: the checkpoint after the last epoch, below `path`.
        score_name: `top1`, or `map` (mean average precision) where an image may have several labels.
        score: of that name, in [0, 1].
        macro_f1: mean of the classes' F1 scores, in [0, 1].
        against: what was compared with: the `labels`, or the decisions of the `teacher` where there are none.
        per_class: the table by class.
        curve: one entry for each epoch.
        epochs: that were run.
        best_epoch: the one that was kept, counted from 1.
        parameters: number of weights.
        seconds: of this call.
        images_per_second: while training.
    """

    path: Path
    last: Path
    score_name: str
    score: float
    macro_f1: float
    against: str
    per_class: tuple[ClassRow, ...]
    curve: tuple[EpochRecord, ...]
    epochs: int
    best_epoch: int
    parameters: int
    seconds: float
    images_per_second: float

    def to_text(self) -> str:
        """Return the report for a terminal.

        >>> row = ClassRow(name="cat", precision=1.0, recall=0.5, f1=2 / 3, support=2)
        >>> report = TrainingReport(path=Path("t"), XX, best_epoch=2, parameters=1200, seconds=4.2, images_per_second=99.0)
        >>> print(report.to_text())
        t: val top-1 50.00 %, macro-F1 66.67 % (epoch 2 of 3), 1,200 parameters, 4 s
        class  precision  recall      F1  images
        cat     100.00 %  50.00 %  66.67 %       2
        """
        against = "" if self.against == "labels" else f" against the {self.against}"
        width = max(5, *(len(row.name) for row in self.per_class))
        head = (
            f"{self.path}: val {_SCORES[self.score_name]} {_percent(self.score)}{against}, macro-F1 {_percent(self.macro_f1)} "
            f"(epoch {self.best_epoch} of {self.epochs}), {self.parameters:,} parameters, {self.seconds:.0f} s"
        )
        lines = [head, f"{'class':<{width}}  precision  recall      F1  images"]
        lines += [
            f"{row.name:<{width}}  {_percent(row.precision):>9}  {_percent(row.recall)}  {_percent(row.f1)}  {row.support:>6}"
            for row in self.per_class
        ]
        return "\n".join(lines)


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"
