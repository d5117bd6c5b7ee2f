"""The texts of a fusion teacher's images, as its network takes them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from edgebert.models.fusion import FusionForImageClassification
from edgebert.train.batches import ImageBatches
from edgebert.train.feed import ViewBatch


def text_embeddings(model: PreTrainedModel, images: ImageBatches, positions: NDArray[np.int64]) -> Tensor:
    """Return float (batch, width): what a fusion model makes of the texts of images."""
    assert isinstance(model, FusionForImageClassification)
    device = next(model.parameters()).device
    tokens = model.encode_texts([images.text_of(int(position)) for position in positions])
    embeddings: Tensor = model.text_embedding(**{name: tensor.to(device) for name, tensor in tokens.items()})
    return embeddings


def blended_embeddings(model: PreTrainedModel, batch: ViewBatch, images: ImageBatches) -> Tensor:
    """Return float (batch, width): the texts' embeddings, blended in the shares in which the batch's images are.

    A text cannot be blended, its embedding can (Verma et al. 2019, "Manifold Mixup", arXiv 1806.05236).
    """
    own = text_embeddings(model, images, batch.positions)
    if batch.partners is None or batch.shares is None:
        return own
    shares = batch.shares[:, None]
    return shares * own + (1.0 - shares) * text_embeddings(model, images, batch.partners)
