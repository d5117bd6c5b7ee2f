"""From uint8 pixels to logits: the module that training evaluates, that is exported and that the eager runner runs.

>>> from edgebert.models.student import StudentConfig, StudentForImageClassification
>>> model = StudentForImageClassification(StudentConfig(image_size=8, hidden_size=32, num_attention_heads=2, num_labels=10))
>>> classifier = PixelClassifier(model, Preprocessing(height=8, width=8))
>>> classifier(torch.zeros(5, 8, 8, 3, dtype=torch.uint8)).shape
torch.Size([5, 10])
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

from edgebert.preprocess import Preprocessing


class PixelClassifier(nn.Module):
    """A classifier with its normalisation inside.

    Args:
        model: a Hugging Face image classifier; used as it is, not copied.
        preprocessing: the rule of its artefact; only mean, std and channel order are applied here.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, model: PreTrainedModel, preprocessing: Preprocessing) -> None:
        super().__init__()
        self.model = model
        self.channel_order = preprocessing.channel_order
        # Not in the state dict: they belong to the artefact's card, not to the weights.
        for name, values in (("mean", preprocessing.mean), ("std", preprocessing.std)):
            self.register_buffer(name, torch.tensor(values).reshape(1, 3, 1, 1), persistent=False)

    def normalized(self, image: torch.Tensor) -> torch.Tensor:
        """Return the network's input.

        Args:
            image: uint8 (batch, height, width, 3) RGB.

        Returns:
            float32 (batch, 3, height, width): (value / 255 - mean) / std, in the network's channel order.
        """
        values = image.permute(0, 3, 1, 2).to(torch.float32) / 255.0  # (batch, 3, height, width)
        if self.channel_order == "bgr":
            values = values.flip(1)
        return (values - self.mean) / self.std

    def forward(self, image: torch.Tensor, text_embedding: torch.Tensor | None = None) -> torch.Tensor:
        """Classify images.

        Args:
            image: uint8 (batch, height, width, 3) RGB, already of the size that the rule makes.
            text_embedding: (batch, width), of a fusion model only: what its `text_embedding` gave for the images' texts.

        Returns:
            float32 (batch, classes) logits.
        """
        texts = {} if text_embedding is None else {"text_embedding": text_embedding}
        logits: torch.Tensor = self.model(pixel_values=self.normalized(image), **texts).logits
        return logits.to(torch.float32)
