"""What training images go through before the network sees them, by kornia, on the device.

Everything is drawn from torch's global generator, which the loop seeds anew for every step.
"""

from __future__ import annotations

import torch
from kornia import augmentation as kornia
from kornia.augmentation.auto import RandAugment
from torch import Tensor, nn
from torch.nn import functional

from edgebert.train.options import LoopOptions

# Two operations at strength 9 of 30, as DeiT and its successors train (compression.md, section 3: RandAug m9).
_RANDAUGMENT_OPERATIONS, _RANDAUGMENT_STRENGTH = 2, 9


def augmentation(options: LoopOptions, *, height: int, width: int) -> nn.Module:
    """Return the module that augments images, float32 (batch, 3, height, width) in [0, 1], same shape and range.

    Shift and rotation are one resampling, so that small images are blurred once; what they bring in from outside
    repeats the edge, as a black wedge would be a pattern of its own.
    """
    chosen, steps = options.augment, []
    if "randaugment" in chosen:
        steps.append(RandAugment(n=_RANDAUGMENT_OPERATIONS, m=_RANDAUGMENT_STRENGTH))
    if "crop" in chosen:
        scale = (options.crop_scale, 1.0)
        steps.append(kornia.RandomResizedCrop((height, width), scale=scale, cropping_mode="resample"))
    if "shift" in chosen or "rotate" in chosen:
        shift = (options.shift, options.shift) if "shift" in chosen else None
        degrees = options.rotation if "rotate" in chosen else 0.0
        steps.append(kornia.RandomAffine(degrees, translate=shift, padding_mode="border", p=1.0))
    if "flip" in chosen:
        steps.append(kornia.RandomHorizontalFlip(p=0.5))
    if "vertical-flip" in chosen:
        steps.append(kornia.RandomVerticalFlip(p=0.5))
    return nn.Sequential(*steps)


def float_views(images: Tensor) -> Tensor:
    """Turn uint8 (batch, height, width, 3) into float32 (batch, 3, height, width) in [0, 1]."""
    return images.permute(0, 3, 1, 2).float() / 255.0  # (batch, 3, height, width)


def network_views(views: Tensor, *, height: int, width: int) -> Tensor:
    """Turn views into what a network takes: uint8 (batch, height, width, 3).

    Views are rounded to the 256 levels of an image, so that training and everything after it use one normalisation,
    the one inside the classifier, and teacher and student see the same bits.

    Args:
        views: float32 (batch, 3, any height, any width) in [0, 1].
        height: of the network's input; views of another size are resized with anti-aliasing.
        width: of the network's input.
    """
    if views.shape[2:] != (height, width):
        views = functional.interpolate(views, (height, width), mode="bilinear", antialias=True)
    levels = torch.round(views * 255.0).clamp(0.0, 255.0).to(torch.uint8)
    return levels.permute(0, 2, 3, 1).contiguous()  # (batch, height, width, 3)


def mixed(views: Tensor, targets: Tensor, *, strength: float) -> tuple[Tensor, Tensor]:
    """Blend each image and its target with those of another one of the batch.

    Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization", equation 1, with a share for every image.

    Args:
        views: float (batch, 3, height, width).
        targets: float (batch, classes), rows sum to 1.
        strength: shares are drawn from Beta(strength, strength); 0 returns what came in.
    """
    if strength == 0.0:
        return views, targets
    concentration = torch.tensor(strength)
    share = torch.distributions.Beta(concentration, concentration).sample((len(views),)).to(views)
    partner = torch.randperm(len(views)).to(views.device)
    blended = share[:, None, None, None] * views + (1.0 - share[:, None, None, None]) * views[partner]
    return blended, share[:, None] * targets + (1.0 - share[:, None]) * targets[partner]
