"""Trains and distils image classifiers."""

from __future__ import annotations

from edgebert.train.checkpoint import checkpoint_from_data, checkpoint_from_teacher
from edgebert.train.options import DistillOptions, TrainOptions
from edgebert.train.report import TrainingReport

__all__ = ["DistillOptions", "TrainOptions", "TrainingReport", "checkpoint_from_data", "checkpoint_from_teacher"]
