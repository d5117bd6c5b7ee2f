"""What our classifiers answer: logits, and the loss of labels where they were given."""

from __future__ import annotations

from typing import Final

import torch
from torch import nn
from transformers import PretrainedConfig
from transformers.modeling_outputs import ImageClassifierOutput

MULTI_LABEL: Final = "multi_label_classification"
"""The `problem_type` of a config whose images have any number of labels; Hugging Face's name for it."""


def classified(
    logits: torch.Tensor, labels: torch.Tensor | None, config: PretrainedConfig, *, return_dict: bool | None
) -> ImageClassifierOutput | tuple[torch.Tensor, ...]:
    """Return the answer in the form that Hugging Face gives it.

    Args:
        logits: (batch, classes).
        labels: (batch,) int64 class numbers; of a multi-label model (batch, classes) in [0, 1]. None: no loss.
        config: its `problem_type` says which of the two it is.
        return_dict: False returns a plain tuple.

    Returns:
        `logits`, and as `loss` the cross-entropy, of a multi-label model the binary cross-entropy averaged over classes.
    """
    loss = None
    if labels is not None and config.problem_type == MULTI_LABEL:
        loss = nn.functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))
    elif labels is not None:
        loss = nn.functional.cross_entropy(logits, labels)
    output = ImageClassifierOutput(loss=loss, logits=logits)
    return output.to_tuple() if return_dict is False else output
