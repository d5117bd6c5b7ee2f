"""Starting a student from its teacher's own weights, where the blocks are of one type."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace

import numpy as np
import torch

from edgebert.data import Dataset
from edgebert.errors import UsageError
from edgebert.models.checkpoint import Checkpoint
from edgebert.models.inherit import can_inherit, inherit_weights
from edgebert.models.student import StudentForImageClassification
from edgebert.preprocess import load_image
from edgebert.train.options import DistillOptions
from edgebert.train.start import Start

_log = logging.getLogger("edgebert")

_IMAGES = 128  # that say which of the teacher's channels matter; the mean of an activation settles long before that


def inherited(start: Start, teacher: Checkpoint, dataset: Dataset, options: DistillOptions) -> Start:
    """Return the start with the teacher's weights where `options.init` asks for them and they fit.

    Raises:
        UsageError: `init` is `teacher`, and they do not fit; the message says why.
    """
    if options.init == "anew" or not start.untrained:
        if options.init == "teacher":
            raise UsageError(
                f"init `teacher` for the checkpoint `{options.student}`",
                expected="a preset or a shape, whose weights are not trained yet",
            )
        return start
    reason = (
        can_inherit(teacher.model, start.model)
        if isinstance(start.model, StudentForImageClassification)
        else f"the student is a `{start.name}`, and only the student's own blocks are filled"
    )
    if reason:
        if options.init == "teacher":
            raise UsageError(f"init `teacher`: {reason}", expected="a ViT-family teacher", hint="--init auto")
        _log.info("the student starts anew: %s", reason)
        return start
    assert isinstance(start.model, StudentForImageClassification)
    chosen = dataset.train[:_IMAGES]  # in the order of their hashes: a fair draw, and the same on every computer
    pixels = torch.from_numpy(np.stack([load_image(example.load(), teacher.card.preprocessing) for example in chosen]))
    model = copy.deepcopy(start.model)
    report = inherit_weights(model, teacher, pixels)
    _log.info("%s", report.to_text())
    return replace(start, model=model)
